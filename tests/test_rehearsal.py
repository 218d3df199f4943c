"""A rehearsal runs the profile as it is, on stand-ins that look like the real things, and is never taken for a result."""

import http.client
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from bezoar_utils.calls import judge, local_server
from bezoar_utils.calls.judge import parse_verdict
from bezoar_utils.data import sources
from bezoar_utils.rehearsal import __main__ as rehearsal
from bezoar_utils.rehearsal import fake_endpoints, fake_hub_files, hub, rows, shrink, summary
from bezoar_utils.rehearsal import models as stand_ins
from bezoar_utils.rehearsal.__main__ import clear_run, environment, main, needs_stand_ins
from bezoar_utils.rehearsal.habits import habits_of
from bezoar_utils.report import compare, pages
from bezoar_utils.schemes import lamini
from bezoar_utils.study import files, stage
from bezoar_utils.study.profile import CODE, PROFILES, REHEARSAL, Profile, ProfileError, load_profile, stage_parameters
from bezoar_utils.study.stages import TARGETS
from bezoar_utils.training import models, reward, tokens, weights

ADDRESS = "http://127.0.0.1:9/v1"
FULL_SIZE = [p.stem for p in sorted(PROFILES.glob("*.yaml")) if needs_stand_ins(load_profile(p.stem))]
LLAMA = "openlm-research/open_llama_3b_v2"
WORK = (
    "steps epochs warmup_steps validate_every log_every limit offline example_guided_calls topic_guided_calls cot niv2 t0 flan2021 "
    "seeds_per_category repeat_rows sampled_prompts budget_usd base_url dpo_steps tasks config_file processes prompts replies "
    "filter_steps round_steps continued_calls magpie_calls rows budget recovery_steps calibration_rows held_back_rows task "
    "accumulation"
).split()


# ------------------------------------------------------------------------------------------------------------- the cut


def test_the_real_profiles_are_those_that_need_stand_ins():
    assert {"released", "checkpoints", "paper"} <= set(FULL_SIZE) and not {"mini", "tiny"} & set(FULL_SIZE)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_rehearsal_changes_how_much_is_done_and_where_calls_go_and_nothing_else(name):
    profile = load_profile(name)
    changed = shrink.changes(profile, shrink.rehearsed(profile, [ADDRESS], fake_hub_files.harness_tasks(profile)))
    assert {row["value"].rsplit(".", 1)[-1] for row in changed} <= set(WORK)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_rehearsal_is_a_valid_profile_that_trains_a_handful_of_steps_and_asks_only_this_machine(name):
    profile = load_profile(name)
    values = Profile.model_validate(shrink.rehearsed(profile, [ADDRESS], fake_hub_files.harness_tasks(profile))).model_dump(
        mode="json"
    )
    assert all(values[section]["steps"] <= 4 for section in shrink.TRAININGS)
    assert {one["endpoint"]["base_url"] for one in shrink.remote_endpoints(values).values()} <= {ADDRESS}


def test_a_list_of_equal_servers_is_rehearsed_with_two():
    profile = load_profile("paper")
    endpoint = profile.teacher.endpoint.model_copy(update={"base_url": ["http://a/v1", "http://b/v1", "http://c/v1"]})
    profile = profile.model_copy(update={"teacher": profile.teacher.model_copy(update={"endpoint": endpoint})})
    assert (
        shrink.servers(load_profile("paper").model_dump(mode="json")) == 1 and shrink.servers(profile.model_dump(mode="json")) == 2
    )
    values = shrink.rehearsed(profile, [ADDRESS, "http://127.0.0.1:8/v1"], [])
    assert values["teacher"]["endpoint"]["base_url"] == [ADDRESS, "http://127.0.0.1:8/v1"]
    assert values["judge"]["endpoint"]["base_url"] == ADDRESS


