"""What faults cost: 10,000 paid calls to an endpoint that does everything wrong that tests/fake_endpoint.py knows, killed half-way.

    .venv/bin/python benchmarks/faults.py [--quick]

One attempt in eight fails, in one of 16 ways; some of them end the run, which is then started again, as is the run that is
killed with SIGKILL at half of its calls. At the end each prompt must have its answer or a failure that nothing can mend. Counted:
calls lost; answers that were on disk and were paid for again; answers that are not what the server said (all three must be 0);
what the killed run had in flight; and the time against the same calls without faults. `--quick` makes 1,000 calls.
"""

import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_endpoint import FAILURES, STATUS, FakeEndpoint

from bezoar_utils.calls.attempts import EndpointError
from bezoar_utils.calls.budget import Budget
from bezoar_utils.calls.endpoint import Endpoint, Request
from bezoar_utils.calls.ledger import HOPELESS
from bezoar_utils.study import files

LATENCY_S, RATE, SEED, CONCURRENCY, BUDGET_USD = 0.05, 1 / 8, 7, 64, 10.0
SETTINGS = {"api_key_env": "NO_KEY", "local_server": "fake", "concurrency": CONCURRENCY, "timeout_s": 3.0, "attempts": 5}
SETTINGS |= {"lose_at_most": 1.0, "parameters": {}}
ENDING = ["401", "wrong-model", "quota"]  # these end a run, so that they are rare here
OTHERS = sorted((STATUS.keys() | FAILURES | {"empty", "cut-short", "refusal"}) - set(ENDING))
ENDED, AGAIN = 3, 4  # exit codes of a run: an error ended it; some calls may yet be answered


def main() -> None:
    count = 1_000 if "--quick" in sys.argv[1:] else 10_000
    without, *_ = timed_runs(count, lambda prompt, attempt: None, kill=False)
    seconds, fake, folder, starts, again = timed_runs(count, some_fault, kill=True)
    rows = [row for row in files.read_jsonl(folder / "calls.jsonl") if "text" in row or row["failure"] in HOPELESS]
    by_key = {row["key"]: row for row in rows}
    prompts = dict(zip(keys(count), prompts_of(count)))
    lost = len(prompts.keys() - by_key.keys())
    wrong = sum(not right(row, fake.received[prompts[key]], prompts[key]) for key, row in by_key.items())
    twice = len(rows) - len(by_key) + again
    settled, reserved = Budget(folder / "spend.jsonl", BUDGET_USD).spent()
    kept = sum("text" in row for row in rows)
    bill = fake.answered.total() * (10 + 10 * 5) / 1e6
    print(f"without faults           {without:7.2f} s   {count} calls")
    print(f"with faults and a kill   {seconds:7.2f} s   {fake.received.total()} requests in {starts} runs, {kept} answers on disk")
    print(f"answered but in flight when killed: {fake.answered.total() - kept} (at most {CONCURRENCY})")
    print(f"billed {bill:.4f} USD; counted {settled:.4f} spent and {reserved:.4f} reserved, of {BUDGET_USD:.0f}")
    print(f"lost {lost}, paid twice {twice}, silently wrong {wrong}")
    print(f"faults: {seconds / without:.2f} times the time")
    sys.exit(any([lost, twice, wrong, settled + reserved > BUDGET_USD, settled + reserved < bill - 1e-6]))


def some_fault(prompt: str, attempt: int) -> str | None:
    chance = random.Random(f"{SEED} {prompt} {attempt}")
    if chance.random() < 1 / 3_000:
        return chance.choice(ENDING)
    return chance.choice(OTHERS) if chance.random() < RATE else None


def right(row: dict, attempts: int, prompt: str) -> bool:
    """Whether this row says what the server said at the last attempt."""
    fault = some_fault(prompt, attempts)
    if "text" not in row:
        return fault in ("too-long", "flagged")
    expected = {"empty": ("", None), "cut-short": (prompt.upper(), "finish_reason length"), "refusal": ("I will not.", "refusal")}
    return fault in (None, *expected) and (row["text"], row.get("note")) == expected.get(fault, (prompt.upper(), None))


def timed_runs(count: int, faults, kill: bool):
    """(seconds, server, folder, runs started, requests for prompts whose answer was on disk) until all calls have ended."""
    folder, starts, again = Path(tempfile.mkdtemp()), 0, 0
    ledger, named = folder / "calls.jsonl", dict(zip(keys(count), prompts_of(count)))
    before = time.perf_counter()
    with FakeEndpoint(latency_s=LATENCY_S, faults=faults, retry_after="0.2") as fake:
        while True:
            finished = {named[row["key"]]: fake.received[named[row["key"]]] for row in files.read_jsonl(ledger) if "text" in row}
            run = subprocess.Popen([sys.executable, __file__, "run", fake.url, str(folder), str(count)])
            starts += 1
            while kill and run.poll() is None:
                if ledger.exists() and ledger.read_bytes().count(b"\n") > count / 2:
                    run.send_signal(signal.SIGKILL)
                    kill = False
                time.sleep(0.05)
            code = run.wait()
            again += sum(fake.received[prompt] > requests for prompt, requests in finished.items())
            if code == 0:
                return time.perf_counter() - before, fake, folder, starts, again
            assert code in (ENDED, AGAIN, -signal.SIGKILL), f"the run ended with {code}"


def prompts_of(count: int) -> list[str]:
    return [f"prompt {n}" for n in range(count)]


def requests_of(count: int) -> list[Request]:
    return [Request(prompt, {"max_tokens": 16}, "chat", "v1") for prompt in prompts_of(count)]


def keys(count: int) -> list[str]:
    nowhere = endpoint_of("", Path(tempfile.mkdtemp()))
    return [nowhere._key(request) for request in requests_of(count)]


def endpoint_of(url: str, folder: Path) -> Endpoint:
    return Endpoint("m", SETTINGS, url, folder / "calls.jsonl", (1.0, 10.0), Budget(folder / "spend.jsonl", BUDGET_USD))


def one_run(url: str, folder: str, count: str) -> int:
    with contextlib.suppress(EndpointError):
        replies = endpoint_of(url, Path(folder)).ask(requests_of(int(count)))
        return AGAIN if any(reply.failure and reply.failure not in HOPELESS for reply in replies) else 0
    return ENDED


if __name__ == "__main__":
    sys.exit(one_run(*sys.argv[2:]) if sys.argv[1:2] == ["run"] else main())
