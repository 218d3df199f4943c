"""docs/serving.md: each profile snippet is one, and each line of its table is what happens."""

import re
from types import SimpleNamespace

import pytest
from fake_endpoint import FakeEndpoint

from bezoar_utils.calls import attempts
from bezoar_utils.calls.attempts import EndpointError, Unanswered, status_error
from bezoar_utils.calls.budget import Budget
from bezoar_utils.calls.endpoint import Endpoint, Request
from bezoar_utils.calls.replies import answer
from bezoar_utils.study.profile import CODE, PROFILES, load_profile

PAGE = (CODE / "docs" / "serving.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
LINES = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE[PAGE.index("| the server says") :], re.MULTILINE)[1:])
SETTINGS = {"api_key_env": None, "local_server": "fake", "concurrency": 1, "timeout_s": 0.2, "attempts": 2}
SETTINGS |= {"lose_at_most": 1.0, "parameters": {}}


@pytest.mark.parametrize("text", SNIPPETS, ids=lambda text: re.search("(?:base_url: )(.*)", text)[1][:40])
def test_every_snippet_is_a_profile_whose_calls_reach_its_server(text, tmp_path):
    for name in ("tiny", "mini"):
        (tmp_path / f"{name}.yaml").write_text((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(f"extends: tiny\n{text}", encoding="utf-8")
    profile = load_profile("mine", tmp_path)
    (asked,) = [role for role in (profile.teacher, profile.judge) if role.endpoint and role.endpoint.base_url]
    assert asked.model in profile.money.prices
    assert "127.0.0.1" in str(asked.endpoint.base_url) or (profile.money.budget_usd > 0 and asked.endpoint.api_key_env)


def test_a_provider_is_described_by_a_snippet_each():
    for host in ("11434", "api.openai.com", "api.anthropic.com", "googleapis.com", "api.mistral.ai", "openrouter.ai"):
        assert any(host in snippet for snippet in SNIPPETS), host


def replies(tmp_path, **changes):
    """One call to a server that misbehaves, in two runs of one ledger: the first reply, and the requests seen after each run."""
    tmp_path = tmp_path / str(len(list(tmp_path.iterdir())))
    with FakeEndpoint(**changes) as fake:
        requests = [Request("hello", {"max_tokens": 10}, "chat", "v1")]
        budget = Budget(tmp_path / "spend.jsonl", 1.0)
        first = Endpoint("m", SETTINGS, fake.url, tmp_path / "calls.jsonl", (1.0, 10.0), budget).ask(requests)
        once = fake.received.total()
        Endpoint("m", SETTINGS, fake.url, tmp_path / "calls.jsonl", (1.0, 10.0), budget).ask(requests)
        return first[0], once, fake.received.total()


def always(fault):
    return lambda prompt, attempt: fault


def meaning(status, text=""):
    return status_error(status, text, None, "here")


def asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_S", 0.01)
    assert all(meaning(status).retried and not meaning(status).final for status in (429, 408, 409, 500, 502, 503, 529))
    for fault in ("truncated-json", "no-choices", "error-body"):
        reply, once, twice = replies(tmp_path, faults=always(fault))
        assert reply.text is None and (once, twice) == (2, 4), fault
    late = replies(tmp_path, faults=lambda prompt, attempt: "timeout" if attempt == 1 else None)
    assert late[0].text == "HELLO" and late[1] == 2


def stops_for_money(*_):
    for status, text in [
        (429, "You exceeded your current quota (insufficient_quota)"),
        (402, "Payment required"),
        (402, "Insufficient credits"),
        (400, "Your credit balance is too low to access the API"),
        (400, "billing_hard_limit_reached"),
    ]:
        assert isinstance(meaning(status, text), EndpointError), text
    waits = "You exceeded your current quota. See https://ai.google.dev/gemini-api/docs/rate-limits. Please retry in 20.0s."
    assert meaning(429, waits).retried


def gives_up_for_good(status, text):
    def test(*_):
        wrong = meaning(status, text)
        assert isinstance(wrong, Unanswered) and wrong.final and not wrong.retried

    return test


def asks_in_the_next_run(tmp_path, _):
    assert all(not meaning(status, "no chat template").final and not meaning(status, "?").retried for status in (400, 422))
    assert replies(tmp_path, faults=always("400"))[1:] == (1, 2)


def stops(*_):
    assert all(isinstance(meaning(status, "no"), EndpointError) for status in (401, 403, 404))


def costs_the_worst_case(tmp_path, _):
    worst = replies(tmp_path, usage=False)[0].cost_usd
    assert worst > replies(tmp_path)[0].cost_usd > 0
    for count in (0, -1):
        assert replies(tmp_path, usage={"prompt_tokens": count, "completion_tokens": count})[0].cost_usd == worst


def is_a_failure(tmp_path, _):
    with FakeEndpoint(usage={"prompt_tokens": 2048, "completion_tokens": 5}) as fake:
        request = Request("x" * 100_000, {"max_tokens": 10}, "chat", "v1")
        (reply,) = Endpoint("m", SETTINGS, fake.url, tmp_path / "calls.jsonl").ask([request])
    assert reply.text is None and reply.failure == "prompt cut"


def joins_the_text_parts(*_):
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes"}, {"type": "text", "text": " sir"}]
    message = SimpleNamespace(content=parts, refusal=None)
    assert answer(SimpleNamespace(message=message, finish_reason="stop"), "chat") == ("yes sir", "")


def chatted(reason="stop", **message):
    return answer(
        SimpleNamespace(message=SimpleNamespace(**{"content": None, "refusal": None} | message), finish_reason=reason), "chat"
    )


def keeps_thinking_out(*_):
    assert chatted(content="<think>hm, yes?</think>\nno") == ("no", "")
    for alone in ("<think>hm", "<think>hm</think>"):
        refused("only thinking", content=alone)


def refused(reason, why="stop", **message):
    with pytest.raises(Unanswered) as error:
        chatted(why, **message)
    assert error.value.reason == reason
    return error.value


def gives_up_a_tool_call(*_):
    assert not refused("tool call", tool_calls=[{"name": "search"}]).retried


def gives_up_what_was_filtered(*_):
    assert refused("flagged", why="content_filter").final


def asks_for_a_whole_one(*_):
    assert refused("error body", why="error", content="half").retried
    with pytest.raises(TypeError):
        chatted()


SAID = {
    "429, 408": asked_again,
    "402": stops_for_money,
    "400, 413": gives_up_for_good(400, "maximum context length is 4096 tokens"),
    "403 with": gives_up_for_good(403, "your input was flagged"),
    "any other": asks_in_the_next_run,
    "401": stops,
    "`usage` absent": costs_the_worst_case,
    "`usage` of fewer": is_a_failure,
    "`content` as a list": joins_the_text_parts,
    "`<think>": keeps_thinking_out,
    "a call of a tool": gives_up_a_tool_call,
    "`finish_reason: content_filter`": gives_up_what_was_filtered,
    "`finish_reason` error": asks_for_a_whole_one,
}


@pytest.mark.parametrize("line", LINES)
def test_what_the_table_says_of_a_servers_words_is_what_the_study_does(line, tmp_path, monkeypatch):
    (check,) = [check for beginning, check in SAID.items() if line.startswith(beginning)]
    check(tmp_path, monkeypatch)


def test_every_check_belongs_to_a_line_of_the_table():
    assert all(any(line.startswith(beginning) for line in LINES) for beginning in SAID)


def test_what_a_server_wants_beside_the_prompt_is_sent_as_it_is_and_makes_another_call(tmp_path):
    request = Request("hello", {"max_tokens": 9}, "chat", "v1")
    extra = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    with FakeEndpoint() as fake:
        for settings in (SETTINGS, SETTINGS | {"extra": extra}, SETTINGS | {"extra": extra}, SETTINGS | {"extra": {}}):
            Endpoint("m", settings, fake.url, tmp_path / "calls.jsonl").ask([request])
    plain, asked = fake.bodies
    assert asked == plain | extra
