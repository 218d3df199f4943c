"""The table of stages, `notebooks/stages.csv`: one line a chapter, and the only place that names them all.

The Makefile reads it for the order and for what each stage reads; the schema, the plan, the report and the rehearsal read it here.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
TARGETS = ("reproduce", "ablations", "neighbours")
WORK = {"trains", "calls", "evaluates"}


@dataclass(frozen=True)
class StageRow:
    """A line of the table. `section` of the profile is the stage's own; `shared` are the others that it may read.

    `artifact` is the file that its headline numbers rest on, `does` says which kinds of work it does (trains, calls, evaluates),
    `target` is the make target that runs it.
    """

    name: str
    title: str
    section: str
    shared: tuple[str, ...]
    reads: tuple[str, ...]
    artifact: str
    does: frozenset[str]
    target: str


def read_table(path: Path) -> dict[str, StageRow]:
    """name -> its row, in order. Raises ValueError for a stage that reads a later one, or for a word that is not known."""
    table: dict[str, StageRow] = {}
    with open(path, newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            lists = {key: tuple(line[key].split()) for key in ("shared", "reads")}
            row = StageRow(**line | lists | {"does": frozenset(line["does"].split())})
            if unknown := [*(set(row.reads) - table.keys()), *(row.does - WORK), *({row.target} - set(TARGETS))]:
                raise ValueError(
                    f"{path.name}: {row.name} names {', '.join(unknown)}; expected an earlier stage, {WORK}, {TARGETS}"
                )
            table[row.name] = row
    return table


STAGES = read_table(CODE / "notebooks" / "stages.csv")


def names(work: str) -> list[str]:
    """The stages of `make reproduce` that do this kind of work, in order."""
    return [row.name for row in STAGES.values() if work in row.does and row.target == "reproduce"]
