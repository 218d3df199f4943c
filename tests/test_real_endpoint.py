"""A server that is not ours: `transformers serve` speaks the same API, and the teacher answers through it.

It needs `fastapi` and `uvicorn`, which the study does not: `pip install 'transformers[serving]'` into an environment of its own.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from stub_stage import JUDGE, StubStage, remote
from test_teacher import PROMPTS, SETTINGS

from bezoar_utils.calls.judge import Judge, Verdict, judge_prompt, read_verdict
from bezoar_utils.calls.teacher import Teacher
from bezoar_utils.study import files
from bezoar_utils.training import models

MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"`transformers serve` needs {' and '.join(MISSING)}: pip install 'transformers[serving]'"
    ),
]
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}<human>: {{ message['content'] }}\n<bot>:{% endfor %}"
GREEDY = SETTINGS | {"temperature": 0.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def served(model_folder, tokenizer, tmp_path_factory):
    """(model folder, two addresses) of the small model behind `transformers serve`, with an output layer of its own: the tied
    one says the last token again and again."""
    folder = tmp_path_factory.mktemp("served")
    model = models.load_model(model_folder)
    model.config.tie_word_embeddings = False
    weights = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight = torch.nn.Parameter(weights)
    models.save_model(model, tokenizer, folder)
    config = files.read_json(folder / "tokenizer_config.json")
    files.write_json(folder / "tokenizer_config.json", config | {"chat_template": CHAT_TEMPLATE})
    with serving(folder, tmp_path_factory.mktemp("one")) as one, serving(folder, tmp_path_factory.mktemp("other")) as other:
        yield folder, [one, other]


@contextlib.contextmanager
def serving(folder, home):
    (home / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    with open(home / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health", home / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(server, url: str, log, patience_s: float = 90) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 our own address
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"`transformers serve` did not start: {log.read_text()[-2000:]}")


@pytest.mark.parametrize("mode", ["raw", "chat"])
def test_the_teacher_says_the_same_through_a_real_server_as_with_the_weights_in_hand(served, tmp_path, monkeypatch, mode):
    folder, (url, _) = served
    monkeypatch.setenv("TEST_KEY", "none")
    settings = GREEDY | {"model": str(folder), "mode": mode, "endpoint": remote(url, timeout_s=60.0)}
    stage = StubStage(tmp_path / "served")
    texts = Teacher(stage, settings, 7).generate(PROMPTS, "answers")
    here = Teacher(StubStage(tmp_path / "here"), GREEDY | {"model": str(folder)}, 7).generate(PROMPTS, "answers")
    assert texts == here and len(set(texts)) == 5
    rows = files.read_jsonl(stage.output("calls.jsonl"))
    assert len(rows) == 5 and all(row["tokens_in"] > 5 and row["tokens_out"] > 0 for row in rows)
    nobody = GREEDY | settings | {"endpoint": remote("http://127.0.0.1:9/v1")}
    assert Teacher(stage, nobody, 7).generate(PROMPTS, "answers") == texts


def test_two_real_servers_share_the_calls_and_answer_as_one(served, tmp_path, monkeypatch):
    folder, urls = served
    monkeypatch.setenv("TEST_KEY", "none")
    prompts = [f"Add {n} plus 3." for n in range(12)]
    settings = GREEDY | {"model": str(folder), "endpoint": remote(urls, timeout_s=60.0)}
    both = Teacher(StubStage(tmp_path / "both"), settings, 7)
    texts = both.generate(prompts, "answers")
    one = settings | {"endpoint": remote(urls[1], timeout_s=60.0)}
    assert texts == Teacher(StubStage(tmp_path / "one"), one, 7).generate(prompts, "answers") and both.engine.sent == 12
    dead = settings | {"endpoint": remote(["http://127.0.0.1:9/v1", urls[0]], timeout_s=60.0)}
    assert Teacher(StubStage(tmp_path / "half"), dead, 7).generate(prompts, "answers") == texts


def test_a_real_model_that_gives_no_verdict_is_counted_and_never_scored(served, tmp_path, monkeypatch):
    folder, urls = served
    monkeypatch.setenv("TEST_KEY", "none")
    settings = JUDGE | {"model": str(folder), "endpoint": remote(urls, timeout_s=60.0), "max_tokens": 16}
    judge = Judge(StubStage(tmp_path), settings)
    prompts = [judge_prompt(Verdict, instruction=f"Add {n} plus 3.", response="no") for n in range(3)]
    read = [read_verdict(Verdict, reply) for reply in judge.reply(prompts, "verdicts")]
    assert all(verdict is None and why in ("no verdict", "cut short", "400") for verdict, why in read)
    with pytest.raises(RuntimeError, match="no readable verdict to any of 3 prompts"):
        judge.ask(Verdict, prompts, "verdicts")
