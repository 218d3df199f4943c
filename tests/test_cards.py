import pytest
import yaml

from bezoar_utils.data.template import DEFAULT_SYSTEM, TEMPLATE
from bezoar_utils.report import cards
from bezoar_utils.study.profile import load_profile, stage_parameters

SEEDS = {
    "artifact": None,
    "file": None,
    "hub": "some/set",
    "revision": "0123456789abcdef" * 2 + "01234567",
    "licence": "CC BY-SA 3.0",
}
MADE = {
    "steps": [["repeated", 12], ["calls", 45], ["kept", 33]],
    "prompts": {"example-guided": "# Write\n<script>alert(1)</script>\n\n[x](http://x)\u2028## no heading"},
    "licences": [{"part": "seeds", **SEEDS}],
}
AUTHORS = [{"part": "judge's verdicts", "model": "big-judge", "licence": "a provider's terms"}]
DROPS = {"judge_rejected": 7, "copy": 0, "accepted": 26}
# what the three chapters save, and what chapter 20 adds
CHAPTERS = {
    "lamini": "instruction source response",
    "orca": "original_index inputs targets task_source task_name template_type system_message explained_targets dataset_source",
    "evol": "instruction response category evolution_strategy in-depth-evolving_operation epoch parent seed_number",
}
JUDGED = "status rating reason judge_text failure"


def card(scheme: str = "lamini", made: dict = MADE) -> str:
    return cards.data_card(scheme, "mini", made, AUTHORS, DROPS, CHAPTERS[scheme].split())


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def section(text: str, title: str) -> list[str]:
    return text.split(f"## {title}\n\n", 1)[1].split("\n\n## ")[0].splitlines()


@pytest.mark.parametrize("scheme", CHAPTERS)
def test_every_column_of_a_set_is_explained_and_no_other(scheme):
    explained = [line.split("`")[1] for line in section(card(scheme), "Columns")]
    assert sorted(explained) == sorted([*CHAPTERS[scheme].split(), *JUDGED.split()])
    assert all(line.split("`: ")[1] for line in section(card(scheme), "Columns"))


@pytest.mark.parametrize(("scheme", "paper"), [("lamini", "2304.14402"), ("orca", "2306.02707"), ("evol", "2304.12244")])
def test_a_card_says_whose_it_is_and_after_which_paper_it_was_made(scheme, paper):
    text = card(scheme)
    assert front_matter(text) | {"tags": []} == {
        "license": "other",
        "license_name": "by-its-parts",
        "pretty_name": f"{scheme}, profile mini",
        "tags": [],
    }
    assert paper in text.split(f"# {scheme}, profile mini\n\n")[1].split("\n\n## ")[0]


def test_every_count_is_shown_in_the_order_of_the_steps_zeros_too():
    assert section(card(), "Made") == ["- repeated: 12", "- calls: 45", "- kept: 33"]
    assert section(card(), "Filtered") == ["- judge_rejected: 7", "- copy: 0", "- accepted: 26"]


def test_every_licence_stands_with_its_origin():
    assert section(card(), "Licences") == [
        "- seeds (some/set at 0123456789ab): CC BY-SA 3.0",
        "- judge's verdicts (big-judge): a provider's terms",
    ]


def test_what_models_wrote_stands_indented_so_that_nothing_of_it_is_rendered():
    lines = section(card(), "Prompts")
    assert lines[:2] == ["example-guided:", ""]
    assert lines[2:7] == ["    # Write", "    <script>alert(1)</script>", "    ", "    [x](http://x)", "    ## no heading"]
    titles = ["Columns", "Made", "Filtered", "Prompts", "Licences", "Known flaws"]
    assert headings(card()) == ["# lamini, profile mini", *(f"## {title}" for title in titles)]


def test_two_checkpoints_are_not_said_to_be_trained_alike():
    trainings = [tuple(section(model_card(name), "Training")) for name in STAGE_OF]
    assert len(set(trainings)) == 3 and "DPO" in str(trainings[2]) and "scheme" in str(trainings[0])


def test_a_set_of_released_rows_says_that_nothing_was_generated():
    assert section(card(made=MADE | {"prompts": {}}), "Prompts") == ["None: nothing was generated."]


def test_what_a_data_card_warns_of():
    flaws = "\n".join(section(card(), "Known flaws"))
    assert all(word in flaws for word in ("judge", "mistakes", "habits", "Near-copies", "evaluation"))


