"""What this machine lacks for a profile: `make doctor`. One line a finding, what it is and what to do; nothing is changed.

Every question to a server has a second, all are asked at once, and no key is ever shown. Torch is not imported.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from packaging.requirements import Requirement

from ..report.reference import APART
from ..study.pace import expected_seconds
from ..study.profile import CODE, ROOT, STAGES, Profile, ProfileError, load_profile
from ..training import precision
from . import plan
from .memory import disk_gb
from .preflight import hub_models, sources_of

OK, MISSING, NOTE = "ok", "missing", "note"
TIMEOUT_S, PATIENCE_S = 1.0, 2.0  # of one answer; of all together, for looking up a name has no timeout of its own
SILENT = "the hub does not answer: look at the network, or at HF_ENDPOINT"
HUB_SAYS = {
    401: "is missing, private or gated: look at its page, and set HF_TOKEN",
    403: "is gated: ask for access on its page, and set HF_TOKEN",
    404: "is not there, or not at this revision",
}


def python_version(_) -> tuple[str, str]:
    fine, version = (3, 11, 5) <= sys.version_info[:3] < (3, 14), sys.version.split()[0]
    return (OK, version) if fine else (MISSING, f"{version}; 3.11.5 to 3.13 is needed: make setup PYTHON=python3.13")


def processor(_) -> tuple[str, str]:
    """What computes where there is no GPU. Memory is asked of the system as POSIX names it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE) if info.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return OK, f"{named[1] if named else platform.processor() or platform.machine()}, {cores} cores, {memory:.0f} GiB memory"


def arithmetic(profile: Profile) -> tuple[str, str]:
    """What a CPU would compute in; which of its choices a GPU gets is for torch to say, when a stage starts."""
    device = precision.Device("cpu", precision.cpu_bfloat16(precision.cpu_flags(), os.environ))
    if profile.plan.gpu:
        return NOTE, f"{profile.precision}: a GPU decides when a stage starts; stage.json says what it took"
    try:
        chosen = precision.choose(profile.precision, device)
    except precision.PrecisionError as error:
        return MISSING, str(error)
    return NOTE if chosen.why == precision.EMULATED else OK, f"{chosen.dtype} ({chosen.why})"


def introduce(profile_name: str, profile: Profile) -> None:
    """The first lines of a first run, on the standard error: this machine, and how long the run will take on one like it."""
    for what, check in (("processor", processor), ("arithmetic", arithmetic), ("disk", disk), ("Python", python_version)):
        print(f"{what}: {check(profile)[1]}", file=sys.stderr)
    print(f"time: {run_time(profile_name, profile)[2]}; the estimate follows this machine's own pace", file=sys.stderr)


def run_time(profile_name: str, profile: Profile) -> tuple[str, str, str]:
    """A finding: the whole run's stages one after another, as timed here, else in the reference run. None of those apart."""
    stages = [s for s in profile.stages or STAGES if s not in APART]
    seconds = sum(expected_seconds(profile_name, stage) or 0 for stage in stages)
    return NOTE, "time", f"about {seconds / 60:.0f} minutes of work for all stages" if seconds else "unknown until it has run here"


def packages(_) -> tuple[str, str]:
    """Installed against pinned; a build's own mark (2.13.0+cpu) is no difference."""
    lock = "".join((CODE / "requirements" / name).read_text() for name in ("torch.txt", "lock.txt"))
    pins = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if re.match(r"[a-z]", line)]
    ours = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    pinned = {pin.name.lower(): next(iter(pin.specifier)).version for pin in ours}
    installed = {re.sub("[._]", "-", d.metadata["Name"].lower()): d.version.split("+")[0] for d in metadata.distributions()}
    if absent := [name for name in pinned if name not in installed]:
        return MISSING, f"{len(absent)} of {len(pinned)} are not installed ({', '.join(absent[:3])}): make setup"
    if other := [f"{name} {installed[name]}, not {version}" for name, version in pinned.items() if installed[name] != version]:
        return NOTE, f"{len(other)} of {len(pinned)} differ from the lock ({'; '.join(other[:3])}): make setup, or numbers may move"
    return OK, f"all {len(pinned)} as locked"


