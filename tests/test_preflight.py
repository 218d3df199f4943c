"""Each reason why a profile cannot work is one line, before anything runs."""

import os
import re
import subprocess
import sys

import pytest

from bezoar_utils.planning import preflight
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE, PROFILES, ProfileError, load_profile


@pytest.fixture
def profile(tmp_path):
    for path in PROFILES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())

    def load(text: str, extends: str = "consumer"):
        (tmp_path / "mine.yaml").write_text(f"extends: {extends}\n{text}\n")
        return load_profile("mine", tmp_path)

    return load


@pytest.mark.parametrize("name", ["mini", "tiny", "released", "checkpoints", "consumer", "paper"])
def test_a_shipped_profile_is_refused_for_no_reason_but_money(name):
    shipped = load_profile(name)
    assert preflight.impossible(shipped) == []
    assert len(preflight.unpaid(name, shipped)) == (name == "paper")


def test_paper_says_how_to_be_paid_and_then_passes(profile):
    (reason,) = preflight.unpaid("paper", load_profile("paper"))
    assert reason.startswith("money.budget_usd is 0 and gpt-4 costs money") and "`extends: paper`" in reason
    paid = profile("money: {budget_usd: 500.0}", extends="paper")
    assert preflight.unpaid("mine", paid) == preflight.impossible(paid) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("teacher: {max_new_tokens: 4000}", ("plan.teacher.context", "4096", "350", "4000")),
        ("plan: {judge: {context: 1000}}", ("plan.judge.context", "1000", "800", "1024")),
        ("sft: {max_length: 4096}", ("sft.max_length", "4096", "2048")),
        ("benchmarks: {max_length: 4096, batch_size: 1}", ("benchmarks.max_length", "4096", "2048")),
        ("base_model: {revision: null}", ("base_model: openlm-research/open_llama_3b_v2", "commit hash", "None")),
        ("base_model: {revision: main}", ("base_model: openlm-research/open_llama_3b_v2", "commit hash", "'main'")),
        ("base_model: {model: my/folder, revision: null}", ("base_model: my/folder", "folder")),
        ("base_model: {model: 00_miniature/base, revision: null}", ("base_model: 00_miniature/base", "does not run")),
        ("checkpoints: {base: {revision: bce5d60}}", ("checkpoints.base: openlm-research/open_llama_3b_v2", "bce5d60")),
        ("teacher: {endpoint: null, mode: raw, wrapper: 'Q: {prompt}', revision: null}", ("teacher: olmo-3-7b-instruct", "folder")),
        ("evol: {seeds: {file: no/such.jsonl, licence: mine}}", ("evol: ", "no/such.jsonl")),
        ("preference_rows: {artifact: 00_miniature/x.parquet, licence: ours}", ("preference_rows: 00_miniature/x.parquet",)),
        ("teacher: {wrapper: 'Q: {prompt}'}", ("teacher.wrapper: 'Q: {prompt}'", "mode chat", "'{prompt}'")),
        ("teacher: {mode: raw}", ("teacher.wrapper", "mode raw", "mode: chat")),
        ("judge: {model: olmo-3-7b-instruct}", ("the judge olmo-3-7b-instruct", "teacher's own model", "plan.same_family: true")),
        ("lora: {target_modules: [q_proj, k_porj]}", ("lora.target_modules", "k_porj", "did you mean k_proj", "o_proj")),
        ("plan: {gpu: {memory_gib: 16.0}}", ("30_sft", "16 GiB", "plan.gpu", "merged beside needs 21.5")),
        ("dpo: {sampled_prompts: 200}", ("50_dpo", "24 GiB", "plan.gpu")),
        ("stages: [81_reward]\nreward: {model: {model: my/rewards, licence: mine}}", ("reward.model: my/rewards", "commit hash")),
    ],
)
def test_what_cannot_work_is_one_line_with_the_key(profile, text, words):
    reasons = preflight.impossible(profile(text))
    assert any(all(word in reason for word in words) for reason in reasons), reasons
    assert not any("\n" in reason for reason in reasons)


def test_the_teachers_model_may_judge_when_the_profile_allows_it(profile):
    assert preflight.impossible(profile("judge: {model: olmo-3-7b-instruct}\nplan: {same_family: true}")) == []


