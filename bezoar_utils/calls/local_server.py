"""An OpenAI-compatible server on 127.0.0.1 around a function: chat and raw completions, and the list of models."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Busy(Exception):
    """Raised by an `answer` that wants to be asked again: HTTP 429."""


def open_server(models: tuple[str, ...], answer: Callable[[str, str], str]) -> ThreadingHTTPServer:
    """Not yet serving. `answer(model, prompt)` gives a text; ValueError and KeyError become HTTP 400."""
    return ThreadingHTTPServer(("127.0.0.1", 0), _handler(models, answer))


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def _handler(models: tuple[str, ...], answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open: a new one a call costs more than the call
        disable_nagle_algorithm = True

        def do_GET(self):
            self.tell(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in models]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model, chat = request["model"], self.path.endswith("/chat/completions")
            if model not in models:
                return self.tell(404, {"error": {"message": f"no model {model!r} here"}})
            prompt = request["messages"][-1]["content"] if chat else request["prompt"]
            try:
                self.tell(200, completion(model, prompt, answer(model, prompt), chat))
            except Busy:
                self.tell(429, {"error": {"message": "busy"}})
            except (KeyError, ValueError) as error:
                self.tell(400, {"error": {"message": str(error)}})

        def tell(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


def completion(model: str, prompt: str, text: str, chat: bool = True) -> dict:
    """A completion in OpenAI's format; its usage counts words, for such a server has no tokens."""
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    asked, answered = len(prompt.split()), len(text.split())
    usage = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    kind, choice = "chat.completion" if chat else "text_completion", {"index": 0, "finish_reason": "stop"} | said
    return {"id": "local", "object": kind, "created": 0, "model": model, "choices": [choice], "usage": usage}
