"""The stage contract: a stage is a notebook and a folder, and `stage.json`, written last, is the only proof it is done.

Inside a notebook:  `stage = open_stage("50_dpo", globals())` … `stage.input(...)`, `stage.output(...)` … `stage.finish(...)`.
`run.py` starts notebooks and decides by content, never by time stamps, which stages are stale.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from . import files
from .profile import CODE, REHEARSAL, ROOT, STAGES, ProfileError, check_parameters, load_profile, stage_parameters

RUNS = ROOT / "runs"
NOTEBOOKS = ROOT / "notebooks"
DRAFT = "stage.draft.json"  # what the notebook itself knows; the runner turns it into stage.json
# What lies in these moves files, plans and draws progress; it cannot change a result, so it makes no stage stale.
WITHOUT_RESULTS = ("study", "planning", "run")
AT_FIRST = {
    str(p.relative_to(CODE)): files.sha256_file(p) for p in (CODE / "bezoar_utils").rglob("*.py")
}  # before a stage can begin


class StageError(RuntimeError):
    """A stage that cannot start or finish; the message says what to do."""


@dataclass
class Stage:
    """One running stage. `folder` takes its outputs, `parameters` are the checked values it runs with."""

    name: str
    profile: str
    parameters: dict
    folder: Path
    reads: tuple[str, ...] | None  # None: interactive, any finished stage may be read
    started: float = field(default_factory=time.monotonic)
    inputs: dict[str, str | None] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=lambda: {"tokens": 0, "calls": 0, "cost_usd": 0.0})
    _reported: float = 0.0
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def input(self, reference: str) -> Path:
        """Path of an artifact `<stage>/<file or folder>` of an earlier stage; recorded with its content hash.

        Raises StageError when that stage is not declared as read in notebooks/stages.csv, or is not finished.
        """
        upstream, _, name = reference.partition("/")
        if self.reads is not None and upstream not in self.reads:
            raise StageError(f"{self.name} reads {reference}, but notebooks/stages.csv does not list {upstream} among its reads")
        folder = finished_folder(self.profile, upstream)
        recorded = files.read_json(folder / "stage.json")["outputs"]
        matching = {f: r["sha256"] for f, r in recorded.items() if f == name or f.startswith(f"{name}/")}
        if not matching:
            raise StageError(f"{upstream} made no {name!r}; it made {', '.join(sorted(recorded)) or 'nothing'}")
        self.inputs |= {f"{upstream}/{f}": sha for f, sha in matching.items()}
        return folder / name

    def runs(self, upstream: str) -> bool:
        """Whether this profile runs that stage at all; a chapter may then do without its artifacts."""
        return upstream in load_profile(self.profile).chapters()

    def note_input(self, name: str, sha256: str | None) -> None:
        """Record what was read from outside the run: `file:<path>` (None: not there) or `hub:<set>@<revision>/<file>`."""
        self.inputs[name] = sha256

    def enter(self, context):
        """Enter a context that ends with the stage: a local server, say. (The end of the process ends it too.)"""
        return self._open.enter_context(context)

    def output(self, name: str) -> Path:
        """Path for an artifact of this stage (its folder made)."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def resumable(self, name: str) -> Path:
        """A folder that outlives a kill: the rerun finds it as it was while inputs, parameters, chapter and code are the same.

        It is not an artifact, and is removed when the stage is finished.
        """
        folder = self.output(f"{CHECKPOINTS}/{name}/key.json").parent
        key = files.sha256_json([self.inputs, self.parameters, notebook_hash(self.name), _helper_hashes()])
        if not (folder / "key.json").exists() or files.read_json(folder / "key.json") != key:
            shutil.rmtree(folder)
            files.write_json(folder / "key.json", key)
        return folder

    def save_rows(self, name: str, rows: list[dict], columns: list[str] | None = None) -> None:
        """Rows as parquet: the `columns` first, which an empty table has too, then any that only later rows have."""
        others = dict.fromkeys(key for row in rows for key in row)
        files.write_table(self.output(name), rows, [*columns, *(key for key in others if key not in columns)] if columns else None)

    def measure(self, name: str, value: float, low=None, high=None, n: int | None = None, unit: str = "", asked=None) -> None:
        """A headline number, for reports and `metrics.json`; it rests on `n` of the `asked` values, where some may be missing."""
        number = {"value": value, "low": low, "high": high, "n": n, "unit": unit}
        self.metrics[name] = number if asked is None else number | {"asked": asked}

    def note(self, name: str, value) -> None:
        """A fact about how this stage did what it did (a library's version, a task's hash), kept in `stage.json`."""
        self.notes[name] = value

    def spend(self, tokens: int = 0, calls: int = 0, cost_usd: float = 0.0) -> None:
        for key, amount in (("tokens", tokens), ("calls", calls), ("cost_usd", cost_usd)):
            self.counts[key] += amount

    def progress(self, done: int, total: int, what: str) -> None:
        """Say how far the stage is; shown by the runner. Written at most twice a second."""
        if time.monotonic() - self._reported > 0.5 or done == total:
            self._reported = time.monotonic()
            files.write_json(self.folder / ".progress.json", {"done": done, "total": total, "what": what})

    def reporter(self, what: str):
        """`progress(done, total)` for a helper that knows how far it is but not in which stage."""
        return lambda done, total: self.progress(done, total, what)

    def finish(self) -> None:
        """Record everything; the last cell of each chapter. Interactive runs become done here, others by the runner."""
        self._open.close()
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        rehearsal = {"rehearsal_of": self.profile.removeprefix(REHEARSAL)} if self.profile.startswith(REHEARSAL) else {}
        draft = rehearsal | {
            "stage": self.name,
            "profile": self.profile,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "outputs": _hash_outputs(self.folder),
            "code": _helper_hashes(),
            "metrics": self.metrics,
            "notes": self.notes,
            "counts": self.counts,
            "versions": _versions(),
            "seed": self.parameters["seed"],
            "work_seconds": round(time.monotonic() - self.started, 2),
        }
        target = DRAFT if self.reads is not None else "stage.json"
        files.write_json(self.folder / target, draft)


