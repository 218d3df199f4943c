import pytest

from bezoar_utils import cards

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


def section(text: str, title: str) -> list[str]:
    return text.split(f"## {title}\n\n", 1)[1].split("\n\n## ")[0].splitlines()


@pytest.mark.parametrize("scheme", CHAPTERS)
def test_every_column_of_a_set_is_explained_and_no_other(scheme):
    explained = [line.split("`")[1] for line in section(card(scheme), "Columns")]
    assert sorted(explained) == sorted([*CHAPTERS[scheme].split(), *JUDGED.split()])
    assert all(line.split("`: ")[1] for line in section(card(scheme), "Columns"))


@pytest.mark.parametrize("scheme", CHAPTERS)
def test_a_card_says_whose_it_is_and_how_it_was_made(scheme):
    assert card(scheme).startswith(f"# {scheme}, profile mini\n\n{cards.ABOUT[scheme]}\n")


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
    headings = [line for line in card().splitlines() if line.startswith("#")]
    titles = ["Columns", "Made", "Filtered", "Prompts", "Licences", "Known flaws"]
    assert headings == ["# lamini, profile mini", *(f"## {title}" for title in titles)]


def test_a_set_of_released_rows_says_that_nothing_was_generated():
    assert section(card(made=MADE | {"prompts": {}}), "Prompts") == ["None: nothing was generated."]


def test_known_flaws_are_told():
    assert section(card(), "Known flaws") == [f"- {flaw}" for flaw in cards.FLAWS]


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
