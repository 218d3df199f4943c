"""Upload a checkpoint to the hub: only on command, only what a finished stage recorded, only into a private repository.

`python -m bezoar_utils.report.publish --profile x --checkpoint 50_dpo/OpenBezoar-HH-RLHF-DPO --repo owner/name` prints what
would be sent. With `--confirm` it is sent, with the token in HF_TOKEN.
"""

import argparse
import os
import sys
from pathlib import Path

from ..study import files
from ..study.profile import REHEARSAL, load_profile
from ..study.stage import RUNS, finished_records


class PublishError(ValueError):
    """Why a checkpoint is not uploaded, in one line."""


def checkpoint(profile: str, name: str) -> tuple[Path, dict[str, dict]]:
    """(folder, file -> its recorded `bytes` and `sha256`) of the checkpoint `<stage>/<folder>` of a finished run.

    Raises PublishError when it is a rehearsal's, unfinished, not a model with its card, or not exactly what its stage recorded.
    """
    if profile.startswith(REHEARSAL):
        raise PublishError(f"{profile} is a rehearsal: it has no model to give away")
    stage, _, model = name.partition("/")
    record = finished_records(RUNS / profile).get(stage, {})
    recorded = {f.removeprefix(f"{model}/"): made for f, made in record.get("outputs", {}).items() if f.startswith(f"{model}/")}
    if "README.md" not in recorded or not any(f.endswith(".safetensors") for f in recorded):
        raise PublishError(
            f"{name!r} is not a checkpoint with a card that a finished stage of {profile!r} recorded. "
            "Use <stage>/<folder>, for example 50_dpo/OpenBezoar-HH-RLHF-DPO."
        )
    folder = RUNS / profile / stage / model
    hashes = {p.relative_to(folder).as_posix(): files.sha256_file(p) for p in folder.rglob("*") if not p.is_dir()}
    changed = sorted(f for f in hashes | recorded if hashes.get(f) != recorded.get(f, {}).get("sha256"))
    if changed:
        raise PublishError(f"{name} is not what {stage} recorded: {', '.join(changed)}. Run `make verify PROFILE={profile}`.")
    return folder, recorded


def upload(folder: Path, recorded: dict[str, dict], repo: str, token: str) -> None:
    """Raises PublishError, without the token in it, when the hub refuses or `repo` is public."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        api.create_repo(repo, private=True, exist_ok=True)
        if not api.repo_info(repo).private:
            raise PublishError(f"{repo} exists and is public: make it private on the hub, or take another name")
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(recorded), commit_message=f"Add {folder.name}")
    except PublishError:
        raise
    except Exception as error:  # the hub's client and the network have many names for failure
        text = " ".join(str(error).replace(token, "<token>").split())
        raise PublishError(f"the upload failed: {type(error).__name__}: {text}") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.publish")
    for name in ("profile", "checkpoint", "repo"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--confirm", action="store_true", help="upload; without it nothing is sent")
    options, token = parser.parse_args(arguments), os.environ.get("HF_TOKEN", "").strip()
    try:
        offline = load_profile(options.profile).offline
        folder, recorded = checkpoint(options.profile, options.checkpoint)
        for file, made in sorted(recorded.items()):
            print(f"{made['bytes']:>14,}  {made['sha256']}  {file}")
        if not options.confirm:
            print(f"dry run, nothing was sent to {options.repo}; CONFIRM=yes sends these files")
            return 0
        if offline or not token:
            reason = f"profile {options.profile!r} is offline" if offline else "HF_TOKEN is not set"
            raise PublishError(f"nothing was sent: {reason}")
        upload(folder, recorded, options.repo, token)
    except ValueError as error:  # PublishError and ProfileError are ValueErrors
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"sent to {options.repo}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
