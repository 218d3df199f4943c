import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bezoar_utils import run
from bezoar_utils.planning import doctor, memory
from bezoar_utils.study.profile import load_profile

CANARY = "sk-canary-0123456789"


@contextlib.contextmanager
def server(status: int, body: bytes = b"{}"):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    asked = []
    one = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{one.server_port}", asked
    one.shutdown()
    one.server_close()


@contextlib.contextmanager
def silence():
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def judge_at(url: str, key: str | None = "CANARY_KEY"):
    judge = load_profile("mini").judge
    address = judge.endpoint.model_copy(update={"base_url": f"{url}/v1", "local_server": None, "api_key_env": key})
    return judge.model_copy(update={"model": "big-judge", "endpoint": address})


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """What the hub is asked here goes to 127.0.0.1."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


LISTED = json.dumps({"data": [{"id": "big-judge"}, {"id": "small"}]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "state", "words"),
    [
        (200, LISTED, "ok", "lists the model"),
        (200, b'{"data": [{"id": "other"}]}', "missing", "lists other"),
        (401, b"{}", "missing", "refuses the key (401): look at CANARY_KEY"),
        (403, b"{}", "missing", "refuses the key (403)"),
        (404, b"{}", "note", "lists no models (404)"),
    ],
)
def test_an_endpoint_is_asked_for_its_models_with_the_key(monkeypatch, status, body, state, words):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    with server(status, body) as (url, asked):
        found, detail = doctor.endpoint(judge_at(url), f"{url}/v1")
    assert found == state and words in detail and CANARY not in detail
    assert asked == [("GET", "/v1/models", f"Bearer {CANARY}")]


def test_a_dead_endpoint_is_missing():
    with socket.create_server(("127.0.0.1", 0)) as once:
        url = f"http://127.0.0.1:{once.getsockname()[1]}"
    assert doctor.endpoint(judge_at(url), f"{url}/v1") == ("missing", "no answer: start the server, or change base_url")


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (200, "ok", "there"),
        (302, "ok", "there"),
        (401, "missing", "HF_TOKEN"),
        (403, "missing", "is gated: ask for access"),
        (404, "missing", "is not there"),
        (500, "missing", "the hub answers 500"),
    ],
)
def test_a_hub_id_is_there_gated_or_missing_and_a_token_follows_no_redirect(monkeypatch, status, state, words):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with server(status) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        found, detail = doctor.on_the_hub("some/model/resolve/abc/config.json")
    assert found == state and words in detail and CANARY not in detail
    assert asked == [("HEAD", "/some/model/resolve/abc/config.json", f"Bearer {CANARY}")]


def test_with_addresses_that_never_answer_it_ends_in_three_seconds_and_shows_no_key(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JUDGE_API_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with silence() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        paper = load_profile("paper")
        address = paper.judge.endpoint.model_copy(update={"base_url": f"{url}/v1"})
        judge = paper.judge.model_copy(update={"endpoint": address})
        monkeypatch.setattr(doctor, "load_profile", lambda name: paper.model_copy(update={"judge": judge}))
        began = time.monotonic()
        assert doctor.main("paper") == 1
        assert time.monotonic() - began < 3
    said = capsys.readouterr().out
    assert CANARY not in said and "JUDGE_API_KEY set" in said
    assert f"missing  gpt-4 at {url}/v1: no answer" in said
    assert "missing  openlm-research/open_llama_3b_v2 at bce5d60d: the hub does not answer" in said


def test_the_miniature_needs_no_gpu_no_key_and_no_hub(capsys):
    doctor.main("mini")
    said = capsys.readouterr().out
    assert "note     GPU: this profile needs none" in said and "keys: none needed" in said
    assert "served by the study itself" in said and "hub" not in said


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    state, detail = doctor.keys(load_profile("paper"))
    assert state == "missing" and detail.startswith("JUDGE_API_KEY not set")


@pytest.mark.parametrize(("mib", "state"), [("24564", "ok"), ("16376", "missing")])
def test_the_gpus_memory_is_held_against_the_profiles(monkeypatch, tmp_path, mib, state):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, {mib}, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found, detail = doctor.gpu(load_profile("released"))
    assert found == state and "NVIDIA GeForce RTX 4090" in detail and "driver 570.1" in detail


def test_a_disk_that_is_too_small_is_missing(monkeypatch):
    released = load_profile("released")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("", (), {"free": 10e9}))
    state, detail = doctor.disk(released)
    assert state == "missing" and f"{sum(memory.disk_gb(released).values()):.0f} needed" in detail


def test_packages_that_differ_from_the_lock_are_counted_and_named(monkeypatch):
    others = [type("", (), {"metadata": {"Name": d.metadata["Name"]}, "version": "0.0"}) for d in doctor.metadata.distributions()]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: others)
    state, detail = doctor.packages(None)
    assert state == "note" and "differ from the lock" in detail and "0.0, not" in detail
    monkeypatch.setattr(doctor.metadata, "distributions", list)
    assert doctor.packages(None)[0] == "missing"


def test_each_of_several_equal_servers_is_asked(monkeypatch):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    with server(200, LISTED) as (one, asked), server(200, LISTED) as (other, too):
        judge = judge_at(one)
        both = judge.endpoint.model_copy(update={"base_url": [f"{one}/v1", f"{other}/v1"]})
        mini = load_profile("mini")
        money = mini.money.model_copy(update={"prices": {"big-judge": [0.0, 0.0]}})
        profile = mini.model_copy(update={"judge": judge.model_copy(update={"endpoint": both}), "money": money})
        states = {what: state for state, what, _ in doctor.examine(profile)}
    assert states[f"big-judge at {one}/v1"] == states[f"big-judge at {other}/v1"] == "ok" and asked and too


@pytest.mark.parametrize(("status", "words"), [(403, "is gated"), (404, "is not there")])
def test_what_the_hub_has_not_or_keeps_from_us_fails_the_plan(monkeypatch, status, words):
    with server(status) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        refused, unanswered = doctor.hub_refusals(load_profile("released"))
        assert run.show_plan("released", {}) == 2
    assert len(refused) == 6 and all(words in line for line in refused) and not unanswered
    assert any(line.startswith("openlm-research/open_llama_3b_v2 at bce5d60d") for line in refused)


def test_a_silent_hub_is_noted_by_the_plan_and_stops_nothing(monkeypatch, capsys):
    with silence() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        began = time.monotonic()
        assert run.show_plan("released", {}) == 0
    assert "note: the hub does not answer" in capsys.readouterr().out and time.monotonic() - began < 3
