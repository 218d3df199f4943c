"""kill -9 at any moment costs the calls in flight and nothing else.

`python tests/test_kill.py judging|generating FOLDER URL|MODEL SEED` does a piece of work in a child of its own and kills it at
ten random points, then lets it finish. It imports once and forks, because the imports take longer than the work.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]

import pytest
from fake_endpoint import FakeEndpoint
from stub_stage import JUDGE, TEACHER, StubStage, remote

from bezoar_utils.calls.judge import Judge, Verdict, judge_prompt
from bezoar_utils.calls.teacher import Teacher
from bezoar_utils.study import files

KILLS, CONCURRENCY, ROWS, BATCH = 10, 8, 300, 4
TEXTS = [f"{'word ' * (n % 7)}number {n}" for n in range(80)]


def judged(number: int) -> str:
    return judge_prompt(Verdict, instruction=f"row {number}", response="é\u2028" * (number % 5))


def verdict(prompt: str) -> str:
    number = int(prompt.split("row ")[1].split("\n")[0])
    return f'Thoughts.\n{{"status": "{("Accept", "Reject")[number % 2]}", "rating": {number % 10 + 1}, "reason": "row {number}"}}'


def judge_all(folder: Path, url: str) -> None:
    settings = JUDGE | {"endpoint": remote(url, concurrency=CONCURRENCY)}
    verdicts = Judge(StubStage(folder), settings).ask(Verdict, [judged(n) for n in range(ROWS)], "verdicts")
    files.write_table(folder / "judged.parquet", [v.model_dump() for v in verdicts])


def generate_all(folder: Path, model: str) -> None:
    settings = TEACHER | {"model": model, "temperature": 0.8, "max_new_tokens": 24, "batch_size": BATCH}
    texts = Teacher(StubStage(folder), settings, seed=5).generate(TEXTS, "texts")
    files.write_table(folder / "texts.parquet", [{"prompt": p, "text": t} for p, t in zip(TEXTS, texts)])


WORK = {"judging": (judge_all, "judged.parquet"), "generating": (generate_all, "texts.parquet")}


def main(kind: str, folder: str, address: str, seed: int) -> None:
    """One undisturbed run in FOLDER/whole, then the one that is killed, in FOLDER/killed; a line after each kill."""
    import pandas  # noqa: F401

    if kind == "judging":
        import openai.resources.chat  # noqa: F401
    else:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LogitsProcessorList  # noqa: F401

        torch.set_num_threads(1)
    work, made = WORK[kind]
    whole, killed = Path(folder, "whole"), Path(folder, "killed")
    assert os.waitstatus_to_exitcode(os.waitpid(start(work, whole, address), 0)[1]) == 0
    size = (whole / "calls.jsonl").stat().st_size
    rng = random.Random(seed)
    for share in sorted(rng.uniform(0, 0.9) for _ in range(KILLS)):
        child = start(work, killed, address)
        while not (killed / "calls.jsonl").exists() or (killed / "calls.jsonl").stat().st_size < share * size:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the work ended before its kill")
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and not (killed / made).exists()
        print("killed", flush=True)
        sys.stdin.readline()
    assert os.waitstatus_to_exitcode(os.waitpid(start(work, killed, address), 0)[1]) == 0


def start(work, folder: Path, address: str) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work(folder, address)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def run(kind: str, folder: Path, address: str, seed: int, after_each=lambda: None) -> None:
    """Run `main` in a process of its own; `after_each` is called while nothing works, after each kill."""
    command = [sys.executable, __file__, kind, str(folder), address, str(seed)]
    environment = os.environ | {"TEST_KEY": "key"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        kills = 0
        for line in driver.stdout:
            assert line == "killed\n"
            kills += 1
            after_each()
            driver.stdin.write("\n")
            driver.stdin.flush()
    assert driver.returncode == 0 and kills == KILLS


def recorded(ledger: Path) -> list[dict]:
    return [row for row in files.read_jsonl(ledger) if "text" in row]


@pytest.mark.parametrize("seed", [1])
def test_judging_killed_ten_times_ends_with_the_same_files_and_repeats_only_what_was_in_flight(tmp_path, seed):
    ledger, snapshots = tmp_path / "killed" / "calls.jsonl", []
    with FakeEndpoint(verdict, latency_s=0.01) as fake:

        def look() -> None:
            done = {int(row["text"].rsplit("row ", 1)[1].split('"')[0]) for row in recorded(ledger)}
            snapshots.append({judged(n): fake.received[judged(n)] for n in done})

        run("judging", tmp_path, fake.url, seed, look)
    assert (tmp_path / "killed/judged.parquet").read_bytes() == (tmp_path / "whole/judged.parquet").read_bytes()
    assert len(snapshots[-1]) > ROWS / 2
    for snapshot in snapshots:  # what was recorded before a kill was never sent after it
        assert all(fake.received[prompt] == times for prompt, times in snapshot.items())
    keys = [row["key"] for row in recorded(ledger)]
    assert len(keys) == len(set(keys)) == ROWS
    assert len(fake.answered) == ROWS and fake.answered.total() - 2 * ROWS <= KILLS * CONCURRENCY
    assert max(fake.answered.values()) <= 2 + KILLS


def test_local_generation_killed_ten_times_ends_with_the_same_files_and_repeats_no_finished_batch(tmp_path, model_folder):
    ledger, sizes = tmp_path / "killed" / "calls.jsonl", []
    run("generating", tmp_path, str(model_folder), 2, lambda: sizes.append(len(recorded(ledger))))
    assert (tmp_path / "killed/texts.parquet").read_bytes() == (tmp_path / "whole/texts.parquet").read_bytes()
    assert len(set(sizes)) > KILLS / 2 and all(size % BATCH == 0 for size in sizes)
    keys = [row["key"] for row in recorded(ledger)]
    assert len(keys) == len(set(keys)) == len(TEXTS)
    assert recorded(ledger) == recorded(tmp_path / "whole" / "calls.jsonl")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
