"""Uploading a checkpoint: a dry run unless confirmed, and nothing but what a finished stage recorded."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bezoar_utils.report import publish
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE, load_profile

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


def finished(runs, content=CONTENT, profile="tiny", **changes):
    """A finished stage with a checkpoint, as the runner leaves it."""
    folder = runs / profile / NAME
    for name, data in content.items():
        files.write_bytes(folder / name, data)
    outputs = {f"{folder.name}/{f}": {"sha256": files.sha256_bytes(data), "bytes": len(data)} for f, data in content.items()}
    files.write_json(folder.parent / "stage.json", {"stage": "50_dpo", "profile": profile, "outputs": outputs} | changes)
    return folder


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A finished run of a profile that may go online, with a token in the environment."""
    online = load_profile("tiny").model_copy(update={"offline": False})
    monkeypatch.setattr(publish, "RUNS", tmp_path)
    monkeypatch.setattr(publish, "load_profile", lambda name: online if name == "tiny" else load_profile(name))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return finished(tmp_path)


def run(capsys, *more, profile="tiny", checkpoint=NAME):
    code = publish.main(["--profile", profile, "--checkpoint", checkpoint, "--repo", "me/mine", *more])
    printed = "".join(capsys.readouterr())
    assert TOKEN not in printed
    return code, printed


def test_a_dry_run_lists_files_sizes_and_hashes_and_sends_nothing(study, hub, capsys):
    code, printed = run(capsys)
    assert code == 0 and hub.calls == [] and "nothing was sent" in printed and "me/mine" in printed
    for name, data in CONTENT.items():
        assert any(line.split() == [f"{len(data):,}", files.sha256_bytes(data), name] for line in printed.splitlines())


def test_confirmed_it_sends_exactly_the_listed_files_into_a_private_repository(study, hub, capsys):
    code, printed = run(capsys, "--confirm")
    assert code == 0 and "sent to me/mine" in printed
    assert hub.calls == [
        ("create_repo", "me/mine", {"private": True, "exist_ok": True}),
        ("upload_folder", "me/mine", sorted(CONTENT)),
    ]


def test_a_public_repository_is_left_alone(study, hub, capsys):
    hub.private = False
    code, printed = run(capsys, "--confirm")
    assert code == 2 and "public" in printed and [call[0] for call in hub.calls] == ["create_repo"]


def test_a_failed_upload_is_one_line_without_the_token(study, hub, capsys):
    hub.failure = ConnectionError(f"no route\nwith Bearer {TOKEN}")
    code, printed = run(capsys, "--confirm")
    assert code == 2 and "ConnectionError: no route with Bearer <token>" in printed


def test_without_a_token_only_the_dry_run_works(study, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " ")
    assert run(capsys)[0] == 0
    code, printed = run(capsys, "--confirm")
    assert code == 2 and "HF_TOKEN" in printed and hub.calls == []


def rewrite(name, data):
    return lambda folder: files.write_bytes(folder / name, data)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder.parent / "stage.json").unlink(), "finished stage"),
        (rewrite("config.json", b"{ }"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (rewrite("extra.json", b"x"), "extra.json"),
        (rewrite(".env", b"x"), ".env"),
        (rewrite("deep/notes.txt", b"x"), "deep/notes.txt"),
        (lambda folder: (folder / "linked.json").symlink_to("/etc/hostname"), "linked.json"),
    ],
)
def test_what_is_unfinished_or_not_as_recorded_is_refused(study, hub, capsys, change, named):
    change(study)
    for more in ([], ["--confirm"]):
        code, printed = run(capsys, *more)
        assert code == 2 and named in printed and hub.calls == []


@pytest.mark.parametrize("missing", ["README.md", "model.safetensors"])
def test_a_folder_without_card_or_weights_is_not_a_checkpoint(study, tmp_path, hub, capsys, missing):
    shutil.rmtree(study)
    finished(tmp_path, {name: data for name, data in CONTENT.items() if name != missing})
    code, printed = run(capsys, "--confirm")
    assert code == 2 and "not a checkpoint" in printed and hub.calls == []


@pytest.mark.parametrize("place", ["explore/50_dpo/OpenBezoar-HH-RLHF-DPO", "50_dpo/..", "50_dpo/a/b", "50_dpo", "/etc"])
def test_nothing_but_a_checkpoint_of_a_run_can_be_named(study, hub, capsys, place):
    code, printed = run(capsys, "--confirm", checkpoint=place)
    assert code == 2 and "not a checkpoint" in printed and hub.calls == []


def test_a_rehearsals_model_is_refused_under_either_name(study, tmp_path, hub, capsys, monkeypatch):
    finished(tmp_path, rehearsal_of="tiny")
    finished(tmp_path, profile="rehearse-tiny")
    monkeypatch.setattr(publish, "load_profile", lambda name: load_profile("tiny"))
    for profile in ("tiny", "rehearse-tiny"):
        code, printed = run(capsys, "--confirm", profile=profile)
        assert code == 2 and "rehearsal" in printed and hub.calls == []


@pytest.mark.parametrize("profile", ["tiny/explore", "../tiny", "nothing"])
def test_an_explored_run_is_not_a_profile(study, hub, capsys, profile):
    code, printed = run(capsys, "--confirm", profile=profile)
    assert code == 2 and "profile" in printed and hub.calls == []


def test_make_publish_is_a_dry_run_and_an_offline_profile_sends_nothing(tmp_path):
    shutil.copytree(CODE / "profiles", tmp_path / "profiles")
    finished(tmp_path / "runs")
    command = ["make", "-f", str(CODE / "Makefile"), f"PY={sys.executable}", "publish", "PROFILE=tiny", f"CHECKPOINT={NAME}"]
    inherited = {k: v for k, v in os.environ.items() if k not in ("BEZOAR_HOME", "MAKEFLAGS", "MAKELEVEL")}
    options = {"cwd": tmp_path, "env": inherited | {"HF_TOKEN": TOKEN}, "capture_output": True, "text": True, "timeout": 60}
    dry = subprocess.run([*command, "REPO=me/mine"], **options)
    assert dry.returncode == 0 and "dry run, nothing was sent" in dry.stdout, dry.stderr
    refused = subprocess.run([*command, "REPO=me/mine", "CONFIRM=yes"], **options)
    assert refused.returncode == 2 and "'tiny' is offline" in refused.stderr
    assert TOKEN not in dry.stdout + dry.stderr + refused.stdout + refused.stderr
