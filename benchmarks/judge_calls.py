"""What many calls at once save: 1,000 calls to a local endpoint that takes 200 ms each and refuses 1 % of them with 429.

    .venv/bin/python benchmarks/judge_calls.py [--quick]

One after another with the plain openai client and its own retries (the first 200, whose rate the ratio takes), against
Endpoint.ask with 64 in flight and every call on disk. Then the same list again on the same ledger. The server is a process of
its own. `--quick` makes 200 calls, where connecting and the last retries weigh more. Exit code 1 below 20 times, or when an
answered call was sent twice.

A judge of today takes longer than 200 ms. At 50 ms, 64 at once would ask for 1,280 calls a second, and what is measured is the
processor: the client takes 2 to 5 ms of one core for a call.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import openai

from bezoar_utils.calls.endpoint import Endpoint, Request

LATENCY_S, REFUSED, SEED, CONCURRENCY, WANTED_RATIO = 0.2, 0.01, 7, 64, 20
SERIAL = 200
SETTINGS = {"api_key_env": "NO_KEY", "local_server": "fake", "concurrency": CONCURRENCY, "timeout_s": 10.0, "attempts": 5}
SETTINGS |= {"lose_at_most": 0.0, "parameters": {}}


def main() -> None:
    prompts = [f"prompt {n}" for n in range(200 if "--quick" in sys.argv[1:] else 1000)]
    with server() as (url, counts):
        before = time.perf_counter()
        one_after_another(url, prompts[:SERIAL])
        serial = (time.perf_counter() - before) / SERIAL
    print(f"one after another        {serial * SERIAL:7.2f} s   {SERIAL} calls, {counts['received']} requests")

    with tempfile.TemporaryDirectory() as folder, server() as (url, counts):
        endpoint, at_once = timed_ask(url, prompts, Path(folder) / "calls.jsonl")
        again, rerun = timed_ask(url, prompts, Path(folder) / "calls.jsonl")
    twice = counts["answered"] - counts["prompts"]
    print(f"{CONCURRENCY} at once               {at_once:7.2f} s   {endpoint.sent} calls, {counts['received']} requests")
    print(f"the same ledger again    {rerun:7.2f} s   {again.sent} calls")
    ratio = serial * len(prompts) / at_once
    print(f"ratio: {ratio:.1f}   answered calls sent twice: {twice}")
    sys.exit(ratio < WANTED_RATIO or twice > 0 or again.sent > 0)


def one_after_another(url: str, prompts: list[str]) -> None:
    client = openai.OpenAI(base_url=url, api_key="local", max_retries=SETTINGS["attempts"] - 1)
    for prompt in prompts:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}], max_tokens=16)


def timed_ask(url: str, prompts: list[str], ledger: Path) -> tuple[Endpoint, float]:
    before = time.perf_counter()
    endpoint = Endpoint("m", SETTINGS, url, ledger)
    replies = endpoint.ask([Request(prompt, {"max_tokens": 16}, "chat", "v1") for prompt in prompts])
    assert [reply.text for reply in replies] == [prompt.upper() for prompt in prompts]
    return endpoint, time.perf_counter() - before


@contextmanager
def server():
    """Its address, and its counts, which are there when the block has ended."""
    command = [sys.executable, str(ROOT / "tests" / "fake_endpoint.py"), str(LATENCY_S), str(REFUSED), str(SEED)]
    counts = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip(), counts
        finally:
            process.stdin.close()
            counts.update(json.loads(process.stdout.readline()))


if __name__ == "__main__":
    main()