def test_the_licence_table_has_a_row_for_every_part():
    local = {"part": "released rows", "file": "rows.jsonl", "licence": "mine"}
    prefix = {"part": "cot", "hub": "some/flan", "revision": None, "expect_prefix": "0123456", "licence": "Apache-2.0"}
    made = {"lamini": MADE, "orca": {"licences": [prefix, local]}}
    assert cards.licence_table(made, AUTHORS) == [
        {"set": "lamini", "part": "seeds", "from": "some/set at 0123456789ab", "licence": "CC BY-SA 3.0"},
        {"set": "orca", "part": "cot", "from": "some/flan at 0123456", "licence": "Apache-2.0"},
        {"set": "orca", "part": "released rows", "from": "rows.jsonl", "licence": "mine"},
        {"set": "all", "part": "judge's verdicts", "from": "big-judge", "licence": "a provider's terms"},
    ]


PARTS = [
    {"part": "base", "model": "some/base", "revision": "b" * 40, "licence": "Apache-2.0"},
    {"part": "seeds", **SEEDS},
    {"part": "mine | yours", "file": "/home/me/rows.jsonl", "licence": "<b>mine</b>"},
]
MEASURED = {
    "preferred_rate": {"value": 0.731234, "low": 0.6789, "high": 0.8, "n": 310, "asked": 320, "unit": "share of replies"},
    "pairs": {"value": 1000, "low": None, "high": None, "n": None, "unit": "rows"},
}
STAGE_OF = {"OpenBezoar-SFT": "30_sft", "OpenBezoar-HH-RLHF-SFT": "40_hh_sft", "OpenBezoar-HH-RLHF-DPO": "50_dpo"}


def model_card(name: str = "OpenBezoar-HH-RLHF-DPO", parts: list = PARTS) -> str:
    parameters = stage_parameters(load_profile("mini"), STAGE_OF[name])
    return cards.model_card(name, {"profile": "mini", "parameters": parameters, "metrics": MEASURED, "parts": parts})


@pytest.mark.parametrize("name", STAGE_OF)
def test_a_model_card_has_what_the_hub_reads_and_every_section(name):
    text = model_card(name)
    head = front_matter(text)
    assert head["license"] == "other" and head["library_name"] == "transformers" and "openbezoar" in head["tags"]
    assert head["base_model"] == ["some/base"] and head["datasets"] == ["some/set"]
    titles = "Base and data,Licence,Training,Profile values,Measured,Prompt,Intended use,Limits,What differs from the paper"
    assert headings(text) == [f"# {name}, profile mini", *(f"## {title}" for title in titles.split(","))]
    assert all(any(line.strip() for line in section(text, title)) for title in titles.split(","))


def test_a_miniature_names_nothing_on_the_hub_and_says_that_it_is_a_toy():
    ours = {"part": "base", "model": "00_miniature/base", "licence": "ours"}
    text = model_card(parts=[ours])
    assert "base_model" not in front_matter(text) and "datasets" not in front_matter(text)
    assert "toy world" in "\n".join(section(text, "Limits")) and "toy world" not in model_card()


def test_the_values_of_a_model_card_are_the_profiles_to_the_digit():
    parameters = stage_parameters(load_profile("mini"), "50_dpo")
    rows = section(model_card(), "Profile values")
    for key in ("learning_rate", "beta", "sampling_temperature", "merge_onto"):
        assert f"| {key} | {parameters[key]} |" in rows
    assert f"| lora.r | {parameters['lora']['r']} |" in rows


def test_measured_values_stand_with_interval_and_n():
    assert section(model_card(), "Measured")[2:] == [
        "| preferred_rate | 0.7312 | [0.6789, 0.8] | 310 of 320 | share of replies |",
        "| pairs | 1000 | – | – | rows |",
    ]


def test_a_model_card_names_no_disk_and_no_address_and_renders_no_markup():
    parameters = stage_parameters(load_profile("mini"), "30_sft") | {
        "base_model": "/home/me/base",
        "judge": {"endpoint": {"a": "b"}},
    }
    text = cards.model_card("OpenBezoar-SFT", {"profile": "p", "parameters": parameters, "metrics": {}, "parts": PARTS})
    assert "/home" not in text and "endpoint" not in text and "| base_model | base |" in text
    assert "| mine \\| yours | rows.jsonl | &lt;b&gt;mine&lt;/b&gt; |" in text
    assert section(text, "Measured") == ["None."]


def test_the_prompt_template_stands_as_code_to_the_letter():
    lines = section(model_card(), "Prompt")
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert code == f"{TEMPLATE}\n{DEFAULT_SYSTEM}"


def test_a_model_card_tells_where_it_departs_from_the_authors():
    parts = "\n".join(section(model_card("OpenBezoar-SFT"), "What differs from the paper"))
    assert "dequantised" in parts and "response alone" in parts and "likelihood" not in parts
    assert "likelihood" in "\n".join(section(model_card(), "What differs from the paper"))
