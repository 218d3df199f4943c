"""Money: whatever is reserved, settled, torn or killed, the budget holds, and no paid answer is lost or paid twice."""

import tempfile
from pathlib import Path

import pytest
from fake_endpoint import FAILURES, STATUS, FakeEndpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bezoar_utils.calls import attempts
from bezoar_utils.calls.budget import Budget, BudgetReached
from bezoar_utils.calls.endpoint import Endpoint, EndpointError, Request
from bezoar_utils.study import files

SLACK_USD = 1e-6  # of sums of floats
AMOUNT = st.one_of(st.floats(0, 3, allow_nan=False), st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 1e-12, 1e9]))
TORN = st.sampled_from([b'{"id": "x", "reserved_usd": 0.', b"{", b"\0\0\0", b'{"id": "\xe2', b'{"id": "x", "settled_usd"'])


class Spending(RuleBasedStateMachine):
    """Several processes at one budget, any of which dies, against a plain account of what was granted and what it cost."""

    @initialize(budget_usd=st.floats(0, 5), processes=st.integers(1, 3))
    def begin(self, budget_usd, processes):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "spend.jsonl"
        self.budget_usd, self.open, self.cost = budget_usd, {}, {}
        self.processes = [Budget(self.path, budget_usd) for _ in range(processes)]
        self.settled_before = 0.0

    @rule(who=st.integers(0, 2), usd=AMOUNT)
    def reserve(self, who, usd):
        granted = sum(self.cost.values()) + sum(self.open.values()) + usd <= self.budget_usd + SLACK_USD / 2
        try:
            self.open[self.processes[who % len(self.processes)].reserve(usd)] = usd
            assert granted
        except BudgetReached:
            assert not granted or usd + sum(self.cost.values()) + sum(self.open.values()) > self.budget_usd - SLACK_USD

    @rule(who=st.integers(0, 2), which=st.integers(0, 9), share=st.floats(0, 1))
    def settle(self, who, which, share):
        if self.open:
            ticket = sorted(self.open)[which % len(self.open)]
            self.cost[ticket] = self.open.pop(ticket) * share
            self.processes[who % len(self.processes)].settle(ticket, self.cost[ticket])

    @rule(who=st.integers(0, 2), torn=st.one_of(st.none(), TORN))
    def die_and_start_again(self, who, torn):
        if torn:
            self.path.open("ab").write(torn)
        self.processes[who % len(self.processes)] = Budget(self.path, self.budget_usd)

    @invariant()
    def what_is_spent_is_what_was_granted(self):
        for process in self.processes:
            settled, reserved = process.spent()
            assert settled == pytest.approx(sum(self.cost.values())) and reserved == pytest.approx(sum(self.open.values()))
            assert settled >= self.settled_before - SLACK_USD and reserved >= 0
            assert settled + reserved <= self.budget_usd + SLACK_USD
        self.settled_before = settled

    def teardown(self):
        self.folder.cleanup()


Spending.TestCase.settings = settings(stateful_step_count=20)
TestSpending = Spending.TestCase

# ------------------------------------------------------------------------------------------------- calls, faults and kills

SETTINGS = {"api_key_env": None, "local_server": "fake", "concurrency": 3, "timeout_s": 0.2, "attempts": 2, "lose_at_most": 1.0}
SETTINGS |= {"parameters": {}}
PRICE = (1.0, 10.0)
WORST_USD = (len("prompt 0") + 64 + 10 * 20) / 1e6
QUICK = sorted((STATUS.keys() | FAILURES | {"empty", "cut-short", "refusal"}) - {"timeout"})  # a timeout takes its time: below
USAGE = st.one_of(
    st.booleans(),
    st.fixed_dictionaries(
        dict.fromkeys(("prompt_tokens", "completion_tokens"), st.sampled_from([-1, 0, 1, 5, 20, 21, 10**9, None, "x"]))
    ),
)


@pytest.fixture(scope="module")
def fake():
    with FakeEndpoint(retry_after="0") as fake:
        yield fake


class Killed(BaseException):
    """As a kill: nothing after it runs."""


@given(
    st.lists(st.lists(st.sampled_from([None, None, *QUICK]), max_size=3), min_size=1, max_size=6),
    USAGE,
    st.floats(0, 8),
    st.lists(st.tuples(st.sampled_from(["append", "settle", None]), st.integers(1, 5)), max_size=3),
)
@example([[], []], {"prompt_tokens": 10, "completion_tokens": 10**9}, 2.5, [])
@example([[], [], []], True, 3.0, [("settle", 2)])
@example([[], [], []], True, 3.0, [("append", 2)])
def test_no_sequence_of_faults_usages_and_kills_spends_more_or_pays_twice(fake, faults, usage, worst_calls, kills):
    """The runs end as `kills` says: before the n-th answer is in the ledger, or between that and the settling; then the last."""
    fake.received.clear(), fake.answered.clear()
    plan = {f"prompt {n}": dict(enumerate(row, 1)) for n, row in enumerate(faults)}
    fake.usage, fake.faults = usage, lambda prompt, attempt: plan[prompt].get(attempt)
    budget_usd, settled_before, lost_by_kill = worst_calls * WORST_USD, 0.0, 0
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "BACKOFF_S", 0.0)
        ledger, spend = Path(folder) / "calls.jsonl", Path(folder) / "spend.jsonl"
        for place, count in [*kills, (None, 0), (None, 0)]:
            endpoint = Endpoint("m", SETTINGS, fake.url, ledger, PRICE, Budget(spend, budget_usd))
            die_at(endpoint, place, count)
            answered = fake.answered.copy()
            kept = {key for key, row in endpoint.ledger.finished.items() if "text" in row}
            try:
                endpoint.ask([Request(prompt, {"max_tokens": 20}, "chat", "v1") for prompt in plan])
            except (EndpointError, BudgetReached):
                pass
            except Killed:
                lost_by_kill += SETTINGS["concurrency"]
                ledger.open("ab").write(b'{"key": "torn')
            settled, reserved = Budget(spend, budget_usd).spent()
            assert settled_before <= settled and reserved >= 0 and settled + reserved <= budget_usd + SLACK_USD * WORST_USD
            settled_before = settled
            rows = [row for row in files.read_jsonl(ledger) if "text" in row]
            assert len({row["key"] for row in rows}) == len(rows) and kept <= {row["key"] for row in rows}
            assert (fake.answered - answered).total() <= len(rows) - len(kept) + lost_by_kill
        assert sum(row["cost_usd"] for row in rows) <= settled + reserved + SLACK_USD * WORST_USD
    assert fake.answered.total() <= len(rows) + lost_by_kill, "but for what was in flight, no answer is paid and lost"


def die_at(endpoint: Endpoint, place: str | None, count: int) -> None:
    """Let this endpoint die at its n-th answer: before it is on disk, or before it is settled."""
    if place is None:
        return
    owner, calls = endpoint.ledger if place == "append" else endpoint.budget, []
    whole = getattr(owner, place)

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) >= count:
            raise Killed
        whole(*arguments)

    setattr(owner, place, dying)
