"""The command behind the Makefile: `python -m bezoar_utils.run <stage|plan|stale|verify|clean> …`.

make orders the stages and runs them side by side; this module decides by content whether one must run, runs its notebook
through papermill and closes papermill's traps: unknown parameters are errors, an early exit is not a success, a half-written
notebook is never taken for a finished one.
"""

import argparse
import ast
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .planning import doctor, plan, preflight
from .study import files
from .study.pace import expected_seconds, remember_time
from .study.profile import CODE, ROOT, STAGES, Profile, ProfileError, load_profile, stage_parameters
from .study.stage import DRAFT, KEPT, NOTEBOOKS, RUNS, StageError, notebook_hash, stale_reason, verify
from .training import precision

CELL_TIMEOUT_S = 24 * 3600  # papermill has none by default; a hung cell must not hang a rented GPU for ever
START_TIMEOUT_S = 180
LINE_EVERY_S = 10
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Threads that wait must not spin: beside another busy process a base step took 0.77 s spinning and 0.29 s so (RESULTS.md)
WAITING = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    "PYTHONUTF8": "1",  # in any locale
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures are part of the chapter
}
# no notice on TCP with every stage, and nothing that the user has IPython do at its start
KERNEL = ["--log-level=40", "--InteractiveShellApp.exec_PYTHONSTARTUP=False"]


# ---------------------------------------------------------------------------------------------------------------- plan


def stale_stages(profile_name: str, profile: Profile, dag: dict[str, list[str]]) -> dict[str, str]:
    """stage -> why it must or may run, in order. A stage after a stale one is listed: its inputs may come out the same."""
    reasons: dict[str, str] = {}
    for stage in dag:
        reason = stale_reason(stage, profile_name, stage_parameters(profile, stage))
        waiting = [up for up in dag[stage] if up in reasons]
        if reason or waiting:
            reasons[stage] = reason or f"follows {', '.join(waiting)}"
    return reasons


def show_plan(profile_name: str, dag: dict[str, list[str]]) -> int:
    """Print what would run, and 2 when it cannot: the reasons come last, one a line."""
    profile = load_profile(profile_name)
    reasons = stale_stages(profile_name, profile, dag)
    for stage in dag:
        seconds = expected_seconds(profile_name, stage)
        if stage in reasons:
            time_needed = f"about {clock(seconds)}" if seconds else "no time known"
            print(f"  {stage:18} run    {time_needed:14} {reasons[stage]}")
        else:
            print(f"  {stage:18} fresh")
    for target in dict.fromkeys(STAGES[stage].target for stage in dag):
        stages = [stage for stage in dag if STAGES[stage].target == target]
        total = sum(expected_seconds(profile_name, s) or 0 for s in stages if s in reasons)
        work = f", about {clock(total)} of work" if total else ""
        print(f"make {target}: {len([s for s in stages if s in reasons])} of {len(stages)} stages would run{work}")
    calls = ["", "estimated calls (tokens and speed are the values under `plan` in the profile):"]
    calls += plan.call_lines(profile_name, profile)
    print(*calls, "", *plan.gpu_lines(profile), sep="\n", flush=True)
    refused, unanswered = doctor.hub_refusals(profile)
    unasked = ["the hub does not answer, so whether its models and sets are there and open was not seen"] * unanswered
    for note in [*preflight.notes(profile), *unasked]:
        print(f"note: {note}", flush=True)
    reasons = [*preflight.impossible(profile), *preflight.unknown_tasks(profile)]
    reasons += [*preflight.unpaid(profile_name, profile), *refused]
    for reason in reasons:
        print(f"error: {reason}", file=sys.stderr)
    return 2 if reasons else 0


