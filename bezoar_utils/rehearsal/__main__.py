"""`python -m bezoar_utils.rehearsal --profile paper`: the command behind `make rehearse`."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from ..calls import local_server
from ..data.sources import SourceError
from ..planning.preflight import hub_models, require_possible
from ..study import files
from ..study.profile import CODE, REHEARSAL, ROOT, Profile, ProfileError, load_profile
from ..study.stage import RUNS
from ..study.stages import STAGES, TARGETS
from . import fake_endpoints, fake_hub_files, hub, shrink, summary

ONLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def needs_stand_ins(profile: Profile) -> bool:
    values = profile.model_dump(mode="json")
    return bool(hub_models(profile) or shrink.remote_endpoints(values) or any(s["hub"] for s in shrink.sources(values).values()))


def rehearse(name: str, jobs: str, own_data: Path | None, own_models: Path | None = None) -> int:
    """Run the whole profile on stand-ins and give an account of it; the exit code of the run.

    Raises ProfileError for a profile that cannot work (money apart: a rehearsal pays nothing), SourceError for a local file
    that cannot be read.
    """
    profile = load_profile(name)
    require_possible(profile, first_run=True)
    own = fake_hub_files.own_weights(profile, own_models)
    if not needs_stand_ins(profile):
        print(f"{name} needs nothing that this machine lacks: make reproduce PROFILE={name} is its own rehearsal")
        return 0
    folder, started = RUNS / (REHEARSAL + name), time.monotonic()
    clear_run(folder)
    print(f"rehearsing {name}: making stand-ins for its models, data sets and endpoints", flush=True)
    with contextlib.ExitStack() as servers:
        repositories = fake_hub_files.build(profile, folder / "hub", own_data, own_models)
        hub_url = servers.enter_context(local_server.serving(hub.handler_for(repositories)))
        values = write_profile(profile, folder, serve_endpoints(profile, servers), own)
        targets = [target for target in TARGETS if any(STAGES[stage].target == target for stage in profile.chapters())]
        code = run_study(folder.name, jobs, targets, environment(profile, folder, hub_url))
    summary.write(name, profile, values, time.monotonic() - started, finished=code == 0)
    return code


def serve_endpoints(profile: Profile, servers: contextlib.ExitStack) -> list[str]:
    """Addresses of stand-ins for all remote endpoints of the profile, which serve until `servers` closes."""
    values = profile.model_dump(mode="json")
    models = tuple(sorted({role["model"] for role in shrink.remote_endpoints(values).values()}))
    handlers = [fake_endpoints.handler_for(models) for _ in range(shrink.servers(values))]
    return [f"{servers.enter_context(local_server.serving(handler))}/v1" for handler in handlers]


def write_profile(profile: Profile, folder: Path, addresses: list[str], own_weights: dict[str, Path]) -> dict:
    """The values of the rehearsed profile, which `profile.yaml` in the run's folder holds too."""
    values = shrink.rehearsed(profile, addresses, fake_hub_files.harness_tasks(profile))
    for place, own in own_weights.items():
        shrink.at(values, place).update(model=str(own), revision=None)
    fake_hub_files.cut_local_files(values, folder / "data")
    values = Profile.model_validate(values).model_dump(mode="json")
    files.write_bytes(folder / "profile.yaml", yaml.safe_dump(values, sort_keys=False).encode())  # checkpoints have an order
    return values


def run_study(profile_name: str, jobs: str, targets: list[str], environment: dict[str, str]) -> int:
    """Run all that the profile runs through make; its exit code."""
    command = ["make", "-f", str(CODE / "Makefile"), "--no-print-directory", *targets]
    command += [f"PROFILE={profile_name}", f"PY={sys.executable}", f"JOBS={jobs}"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def clear_run(folder: Path) -> None:
    """An empty run; what its stages took last time is kept, for the estimate of the time left."""
    timings = files.read_json(folder / "timings.json") if (folder / "timings.json").exists() else {}
    for old in (folder, ROOT / "reports" / folder.name):
        shutil.rmtree(old, ignore_errors=True)
    files.write_json(folder / "timings.json", timings)


def environment(profile: Profile, folder: Path, hub_url: str) -> dict[str, str]:
    """The run's environment: nothing leaves the machine, and no real key or cache is within its reach."""
    kept = {k: v for k, v in os.environ.items() if k not in (*ONLINE, "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    endpoints = [role["endpoint"] for role in shrink.remote_endpoints(profile.model_dump(mode="json")).values()]
    keys = {endpoint["api_key_env"]: "rehearsal" for endpoint in endpoints if endpoint["api_key_env"]}
    cache = {"HF_ENDPOINT": hub_url, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1"}
    own = {"BEZOAR_HUB_LOCK": str(folder / "hub.lock.json"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return kept | keys | cache | own


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.rehearsal")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--data", type=Path, help="a folder of own rows: DATA/<set>/<file> as on the hub")
    parser.add_argument("--models", type=Path, help="a folder of real weights or tokenizers: MODELS/<owner>/<name>/ as on the hub")
    options = parser.parse_args(arguments)
    try:
        return rehearse(options.profile, options.jobs, options.data, options.models)
    except (ProfileError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
