"""How long stages take: on this machine where it is known, else as in the committed reference, scaled by how this one compares."""

from pathlib import Path

from . import files
from .profile import ROOT
from .stage import RUNS

REPORTS = ROOT / "reports"


def committed(profile_name: str) -> Path:
    """The folder of this profile's committed report, where there is one."""
    return REPORTS / ("reference" if profile_name == "mini" else f"{profile_name}-reference")


def expected_seconds(profile_name: str, stage: str) -> float | None:
    """What this stage took last time here, else in this profile's committed run, scaled to this machine."""
    here = _timings(RUNS / profile_name)
    if stage in here:
        return here[stage]
    reference = _timings(committed(profile_name))
    return reference[stage] * slowness(here, reference) if stage in reference else None


def slowness(here: dict[str, float], reference: dict[str, float]) -> float:
    """How many times as long as in the reference the stages finished here took; 1 before there are any."""
    both = here.keys() & reference.keys()
    return sum(here[s] for s in both) / sum(reference[s] for s in both) if both else 1.0


def remember_time(profile_name: str, stage: str, seconds: float) -> None:
    files.write_json(RUNS / profile_name / "timings.json", _timings(RUNS / profile_name) | {stage: round(seconds, 1)})


def _timings(folder: Path) -> dict[str, float]:
    path = folder / "timings.json"
    return files.read_json(path) if path.exists() else {}
