"""What this machine lacks for a profile: `make doctor`. One line a finding, what it is and what to do; nothing is changed.

Each server has a second to answer, all checks run at once, and no key is ever shown. Torch is not imported.
"""

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

from packaging.requirements import Requirement

from ..calls.attempts import through_proxies
from ..study.pace import expected_seconds
from ..study.profile import CODE, ROOT, STAGES, Profile, ProfileError, load_profile
from ..study.stages import TARGETS
from ..training import precision
from ..training.weights import in_repository
from . import plan
from .memory import disk_gb
from .preflight import hub_models, sources_of

OK, MISSING, NOTE, UNKNOWN = "ok", "missing", "note", "unknown"
TIMEOUT_S, PATIENCE_S = 1.0, 2.0  # of one answer; of all together, because looking up a name has no timeout of its own


def python_version(_) -> tuple[str, str]:
    supported, version = (3, 11, 5) <= sys.version_info[:3] < (3, 14), sys.version.split()[0]
    return (OK, version) if supported else (MISSING, f"{version}; 3.11.5 to 3.13 is needed: make setup PYTHON=python3.13")


def processor(_) -> tuple[str, str]:
    """What computes where there is no GPU. The memory's size comes from the system, by its POSIX names."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE) if info.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return OK, f"{named[1] if named else platform.processor() or platform.machine()}, {cores} cores, {memory:.0f} GiB memory"


def arithmetic(profile: Profile) -> tuple[str, str]:
    """What a CPU would compute in; for a GPU torch decides when a stage starts."""
    device = precision.Device("cpu", precision.cpu_bfloat16(precision.cpu_flags(), os.environ))
    if profile.plan.gpu:
        return NOTE, f"{profile.precision}: a GPU decides when a stage starts; stage.json says what it took"
    try:
        chosen = precision.choose(profile.precision, device)
    except precision.PrecisionError as error:
        return MISSING, str(error)
    same = precision.same_kernels(profile.precision, precision.cpu_flags())
    kernels = "AVX2 kernels, the same numbers on every x86-64 processor; " if same else ""
    native = "native" if device.bfloat16 else "not native"
    if chosen.why == precision.EMULATED:
        return NOTE, f"{chosen.dtype} ({chosen.why})"
    return OK, f"{chosen.dtype} ({kernels}bfloat16 is {native} on this processor)"


def introduce(profile_name: str, profile: Profile) -> None:
    """The first lines of a first run, on standard error: this machine, and how long the run will take on a machine like it."""
    for what, check in (("processor", processor), ("arithmetic", arithmetic), ("disk", disk), ("Python", python_version)):
        print(f"{what}: {check(profile)[1]}", file=sys.stderr)
    print(f"time: {run_time(profile_name, profile)[2]}; the estimate follows this machine's own pace", file=sys.stderr)


def run_time(profile_name: str, profile: Profile) -> tuple[str, str, str]:
    """A finding: the time of all stages one after another, as measured here, else in the reference run."""
    stages = [stage for stage in profile.chapters() if STAGES[stage].target == "reproduce"]
    seconds = sum(expected_seconds(profile_name, stage) or 0 for stage in stages)
    return NOTE, "time", f"about {seconds / 60:.0f} minutes of work for all stages" if seconds else "unknown until it has run here"


def packages(_) -> tuple[str, str]:
    """Installed against pinned versions; the mark of a build (2.13.0+cpu) does not count."""
    lock = "".join((CODE / "requirements" / name).read_text(encoding="utf-8") for name in ("torch.txt", "lock.txt"))
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
    if not (planned := profile.plan.gpu):
        return NOTE, "this profile needs none"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        first = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return MISSING, "nvidia-smi lists none: install NVIDIA's driver, or run on a machine with such a GPU"
    name, mib, driver = (part.strip() for part in first.split(","))
    card = f"{name}, {float(mib) / 1024:.1f} GiB, driver {driver}"
    enough = float(mib) / 1024 > 0.98 * planned.memory_gib  # a 24 GiB card reports a little less
    return (OK, card) if enough else (MISSING, f"{card}, but the profile assumes {planned.memory_gib:g} GiB: make plan")


def cuda_build(profile: Profile) -> tuple[str, str]:
    """What torch was built for, and whether bitsandbytes has a library for exactly that."""
    folders = {name: Path(spec.origin).parent for name in ("torch", "bitsandbytes") if (spec := find_spec(name))}
    if len(folders) < 2:
        return MISSING, "torch or bitsandbytes is not installed: make setup"
    version = re.search(r"^cuda.*= '([\d.]+)'", (folders["torch"] / "version.py").read_text(encoding="utf-8"), re.MULTILINE)
    if not version and profile.plan.gpu:
        return MISSING, "this torch is a CPU build: make setup without TORCH_INDEX, or with that of a CUDA build"
    library = f"libbitsandbytes_{'cuda' + version[1].replace('.', '') if version else 'cpu'}.so"
    built = f"torch for {'CUDA ' + version[1] if version else 'CPUs'}"
    exists = (folders["bitsandbytes"] / library).exists()
    return (OK, f"{built}, {library}") if exists else (MISSING, f"{built}, but bitsandbytes has no {library}: make setup")


def disk(profile: Profile) -> tuple[str, str]:
    free, needed = shutil.disk_usage(ROOT).free / 1e9, sum(disk_gb(profile).values()) or 1.0
    return (OK if free > needed else MISSING), f"{free:.0f} GB free, about {needed:.0f} needed in all"


def keys(profile: Profile) -> tuple[str, str]:
    endpoints = [role.endpoint for role in called_roles(profile).values() if role.endpoint.base_url]
    names = sorted({endpoint.api_key_env for endpoint in endpoints if endpoint.api_key_env})
    if unset := [name for name in names if not os.environ.get(name)]:
        return MISSING, f"{', '.join(unset)} not set: export it in the shell that runs make"
    return OK, f"{', '.join(names)} set" if names else "none needed"


def called_roles(profile: Profile, targets: tuple[str, ...] = ("reproduce",)) -> dict[tuple[str, str], object]:
    """(model, address) -> the teacher or judge that these make targets call there, each once; of equal servers every one."""
    models = {row["model"] for row in plan.expected_calls(profile) if STAGES[row["stage"]].target in targets}
    roles = [role for role in profile.model_roles().values() if role.endpoint and role.model in models]
    return {(role.model, address): role for role in roles for address in _addresses(role.endpoint)}


def _addresses(endpoint) -> list[str]:
    address = endpoint.base_url or endpoint.local_server
    return [address] if isinstance(address, str) else address


def endpoint(role, address: str) -> tuple[str, str]:
    """Whether a teacher's or judge's server answers there, accepts the key, and has the model."""
    if role.endpoint.local_server:
        return OK, "served by the study itself"
    import openai

    name = role.endpoint.api_key_env
    key = os.environ.get(name or "", "").strip() or "local"
    try:
        http = openai.DefaultHttpxClient(trust_env=through_proxies(address))  # as in a run
        with openai.OpenAI(base_url=address, api_key=key, timeout=TIMEOUT_S, max_retries=0, http_client=http) as client:
            models = [model.id for model in client.models.list().data]
    except openai.APIConnectionError:
        return MISSING, "no answer: start the server, or change base_url"
    except openai.APIStatusError as error:
        if error.status_code not in (401, 403):
            return NOTE, f"answers, but lists no models ({error.status_code})"
        advice = f"look at {name}" if name else "name its variable in api_key_env"
        return MISSING, f"refuses the key ({error.status_code}): {advice}"
    if role.model in models:
        return OK, "answers and lists the model"
    return MISSING, f"answers, but lists {', '.join(models[:5]) or 'nothing'}: give the server's name for it as model"


def beside(role, address: str) -> tuple[str, str]:
    """As `endpoint`, of one that only chapters beside the recipe ask: what it lacks does not stop `make reproduce`."""
    state, detail = endpoint(role, address)
    return (NOTE if state == MISSING else state), f"{detail} (only make {' and make '.join(TARGETS[1:])} ask it)"


def hub_files(profile: Profile) -> dict[str, str]:
    """what -> URL of one file of each hub id at its revision: only a file shows whether we may read a gated repository."""
    from huggingface_hub import constants, hf_hub_url

    if profile.offline or constants.HF_HUB_OFFLINE:
        return {}
    urls = {}
    for model, revision in hub_models(profile).items():
        repository, file = in_repository(model)
        urls[f"{model} at {str(revision)[:8]}"] = hf_hub_url(repository, file or "config.json", revision=revision)
    for _, source in sources_of(profile, profile.chapters()):
        if source.hub:
            name = ".gitattributes" if "*" in source.files[0] else source.files[0]
            what = f"{source.hub} at {(source.revision or source.expect_prefix)[:8]}"
            urls[what] = hf_hub_url(source.hub, name, repo_type="dataset", revision=source.revision)
    return urls


def on_the_hub(url: str) -> tuple[str, str]:
    """Whether the hub has a file and lets us read it; MISSING when it says no, UNKNOWN when it says nothing."""
    import httpx2  # the HTTP client under huggingface_hub
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(url, timeout=TIMEOUT_S)
    except errors.GatedRepoError:
        return MISSING, "is gated: ask for access on its page, and set HF_TOKEN"
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError):
        return MISSING, "does not exist at this revision: look at its page for the revision"
    except errors.RepositoryNotFoundError:
        return MISSING, "does not exist, or is private: look at its page, and set HF_TOKEN"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        return (UNKNOWN if status >= 500 else MISSING), f"the hub answers {status}: look at its page"
    except httpx2.HTTPError:
        return UNKNOWN, "the hub does not answer: look at the network, or at HF_ENDPOINT"
    return OK, "exists, and we may read it"


def examine(profile: Profile) -> list[tuple[str, str, str]]:
    """(state, what, detail) of everything the profile needs, in a fixed order."""
    import openai  # noqa: F401  before the clock of the checks starts: this import takes a second

    machine = {"processor": processor, "arithmetic": arithmetic, "Python": python_version, "packages": packages}
    machine |= {"GPU": gpu, "CUDA": cuda_build, "disk": disk, "keys": keys}
    checks = {what: (check, profile) for what, check in machine.items()}
    needed, roles = called_roles(profile), called_roles(profile, TARGETS)
    for key, role in roles.items():
        checks[" at ".join(key)] = (partial(endpoint if key in needed else beside, role), key[1])
    checks |= {what: (on_the_hub, url) for what, url in hub_files(profile).items()}
    return [(state, what, detail) for what, (state, detail) in all_at_once(checks).items()]


def hub_refusals(profile: Profile) -> tuple[list[str], bool]:
    """(a line for each model or set that is missing or gated on the hub, whether the hub left a question unanswered)."""
    findings = all_at_once({what: (on_the_hub, url) for what, url in hub_files(profile).items()})
    refusals = [f"{what} {detail}" for what, (state, detail) in findings.items() if state == MISSING]
    return refusals, any(state == UNKNOWN for state, _ in findings.values())


def all_at_once(checks: dict[str, tuple]) -> dict[str, tuple[str, str]]:
    """what -> (state, detail) of checks given as (function, its subject); one that does not end in time is a finding too."""
    findings = dict.fromkeys(checks, (UNKNOWN, f"no answer in {PATIENCE_S:g} s"))

    def run(what, check, subject):
        try:
            findings[what] = check(subject)
        except Exception as error:  # a broken check must not hide the others; its text is not shown, because it may hold a key
            findings[what] = (UNKNOWN, f"could not be checked ({type(error).__name__})")

    threads = [threading.Thread(target=run, args=(what, *check), daemon=True) for what, check in checks.items()]
    deadline = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(findings)


def main(profile_name: str) -> int:
    try:
        profile = load_profile(profile_name)
        findings = [*examine(profile), run_time(profile_name, profile)]
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for state, what, detail in findings:
        print(f"  {state:8} {what}: {detail}")
    lacking = sum(state in (MISSING, UNKNOWN) for state, *_ in findings)
    print(f"{lacking} of these are missing or unknown" if lacking else "this machine has all that this profile needs")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else "mini"))