def require_precision(profile: Profile) -> None:
    """Refuse a precision that this machine lacks before anything runs, and say once that one is emulated."""
    if profile.precision != "auto" and (chosen := precision.use(profile.precision)).why == precision.EMULATED:
        print(f"note: {chosen.why}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------- one stage


def run_stage(stage: str, profile_name: str, reads: list[str], dag: dict[str, list[str]]) -> None:
    """Run one chapter if its content calls for it. Raises StageError when it fails; then it has no `stage.json`."""
    profile = load_profile(profile_name)
    parameters = stage_parameters(profile, stage)
    folder = RUNS / profile_name / stage
    if stale_reason(stage, profile_name, parameters) is None:
        os.utime(folder / "stage.json")  # make looks at times; content says it is fresh
        return
    for upstream in reads:
        if not (RUNS / profile_name / upstream / "stage.json").exists():
            raise StageError(f"{stage} reads {upstream}, which is not finished")
    check_notebook_parameters(stage, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    started = time.monotonic()
    position = f"[{list(dag).index(stage) + 1}/{len(dag)}] {stage}"
    say(f"{position}: start{_expectation(profile_name, stage)}")
    with Heartbeat(position, folder, expected_seconds(profile_name, stage)):
        execute(stage, profile_name, profile, reads, folder)
    seconds = time.monotonic() - started
    complete(stage, folder, seconds)
    remember_time(profile_name, stage, seconds)
    say(f"{position}: done in {clock(seconds)}{_left(profile_name, dag)}")


def check_notebook_parameters(stage: str, parameters: dict) -> None:
    """The `parameters` cell and the profile must name the same things: papermill would only warn."""
    cells = [c for c in files.read_json(NOTEBOOKS / f"{stage}.ipynb")["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise StageError(f"notebooks/{stage}.ipynb has {len(cells)} cells tagged parameters; it needs exactly one")
    named = set(literal_assignments("".join(cells[0]["source"]), stage))
    wanted = {*parameters, "profile"}
    if named != wanted:
        raise StageError(
            f"notebooks/{stage}.ipynb: its parameters cell and the profile disagree; "
            f"only in the cell: {sorted(named - wanted) or 'none'}, only in the profile: {sorted(wanted - named) or 'none'}"
        )


def literal_assignments(source: str, stage: str = "notebook") -> dict:
    """name -> value of a cell that holds nothing but assignments of literals. Raises StageError otherwise."""
    values = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise StageError(f"{stage}: line {node.lineno} of the parameters cell is not a plain assignment")
        try:
            values[node.targets[0].id] = ast.literal_eval(node.value)
        except ValueError:
            raise StageError(f"{stage}: line {node.lineno} of the parameters cell is not a literal") from None
    return values


def execute(stage: str, profile_name: str, profile: Profile, reads: list[str], folder: Path) -> None:
    """Run the chapter into `chapter.partial.ipynb`. A setting of the kernels that is in the environment already is respected."""
    import papermill

    # its parser stumbles over an = in a comment and warns of a parameter that it does not know; our own check has gone before
    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ["BEZOAR_READS"] = " ".join(reads)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
    kernels = precision.same_kernels(profile.precision, precision.cpu_flags())
    os.environ |= WAITING | QUIET | (OFFLINE if profile.offline else {})
    os.environ |= {name: value for name, value in kernels.items() if name not in os.environ}
    partial = folder / "chapter.partial.ipynb"
    own = tempfile.TemporaryDirectory()  # for what IPython keeps, in place of the user's
    try:
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (NOTEBOOKS / f"{stage}.ipynb", partial)),  # it fills in
            parameters={"profile": profile_name, **stage_parameters(profile, stage, short=True)},
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=CELL_TIMEOUT_S,
            start_timeout=START_TIMEOUT_S,
            autosave_cell_every=0,
            extra_arguments=[*KERNEL, f"--ipython-dir={own.name}"],
        )
    except papermill.PapermillExecutionError as error:
        raise StageError(f"{stage} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n(see {partial})") from None
    except Exception as error:  # a dead kernel, a full disk: nbclient has many names for them
        raise StageError(f"{stage} failed: {type(error).__name__}: {error}") from None
    finally:
        own.cleanup()


def complete(stage: str, folder: Path, seconds: float) -> None:
    """Turn the chapter's own draft into `stage.json`, last of all. No draft means the chapter never reached its end."""
    if not (folder / DRAFT).exists():
        raise StageError(f"{stage} ended without reaching its last cell, so it is not done")
    record = files.read_json(folder / DRAFT)
    os.replace(folder / "chapter.partial.ipynb", folder / "chapter.ipynb")
    record |= {
        "notebook": notebook_hash(stage),
        "chapter_sha256": files.sha256_file(folder / "chapter.ipynb"),
        "wall_seconds": round(seconds, 2),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (folder / DRAFT).unlink()
    (folder / ".progress.json").unlink(missing_ok=True)
    files.write_json(folder / "stage.json", record)


def _git(*arguments: str) -> str | None:
    """What git says of the checkout; None where there is no git, or no checkout."""
    with contextlib.suppress(OSError):
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None
    return None


# ----------------------------------------------------------------------------------------------------------- progress


class Heartbeat(threading.Thread):
    """A line every ten seconds while a stage runs: what it does, how far, how long, how much is left."""

    def __init__(self, position: str, folder: Path, expected: float | None):
        super().__init__(daemon=True)
        self.position, self.folder, self.expected = position, folder, expected
        self.started, self.ended, self.counted = time.monotonic(), threading.Event(), ("", 0, 0.0)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()

    def run(self):
        while not self.ended.wait(LINE_EVERY_S):
            say(f"{self.position}: {self.line()}")

    def line(self) -> str:
        elapsed = time.monotonic() - self.started
        path = self.folder / ".progress.json"
        text, left = f"{clock(elapsed)} elapsed", self.expected - elapsed if self.expected else None
        if path.exists():
            state = files.read_json(path)
            text += f", {state['what']} {state['done']}/{state['total']}"
            # the pace is this machine's; what was expected may be another's, but knows what follows this count
            left = max(left or 0, self._at_this_pace(state) or 0)
        return text + (f", about {clock(left)} left" if left and left > 0 else "")

    def _at_this_pace(self, state: dict) -> float | None:
        """Seconds until the present count is full, by the pace since it was first seen. Says nothing of what follows it."""
        if state["what"] != self.counted[0]:
            self.counted = (state["what"], state["done"], time.monotonic())
        _, done, since = self.counted
        gained = state["done"] - done
        return (time.monotonic() - since) / gained * (state["total"] - state["done"]) if gained else None


def say(line: str) -> None:
    print(line, flush=True)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _expectation(profile_name: str, stage: str) -> str:
    seconds = expected_seconds(profile_name, stage)
    return f" (about {clock(seconds)})" if seconds else ""


def _left(profile_name: str, dag: dict) -> str:
    undone = [s for s in dag if not (RUNS / profile_name / s / "stage.json").exists()]
    known = [expected_seconds(profile_name, s) for s in undone]
    if not undone:
        return ""
    estimate = f", about {clock(sum(filter(None, known)))} of work" if any(known) else ""
    return f"; {len(undone)} stages to go{estimate}"


# --------------------------------------------------------------------------------------------------------------- clean


def clean(profile_name: str, paid: bool) -> None:
    """Remove a profile's run. Ledgers of calls that cost money stay, unless `paid`, which asks first."""
    import shutil

    folder = RUNS / profile_name
    ledgers = [p for name in KEPT for p in folder.rglob(name)]
    costly = [p for p in ledgers if any(row.get("cost_usd", 0) > 0 for row in files.read_jsonl(p))]
    if paid:
        print("This deletes finished paid calls:\n  " + "\n  ".join(map(str, costly)) if costly else "No paid calls to delete.")
        if costly and input("Type 'delete' to go on: ") != "delete":
            return
        for path in costly:
            path.unlink()
        return
    for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else ():
        if path in costly or any(kept.is_relative_to(path) for kept in costly):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(ROOT / "reports" / profile_name, ignore_errors=True)
    print(f"removed runs/{profile_name}" + (f", kept {len(costly)} ledgers of paid calls" if costly else ""))


# ----------------------------------------------------------------------------------------------------------------- main


def stages_of(profile_name: str, dag: str) -> dict[str, list[str]]:
    """stage -> the stages it reads, of those that this profile runs. Raises StageError for a stage the schema lacks."""
    reads = {s.split(":")[0]: [r for r in s.split(":")[1].split(",") if r] for s in dag.split()}
    if unknown := [s for s in reads if s not in STAGES]:
        raise StageError(f"--dag names stages that notebooks/stages.csv does not: {', '.join(unknown)}")
    mine = load_profile(profile_name).chapters()
    return {stage: [r for r in reads[stage] if r in mine] for stage in reads if stage in mine}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.run")
    parser.add_argument("command", choices=("stage", "plan", "stale", "verify", "clean", "clean-paid"))
    parser.add_argument("name", nargs="?")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--dag", default="", help="stage:read,read … in order, as the Makefile has it")
    options = parser.parse_args(arguments)
    try:
        dag = stages_of(options.profile, options.dag)
        if options.command == "stage" and options.name in dag:
            run_stage(options.name, options.profile, dag[options.name], dag)
        elif options.command == "plan":
            return show_plan(options.profile, dag)
        elif options.command == "stale":
            profile = load_profile(options.profile)
            first_run = not any((RUNS / options.profile / s).exists() for s in dag)
            targets = {"reproduce", *(STAGES[stage].target for stage in dag)}  # what no target here runs may lack what it needs
            asked = [stage for stage in profile.chapters() if STAGES[stage].target in targets]
            preflight.require_possible(profile.model_copy(update={"stages": asked}), first_run)
            require_precision(profile)
            stale = stale_stages(options.profile, profile, dag)
            if first_run:
                doctor.introduce(options.profile, profile)
            print(*stale, *(f"-{named}" for line in options.dag.split() if (named := line.split(":")[0]) not in dag))
        elif options.command == "verify":
            problems = verify(options.profile, dag)
            print("\n".join(problems) if problems else f"runs/{options.profile}: every artifact matches its stage.json")
            return 1 if problems else 0
        elif options.command in ("clean", "clean-paid"):
            clean(options.profile, paid=options.command == "clean-paid")
    except (ProfileError, StageError, precision.PrecisionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
