"""Money: what calls cost, and one budget that no run spends beyond, however many processes share it or die.

Before a call its worst case is reserved on disk, afterwards settled at what it cost. A reservation that is never settled
(a timeout, a lost connection, a kill) stays counted, because the provider may have billed it.
"""

import contextlib
import json
import uuid
from pathlib import Path

from ..study import files

ROUNDING_USD = 1e-9  # sums of floats may miss the budget by this much


class BudgetReached(RuntimeError):
    """The next call could cost more than the budget still allows; nothing was sent for it."""


def cost_usd(price: list[float] | tuple[float, float], tokens_in: int, tokens_out: int) -> float:
    """US dollars for so many tokens; `price` is US dollars for a million (prompt tokens, reply tokens)."""
    return (price[0] * tokens_in + price[1] * tokens_out) / 1e6


class Budget:
    """A ledger of what is spent, shared by every process that opens the same `path`; `budget_usd` is the hard limit."""

    def __init__(self, path: Path, budget_usd: float):
        self.path, self.budget_usd = Path(path), budget_usd
        self._reserved: dict[str, float] = {}
        self._settled = 0.0
        self._read = 0  # bytes of the ledger already added up

    def reserve(self, usd: float) -> str:
        """Reserve the most that a call can cost, in US dollars; its id, for `settle`. Raises BudgetReached when it is too much."""
        with self._locked():
            settled, unsettled = self._add_up()
            if settled + unsettled + usd > self.budget_usd + ROUNDING_USD:
                raise BudgetReached(
                    f"the budget of {self.budget_usd:.4f} USD is reached: {settled:.4f} spent, {unsettled:.4f} reserved for "
                    f"calls whose cost is not known yet, {usd:.4f} needed for the next; raise money.budget_usd in the profile and "
                    "run again, and it continues where it stopped"
                )
            ticket = uuid.uuid4().hex
            files.append_jsonl(self.path, {"id": ticket, "reserved_usd": usd})
            return ticket

    def settle(self, ticket: str, usd: float) -> None:
        """Replace a reservation by what the call really cost, in US dollars; 0 when it was certainly not billed."""
        with self._locked():
            files.append_jsonl(self.path, {"id": ticket, "settled_usd": usd})

    def spent(self) -> tuple[float, float]:
        """US dollars (settled, reserved and not settled) of all processes together."""
        with self._locked():
            return self._add_up()

    @contextlib.contextmanager
    def _locked(self):
        """The file itself is the lock; the system releases it when the process that holds it dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as handle:
            files.lock(handle)
            yield

    def _add_up(self) -> tuple[float, float]:
        """Reads only the lines since the last time: a long run has many thousands. A line torn by a kill is not counted."""
        with open(self.path, "rb") as handle:
            handle.seek(self._read)
            whole, end, _ = handle.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                self._count(json.loads(line))
        return self._settled, sum(self._reserved.values())

    def _count(self, row: dict) -> None:
        if "reserved_usd" in row:
            self._reserved[row["id"]] = row["reserved_usd"]
        else:
            self._reserved.pop(row["id"], None)
            self._settled += row["settled_usd"]
