"""An OpenAI-compatible server that misbehaves on demand, for tests and benchmarks.

`python tests/fake_endpoint.py LATENCY_S RATE_OF_429 SEED` serves until its standard input closes, then prints its counts.
"""

import contextlib
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bezoar_utils.calls import local_server

STATUS = {"429": 429, "429-retry-after": 429, "500": 500, "wrong-model": 404, "400": 400, "401": 401}
STATUS |= {"too-long": 400, "flagged": 403, "quota": 429}
WORDS = {
    "too-long": "This model's maximum context length is 4096 tokens",
    "flagged": "Your input was flagged",
    "quota": "You exceeded your current quota (insufficient_quota)",
}


class FakeEndpoint:
    """`answer(prompt)` is the reply; `faults(prompt, attempt)` names what goes wrong, the first attempt being 1, or None.

    `received` counts the requests of a prompt, `answered` the whole 200s it got; `bodies` holds the requests as they came in,
    `keys` the Authorization headers.
    """

    def __init__(self, answer=str.upper, latency_s=0.0, faults=lambda prompt, attempt: None, usage=True, retry_after="1"):
        self.answer, self.latency_s, self.faults, self.usage, self.retry_after = answer, latency_s, faults, usage, retry_after
        self.received, self.answered, self.bodies, self.keys = Counter(), Counter(), [], set()
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self):
        self.context = local_server.serving(type("FakeHandler", (FakeHandler,), {"fake": self}))
        self.url = f"{self.context.__enter__()}/v1"
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.context.__exit__(*error)

    def completion(self, request: dict, text: str, fault: str | None) -> dict:
        chat, _ = local_server.prompt_of(request)
        body = local_server.completion(request["model"], "", "" if fault == "empty" else text, chat)
        if fault == "cut-short":
            body["choices"][0]["finish_reason"] = "length"
        if fault == "refusal":
            body["choices"][0]["message"] |= {"content": None, "refusal": "I will not."}
        read = max(10, len(local_server.prompt_of(request)[1]) // 20)
        usage = {"prompt_tokens": read, "completion_tokens": 5, "total_tokens": read + 5}
        return body | {"usage": self.usage if isinstance(self.usage, dict) else usage if self.usage else None}


class FakeHandler(local_server.Handler):
    fake: FakeEndpoint

    def do_POST(self):
        request = json.loads(self.received())
        _, prompt = local_server.prompt_of(request)
        with self.fake.lock:
            self.fake.received[prompt] += 1
            self.fake.bodies.append(request)
            self.fake.keys.add(self.headers["Authorization"])
            attempt = self.fake.received[prompt]
        fault = self.fake.faults(prompt, attempt)
        time.sleep(self.fake.latency_s)
        if not self.failed(fault):
            self.tell(200, self.fake.completion(request, self.fake.answer(prompt), fault))
            with self.fake.lock:
                self.fake.answered[prompt] += 1

    def failed(self, fault: str | None) -> bool:
        if fault == "timeout":
            self.fake.closing.wait(5)
        if fault in ("timeout", "close", "half-sent"):
            self.close_connection = True
        if fault in STATUS:  # like some providers, it repeats the key it was given
            after = {"Retry-After": self.fake.retry_after} if fault == "429-retry-after" else {}
            self.tell(
                STATUS[fault], {"error": {"message": f"{WORDS.get(fault, fault)} for {self.headers['Authorization']}"}}, after
            )
        elif fault == "error-body":
            self.tell(200, {"error": {"message": "the upstream model is busy", "code": 503}})
        elif fault == "no-choices":
            self.tell(200, {"choices": []})
        elif fault == "truncated-json":
            self.tell(200, b'{"id": "fake", "choices": [{"index": 0, "mess', {"Content-Type": "application/json"})
        elif fault == "half-sent":  # the connection ends before the length that was announced
            self.tell(200, b'{"choices": [', {"Content-Type": "application/json", "Content-Length": "500"})
        return fault in STATUS or fault in FAILURES


FAILURES = {"timeout", "close", "half-sent", "error-body", "no-choices", "truncated-json"}


def first_attempts_fail(fault: str, rate: float, seed: int):
    """Faults for this share of the prompts, the same ones each time; their second attempt is answered."""
    return lambda prompt, attempt: fault if attempt == 1 and random.Random(f"{seed} {prompt}").random() < rate else None


def main() -> None:
    latency_s, rate, seed = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with FakeEndpoint(latency_s=latency_s, faults=first_attempts_fail("429", rate, seed)) as fake:
        print(fake.url, flush=True)
        sys.stdin.read()
        counts = {"received": fake.received.total(), "answered": fake.answered.total(), "prompts": len(fake.answered)}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
