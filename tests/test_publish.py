import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bezoar_utils.report import publish
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE, load_profile, stage_parameters

TOKEN = "hf_aSecretThatNobodyMaySee"  # noqa: S105 a made-up one
NAME = "50_dpo/OpenBezoar-HH-RLHF-DPO"
CONTENT = {
    "README.md": b"---\nlicense: other\nlicense_name: by-its-parts\n---\n# A model\n",
    "config.json": b"{}",
    "model.safetensors": b"\0" * 2000,
    "tokenizer.json": b"{}",
}


class FakeHub:
    """`huggingface_hub.HfApi` as far as `publish` uses it, remembering every call."""

    calls: list
    private, failure = True, None

    def __init__(self, token):
        assert token == TOKEN

    def create_repo(self, repo, **options):
        self.calls.append(("create_repo", repo, options))

    def repo_info(self, repo):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        from huggingface_hub.utils import filter_repo_objects

        if self.failure:
            raise self.failure
        present = [p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file()]
        self.calls.append(("upload_folder", repo_id, sorted(filter_repo_objects(present, allow_patterns=allow_patterns))))


@pytest.fixture
def hub(monkeypatch):
    fake = type("Hub", (FakeHub,), {"calls": []})
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


def finished(runs, profile="tiny", **changes):
    """A finished stage with a checkpoint, as the runner leaves it."""
    folder = runs / profile / NAME
    for name, data in CONTENT.items():
        files.write_bytes(folder / name, data)
    outputs = {f"{folder.name}/{f}": {"sha256": files.sha256_bytes(data), "bytes": len(data)} for f, data in CONTENT.items()}
    parameters = stage_parameters(load_profile(profile), "50_dpo")
    record = {"stage": "50_dpo", "profile": profile, "parameters": parameters, "outputs": outputs, "finished": "2024"} | changes
    files.write_json(folder.parent / "stage.json", record)
    return folder


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A finished run of a profile that may go online, with a token in the environment."""
    online = load_profile("tiny").model_copy(update={"offline": False})
    monkeypatch.setattr(publish, "RUNS", tmp_path)
    monkeypatch.setattr(publish, "load_profile", lambda name: online if name == "tiny" else load_profile(name))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return finished(tmp_path)


def run(capsys, *more, profile="tiny", checkpoint=NAME, repo="me/mine"):
    code = publish.main(["--profile", profile, "--checkpoint", checkpoint, "--repo", repo, *more])
    said = "".join(capsys.readouterr())
    assert TOKEN not in said
    return code, said


def test_a_dry_run_lists_files_sizes_hashes_and_the_licence_and_sends_nothing(study, hub, capsys):
    code, said = run(capsys)
    assert code == 0 and hub.calls == []
    assert "to me/mine, private:" in said and "license: other, license_name: by-its-parts" in said and "nothing was sent" in said
    for name, data in CONTENT.items():
        assert any(line.split() == [f"{len(data):,}", files.sha256_bytes(data), name] for line in said.splitlines())


def test_confirmed_it_sends_exactly_the_listed_files_into_a_private_repository(study, hub, capsys):
    code, said = run(capsys, "--confirm")
    assert code == 0 and "sent to me/mine" in said
    assert hub.calls == [
        ("create_repo", "me/mine", {"private": True, "exist_ok": True}),
        ("upload_folder", "me/mine", sorted(CONTENT)),
    ]


def test_a_public_repository_is_left_alone(study, hub, capsys):
    hub.private = False
    code, said = run(capsys, "--confirm")
    assert code == 2 and "is public" in said and [call[0] for call in hub.calls] == ["create_repo"]


def test_a_failed_upload_is_one_line_without_the_token(study, hub, capsys):
    hub.failure = ConnectionError(f"no route\nwith Bearer {TOKEN}")
    code, said = run(capsys, "--confirm")
    assert code == 2 and "error: the upload failed: ConnectionError: no route with Bearer <token>" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HF_TOKEN", "HF_TOKEN is not set"),
        ("HF_HUB_OFFLINE", "HF_HUB_OFFLINE is set"),
    ],
)
def test_without_token_or_network_only_the_dry_run_works(study, hub, capsys, monkeypatch, name, message):
    monkeypatch.setenv(name, "1" if name == "HF_HUB_OFFLINE" else " ")
    assert run(capsys)[0] == 0
    code, said = run(capsys, "--confirm")
    assert code == 2 and f"nothing was sent: {message}" in said and hub.calls == []


def test_an_offline_profile_sends_nothing(study, hub, capsys, monkeypatch):
    monkeypatch.setattr(publish, "load_profile", load_profile)
    code, said = run(capsys, "--confirm")
    assert code == 2 and "profile 'tiny' is offline" in said and hub.calls == []


def add(name):
    return lambda folder: files.write_bytes(folder / name, b"x")


def drop(key):
    def change(folder):
        record = files.read_json(folder.parent / "stage.json")
        files.write_json(folder.parent / "stage.json", {k: v for k, v in record.items() if k != key})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder.parent / "stage.json").unlink(), "is not finished"),
        (drop("finished"), "not finished by the runner"),
        (lambda folder: files.write_bytes(folder / "config.json", b"{ }"), "not what 50_dpo recorded: config.json"),
        (lambda folder: (folder / "config.json").unlink(), "not what 50_dpo recorded: config.json"),
        (add("extra.json"), "not what 50_dpo recorded: extra.json"),
        (add("weights.bin"), "never uploaded: weights.bin"),
        (add("run.py"), "never uploaded: run.py"),
        (add(".env"), "never uploaded: .env"),
        (add("deep/notes.txt"), "never uploaded: deep"),
        (lambda folder: (folder / "linked.json").symlink_to("/etc/hostname"), "never uploaded: linked.json"),
    ],
)
def test_what_is_unfinished_changed_or_no_checkpoint_is_refused(study, hub, capsys, change, message):
    change(study)
    for more in ([], ["--confirm"]):
        code, said = run(capsys, *more)
        assert code == 2 and message in said and hub.calls == []


def test_a_checkpoint_without_a_card_is_refused(study, tmp_path, hub, capsys):
    finished(tmp_path)
    record = files.read_json(study.parent / "stage.json")
    (study / "README.md").unlink()
    del record["outputs"][f"{study.name}/README.md"]
    files.write_json(study.parent / "stage.json", record)
    assert run(capsys) == (2, f"error: {NAME} lacks README.md or weights, so it is no checkpoint with a card\n")


def test_a_rehearsal_which_ran_with_other_values_is_refused(study, tmp_path, hub, capsys):
    finished(tmp_path, parameters=stage_parameters(load_profile("tiny"), "50_dpo") | {"steps": 1})
    code, said = run(capsys, "--confirm")
    assert code == 2 and "ran with other values" in said and hub.calls == []


@pytest.mark.parametrize("where", ["explore/50_dpo/OpenBezoar-HH-RLHF-DPO", "50_dpo/..", "50_dpo/a/b", "50_dpo", "/etc"])
def test_nothing_but_a_checkpoint_of_a_run_can_be_named(study, hub, capsys, where):
    code, said = run(capsys, "--confirm", checkpoint=where)
    assert code == 2 and "is no checkpoint of a run" in said and hub.calls == []


@pytest.mark.parametrize("profile", ["tiny/explore", "../tiny", "nothing"])
def test_an_explored_run_is_no_profile(study, hub, capsys, profile):
    code, said = run(capsys, "--confirm", profile=profile)
    assert code == 2 and "there is no profile" in said and hub.calls == []


@pytest.mark.parametrize("repo", ["", "mine", "me/mine/more", "https://hub/me/mine"])
def test_a_repository_is_owner_and_name(study, hub, capsys, repo):
    code, said = run(capsys, "--confirm", repo=repo)
    assert code == 2 and "is not owner/name" in said and hub.calls == []


def test_make_publish_is_a_dry_run(tmp_path):
    shutil.copytree(CODE / "profiles", tmp_path / "profiles")
    finished(tmp_path / "runs")
    command = ["make", "-f", str(CODE / "Makefile"), f"PY={sys.executable}", "publish", "PROFILE=tiny", f"CHECKPOINT={NAME}"]
    kept = {k: v for k, v in os.environ.items() if k not in ("BEZOAR_HOME", "MAKEFLAGS", "MAKELEVEL")}
    environment = kept | {"HF_TOKEN": TOKEN}
    done = subprocess.run([*command, "REPO=me/mine"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "dry run, nothing was sent" in done.stdout, done.stderr
    refused = subprocess.run(
        [*command, "REPO=me/mine", "CONFIRM=yes"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "profile 'tiny' is offline" in refused.stderr
    assert TOKEN not in done.stdout + done.stderr + refused.stdout + refused.stderr