def test_what_a_profile_does_not_do_its_rehearsal_does_not_do_either():
    values = shrink.rehearsed(load_profile("released"), [ADDRESS], [])
    assert values["lamini"]["example_guided_calls"] == values["dpo"]["sampled_prompts"] == 0


# ---------------------------------------------------------------------------------------------------------- stand-ins


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_set_a_shipped_profile_takes_from_the_hub_has_rows_with_the_columns_that_the_study_reads(name, tmp_path):
    columns = {
        "lamini.seeds": ("instruction",),
        "lamini.released": ("instruction", "source", "response"),
        "evol.seeds": ("instruction", "context", "category"),
        "evol.released": ("instruction", "response"),
        "orca.released": ("system_message", "inputs", "explained_targets"),
        "preference_rows": ("chosen", "rejected"),
    } | {
        f"orca.collections.{c}": ("inputs", "targets", "task_source", "task_name", "template_type")
        for c in ("cot", "niv2", "t0", "flan2021")
    }
    for place, source in shrink.sources(load_profile(name).model_dump(mode="json")).items():
        for file in fake_hub_files.file_names(source) if source["hub"] else ():
            rows.write(tmp_path / file, rows.made(place, source))
            assert len(sources.read_rows(tmp_path / file, columns.get(place, ()))) >= 8


def test_questions_come_under_the_column_names_of_their_own_set():
    source = load_profile("released").evaluation.questions.model_dump()
    assert {"prompt", "prompt_id", "category", "reference"} == set(rows.made("evaluation.questions", source)[0])


def test_own_rows_take_the_place_of_made_up_ones(tmp_path):
    own = {"instruction": "Mine?", "context": "", "response": "Mine.", "category": "open_qa"}
    rows.write(tmp_path / "own" / "databricks" / "databricks-dolly-15k" / "databricks-dolly-15k.jsonl", [own] * 3)
    flan = {"inputs": "Why?", "targets": "So.", "task_source": "CoT", "task_name": "mine", "template_type": "zs_opt"}
    rows.write(tmp_path / "own" / "DataProvenanceInitiative" / "cot_submix_original" / "train-00000.parquet", [flan] * 60)
    profile = load_profile("paper").model_copy(update={"checkpoints": {}, "base_model": load_profile("mini").base_model})
    fake_hub_files.build(profile, tmp_path / "hub", tmp_path / "own")
    own_rows = sources.read_rows(
        tmp_path / "hub/datasets/databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl", ("instruction",)
    )
    assert own_rows == [own] * 3
    drawn = tmp_path / "hub/datasets/DataProvenanceInitiative/cot_submix_original/part-0.parquet"
    assert sources.read_rows(drawn, ("inputs",)) == [flan] * rows.ROWS, "the first rows of a file that the profile's pattern fits"


def test_a_real_tokenizer_takes_the_place_of_a_made_up_one_and_real_weights_are_used_themselves(tmp_path, model_folder):
    profile, own = load_profile("released"), tmp_path / "own" / LLAMA
    shutil.copytree(model_folder, own, ignore=shutil.ignore_patterns("*.safetensors"))
    assert fake_hub_files.own_weights(profile, tmp_path / "own") == {}, "a tokenizer alone is no model"
    fake_hub_files.build(profile, tmp_path / "hub", None, tmp_path / "own")
    made, real = (tokens.load_tokenizer(folder) for folder in (tmp_path / "hub" / "models" / LLAMA, model_folder))
    assert made("Where does one live?")["input_ids"] == real("Where does one live?")["input_ids"]
    assert models.load_model(tmp_path / "hub" / "models" / LLAMA).config.vocab_size == len(real)
    shutil.copytree(model_folder, own, dirs_exist_ok=True)
    assert fake_hub_files.own_weights(profile, tmp_path / "own") == dict.fromkeys(("base_model", "checkpoints.base"), own)


