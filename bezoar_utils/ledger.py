"""The ledger of finished calls (`calls.jsonl`), of one process or of several that share a stage (`SHARD=0/2`, `SHARD=1/2`).

Shards need no coordinator: each runs the same chapter, makes every n-th call, writes it to a ledger of its own, and reads
everyone's. So all of them see the same answers and come to the same next calls; shard 0's files are the stage's.
"""

import contextlib
import fcntl
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from . import files
from .profile import CODE
from .stage import PACT, StageError, ledgers, notebook_hash, this_shard

POLL_S = 1.0
PATIENCE_S = 15 * 60  # within it a 40-billion model loads and writes a batch; a shard from which less is heard is dead
HOPELESS = {"400", "413", "422"}  # this prompt will never be answered; any other status concerns all prompts


class Ledger:
    """The rows of finished calls by key: read from every ledger of the stage, whoever shares it now; new ones go to `path`.

    A failed call that may work later is none of them, and the next run makes it again. Shards must agree, so for them it stays
    failed while shard 0 works at this stage.
    """

    def __init__(self, path: Path):
        self.path, self.shard = Path(path), this_shard()
        self.home = self.path.parent.parent if self.shard.number else self.path.parent
        self.pact = self._pact()
        self.finished: dict[str, dict] = {}
        self._read: dict[Path, int] = {}
        self.refresh()

    def append(self, *rows: dict) -> None:
        """Keep calls that ended, on disk before this returns."""
        rows = [row | ({"run": self.pact["run"]} if self.pact and "failure" in row else {}) for row in rows]
        files.append_jsonl(self.path, *rows)
        self._keep(rows)

    def refresh(self) -> bool:
        """Read what all shards wrote since the last look; True when there was anything."""
        paths = [path for path in dict.fromkeys([*ledgers(self.home), self.path]) if path.exists()]
        news = [row for path in paths if path != self.path or path not in self._read for row in self._new_rows(path)]
        self._keep(news)
        return bool(news)

    def owns(self, number: int) -> bool:
        """Is the call, or the batch, of this number in the stage's present list this shard's to make?"""
        return number % self.shard.of == self.shard.number

    def others(self, missing: dict[str, int], waiting: Callable[[int, str], None]) -> Iterator[dict]:
        """The rows of the calls `missing` (key -> number), as the shards that own them finish them.

        `waiting(how many, whom for)` is called now and then. Raises StageError when nothing comes for PATIENCE_S, or when shard 0
        begins anew.
        """
        missing, heard = dict(missing), time.monotonic()
        while missing:
            if self.refresh():
                heard = time.monotonic()
            for key in [key for key in missing if key in self.finished]:
                del missing[key]
                yield self.finished[key]
            if missing:
                whom = ", ".join(f"shard {n}" for n in sorted({number % self.shard.of for number in missing.values()}))
                self._check(whom, time.monotonic() - heard)
                waiting(len(missing), f", waiting for {whom}")
                time.sleep(POLL_S)

    def _check(self, whom: str, silent_s: float) -> None:
        if self.shard.number and (self.home / "stage.json").exists():
            raise StageError("shard 0 has finished this stage by itself")
        if self._pact() != self.pact:
            raise StageError(f"shard 0 has begun {self.home.name} anew; start this shard again")
        if silent_s > PATIENCE_S:
            raise StageError(
                f"nothing from {whom} of {self.shard.of} for {silent_s / 60:.0f} minutes; what is finished is kept: "
                "start all shards again, and they go on"
            )

    def _pact(self) -> dict | None:
        return _read_pact(self.home) if self.shard.of > 1 else None

    def _keep(self, rows: list[dict]) -> None:
        run = self.pact and self.pact["run"]
        self.finished |= {r["key"]: r for r in rows if "text" in r or r["failure"] in HOPELESS or (run and r.get("run") == run)}

    def _new_rows(self, path: Path) -> Iterator[dict]:
        """A torn line, which a kill can leave, counts nothing; the last one may still be growing."""
        with open(path, "rb") as handle:
            handle.seek(self._read.setdefault(path, 0))
            lines = handle.read().split(b"\n")
        for number, line in enumerate(lines):
            last = number + 1 == len(lines)
            try:
                yield json.loads(line)
            except ValueError:
                if last:
                    break
            self._read[path] += len(line) + (not last)


# ------------------------------------------------------------------------------------------------- who shares which stage


def terms(stage: str, parameters: dict, of: int) -> str:
    """Hash of all that shards must have in common: their number, parameters, chapter and code."""
    code = {str(path.relative_to(CODE)): files.sha256_file(path) for path in sorted((CODE / "bezoar_utils").rglob("*.py"))}
    return files.sha256_json([of, parameters, notebook_hash(stage), code])


def begin(folder: Path, agreed: str, of: int) -> None:
    """Shard 0 begins a stage in `folder`, or goes on with it while others are still at it. Raises StageError if they differ."""
    pact, busy = _read_pact(folder), [path.name for path in sorted(folder.glob("shard-*")) if at_work(path)]
    if busy and (of == 1 or (pact and pact["terms"] != agreed)):
        raise StageError(_difference(busy[0], folder))
    if of == 1:
        (folder / PACT).unlink(missing_ok=True)
    elif not (busy and pact):
        files.write_json(folder / PACT, {"run": uuid.uuid4().hex, "terms": agreed})


def pact_of(folder: Path, agreed: str) -> str | None:
    """The run that shard 0 has begun in `folder`, to be joined; None when it has not. Raises StageError if its terms differ."""
    pact = None if (folder / "stage.json").exists() else _read_pact(folder)
    if pact and pact["terms"] == agreed:
        return pact["run"]
    if pact and at_work(folder):
        raise StageError(_difference("shard 0", folder))
    return None


def _difference(who: str, folder: Path) -> str:
    return f"{who} works at {folder.name} with other parameters, code or number of shards; end it, or give both the same"


def _read_pact(folder: Path) -> dict | None:
    with contextlib.suppress(FileNotFoundError):
        return files.read_json(folder / PACT)


def at_work(folder: Path) -> bool:
    """Does a living process hold this folder's lock?"""
    try:
        with open(folder / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