def gpu(profile: Profile) -> tuple[str, str]:
    if not (wanted := profile.plan.gpu):
        return NOTE, "this profile needs none"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        first = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return MISSING, "nvidia-smi names none: install NVIDIA's driver, or run on a machine with such a GPU"
    name, mib, driver = (part.strip() for part in first.split(","))
    told = f"{name}, {float(mib) / 1024:.1f} GiB, driver {driver}"
    enough = float(mib) / 1024 > 0.98 * wanted.memory_gib  # a 24 GiB card tells of a little less
    return (OK, told) if enough else (MISSING, f"{told}; the profile reckons with {wanted.memory_gib:g} GiB: make plan")


def cuda_build(profile: Profile) -> tuple[str, str]:
    """What torch was built for, and whether bitsandbytes brings a library for just that."""
    folders = {name: Path(spec.origin).parent for name in ("torch", "bitsandbytes") if (spec := find_spec(name))}
    if len(folders) < 2:
        return MISSING, "torch or bitsandbytes is not installed: make setup"
    version = re.search(r"^cuda.*= '([\d.]+)'", (folders["torch"] / "version.py").read_text(), re.MULTILINE)
    if not version and profile.plan.gpu:
        return MISSING, "this torch is a CPU build: make setup without TORCH_INDEX, or with that of a CUDA build"
    library = f"libbitsandbytes_{'cuda' + version[1].replace('.', '') if version else 'cpu'}.so"
    built = f"torch for {'CUDA ' + version[1] if version else 'CPUs'}"
    there = (folders["bitsandbytes"] / library).exists()
    return (OK, f"{built}, {library}") if there else (MISSING, f"{built}, but bitsandbytes brings no {library}")


def disk(profile: Profile) -> tuple[str, str]:
    free, needed = shutil.disk_usage(ROOT).free / 1e9, sum(disk_gb(profile).values()) or 1.0
    return (OK if free > needed else MISSING), f"{free:.0f} GB free, about {needed:.0f} needed in all"


def keys(profile: Profile) -> tuple[str, str]:
    names = sorted({s.endpoint.api_key_env for s in speakers(profile).values() if s.endpoint.base_url and s.endpoint.api_key_env})
    if unset := [name for name in names if not os.environ.get(name)]:
        return MISSING, f"{', '.join(unset)} not set: export it in the shell that runs make"
    return OK, f"{', '.join(names)} set" if names else "none needed"


def speakers(profile: Profile) -> dict[tuple[str, str], object]:
    """(model, address) -> whoever is asked there, each once; of a list of equal servers every one."""
    names = {row["model"] for row in plan.expected_calls(profile)}
    asked = [s for s in profile.model_roles().values() if s.endpoint and s.model in names]
    return {(s.model, address): s for s in asked for address in _addresses(s.endpoint)}


def _addresses(endpoint) -> list[str]:
    where = endpoint.base_url or endpoint.local_server
    return [where] if isinstance(where, str) else where


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # another host would be sent the key


def get(url: str, key: str | None, method: str = "GET") -> tuple[int, bytes]:
    """(status, body). Raises OSError when nobody answers."""
    request = Request(url, headers={"Authorization": f"Bearer {key}"} if key else {}, method=method)  # noqa: S310 the profile's own
    try:
        with build_opener(_Stay).open(request, timeout=TIMEOUT_S) as reply:
            return reply.status, reply.read()
    except HTTPError as error:
        return error.code, b""