def test_a_second_judge_that_is_the_teachers_model_is_noted_and_not_refused(profile):
    server = (
        "{base_url: 'http://127.0.0.1:9/v1', local_server: null, api_key_env: null, concurrency: 1, timeout_s: 1.0, attempts: 1}"
    )
    second = f"{{model: olmo-3-7b-instruct, licence: x, endpoint: {server}, temperature: 0.0, max_tokens: 99}}"
    second_judge = profile(f"judge_filter: {{second_judge: {second}}}")
    (note,) = preflight.notes(second_judge)
    assert preflight.impossible(second_judge) == [] and "second judge olmo-3-7b-instruct" in note


def test_a_local_checkpoint_with_another_template_is_refused(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    files.write_json(tmp_path / "theirs" / "prompt_template.json", {"template": "Q: {instruction}", "default_system": ""})
    (reason,) = preflight.impossible(profile("checkpoints: {OpenBezoar-SFT: {model: theirs}}", extends="checkpoints"))
    assert reason.startswith("checkpoints.OpenBezoar-SFT: theirs was trained with another prompt template")


def test_data_on_the_hub_is_refused_without_its_revision(profile):
    with pytest.raises(ProfileError, match="full commit hash of 40 hex digits"):
        profile("evol: {seeds: {hub: some/set, revision: main, files: [a.parquet], licence: MIT}}")


def run(command: str, home, profile: str):
    environment = os.environ | {"BEZOAR_HOME": str(home), "PYTHONPATH": str(CODE)}
    line = [sys.executable, "-m", "bezoar_utils.run", command, "--profile", profile, "--dag", "10_lamini: 30_sft:"]
    return subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "profiles").symlink_to(PROFILES)
    (tmp_path / "notebooks").symlink_to(CODE / "notebooks")
    return tmp_path


def test_make_plan_prints_the_plan_and_then_fails_with_a_line_a_reason(home):
    result = run("plan", home, "paper")
    assert result.returncode == 2 and "10_lamini" in result.stdout and "GPU memory" in result.stdout
    assert result.stderr.startswith("error: money.budget_usd is 0") and result.stderr.count("\n") == 1
    assert run("plan", home, "consumer").returncode == 0


def test_a_mistyped_task_stops_the_plan_and_a_first_run_before_anything_is_paid(profile):
    mistyped = profile("evaluation: {tasks: [ai2_arc, truthfulqa_mc]}\nbenchmarks: {fewshot: {arc_esay: 5}}", extends="paper")
    assert preflight.impossible(mistyped) == []
    lines = preflight.unknown_tasks(mistyped)
    assert len(lines) == 2 and "truthfulqa_mc" in lines[0] and "did you mean arc_easy" in lines[1]
    with pytest.raises(ProfileError, match="arc_easy"):
        preflight.require_possible(mistyped, first_run=True)
    preflight.require_possible(mistyped, first_run=False)


