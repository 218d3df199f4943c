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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATUS = {"429": 429, "429-retry-after": 429, "500": 500, "wrong-model": 404, "400": 400, "401": 401}


class FakeEndpoint:
    """`answer(prompt)` is the reply; `faults(prompt, attempt)` names what goes wrong, the first attempt being 1, or None.

    `received` counts the requests of a prompt, `answered` the whole 200s it got; `bodies` holds the requests as they came in.
    """

    def __init__(self, answer=str.upper, latency_s=0.0, faults=lambda prompt, attempt: None, usage=True, retry_after="1"):
        self.answer, self.latency_s, self.faults, self.usage, self.retry_after = answer, latency_s, faults, usage, retry_after
        self.received, self.answered, self.bodies = Counter(), Counter(), []
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self):
        class Server(ThreadingHTTPServer):
            request_queue_size = 512  # a burst of connections beyond it waits a second for the next try
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that gave up waiting is part of the tests

        self.server = Server(("127.0.0.1", 0), handler_for(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def handler_for(fake: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # header and body leave in one piece

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat = self.path.endswith("/chat/completions")
            prompt = request["messages"][-1]["content"] if chat else request["prompt"]
            with fake.lock:
                fake.received[prompt] += 1
                fake.bodies.append(request)
                attempt = fake.received[prompt]
            fault = fake.faults(prompt, attempt)
            time.sleep(fake.latency_s)
            if fault == "timeout":
                fake.closing.wait(5)
            if fault in ("timeout", "close"):
                self.close_connection = True
            elif fault in STATUS:
                self.fail(fault)
            elif fault == "error-body":
                self.reply(200, {"error": {"message": "the upstream model is busy", "code": 503}})
            elif fault == "no-choices":
                self.reply(200, {"choices": []})
            elif fault == "truncated-json":
                self.reply(200, json.dumps(completion(chat, request, "cut", fake.usage))[:-20])
            elif fault == "half-sent":  # the connection ends before the length that was announced
                self.close_connection = True
                self.reply(200, '{"choices": [', announced=500)
            else:
                self.reply(200, completion(chat, request, fake.answer(prompt), fake.usage, fault))
                with fake.lock:
                    fake.answered[prompt] += 1

        def fail(self, fault):
            # like some providers, it repeats the key it was given
            message = f"{fault} for {self.headers['Authorization']}"
            after = {"Retry-After": fake.retry_after} if fault == "429-retry-after" else {}
            self.reply(STATUS[fault], {"error": {"message": message}}, after)

        def reply(self, status, body, headers=None, announced=None):
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(announced or len(data)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, *_):
            pass

    return Handler


def completion(chat: bool, request: dict, text: str, usage: bool, fault: str | None = None) -> dict:
    choice = {"index": 0, "finish_reason": "length" if fault == "cut-short" else "stop"}
    if fault == "empty":
        text = ""
    if chat:
        content = {"content": None, "refusal": "I will not."} if fault == "refusal" else {"content": text}
        choice["message"] = {"role": "assistant", **content}
    else:
        choice["text"] = text
    body = {"id": "fake", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}
    spent = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return body | ({"usage": spent} if usage else {})


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
