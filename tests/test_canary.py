"""The key of an endpoint must reach nobody but that endpoint."""

import traceback

import pytest
from fake_endpoint import FakeEndpoint
from stub_stage import JUDGE, StubStage, remote
from test_teacher import SETTINGS

from bezoar_utils.calls import attempts
from bezoar_utils.calls.judge import Judge, Verdict, judge_prompt
from bezoar_utils.calls.teacher import Teacher

CANARY = "sk-canary-4711"
VERDICT = '{"status": "Accept", "rating": 9, "reason": "right"}'


def shown(error: BaseException) -> str:
    """Everything a notebook could show of an error, its causes and contexts included."""
    return f"{error} {error!r} {vars(error)} {''.join(traceback.format_exception(error))} {error.__context__!r}"


@pytest.mark.parametrize("mode", ["raw", "chat"])
@pytest.mark.parametrize("fault", [None, "400", "401", "429", "500", "wrong-model", "close", "error-body", "truncated-json"])
def test_the_key_is_in_no_file_of_the_stage_and_in_no_error(tmp_path, monkeypatch, fault, mode):
    monkeypatch.setattr(attempts, "BACKOFF_S", 0.01)
    monkeypatch.setenv("TEST_KEY", f"{CANARY}\n")  # as a shell reads it from a file
    stage, texts = StubStage(tmp_path), []
    with FakeEndpoint(lambda prompt: VERDICT, faults=lambda prompt, attempt: fault) as fake:
        role = {"model": "m", "licence": "ours", "endpoint": remote(fake.url), "temperature": 0.0, "max_tokens": 9}
        teacher, judge = Teacher(stage, SETTINGS | role | {"mode": mode}, 1), Judge(stage, JUDGE | role)
        for ask in (
            lambda: teacher.generate(["a", "b"], "x"),
            lambda: judge.ask(Verdict, [judge_prompt(Verdict, response="a")], "verdicts"),
        ):
            try:
                texts.append(repr(ask()))
            except RuntimeError as error:
                texts.append(shown(error))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode()
    assert fake.keys == {f"Bearer {CANARY}"}, "it was in use"
    assert len(texts) == 2 and CANARY not in "".join(texts) and CANARY not in written
    assert "[key]" in written + "".join(texts) or fault not in ("400", "401", "429", "500", "wrong-model")
