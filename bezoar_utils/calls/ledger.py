"""Finished calls on disk (`calls.jsonl`): what was answered is never sent again, and a kill costs only the calls in flight."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..study import files

HOPELESS = {"too long", "flagged"}  # this prompt will never be answered, whatever else is mended


class Ledger:
    """The finished calls in one file, by key. A failed call that may be retried is not one: the next run sends it again."""

    def __init__(self, path: Path):
        self.path, self.finished = Path(path), dict[str, dict]()
        self._keep(files.read_jsonl(self.path))

    def append(self, *rows: dict) -> None:
        """Keep calls that ended, on disk before this returns."""
        files.append_jsonl(self.path, *rows)
        self._keep(rows)

    def _keep(self, rows) -> None:
        self.finished |= {row["key"]: row for row in rows if "text" in row or row["failure"] in HOPELESS}


class Answers:
    """The rows for one list of calls: those already finished, and those that are added as they end.

    `keys` has one key a call; equal keys are one call. `progress(done, total)` counts positions of the list.
    """

    def __init__(self, keys: list[str], finished: dict[str, dict], progress: Callable[[int, int], None] | None = None):
        self.keys, self.copies, self.progress = keys, Counter(keys), progress
        self.rows = {key: finished[key] for key in self.copies if key in finished}
        self.missing = dict.fromkeys(key for key in keys if key not in self.rows)  # in the order of the list
        self.done = sum(self.copies[key] for key in self.rows)

    def add(self, *rows: dict) -> None:
        """Take rows of calls that ended, each with its `key`, and report the progress."""
        for row in rows:
            if row["key"] in self.missing:
                del self.missing[row["key"]]
                self.done += self.copies[row["key"]]
            self.rows[row["key"]] = row
        if self.progress:
            self.progress(self.done, len(self.keys))

    def in_order(self) -> list[dict]:
        """One row a key. Equal keys share one object."""
        return [self.rows[key] for key in self.keys]
