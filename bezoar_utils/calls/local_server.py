"""Small HTTP servers on 127.0.0.1: an OpenAI-compatible API around a function, and a module that serves one for a stage.

A profile's `local_server` names such a module. Its constant `READS` lists the artifacts of the run it needs; it is started with
their paths as arguments, prints its address and serves until its standard input closes (`serve_until_closed`).
"""

import contextlib
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..study import files


class Busy(Exception):
    """Raised by an `answer` that cannot reply now: HTTP 429, and the client tries again."""


class Handler(BaseHTTPRequestHandler):
    """What all servers here share: connections stay open, header and body leave in one piece, and nothing is logged."""

    protocol_version = "HTTP/1.1"  # a new connection for each call costs more than the call
    disable_nagle_algorithm = True
    wbufsize = -1

    def received(self) -> bytes:
        announced = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(announced)
        if len(body) < announced:
            raise ConnectionResetError("the client died while it sent this")
        return body

    def tell(self, status: int, body=b"", headers: dict[str, str] | None = None) -> None:
        """Send bytes as they are, anything else as JSON. `headers` overrule ours. A HEAD request gets no body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | kind | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # a burst of connections beyond it waits a second for the next try

    def handle_error(self, *arguments):
        if not isinstance(sys.exception(), ConnectionError):  # a client that gave up waiting is not an error here
            super().handle_error(*arguments)


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """The address (http://127.0.0.1:<port>) of a server that lives as long as this context."""
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


# ---------------------------------------------------------------------------------------------------------------- the API


def api(models: tuple[str, ...], answer: Callable[[str, str], str]) -> type[Handler]:
    """Chat and raw completions, and the list of models. `answer(model, prompt)` gives a text; its ValueError and KeyError become
    HTTP 400, Busy becomes 429."""

    class Api(Handler):
        def do_GET(self):
            self.tell(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in models]})

        def do_POST(self):
            request = json.loads(self.received())
            model, (chat, prompt) = request["model"], prompt_of(request)
            if model not in models:
                return self.tell(404, {"error": {"message": f"no model {model!r} here"}})
            try:
                self.tell(200, completion(model, prompt, answer(model, prompt), chat))
            except Busy:
                self.tell(429, {"error": {"message": "busy"}})
            except (KeyError, ValueError) as error:
                self.tell(400, {"error": {"message": str(error)}})

    return Api


def prompt_of(request: dict) -> tuple[bool, str]:
    """(is it a chat request, its prompt)."""
    return (True, request["messages"][-1]["content"]) if "messages" in request else (False, request["prompt"])


def completion(model: str, prompt: str, text: str, chat: bool = True) -> dict:
    """A completion in OpenAI's format; its usage counts words, because such a server has no tokens."""
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    words_in, words_out = len(prompt.split()), len(text.split())
    usage = {"prompt_tokens": words_in, "completion_tokens": words_out, "total_tokens": words_in + words_out}
    kind, choice = "chat.completion" if chat else "text_completion", {"index": 0, "finish_reason": "stop"} | content
    return {"id": "local", "object": kind, "created": 0, "model": model, "choices": [choice], "usage": usage}


# --------------------------------------------------------------------------------------------------- a server for a stage


def serve_until_closed(handler: type[Handler]) -> None:
    """The main of a server module: print the address, then serve until standard input closes."""
    with serving(handler) as url:
        print(f"{url}/v1", flush=True)
        sys.stdin.read()


def artifacts(module: str) -> tuple[str, ...]:
    """The artifacts of a run that this server module reads, as `<stage>/<file>`.

    Importing the module here makes it part of the code that the stage records, so that a change makes the stage stale.
    """
    return getattr(importlib.import_module(module), "READS", ())


def version(module: str, paths: list[Path]) -> str:
    """Content of what a local server runs and reads: with other code it is another judge, and old answers are not its own."""
    folder = Path(str(importlib.import_module(module).__file__)).parent
    return files.sha256_json([files.sha256_file(path) for path in (*sorted(folder.glob("*.py")), *paths)])


@contextlib.contextmanager
def running(module: str, paths: list[Path]) -> Iterator[str]:
    """The address of a server module run in its own process, which ends at the latest with this one.

    Raises RuntimeError when it prints no address.
    """
    command = [sys.executable, "-m", module, *map(str, paths)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdout and server.stdin
    try:
        address = server.stdout.readline().strip()
        if not address.startswith("http://127.0.0.1:"):
            raise RuntimeError(f"{module} did not start (exit code {server.poll()}): it must print its address on 127.0.0.1")
        yield address
    finally:
        server.stdin.close()
        server.terminate()
        server.wait()
