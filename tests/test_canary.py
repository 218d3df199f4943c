"""The key of an endpoint must reach nobody but that endpoint."""

import traceback

import pytest
from fake_endpoint import FakeEndpoint
from stub_stage import StubStage, remote
from test_teacher import SETTINGS

from bezoar_utils.calls import endpoint as endpoint_module
from bezoar_utils.calls.endpoint import EndpointError
from bezoar_utils.calls.judge import Judge, Verdict, judge_prompt
from bezoar_utils.calls.teacher import Teacher

CANARY = "sk-canary-4711"
VERDICT = '{"status": "Accept", "rating": 9, "reason": "right"}'


def told(error: BaseException) -> str:
    """Everything a notebook could show of an error, its causes and contexts included."""
    return f"{error} {error!r} {vars(error)} {''.join(traceback.format_exception(error))}"


@pytest.mark.parametrize("mode", ["raw", "chat"])
@pytest.mark.parametrize("fault", [None, "400", "401", "429", "500", "wrong-model", "close", "error-body", "truncated-json"])
def test_the_key_is_in_no_file_of_the_stage_and_in_no_error(tmp_path, monkeypatch, fault, mode):
    monkeypatch.setattr(endpoint_module, "BACKOFF_S", 0.01)
    monkeypatch.setenv("TEST_KEY", CANARY)
    stage, shown, headers = StubStage(tmp_path), "", set()
    with FakeEndpoint(lambda prompt: VERDICT, faults=lambda prompt, attempt: fault) as fake:
        plain = fake.server.RequestHandlerClass.do_POST
        monkeypatch.setattr(
            fake.server.RequestHandlerClass, "do_POST", lambda self: (headers.add(self.headers["Authorization"]), plain(self))
        )
        asked = {"model": "m", "licence": "ours", "endpoint": remote(fake.url), "temperature": 0.0, "max_tokens": 9}
        for ask in (
            lambda: Teacher(stage, SETTINGS | {"model": "m", "mode": mode, "endpoint": remote(fake.url)}, 1).generate(
                ["a", "b"], "x"
            ),
            lambda: Judge(stage, asked).ask(Verdict, [judge_prompt(Verdict, response="a")], "verdicts"),
        ):
            try:
                shown += repr(ask())
            except (EndpointError, RuntimeError) as error:
                shown += told(error)
    assert headers == {f"Bearer {CANARY}"}  # it was in use
    assert shown and CANARY not in shown
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(CANARY.encode() not in data for data in written)
    assert b"[key]" in b"".join(written) or "[key]" in shown or fault not in ("400", "401", "429", "500", "wrong-model")
