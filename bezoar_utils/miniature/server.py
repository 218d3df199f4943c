"""The miniature's judge: an OpenAI-compatible chat endpoint whose verdicts come from the world's exact oracle.

`python -m bezoar_utils.miniature.server world.json` prints its address on 127.0.0.1 and serves until its standard input
closes, so it never outlives the stage that started it. The study reaches it only through the openai client.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .. import judge
from . import oracle
from .world import World, build_world

ORACLE, SKIMMER = "miniature-oracle", "miniature-skimmer"


def answer(world: World, prompt: str, model: str = ORACLE) -> str:
    """The reply to a judge prompt: a sentence of reason, then the verdict as JSON on the last line."""
    parts = judge.read_sections(prompt)
    task = prompt.split(".", 1)[0].removeprefix("TASK ")
    if task == "filter" and model == SKIMMER:
        status, rating, reason = oracle.skim(world, parts["instruction"], parts["response"], list(parts)[-1] == "response")
        return _reply(reason, status=status, rating=rating, reason=reason)
    if task == "filter":
        status, rating, reason = oracle.verdict(world, parts["system"], parts["instruction"], parts["response"])
        return _reply(reason, status=status, rating=rating, reason=reason)
    if task == "equality":
        same = oracle.same_question(world, parts["first"], parts["second"])
        return _reply("", equality="equal" if same else "not equal")
    if task == "grade" and model == SKIMMER:
        _, rating, reason = oracle.skim(world, parts["question"], parts["answer"], reply_last=True)
        return _reply(reason, rating=rating, reason=reason)
    if task == "comparison":
        better, reason = oracle.compare(world, parts["question"], parts["first"], parts["second"])
        return _reply(reason, better=better, reason=reason)
    if task == "grade":
        rating, reason = oracle.grade(world, parts["question"], parts["answer"])
        return _reply(reason, rating=rating, reason=reason)
    if task == "preference":
        return _reply("", preferred=oracle.is_preferred(parts["reply"]))
    raise ValueError(f"unknown judge task {task!r}")


def _reply(thoughts: str, **verdict) -> str:
    return f"{thoughts}\n{json.dumps(verdict)}"


def handler_for(world: World) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open: a new one a call costs more than the call
        disable_nagle_algorithm = True

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model, prompt = request["model"], request["messages"][-1]["content"]
            if model not in (ORACLE, SKIMMER):
                return self.reply(404, {"error": {"message": f"no model {model!r} here"}})
            try:
                self.reply(200, completion(model, prompt, answer(world, prompt, model)))
            except (KeyError, ValueError) as error:
                self.reply(400, {"error": {"message": str(error)}})

        def reply(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


def completion(model: str, prompt: str, text: str) -> dict:
    """A chat completion in OpenAI's format; its usage counts words, for this judge has no tokens."""
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    asked, said = len(prompt.split()), len(text.split())
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return {"id": "miniature", "object": "chat.completion", "created": 0, "model": model, "choices": [message], "usage": usage}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(build_world(**settings)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
