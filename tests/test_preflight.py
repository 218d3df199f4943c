"""Each reason why a profile cannot work is one line, before anything runs."""

import os
import subprocess
import sys

import pytest

from bezoar_utils.planning import preflight
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE, PROFILES, ProfileError, load_profile

SERVER = "{base_url: 'http://127.0.0.1:9/v1', local_server: null, api_key_env: null, concurrency: 1, timeout_s: 1.0, attempts: 1}"


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
        ("teacher: {max_new_tokens: 4000}", "plan.teacher.context: 4096 tokens do not hold a prompt of 350 and a reply of 4000"),
        ("plan: {judge: {context: 1000}}", "plan.judge.context: 1000 tokens do not hold a prompt of 800 and a reply of 1024"),
        ("sft: {max_length: 4096}", "sft.max_length: 4096 is more than the base model's context of 2048 tokens"),
        ("benchmarks: {max_length: 4096, batch_size: 1}", "benchmarks.max_length: 4096 is more than the base model's context"),
        ("base_model: {revision: null}", "base_model: openlm-research/open_llama_3b_v2 is no folder here, and as a hub id"),
        ("base_model: {revision: main}", "needs its full commit hash as revision, not 'main'"),
        ("base_model: {model: my/folder, revision: null}", "base_model: my/folder is no folder here"),
        ("base_model: {model: 00_miniature/base, revision: null}", "00_miniature/base is made by 00_miniature, which this profile"),
        ("checkpoints: {base: {revision: bce5d60}}", "checkpoints.base: openlm-research/open_llama_3b_v2 is no folder here"),
        (
            "teacher: {endpoint: null, mode: raw, wrapper: 'Q: {prompt}', revision: null}",
            "teacher: olmo-3-7b-instruct is no folder",
        ),
        ("evol: {seeds: {file: no/such.jsonl, licence: mine}}", "evol: there is no file no/such.jsonl"),
        (
            "preference_rows: {artifact: 00_miniature/x.parquet, licence: ours}",
            "preference_rows: 00_miniature/x.parquet is made by",
        ),
        ("teacher: {wrapper: 'Q: {prompt}'}", "teacher.wrapper: 'Q: {prompt}' is not used in mode chat: write '{prompt}'"),
        ("teacher: {mode: raw}", "teacher.wrapper: a bare '{prompt}' in mode raw asks the teacher without its template"),
        ("judge: {model: Olmo-3.1-32B-Instruct}\nmoney: {prices: {Olmo-3.1-32B-Instruct: [0, 0]}}", "plan.same_family: true"),
        ("judge: {model: olmo-3-7b-instruct}", "the judge olmo-3-7b-instruct is of the teacher's family (olmo-3-7b-instruct)"),
        (
            "plan: {gpu: {memory_gib: 16.0}}",
            "30_sft will not fit in 16 GiB (RTX 4090; name yours in plan.gpu): merged beside needs 21.5",
        ),
        ("dpo: {sampled_prompts: 200}", "50_dpo will not fit in 24 GiB (RTX 4090; name yours in plan.gpu)"),
    ],
)
def test_what_cannot_work_is_one_line_with_the_key(profile, text, words):
    reasons = preflight.impossible(profile(text))
    assert any(words in reason for reason in reasons), reasons
    assert not any("\n" in reason for reason in reasons)


def test_a_family_is_read_from_where_a_word_begins():
    assert preflight.families("h2ogpt-gm-oasst1-en-2048-falcon-40b-v2") == {"falcon"}
    assert preflight.families("prometheus-eval/prometheus-7b-v2.0") == preflight.families("Mixtral-8x7B") == {"mistral"}
    assert preflight.families("gpt-4") == {"gpt"} and preflight.families("miniature-oracle") == set()


def test_one_family_is_allowed_to_who_says_so(profile):
    relative = "judge: {model: olmo-x}\nmoney: {prices: {olmo-x: [0, 0]}}\nplan: {same_family: true}"
    assert preflight.impossible(profile(relative)) == []


def test_a_related_second_judge_is_noted_and_not_refused(profile):
    second = f"{{model: olmo-x, licence: x, endpoint: {SERVER}, temperature: 0.0, max_tokens: 99}}"
    related = profile(f"judge_filter: {{second_judge: {second}}}\nmoney: {{prices: {{olmo-x: [0, 0]}}}}")
    assert preflight.impossible(related) == []
    assert preflight.notes(related) == [
        "the second judge olmo-x is of the teacher's family (olmo-3-7b-instruct), which it may favour"
    ]


def test_a_local_checkpoint_with_another_template_is_refused(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    files.write_json(tmp_path / "theirs" / "prompt_template.json", {"template": "Q: {instruction}", "default_system": ""})
    mine = profile("checkpoints: {OpenBezoar-SFT: {model: theirs}}", extends="checkpoints")
    (reason,) = preflight.impossible(mine)
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
