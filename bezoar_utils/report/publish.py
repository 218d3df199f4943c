"""Uploading a checkpoint to the hub: only by command, only what its finished stage recorded, only into a private repository.

`python -m bezoar_utils.report.publish --profile x --checkpoint 50_dpo/OpenBezoar-HH-RLHF-DPO --repo owner/name` says what would be
sent; with `--confirm` it is sent, with the token that stands in HF_TOKEN.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from ..study import files
from ..study.profile import STAGES, ProfileError, load_profile, stage_parameters
from ..study.stage import RUNS

# No pickles, no scripts, nothing hidden, no folders: what a checkpoint of this study consists of, and no more.
KINDS = re.compile(r"\w[\w.-]*\.(safetensors|json|txt|md)|tokenizer\.model")
CARD = "README.md"


class PublishError(RuntimeError):
    """Why this is not uploaded. The message is one line."""


def checkpoint(profile: str, name: str) -> tuple[Path, dict[str, dict]]:
    """(folder, file -> its `bytes` and `sha256`) of `<stage>/<folder>`, as its stage recorded and as it still is.

    Raises PublishError for what is unfinished, explored, rehearsed, changed since, or no checkpoint.
    """
    stage, _, model = name.partition("/")
    if stage not in STAGES or not re.fullmatch(r"\w[\w.-]*", model):
        raise PublishError(f"{name!r} is no checkpoint of a run; name it as <stage>/<folder>, 50_dpo/OpenBezoar-HH-RLHF-DPO say")
    folder, record = RUNS / profile / stage / model, _record(profile, stage)
    recorded = {f.removeprefix(f"{model}/"): made for f, made in record["outputs"].items() if f.startswith(f"{model}/")}
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    if strange := [f for f, p in found.items() if p.is_symlink() or not p.is_file() or not KINDS.fullmatch(f)]:
        raise PublishError(f"{name} holds what is never uploaded: {', '.join(sorted(strange))}")
    hashes = {f: files.sha256_file(p) for f, p in found.items()}
    if changed := [f for f in sorted(hashes | recorded) if hashes.get(f) != recorded.get(f, {}).get("sha256")]:
        raise PublishError(f"{name} is not what {stage} recorded: {', '.join(changed)}")
    if CARD not in recorded or not any(f.endswith(".safetensors") for f in recorded):
        raise PublishError(f"{name} lacks {CARD} or weights, so it is no checkpoint with a card")
    return folder, dict(sorted(recorded.items()))


def _record(profile: str, stage: str) -> dict:
    wanted, path = stage_parameters(load_profile(profile), stage), RUNS / profile / stage / "stage.json"
    if not path.exists():
        raise PublishError(f"{stage} is not finished for profile {profile!r} (explored chapters are never uploaded)")
    record = files.read_json(path)
    if "finished" not in record or record["profile"] != profile:
        raise PublishError(f"{stage} was not finished by the runner for profile {profile!r}, so nobody knows what it is")
    if record["parameters"] != wanted or "rehears" in profile:
        raise PublishError(f"{stage} ran with other values than profile {profile!r} has: rehearsed, or the profile changed since")
    return record


def hindrances(profile: str) -> list[str]:
    """What stands in the way of sending anything from here."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return (
        ["HF_HUB_OFFLINE is set"] * offline
        + [f"profile {profile!r} is offline"] * load_profile(profile).offline
        + ["HF_TOKEN is not set"] * (not os.environ.get("HF_TOKEN", "").strip())
    )


def plan_lines(folder: Path, listed: dict[str, dict], repo: str) -> list[str]:
    card = (folder / CARD).read_text()
    licence = re.findall(r"^license.*", card.split("---")[1], re.MULTILINE) if card.startswith("---") else []
    return [
        f"to {repo}, private:",
        *(f"  {made['bytes']:>14,}  {made['sha256']}  {name}" for name, made in listed.items()),
        f"  {sum(made['bytes'] for made in listed.values()):>14,}  bytes in {len(listed)} files",
        f"card: {', '.join(licence) or 'no licence line'}",
    ]


def upload(folder: Path, listed: dict[str, dict], repo: str, token: str) -> None:
    """Raises PublishError, with the token nowhere in it, when the hub refuses or `repo` is a public one."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        api.create_repo(repo, private=True, exist_ok=True)
        if not api.repo_info(repo).private:
            raise PublishError(f"{repo} exists and is public; whether to show the world is decided on the hub, not here")
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(listed), commit_message=f"Add {folder.name}")
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
    options = parser.parse_args(arguments)
    try:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repo):
            raise PublishError(f"REPO={options.repo!r} is not owner/name")
        folder, listed = checkpoint(options.profile, options.checkpoint)
        print("\n".join(plan_lines(folder, listed, options.repo)))
        reasons = hindrances(options.profile)
        if not options.confirm:
            print("dry run, nothing was sent; CONFIRM=yes sends it" + (f", but {' and '.join(reasons)}" if reasons else ""))
            return 0
        if reasons:
            raise PublishError(f"nothing was sent: {'; '.join(reasons)}")
        upload(folder, listed, options.repo, os.environ["HF_TOKEN"].strip())
    except (PublishError, ProfileError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"sent to {options.repo}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
