"""Two processes share a stage's calls: they come to the files of one, whatever is killed, and no finished call is made twice.

`python tests/test_shards.py generating|judging FOLDER MODEL|URL` does one shard's work, SHARD being in the environment.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]

import pytest
from fake_endpoint import FakeEndpoint
from stub_stage import StubStage, remote
from test_kill import BATCH, TEACHER, judged, verdict

from bezoar_utils import files, ledger, plan, run, stage
from bezoar_utils.judge import Judge, Verdict
from bezoar_utils.ledger import Ledger
from bezoar_utils.stage import StageError, is_artifact, this_shard
from bezoar_utils.teacher import Teacher

TEXTS = [f"{'word ' * (n % 7)}number {n}" for n in range(42)]
ROWS = 120


def write_and_answer(stage, model: str) -> list[dict]:
    """As chapter 10 does it: what is asked second depends on what was answered first."""
    teacher = Teacher(stage, TEACHER | {"model": model}, seed=5)
    written = teacher.generate(TEXTS, "prompts")
    return [{"text": w, "answer": a} for w, a in zip(written, teacher.generate([f"{w} again" for w in written], "responses"))]


def judge_twice(stage, url: str) -> list[dict]:
    settings = {"model": "m", "endpoint": remote(url, attempts=1), "temperature": 0.0, "max_tokens": 64}
    judge = Judge(stage, settings)
    verdicts = judge.ask(Verdict, [judged(n) for n in range(ROWS)], "verdicts")
    lost = [n for n, v in enumerate(verdicts) if v is None]
    again = judge.ask(Verdict, [judged(1000 + n) for n in range(ROWS) if n not in lost], "verdicts of what was judged")
    return [{"lost": str(lost)}] + [v.model_dump() for v in again]


WORK = {"generating": write_and_answer, "judging": judge_twice}


def main(kind: str, folder: str, address: str) -> None:
    if kind == "generating":
        import torch

        torch.set_num_threads(1)  # as the fixtures do it: other threads round otherwise
    number = this_shard().number
    stage = StubStage(Path(folder, f"shard-{number}") if number else Path(folder))
    files.write_table(stage.folder / "made.parquet", WORK[kind](stage, address))
    files.write_json(stage.folder / "counts.json", stage.counts)


def start(kind: str, folder: Path, address, shard: str) -> subprocess.Popen:
    environment = os.environ | {"BEZOAR_SHARD": shard, "TEST_KEY": "key"}
    return subprocess.Popen([sys.executable, __file__, kind, str(folder), str(address)], env=environment)


def share(kind: str, folder: Path, address) -> None:
    ledger.begin(folder, "as agreed", 2)
    both = [start(kind, folder, address, shard) for shard in ("0/2", "1/2")]
    assert [process.wait(120) for process in both] == [0, 0]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "key")


def texts(path: Path) -> list[dict]:
    return [row for row in files.read_jsonl(path) if "text" in row]


def made_the_same(*folders: Path) -> bool:
    return all(len({(folder / name).read_bytes() for folder in folders}) == 1 for name in ("made.parquet", "counts.json"))


def test_two_shards_of_local_weights_write_the_files_of_one_process(model_folder, tmp_path):
    main("generating", tmp_path / "alone", str(model_folder))
    share("generating", tmp_path / "both", model_folder)
    assert made_the_same(tmp_path / "alone", tmp_path / "both", tmp_path / "both/shard-1")
    ledgers = [texts(tmp_path / "both" / name) for name in ("calls.jsonl", "shard-1/calls.jsonl")]
    keys = [row["key"] for rows in ledgers for row in rows]
    assert len(keys) == len(set(keys)) == 2 * len(TEXTS), "no call is made twice"
    assert all(abs(len(rows) - len(TEXTS)) <= BATCH for rows in ledgers), "about half each, in whole batches"
    key = lambda row: row["key"]  # noqa: E731
    assert sorted(ledgers[0] + ledgers[1], key=key) == sorted(texts(tmp_path / "alone/calls.jsonl"), key=key)


def test_a_shard_killed_halfway_goes_on_where_it_was_and_failed_calls_stay_the_same_for_both(tmp_path):
    broken = {judged(n) for n in range(3, 40, 5)}  # long done when the shard is killed

    def fails_once(prompt: str, attempt: int) -> str | None:  # so a call that is made again would be answered
        return "500" if prompt in broken and attempt == 1 else None

    with FakeEndpoint(verdict, faults=fails_once) as fake:
        main("judging", tmp_path / "alone", fake.url)
    with FakeEndpoint(verdict, latency_s=0.02, faults=fails_once) as fake:
        both = tmp_path / "both"
        ledger.begin(both, "as agreed", 2)
        first, second = (start("judging", both, fake.url, shard) for shard in ("0/2", "1/2"))
        wait_for(lambda: len(files.read_jsonl(both / "shard-1/calls.jsonl")) >= 40)
        second.send_signal(signal.SIGKILL)
        second.wait()
        written = len(texts(both / "shard-1/calls.jsonl"))
        assert start("judging", both, fake.url, "1/2").wait(120) == 0 and first.wait(120) == 0
    assert made_the_same(tmp_path / "alone", both, both / "shard-1")
    assert len(texts(both / "shard-1/calls.jsonl")) > written
    assert fake.received.total() - (2 * ROWS - len(broken)) <= 4, "only what was in flight is asked again"
    assert all(fake.received[prompt] == 1 for prompt in broken)


def wait_for(ready, patience_s: float = 30) -> None:
    deadline = time.time() + patience_s
    while not ready():
        assert time.time() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------- the ledger


@pytest.fixture
def as_shard(monkeypatch):
    return lambda text: monkeypatch.setenv("BEZOAR_SHARD", text)


@pytest.mark.parametrize("text", ["2/2", "x", "1", "-1/2", "0/0", "1/2/3", " 0/2"])
def test_a_malformed_shard_is_a_clear_error(as_shard, text):
    as_shard(text)
    with pytest.raises(StageError, match=f"SHARD={text} is none: of two processes the first is SHARD=0/2, the other SHARD=1/2"):
        this_shard()


def test_a_silent_shard_is_named_and_what_is_finished_stays(as_shard, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "POLL_S", 0.01)
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.3)
    as_shard("0/3")
    ledger.begin(tmp_path, "as agreed", 3)
    stub = StubStage(tmp_path)
    settings = {"model": "m", "endpoint": None, "temperature": 0.0, "max_tokens": 64}
    with FakeEndpoint(verdict) as fake:
        judge = Judge(stub, settings | {"endpoint": remote(fake.url)})
        with pytest.raises(StageError, match="nothing from shard 1, shard 2 of 3 for 0 minutes; what is finished is kept"):
            judge.ask(Verdict, [judged(n) for n in range(9)], "verdicts")
    assert len(texts(tmp_path / "calls.jsonl")) == 3
    assert stub.reported[-1] == ("verdicts, waiting for shard 1, shard 2", 3, 9)


def test_a_process_alone_reads_what_shards_finished(tmp_path):
    files.append_jsonl(tmp_path / "calls.jsonl", {"key": "a", "text": "A"})
    files.append_jsonl(tmp_path / "shard-1/calls.jsonl", {"key": "b", "text": "B"}, {"key": "c", "failure": "500", "run": "x"})
    assert Ledger(tmp_path / "calls.jsonl").finished.keys() == {"a", "b"}


def test_a_growing_ledger_is_read_row_by_row_and_a_torn_line_counts_nothing(as_shard, tmp_path):
    as_shard("0/2")
    mine, theirs = Ledger(tmp_path / "calls.jsonl"), tmp_path / "shard-1/calls.jsonl"
    files.append_jsonl(theirs, {"key": "a", "text": "é"})
    assert mine.refresh() and not mine.refresh() and mine.finished.keys() == {"a"}
    with open(theirs, "ab") as handle:
        handle.write(b'{"key": "b", "te')
    assert not mine.refresh()
    with open(theirs, "ab") as handle:
        handle.write(b'xt": "B"}')  # whole, but for its end of line
    assert mine.refresh() and mine.finished.keys() == {"a", "b"}
    with open(theirs, "ab") as handle:
        handle.write(b'\n{"key": "torn"')
    files.append_jsonl(theirs, {"key": "c", "text": "C"})
    assert mine.refresh() and mine.finished.keys() == {"a", "b", "c"}


def test_what_shards_leave_is_no_artifact_and_paid_calls_of_any_shard_are_never_cleaned_away(tmp_path, monkeypatch):
    for module in (run, plan):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    stage = tmp_path / "tiny" / "10_lamini"
    files.append_jsonl(stage / "shard-1/calls.jsonl", {"key": "a", "text": "A", "cost_usd": 0.1})
    files.write_json(stage / "shard.json", {})
    files.write_json(stage / "shard-1/made.json", {})
    assert not any(is_artifact(path, stage) for path in stage.rglob("*"))
    assert any(line.startswith("1 answers of earlier runs") for line in plan.call_lines("tiny", run.load_profile("tiny")))
    run.clean("tiny", paid=False)
    assert [path.name for path in stage.rglob("*")] == ["shard-1", "calls.jsonl"]


# ------------------------------------------------------------------------------------------------------ what they agree on


@pytest.fixture
def at_work(tmp_path):
    """Locks a folder as a chapter that works there does, in a process of its own."""
    begun = []

    def lock(folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        code = f"import fcntl; h = open({str(folder / '.lock')!r}, 'w'); fcntl.flock(h, 2); print(flush=True); input()"
        begun.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        begun[-1].stdout.readline()
        return begun[-1]

    yield lock
    for process in begun:
        process.kill()
        process.wait()


def test_shards_with_other_parameters_or_code_are_an_error_at_once(tmp_path, at_work):
    ledger.begin(tmp_path, "these", 2)
    assert ledger.pact_of(tmp_path, "these") and ledger.pact_of(tmp_path, "others") is None, "left by a run that was killed"
    at_work(tmp_path)
    with pytest.raises(StageError, match=r"shard 0 works at .* with other parameters, code or number of shards"):
        ledger.pact_of(tmp_path, "others")
    at_work(tmp_path / "shard-1")
    with pytest.raises(StageError, match=r"shard-1 works at .* with other parameters, code or number of shards"):
        ledger.begin(tmp_path, "others", 2)
    with pytest.raises(StageError, match=r"shard-1 works at .* with other"):
        ledger.begin(tmp_path, "these", 1)


def test_shard_0_that_comes_back_goes_on_with_those_that_stayed_and_else_begins_anew(tmp_path, at_work):
    ledger.begin(tmp_path, "these", 2)
    first = ledger.pact_of(tmp_path, "these")
    ledger.begin(tmp_path, "these", 2)
    second = ledger.pact_of(tmp_path, "these")
    assert second != first
    at_work(tmp_path / "shard-1")
    ledger.begin(tmp_path, "these", 2)
    assert ledger.pact_of(tmp_path, "these") == second


def test_a_shard_stops_when_shard_0_begins_anew_or_needs_it_no_more(tmp_path, as_shard, monkeypatch):
    monkeypatch.setattr(ledger, "POLL_S", 0.01)
    as_shard("1/2")
    ledger.begin(tmp_path, "these", 2)
    mine = Ledger(tmp_path / "shard-1/calls.jsonl")
    threading.Timer(0.1, ledger.begin, (tmp_path, "these", 2)).start()
    with pytest.raises(StageError, match="anew; start this shard again"):
        list(mine.others({"a": 0}, lambda *_: None))
    files.write_json(tmp_path / "stage.json", {})
    with pytest.raises(StageError, match="shard 0 has finished this stage by itself"):
        list(Ledger(tmp_path / "shard-1/calls.jsonl").others({"a": 0}, lambda *_: None))


def test_a_shard_waits_for_shard_0_while_that_is_at_work_on_any_stage_and_not_for_ever(tmp_path, at_work, monkeypatch):
    monkeypatch.setattr(ledger, "POLL_S", 0.05)
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.3)
    for module in (run, stage):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    (tmp_path / "tiny").mkdir()
    began = time.monotonic()
    ends = at_work(tmp_path / "tiny" / "00_miniature")
    threading.Timer(1.0, ends.communicate, (b"\n",)).start()
    with pytest.raises(StageError, match="shard 0 has been at work on no stage for 0 minutes; 10_lamini is not finished"):
        run.run_shard("tiny", {"00_miniature": [], "10_lamini": ["00_miniature"]}, stage.Shard(1, 2))
    assert time.monotonic() - began > 1.2


if __name__ == "__main__":
    main(*sys.argv[1:])