def endpoint(speaker, address: str) -> tuple[str, str]:
    if speaker.endpoint.local_server:
        return OK, "served by the study itself"
    name = speaker.endpoint.api_key_env
    try:
        status, body = get(f"{address.rstrip('/')}/models", os.environ.get(name or ""))
    except OSError:
        return MISSING, "no answer: start the server, or change base_url"
    if status in (401, 403):
        return MISSING, f"refuses the key ({status}): " + (f"look at {name}" if name else "name its variable in api_key_env")
    if status != 200:
        return NOTE, f"answers, but lists no models ({status})"
    listed = [str(model.get("id")) for model in json.loads(body)["data"]]
    if speaker.model in listed:
        return OK, "answers and lists the model"
    return MISSING, f"answers, but lists {', '.join(listed[:5]) or 'nothing'}: give the server's name for it as model"


def hub_files(profile: Profile) -> dict[str, str]:
    """what -> path of one file of each hub id at its revision, for who may read a file is not told with the page's facts."""
    mine, found = profile.stages or list(STAGES), {}
    for model, revision in hub_models(profile).items():
        found[f"{model} at {str(revision)[:8]}"] = f"{model}/resolve/{revision}/config.json"
    for source in (source for _, source in sources_of(profile, mine) if source.hub):
        name = ".gitattributes" if "*" in source.files[0] else source.files[0]
        what = f"{source.hub} at {(source.revision or source.expect_prefix)[:8]}"
        found[what] = f"datasets/{source.hub}/resolve/{source.revision or 'main'}/{name}"
    return {} if profile.offline or os.environ.get("HF_HUB_OFFLINE") == "1" else found


def on_the_hub(path: str) -> tuple[str, str]:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        status, _ = get(f"{hub}/{path}", os.environ.get("HF_TOKEN"), "HEAD")
    except OSError:
        return MISSING, SILENT
    return (OK, "there, and open to us") if status < 400 else (MISSING, HUB_SAYS.get(status, f"the hub answers {status}"))


def examine(profile: Profile) -> list[tuple[str, str, str]]:
    """(state, what, detail) of everything the profile needs, in a fixed order."""
    machine = {"processor": processor, "arithmetic": arithmetic, "Python": python_version, "packages": packages}
    here = machine | {"GPU": gpu, "CUDA": cuda_build, "disk": disk, "keys": keys}
    checks = {what: (check, profile) for what, check in here.items()}
    checks |= {f"{model} at {address}": (partial(endpoint, s), address) for (model, address), s in speakers(profile).items()}
    checks |= {what: (on_the_hub, path) for what, path in hub_files(profile).items()}
    return [(state, what, detail) for what, (state, detail) in all_at_once(checks).items()]


def hub_refusals(profile: Profile) -> tuple[list[str], bool]:
    """(a line for each model or set that the hub says is missing or gated, did the hub leave any question unanswered)."""
    found = all_at_once({what: (on_the_hub, path) for what, path in hub_files(profile).items()})
    refused = [f"{what} {detail}" for what, (_, detail) in found.items() if detail in HUB_SAYS.values()]
    return refused, any(state == MISSING and detail not in HUB_SAYS.values() for state, detail in found.values())


def all_at_once(checks: dict[str, tuple]) -> dict[str, tuple[str, str]]:
    """what -> (state, detail) of checks given as (function, its subject); one that does not end in time is a finding too."""
    found = dict.fromkeys(checks, (MISSING, f"no answer in {PATIENCE_S:g} s"))

    def look(what, check, subject):
        try:
            found[what] = check(subject)
        except Exception as error:  # a broken check must not hide the others; only its kind is told, for its text may hold a key
            found[what] = (MISSING, f"could not be checked ({type(error).__name__})")

    threads = [threading.Thread(target=look, args=(what, *check), daemon=True) for what, check in checks.items()]
    deadline = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return found


def main(profile_name: str) -> int:
    try:
        profile = load_profile(profile_name)
        findings = [*examine(profile), run_time(profile_name, profile)]
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for state, what, detail in findings:
        print(f"  {state:8} {what}: {detail}")
    lacking = sum(state == MISSING for state, *_ in findings)
    print(f"{lacking} of these are missing" if lacking else "nothing that this profile needs is missing")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else "mini"))