def test_a_gguf_file_on_the_hub_is_rehearsed_as_a_repository_and_asked_for_by_its_own_name(tmp_path):
    profile = load_profile("released")
    named = profile.base_model.model_copy(update={"model": "somebody/llama-gguf/Q4.gguf"})
    profile = profile.model_copy(update={"base_model": named, "checkpoints": {}})
    assert any(url.endswith(f"somebody/llama-gguf/resolve/{named.revision}/Q4.gguf") for url in hub_urls(profile))
    assert shrink.rehearsed(profile, [ADDRESS], [])["base_model"]["model"] == "somebody/llama-gguf"
    fake_hub_files.build(profile, tmp_path)
    assert (tmp_path / "models" / "somebody" / "llama-gguf" / "config.json").exists()


def hub_urls(profile):
    from huggingface_hub import constants

    from bezoar_utils.planning import doctor

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        return list(doctor.hub_files(profile).values())
    finally:
        constants.HF_HUB_OFFLINE = offline


@pytest.fixture(scope="module")
def openllama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openllama")
    stand_ins.write_model(LLAMA, folder / "hub")
    return folder


def test_the_stand_in_of_openllama_brings_what_its_repository_brings_and_no_more(openllama):
    there = {p.name for p in (openllama / "hub").iterdir()}
    assert {"pytorch_model.bin", "tokenizer.model", "tokenizer_config.json", "config.json"} <= there
    assert not {"tokenizer.json", "model.safetensors"} & there


def test_a_tokenizer_without_padding_takes_the_token_that_its_models_configuration_names(openllama):
    tokenizer = tokens.load_tokenizer(openllama / "hub")
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<unk>", 0)


def test_openllamas_kind_of_tokenizer_is_read_as_sentencepiece_reads_it(openllama):
    import sentencepiece

    from bezoar_utils.data.template import render_prompt

    tokenizer = tokens.load_tokenizer(openllama / "hub")
    own = sentencepiece.SentencePieceProcessor(model_file=str(openllama / "hub" / "tokenizer.model"))
    for text in (render_prompt("Name two  rivers.\n\nIn order"), "été 漢字 🙂", "x\t y"):
        ids = tokenizer(text)["input_ids"]
        assert ids == [tokenizer.bos_token_id, *own.encode(text)] and tokenizer.decode(ids[1:]) == text


def test_pickled_weights_become_safetensors_that_load_in_four_bits_and_speak(openllama, quantisation):
    from bezoar_utils.training.generation import generate

    folder = weights.safe_weights(openllama / "hub", openllama / "converted")
    model = models.load_model(folder, quantisation)
    texts = generate(model, tokens.load_tokenizer(folder), ["Describe the river"] * 8, seed=1, max_new_tokens=200, temperature=1.0)
    assert len(set(texts)) > 1 and sum(any(word in text for word in rows.WORDS) for text in texts) > 4
    assert max(map(len, texts)) < 600, "it ends its replies by itself"


@pytest.mark.parametrize(
    "name", ["h2oai/h2ogpt-falcon-40b", "Qwen/Qwen3-30B-A3B", "HuggingFaceTB/SmolLM3-3B-Base", "allenai/Olmo-3-7B"]
)
def test_a_stand_in_has_the_real_models_architecture(name, tmp_path):
    stand_ins.write_model(name, tmp_path)
    assert files.read_json(tmp_path / "config.json")["model_type"] == habits_of(name).kind
    tokens.load_tokenizer(tmp_path)


def test_a_local_teachers_stand_in_writes_lists_that_parse(tmp_path):
    from bezoar_utils.training.generation import generate

    stand_ins.write_model("h2oai/h2ogpt-falcon-40b", tmp_path / "hub", teaches=True)
    folder = weights.safe_weights(tmp_path / "hub", tmp_path / "converted")
    prompt = lamini.example_guided_prompt(["Name a river."], 20)
    texts = generate(
        models.load_model(folder), tokens.load_tokenizer(folder), [prompt], seed=1, max_new_tokens=128, temperature=0.8
    )
    assert len(lamini.parse_instructions(texts[0])) >= 2


