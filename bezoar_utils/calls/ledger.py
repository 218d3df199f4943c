"""The ledger of finished calls (`calls.jsonl`): nothing that was answered is asked again, and a kill costs the calls in flight."""

from pathlib import Path

from ..study import files

HOPELESS = {"400", "413", "422"}  # this prompt will never be answered; any other status concerns all prompts


class Ledger:
    """The finished calls in one file, by key. A failed call that may be retried is not one: the next run sends it again."""

    def __init__(self, path: Path):
        self.path, self.finished = Path(path), {}
        self._keep(files.read_jsonl(self.path))

    def append(self, *rows: dict) -> None:
        """Keep calls that ended, on disk before this returns."""
        files.append_jsonl(self.path, *rows)
        self._keep(rows)

    def _keep(self, rows) -> None:
        self.finished |= {row["key"]: row for row in rows if "text" in row or row["failure"] in HOPELESS}