def test_nothing_runs_of_a_profile_that_cannot_work_but_money_is_asked_for_later(home):
    (home / "profiles").unlink()
    (home / "profiles").mkdir()
    for path in PROFILES.glob("*.yaml"):
        (home / "profiles" / path.name).symlink_to(path)
    (home / "profiles" / "mine.yaml").write_text("extends: released\nsft: {max_length: 4096}\nbase_model: {revision: null}\n")
    result = run("stale", home, "mine")
    assert result.returncode == 2 and not result.stdout
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error"] * 3  # too long, no pin, and so too large
    assert run("stale", home, "paper").returncode == 0


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A folder of this machine, as far as names and settings go."""
    from bezoar_utils.training import weights

    monkeypatch.setattr(weights, "ROOT", tmp_path)

    def write(**named):
        (tmp_path / "own").mkdir()
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / "own" / name).write_text("{}")
        for name, value in ({"config": {"model_type": "llama", "max_position_embeddings": 128}} | named).items():
            files.write_json(tmp_path / "own" / f"{name}.json", value)
        return "{model: own, revision: null, licence: mine}"

    return write


def test_a_local_base_with_a_context_that_is_too_short_is_found_before_anything_runs(profile, local):
    mine = profile(f"base_model: {local()}\nsft: {{max_length: 192}}", extends="mini")
    assert any(line.startswith("sft.max_length: 192") and "128" in line for line in preflight.impossible(mine))


def test_a_layer_that_a_local_base_lacks_is_found_before_anything_runs(profile, local):
    base = local(config={"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2})
    mine = profile(f"base_model: {base}\nlora: {{target_modules: [q_proj]}}", extends="mini")
    assert any("q_proj; there are dense" in line and "query_key_value" in line for line in preflight.impossible(mine))
    assert preflight.impossible(profile(f"base_model: {base}\nlora: {{target_modules: [query_key_value]}}", extends="mini")) == []


@pytest.mark.parametrize(
    ("config", "asked", "words"),
    [
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 5}, "", "gives 5 numbers a reply"),
        ({"architectures": ["LlamaForCausalLM"]}, "weights: [1.0]", "own is not a reward model (LlamaForCausalLM)"),
    ],
)
@pytest.mark.parametrize("place", ["reward.model", "judge"])
def test_what_is_no_reward_model_is_found_before_anything_runs(profile, local, place, config, asked, words):
    if "num_labels" in config:  # transformers keeps the number as labels
        config = config | {"id2label": {str(n): str(n) for n in range(config["num_labels"])}}
    own = local(config={"model_type": "llama"} | config)
    text = f"reward: {{model: {own[:-1]}, {asked}}}}}" if place == "reward.model" else ""
    text = text or f"judge: {{model: own, endpoint: null, mode: raw, reward_model: {{accept_above: 0.0, {asked}}}}}"
    (reason,) = preflight.impossible(profile(text.replace(", }", "}"), extends="mini"))
    assert reason.startswith(f"{place}: ") and words in reason


def test_a_base_with_a_chat_template_is_noted_and_not_refused(profile, local):
    base = local(config={"model_type": "llama"}, tokenizer_config={"chat_template": "{{ messages }}"})
    mine = profile(f"base_model: {base}", extends="mini")
    assert preflight.impossible(mine) == [] and any("chat template of its own" in line for line in preflight.notes(mine))


@pytest.mark.parametrize("role", ["teacher", "judge"])
def test_local_weights_without_a_chat_template_cannot_be_asked_in_chat_mode(profile, local, role):
    local(config={})
    own = f"{role}: {{model: own, endpoint: null, mode: chat, wrapper: '{{prompt}}'}}"
    mine = profile(own, extends="mini")
    assert [line for line in preflight.impossible(mine) if line.startswith(f"{role}: own has no chat template")]
    files.write_bytes(preflight.local_path("own") / "chat_template.jinja", b"{{ messages }}")
    preflight.facts.cache_clear()
    assert not [line for line in preflight.impossible(mine) if "chat template" in line]


def test_a_package_that_is_not_installed_and_an_adapter_are_reasons_and_nothing_crashes(profile, local):
    mine = profile("teacher: {model: 'package:not_there_at_all/m.gguf', endpoint: null}", extends="mini")
    assert [line for line in preflight.impossible(mine) if "no installed package holds it" in line]
    local(adapter_config={})
    (preflight.local_path("own") / "config.json").unlink()
    mine = profile("base_model: {model: own}", extends="mini")
    assert [line for line in preflight.impossible(mine) if line.startswith("base_model: own is an adapter")]


MODELS_PAGE = (CODE / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", re.findall(r"```yaml\n(.*?)```", MODELS_PAGE, re.DOTALL), ids=["own rows and judge", "a local judge"]
)
def test_every_snippet_of_the_page_on_models_is_a_profile(profile, text):
    _, named, text = text.partition("extends: smol\n") if text.startswith("extends") else ("", "", text)
    mine = profile(text.replace("…", "mine"), extends="smol" if named else "mini")
    assert (
        mine.base_model.model.startswith("package:") and mine.judge.endpoint.local_server == "own_judge"
    ) or not mine.judge.endpoint


def test_a_local_base_of_no_known_architecture_is_a_reason_and_nothing_crashes(profile, local):
    mine = profile(f"base_model: {local(config={'model_type': 'kind-of-tomorrow'})}", extends="mini")
    assert any(line.startswith("base_model: own is of no architecture") for line in preflight.impossible(mine))