def test_a_reward_model_on_the_hub_has_a_stand_in_that_gives_as_many_numbers(tmp_path):
    own = {"model": "somebody/rewards", "revision": "1" * 40, "licence": "MIT", "weights": [0.5, 0.5]}
    values = load_profile("released").model_dump(mode="json")
    profile = Profile.model_validate(values | {"reward": values["reward"] | {"model": own}})
    fake_hub_files.build(profile, tmp_path)
    folder = weights.safe_weights(tmp_path / "models" / "somebody" / "rewards", tmp_path / "converted")
    model = reward.open_model(folder, own["weights"])
    rewards, _ = reward.score(model, tokens.load_tokenizer(folder), [{"prompt": "a", "reply": "b"}], weights=own["weights"])
    assert len(rewards) == 1


def test_the_chapters_beside_the_recipe_are_rehearsed_where_a_profile_runs_them(monkeypatch):
    commands = []
    monkeypatch.setattr(rehearsal.subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0))
    monkeypatch.setattr(rehearsal.summary, "write", lambda *_, **__: None)
    monkeypatch.setattr(rehearsal.fake_hub_files, "build", lambda *_: None)
    for name in ("released", "checkpoints"):
        rehearsal.rehearse(name, "1", None)
    targets = [[word for word in command if word in TARGETS] for command in commands]
    assert targets == [["reproduce", "ablations", "neighbours"], ["reproduce"]]


def test_a_model_of_unknown_architecture_gets_a_llama_and_the_account_says_so():
    profile = load_profile("released")
    base = profile.base_model.model_copy(update={"model": "somebody/new-kind"})
    stand_in_rows = summary.stand_ins(profile.model_copy(update={"base_model": base}))
    assert any(row["real"] == "somebody/new-kind" and "not known" in row["stand-in"] for row in stand_in_rows)


# ------------------------------------------------------------------------------------------------------------ the hub


def ask(url, path, body=None):
    """(status, headers) of a request to this machine; http.client leaves a path as it is."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST" if body else "GET", path, body)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers


@pytest.fixture
def served(tmp_path):
    repositories = hub.Repositories(tmp_path / "hub")
    folder = repositories.add("datasets", "some/rows", "8774417".ljust(40, "0"))
    rows.write(folder / "data" / "part-0.parquet", [{"inputs": "a", "task_name": "t", "template_type": "zs"}] * 3)
    with local_server.serving(hub.handler_for(repositories)) as url:
        yield url


def test_the_studys_own_download_code_reads_from_the_stand_in_hub(served, tmp_path):
    code = """