def open_stage(name: str, namespace: dict) -> Stage:
    """Open a stage from its notebook's namespace, whose `parameters` cell has run.

    Under the runner the folder is `runs/<profile>/<stage>`. In JupyterLab it is `runs/<profile>/explore/<stage>`, so that
    exploring never touches a finished run; inputs come from the finished run, or else from `explore/`.
    Raises ProfileError for a value the schema refuses. What a nested value leaves out is filled in, in the namespace too.
    """
    profile = namespace["profile"]
    wanted = stage_parameters(load_profile(profile), name)
    missing = [key for key in wanted if key not in namespace]
    if missing:
        raise ProfileError(f"{name}: its parameters cell lacks {', '.join(missing)}")
    parameters = check_parameters(name, {key: namespace[key] for key in wanted})
    namespace.update(parameters)  # a nested value that the cell leaves out has the schema's default from here on
    reads = os.environ.get("BEZOAR_READS")
    folder = RUNS / profile / (name if reads is not None else f"explore/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    empty(folder)
    return Stage(name, profile, parameters, folder, tuple(reads.split()) if reads is not None else None)


def finished_folder(profile: str, stage: str) -> Path:
    """Where a finished stage lies. Raises StageError, saying what to run, when it is not finished."""
    candidates = [RUNS / profile / stage, RUNS / profile / "explore" / stage]
    for folder in candidates[: 1 if os.environ.get("BEZOAR_READS") is not None else 2]:
        if (folder / "stage.json").exists():
            return folder
    raise StageError(f"{stage} is not finished for profile {profile!r}: run `make reproduce PROFILE={profile}` first")


def finished_records(run: Path) -> dict[str, dict]:
    """`stage.json` of each stage that is finished in a run's folder, in the stages' order.

    Raises ValueError for a rehearsal's stages in a folder that is not called one: no number of theirs is a result.
    """
    proofs = {stage: run / stage / "stage.json" for stage in STAGES}
    records = {stage: files.read_json(proof) for stage, proof in proofs.items() if proof.exists()}
    if not run.name.startswith(REHEARSAL) and (taken := [s for s, record in records.items() if "rehearsal_of" in record]):
        raise ValueError(f"{run.name} holds stages of a rehearsal, which are not results: {', '.join(taken)}")
    return records


_locks: list[IO[str]] = []  # held until the process ends


def _lock(folder: Path, patience_s: float = 30) -> None:
    """One process a stage folder: after a kill, an orphaned kernel may live a moment longer than its runner."""
    handle = open(folder / ".lock", "w")  # noqa: SIM115 held until the process ends
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(BlockingIOError):
            files.lock(handle, patient=False)
            _locks.append(handle)
            return
        # a notebook run again from the top in one kernel holds the lock already
        if any(h.name == handle.name for h in _locks):
            return
        if time.monotonic() > deadline:
            raise StageError(f"another process is working in {folder}; end it first")
        time.sleep(0.2)


def is_artifact(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return (
        path.is_file()
        and not any(p.startswith((".", "scratch", CHECKPOINTS)) for p in parts)
        and path.name not in KEPT | NOT_ARTIFACTS
    )


CHECKPOINTS = "checkpoints"  # of a training under way
KEPT = {"calls.jsonl"}  # finished judge calls survive a rerun: no call is paid for twice
NOT_ARTIFACTS = {"stage.json", DRAFT, "chapter.ipynb", "chapter.partial.ipynb"}


def empty(folder: Path) -> None:
    """Start afresh: first the proof goes, then everything else but the ledgers of finished calls and the checkpoints."""
    (folder / "stage.json").unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name == CHECKPOINTS:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT | {".lock", "chapter.partial.ipynb"}:
            path.unlink()


def _hash_outputs(folder: Path) -> dict[str, dict]:
    paths = sorted(p for p in folder.rglob("*") if is_artifact(p, folder))
    return {str(p.relative_to(folder)): {"sha256": files.sha256_file(p), "bytes": p.stat().st_size} for p in paths}


def _helper_hashes() -> dict[str, str]:
    """The helper modules this process has loaded, by content: exactly the code the chapter used.

    A module edited since gets a hash that matches nothing, so that the stage counts as stale. Dates may lie, and are not looked at.
    """
    names = [name for name in sys.modules if name.startswith("bezoar_utils.") and name.split(".")[1] not in WITHOUT_RESULTS]
    paths = {Path(sys.modules[name].__file__ or "") for name in names}
    now = {str(p.relative_to(CODE)): files.sha256_file(p) for p in sorted(paths)}
    return {path: sha if sha == AT_FIRST.get(path) else "edited while the stage ran" for path, sha in now.items()}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    wanted = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "lm_eval", "openai", "pandas", "matplotlib")
    return {"python": sys.version.split()[0]} | {m: version(m) for m in wanted if m in sys.modules}


# ------------------------------------------------------------------------------------------------------------ staleness


def notebook_hash(stage: str) -> str:
    """Of the cells' sources and kinds only: opening a notebook in an editor changes nothing."""
    cells = files.read_json(NOTEBOOKS / f"{stage}.ipynb")["cells"]
    digest = hashlib.sha256()
    for cell in cells:
        digest.update(f"{cell['cell_type']}\0{''.join(cell['source'])}\0".encode())
    return digest.hexdigest()


def stale_reason(stage: str, profile: str, parameters: dict) -> str | None:
    """Why this stage must run again, in a few words, or None. Looks at content; upstream stages are judged as they stand."""
    folder = RUNS / profile / stage
    if not (folder / "stage.json").exists():
        return "not run yet"
    try:
        record = files.read_json(folder / "stage.json")
    except ValueError:
        return "its stage.json is damaged"
    if "rehearsal_of" in record and not profile.startswith(REHEARSAL):
        return "made by a rehearsal"
    return next(_differences(record, stage, profile, parameters), None)


def _differences(record: dict, stage: str, profile: str, parameters: dict) -> Iterator[str]:
    """What is not as `stage.json` recorded it, what costs least to look at first."""
    before = record["parameters"]
    for key in sorted(parameters.keys() | before.keys()):
        if parameters.get(key) != before.get(key):
            yield f"parameter {key}: {_short(before.get(key))} -> {_short(parameters.get(key))}"
    if record["notebook"] != notebook_hash(stage):
        yield "its notebook changed"
    for path, sha in record["code"].items():
        if not (CODE / path).exists() or files.sha256_file(CODE / path) != sha:
            yield f"{path} changed"
    for reference, sha in record["inputs"].items():
        if _current_hash(profile, reference, sha) != sha:
            yield f"its input {reference} changed"
    for name, recorded in record["outputs"].items():
        path = RUNS / profile / stage / name
        if not path.exists() or path.stat().st_size != recorded["bytes"]:
            yield f"its output {name} is missing or cut short"


def _current_hash(profile: str, reference: str, recorded: str | None) -> str | None:
    if reference.startswith("hub:"):  # pinned by its commit
        return recorded
    if reference.startswith("file:"):
        path = ROOT / reference.removeprefix("file:")
        return files.sha256_file(path) if path.exists() else None
    upstream, _, name = reference.partition("/")
    path = RUNS / profile / upstream / "stage.json"
    return files.read_json(path)["outputs"].get(name, {}).get("sha256") if path.exists() else None


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def verify(profile: str, wanted) -> list[str]:
    """Every artifact of every finished stage re-hashed; the list of what does not match (empty when all is well). The
    `wanted` stages must be finished, others (the chapters apart from the recipe) need not."""
    problems = []
    for stage in STAGES:
        folder = RUNS / profile / stage
        if not (folder / "stage.json").exists():
            problems += [f"{stage}: no stage.json, so not finished"] if stage in wanted else []
            continue
        record = files.read_json(folder / "stage.json")
        for name, recorded in record["outputs"].items():
            if not (folder / name).exists():
                problems.append(f"{stage}/{name}: missing")
            elif files.sha256_file(folder / name) != recorded["sha256"]:
                problems.append(f"{stage}/{name}: content differs from stage.json")
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if is_artifact(p, folder)}
        problems += [f"{stage}/{extra}: not in stage.json" for extra in sorted(found - record["outputs"].keys())]
        for reference, sha in record["inputs"].items():
            if _current_hash(profile, reference, sha) != sha:
                problems.append(f"{stage}: was made from another {reference}")
    return problems
