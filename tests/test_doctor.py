import contextlib
import socket
import time

import openai  # noqa: F401  its import takes a second, which is not what the silent addresses are timed for
import pytest

from bezoar_utils import run
from bezoar_utils.calls.local_server import Handler, serving
from bezoar_utils.planning import doctor, memory
from bezoar_utils.study.profile import load_profile

CANARY = "sk-canary-0123456789"
NOWHERE = "http://127.0.0.1:9"


@contextlib.contextmanager
def server(status: int, body=b"{}", word: str = ""):
    """(address, requests) of a server with one answer; `word` is the hub's own for what is wrong."""

    class Answer(Handler):
        def do_GET(self):
            requests.append((self.command, self.path, self.headers["Authorization"]))
            self.tell(status, body, {"Location": f"{NOWHERE}/elsewhere", "X-Error-Code": word})

        do_HEAD = do_GET

    requests = []
    with serving(Answer) as url:
        yield url, requests


@contextlib.contextmanager
def silence():
    """An address that takes connections and never sends a byte."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def judge_at(url: str, key: str | None = "CANARY_KEY"):
    judge = load_profile("mini").judge
    address = judge.endpoint.model_copy(update={"base_url": f"{url}/v1", "local_server": None, "api_key_env": key})
    return judge.model_copy(update={"model": "big-judge", "endpoint": address})


LISTED = {"data": [{"id": "big-judge"}, {"id": "small"}]}


@pytest.mark.parametrize(
    ("status", "body", "state", "words"),
    [
        (200, LISTED, "ok", "lists the model"),
        (200, {"data": [{"id": "other"}]}, "missing", "lists other"),
        (401, {}, "missing", "look at CANARY_KEY"),
        (403, {}, "missing", "(403)"),
        (404, {}, "note", "(404)"),
    ],
)
def test_an_endpoint_is_asked_for_its_models_with_the_key(monkeypatch, status, body, state, words):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    with server(status, body) as (url, requests):
        state_here, detail = doctor.endpoint(judge_at(url), f"{url}/v1")
    assert state_here == state and words in detail and CANARY not in detail
    assert requests == [("GET", "/v1/models", f"Bearer {CANARY}")]


def test_a_dead_endpoint_is_missing():
    state, detail = doctor.endpoint(judge_at(NOWHERE), f"{NOWHERE}/v1")
    assert state == "missing" and "base_url" in detail


@pytest.mark.parametrize(
    ("status", "word", "state", "words"),
    [
        (200, "", "ok", ""),
        (302, "", "ok", ""),
        (401, "RepoNotFound", "missing", "HF_TOKEN"),
        (403, "GatedRepo", "missing", "gated"),
        (404, "RevisionNotFound", "missing", "revision"),
        (404, "EntryNotFound", "missing", "revision"),
        (403, "", "missing", "403"),
        (500, "", "unknown", "500"),
    ],
)
def test_a_hub_id_is_there_gated_or_missing_and_a_token_follows_no_redirect(monkeypatch, use_hub, status, word, state, words):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with server(status, word=word) as (url, requests):
        use_hub(url)
        state_here, detail = doctor.on_the_hub(f"{url}/some/model/resolve/abc/config.json")
    assert state_here == state and words in detail and CANARY not in detail
    heads = [request for request in requests if request[0] == "HEAD"]  # the library may ask for more, without the token
    assert heads == [("HEAD", "/some/model/resolve/abc/config.json", f"Bearer {CANARY}")]
    assert {key for method, _, key in requests if method != "HEAD"} <= {None}


def test_with_addresses_that_never_answer_it_ends_in_three_seconds_and_shows_no_key(monkeypatch, capsys, use_hub):
    monkeypatch.setenv("JUDGE_API_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    paper = load_profile("paper")
    with silence() as url:
        use_hub(url)
        address = paper.judge.endpoint.model_copy(update={"base_url": f"{url}/v1"})
        judge = paper.judge.model_copy(update={"endpoint": address})
        monkeypatch.setattr(doctor, "load_profile", lambda name: paper.model_copy(update={"judge": judge}))
        began = time.monotonic()
        assert doctor.main("paper") == 1
        assert time.monotonic() - began < 3
    lines = capsys.readouterr().out
    assert CANARY not in lines and "JUDGE_API_KEY set" in lines
    assert f"missing  gpt-4 at {url}/v1: no answer" in lines
    assert "unknown  openlm-research/open_llama_3b_v2 at bce5d60d: " in lines


def test_the_miniature_needs_no_gpu_no_key_and_no_hub(capsys):
    doctor.main("mini")
    lines = capsys.readouterr().out
    assert "note     GPU: this profile needs none" in lines and "keys: none needed" in lines
    assert "served by the study itself" in lines and "hub" not in lines


def test_a_judge_that_only_chapters_beside_the_recipe_ask_is_not_missing_for_it(monkeypatch, use_hub):
    use_hub(NOWHERE)
    released = load_profile("released")
    assert doctor.called_roles(released) == {} and doctor.keys(released) == ("ok", "none needed")
    found = {what: (state, detail) for state, what, detail in doctor.examine(released)}
    state, detail = found["prometheus-7b-v2.0 at http://127.0.0.1:8000/v1"]
    assert state == "note" and detail.endswith("(only make ablations and make neighbours ask it)")
    _, address = next(iter(doctor.called_roles(load_profile("checkpoints"))))
    assert address == "http://127.0.0.1:8000/v1", "where the recipe asks it, it is needed"


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
    state_here, detail = doctor.gpu(load_profile("released"))
    assert state_here == state and "NVIDIA GeForce RTX 4090" in detail and "driver 570.1" in detail


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
    with server(200, LISTED) as (one, requests), server(200, LISTED) as (other, more_requests):
        judge = judge_at(one)
        both = judge.endpoint.model_copy(update={"base_url": [f"{one}/v1", f"{other}/v1"]})
        mini = load_profile("mini")
        money = mini.money.model_copy(update={"prices": {"big-judge": [0.0, 0.0]}})
        profile = mini.model_copy(update={"judge": judge.model_copy(update={"endpoint": both}), "money": money})
        states = {what: state for state, what, _ in doctor.examine(profile)}
    assert states[f"big-judge at {one}/v1"] == states[f"big-judge at {other}/v1"] == "ok" and requests and more_requests


@pytest.mark.parametrize(("status", "word"), [(403, "GatedRepo"), (404, "RepoNotFound")])
def test_what_the_hub_lacks_or_keeps_from_us_fails_the_plan(use_hub, status, word):
    with server(status, word=word) as (url, _):
        use_hub(url)
        released = load_profile("released")
        refusals, unanswered = doctor.hub_refusals(released)
        assert run.show_plan("released", {}) == 2
        assert len(refusals) == len(doctor.hub_files(released)) and not unanswered
    assert any(line.startswith("openlm-research/open_llama_3b_v2 at bce5d60d") for line in refusals)


def test_a_silent_hub_is_noted_by_the_plan_and_stops_nothing(capsys, use_hub):
    with silence() as url:
        use_hub(url)
        began = time.monotonic()
        assert run.show_plan("released", {}) == 0
    assert "note: the hub does not answer" in capsys.readouterr().out and time.monotonic() - began < 3