from types import SimpleNamespace
from bezoar_utils.data import sources
stage, source = SimpleNamespace(), {"hub": "some/rows", "expect_prefix": "8774417", "files": ["*.parquet"]}
columns = ("inputs",)
print([row["original_index"] for row in sources.sample(source, lambda *labels: [2, 0], columns, stage)], end=" ")
print(len(sources.read(source, columns, stage)), sources.full_revision(source)[:9])
"""
    cache = {"HF_ENDPOINT": served, "HF_HOME": str(tmp_path / "cache"), "BEZOAR_HUB_LOCK": str(tmp_path / "lock.json")}
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | cache | {"HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=CODE, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split("\n")[0] == "[2, 0] 3 877441700"
    assert (tmp_path / "lock.json").exists() and not (PROFILES / "hub.lock.json").exists(), (
        "made-up revisions stay out of the real lock"
    )


@pytest.mark.parametrize(
    ("path", "word"),
    [
        (f"/datasets/some/rows/resolve/{'1' * 40}/data/part-0.parquet", "RevisionNotFound"),
        ("/api/datasets/some/other", "RepoNotFound"),
        ("/datasets/some/rows/resolve/main/nothing.parquet", "EntryNotFound"),
        ("/datasets/some/rows/resolve/main/../../../secret", "EntryNotFound"),
    ],
)
def test_the_stand_in_hub_refuses_what_is_not_pinned_there(served, path, word):
    status, headers = ask(served, path)
    assert (status, headers["X-Error-Code"]) == (404, word)


# ----------------------------------------------------------------------------------------------------- the endpoints


def test_the_teacher_writes_as_many_tagged_instructions_as_it_is_asked_for():
    for number in range(20):
        written = lamini.parse_instructions(fake_endpoints.reply(lamini.example_guided_prompt([f"Name {number}."], 20)))
        assert len(written) in (19, 20), "now and then the last tag is left open"


@pytest.mark.parametrize("kind", list(judge.TASKS))
def test_the_judge_gives_readable_verdicts_and_now_and_then_none(kind):
    replies = [fake_endpoints.reply(judge.judge_prompt(kind, text=str(number))) for number in range(300)]
    read = [parse_verdict(kind, text) for text in replies]
    assert 0 < read.count(None) < 30 and len({str(verdict) for verdict in read}) > 2
    assert replies[0] == fake_endpoints.reply(judge.judge_prompt(kind, text="0")), "two rehearsals are the same"


def test_a_busy_endpoint_answers_the_second_time():
    codes = []
    with local_server.serving(fake_endpoints.handler_for(("a",))) as url:
        for number in range(60):
            body = json.dumps({"model": "a", "prompt": f"Say {number}"})
            codes.append(ask(url, "/v1/completions", body)[0])
            if codes[-1] == 429:
                codes.append(ask(url, "/v1/completions", body)[0])
    assert codes.count(200) == 60 and 0 < codes.count(429) < 20


# ------------------------------------------------------------------------------------------------------------ the run


def test_no_real_key_and_no_real_cache_is_within_reach(monkeypatch, tmp_path):
    for name, value in {"JUDGE_API_KEY": "sk-canary", "HF_TOKEN": "hf-canary", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    values = environment(load_profile("paper"), tmp_path, "http://127.0.0.1:9")
    assert values["JUDGE_API_KEY"] == "rehearsal" and not {"HF_TOKEN", "HF_HUB_OFFLINE"} & values.keys()
    assert "canary" not in str(values) and values["HF_HOME"].startswith(str(tmp_path))


def test_a_profile_that_this_machine_can_run_is_its_own_rehearsal(capsys):
    assert main(["--profile", "mini"]) == 0 and "its own rehearsal" in capsys.readouterr().out


def test_a_rehearsals_profile_is_in_its_run_and_cannot_be_mistaken_for_one_of_ours():
    with pytest.raises(ProfileError, match=r"no rehearsal 'rehearse-nothing': run `make rehearse PROFILE=nothing`"):
        load_profile("rehearse-nothing")


def test_a_stage_of_a_rehearsal_is_no_finished_stage_of_the_real_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "RUNS", tmp_path)
    monkeypatch.setattr(pages, "RUNS", tmp_path)
    parameters = stage_parameters(load_profile("paper"), "10_lamini")
    record = {"stage": "10_lamini", "rehearsal_of": "paper", "profile": "rehearse-paper", "parameters": parameters}
    files.write_json(tmp_path / "paper" / "10_lamini" / "stage.json", record)
    assert stage.stale_reason("10_lamini", "paper", parameters) == "made by a rehearsal"
    with pytest.raises(ValueError, match=r"paper holds stages of a rehearsal.*: 10_lamini"):
        pages.write_report("paper")


def test_rehearsals_are_not_compared_and_not_made_the_reference(capsys):
    assert compare.main(["rehearse-paper", "mini"]) == 2 and "rehearsal" in capsys.readouterr().err
    assert pages.main(["--profile", "rehearse-paper", "--reference"]) == 2 and "no results to refer to" in capsys.readouterr().err


def test_the_stand_in_of_a_model_is_never_kept_under_the_real_models_place():
    assert weights.converted_folder("paper") == weights.converted_folder("released") != weights.converted_folder("rehearse-paper")


SMALL = {
    "extends": "paper",
    "stages": ["10_lamini"],
    "lamini": {"seeds": {"file": "my_seeds.jsonl", "licence": "mine"}, "instructions_per_call": 3},
}


@pytest.fixture
def home(tmp_path):
    shutil.copytree(CODE / "profiles", tmp_path / "profiles")
    shutil.copytree(CODE / "notebooks", tmp_path / "notebooks")
    (tmp_path / "profiles" / "mine.yaml").write_text(yaml.safe_dump(SMALL))
    rows.write(tmp_path / "my_seeds.jsonl", [{"instruction": f"Name river {number}."} for number in range(60)])
    return tmp_path


def rehearse(home):
    command = ["make", "-f", str(CODE / "Makefile"), "--no-print-directory", "rehearse", "PROFILE=mine", f"PY={sys.executable}"]
    variables = {k: v for k, v in os.environ.items() if k not in ("BEZOAR_HOME", "BEZOAR_READS", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_users_own_profile_is_rehearsed_from_end_to_end(home):
    result = rehearse(home)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rehearsal of mine: passed, 1 stages" in result.stdout and "not tested: the download" in result.stdout
    facts = files.read_json(home / "runs" / "rehearse-mine" / "rehearsal.json")
    assert facts["finished"] and {"artifact": "10_lamini/lamini.parquet"}.items() <= facts["shapes"][0].items()
    assert any(row["reason"] == "calls" and row["rows"] == 8 for row in facts["dropped"])
    written = yaml.safe_load((home / "runs" / "rehearse-mine" / "profile.yaml").read_text())
    assert next(iter(written["checkpoints"])) == "base", "each checkpoint follows the one before it"
    record = files.read_json(home / "runs" / "rehearse-mine" / "10_lamini" / "stage.json")
    assert record["rehearsal_of"] == "mine" and record["counts"]["calls"] > 8
    pages = [(home / "reports" / "rehearse-mine" / name).read_text() for name in ("index.html", "10_lamini.html", "rehearsal.html")]
    assert all("no number here is a result" in page for page in pages)
    assert not (home / "runs" / "models").exists() and not (home / "profiles" / "hub.lock.json").exists()


def test_a_second_rehearsal_starts_empty_and_knows_how_long_the_first_took(tmp_path):
    files.write_json(tmp_path / "rehearse-x" / "timings.json", {"10_lamini": 12.5})
    files.write_json(tmp_path / "rehearse-x" / "10_lamini" / "stage.json", {})
    clear_run(tmp_path / "rehearse-x")
    assert [p.name for p in (tmp_path / "rehearse-x").iterdir()] == ["timings.json"]
    assert files.read_json(tmp_path / "rehearse-x" / "timings.json") == {"10_lamini": 12.5}


@pytest.mark.slow
def test_a_rehearsal_that_fails_says_where_and_gives_an_account(home):
    (home / "my_seeds.jsonl").write_text('{"question": "no instruction"}\n')
    result = rehearse(home)
    assert result.returncode != 0 and "lacks instruction" in result.stderr
    assert "rehearsal of mine: FAILED, 0 stages" in result.stdout
    assert not files.read_json(home / "runs" / "rehearse-mine" / "rehearsal.json")["finished"]


def test_words_of_libraries_and_models_are_escaped_in_the_account(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "REPORTS", tmp_path)
    facts = {"rehearsal_of": "<b>x</b>", "finished": False, "seconds": 61, "fallbacks": [], "untested": ["<script>1</script>"]}
    facts |= dict.fromkeys(("stages", "shapes", "dropped", "stand_ins", "changed"), ())
    page = summary.write_page(
        facts | {"said": [{"stage": "s", "said": "<img src=x onerror=alert(1)>"}]}, REHEARSAL + "x"
    ).read_text()
    assert "<img" not in page.split("<main")[1] and "<script>1" not in page and "<b>x" not in page
