"""What servers answer: a text that was really said, a failure that is counted, or one clear error. Never another exception."""

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bezoar_utils.calls import attempts, local_server
from bezoar_utils.calls.budget import Budget
from bezoar_utils.calls.endpoint import Endpoint, EndpointError, Request

SETTINGS = {"api_key_env": None, "local_server": "fake", "concurrency": 2, "timeout_s": 5.0, "attempts": 2, "lose_at_most": 1.0}
SETTINGS |= {"parameters": {}}
PRICE = (1.0, 10.0)
FAILURES = {"timeout", "connection", "bad body", "error body", "too long", "flagged", "only thinking", "tool call", "prompt cut"}
BUDGET_USD = 0.01
WORST_USD = (len("0") + 64 + 10 * 20) / 1e6


class Wild(local_server.Handler):
    """Answers a prompt with what `answers` holds for it: (status, headers, body)."""

    answers: ClassVar[dict[str, tuple[int, dict, bytes]]] = {}
    asked: ClassVar[Counter] = Counter()

    def do_POST(self):
        _, prompt = local_server.prompt_of(json.loads(self.received()))
        self.asked[prompt] += 1
        status, headers, body = self.answers[prompt]
        self.tell(status, body, headers)


@pytest.fixture(scope="module")
def url():
    with local_server.serving(Wild) as address:
        yield f"{address}/v1"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_S", 0.0)
    monkeypatch.setattr(attempts, "LONGEST_PAUSE_S", 0.0)


def ask(url: str, answers: list[tuple[int, dict, bytes]], mode="chat"):
    """The replies to one request an answer, the same from the ledger, and what was spent; None when the endpoint is given up."""
    Wild.answers, Wild.asked = {str(n): answer for n, answer in enumerate(answers)}, Counter()
    requests = [Request(prompt, {"max_tokens": 20}, mode, "v1") for prompt in Wild.answers]
    with tempfile.TemporaryDirectory() as folder:
        ledger, budget = Path(folder) / "calls.jsonl", Budget(Path(folder) / "spend.jsonl", BUDGET_USD)
        try:
            replies = Endpoint("m", SETTINGS, url, ledger, PRICE, budget).ask(requests)
        except EndpointError as error:
            assert len(str(error).splitlines()) == 1
            return None
        finally:
            settled, reserved = budget.spent()
            assert 0 <= settled <= settled + reserved <= BUDGET_USD
        asked, kept = Wild.asked.copy(), [n for n, reply in enumerate(replies) if reply.text is not None]
        again = Endpoint("m", SETTINGS, url, ledger).ask([requests[n] for n in kept])
        assert again == [replies[n] for n in kept] and Wild.asked == asked, "an answer is kept and never asked for again"
    for n, reply in enumerate(replies):
        assert (reply.text is None) == (reply.failure in FAILURES or reply.failure.isdigit())
        assert 0 <= reply.cost_usd <= WORST_USD and math.isfinite(reply.cost_usd)
        assert Wild.asked[str(n)] == 1 or reply.text is None
    return replies


def whole(body, **headers) -> tuple[int, dict, bytes]:
    return 200, {"Content-Type": "application/json"} | headers, json.dumps(body).encode()


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.5, 10**30, float("inf"), float("nan"), "", "x", [], {}, [1], {"a": 1}]),
)
TEXT = st.sampled_from(
    [
        "yes",
        "",
        " ",
        "<think>why</think>yes",
        "<think>why",
        "<think>\n\n</think>\n\n",
        "why\n</think>\n\nyes",
        "a <think> b",
        "\ud83d",
    ]
)
PART = st.one_of(
    ODD,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking", "image_url", None])}, optional={"text": st.one_of(TEXT, ODD), "thinking": ODD}
    ),
)
CONTENT = st.one_of(TEXT, TEXT, ODD, st.lists(PART, max_size=3))
REASON = st.one_of(
    st.sampled_from(["stop", "stop", "length", "content_filter", "tool_calls", "function_call", "error", "eos", "abort"]), ODD
)
COUNT = st.one_of(st.integers(-5, 400), ODD, st.sampled_from(["5", "-1", "1e3", 1e308, 2**64, "9" * 5000, True]))
USAGE = st.one_of(
    ODD, st.fixed_dictionaries({}, optional={"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
)
MESSAGE = st.one_of(
    ODD,
    st.fixed_dictionaries(
        {"content": CONTENT},
        optional={
            name: ODD for name in ("refusal", "tool_calls", "function_call", "reasoning_content", "reasoning", "role", "audio")
        },
    ),
)
CHOICE = st.one_of(
    ODD,
    st.fixed_dictionaries({"message": MESSAGE, "finish_reason": REASON}, optional={"text": CONTENT, "index": ODD, "error": ODD}),
)
BODY = st.one_of(
    ODD,
    st.fixed_dictionaries(
        {"choices": st.one_of(ODD, st.lists(CHOICE, min_size=1, max_size=2))}, optional={"usage": USAGE, "error": ODD, "model": ODD}
    ),
)
MODE = st.sampled_from(["chat", "chat", "raw"])


def said(body: dict, mode: str) -> list[str]:
    """All that the first choice says, in any form: no other text may be taken for its answer."""
    choice = body["choices"][0]
    content = choice["message"].get("content") if mode == "chat" else choice.get("text")
    refusal = choice["message"].get("refusal") if mode == "chat" else choice.get("refusal")
    parts = [part["text"] for part in content if part.get("type") == "text"] if isinstance(content, list) else [content]
    return [text for text in ("".join(part or "" for part in parts), refusal) if isinstance(text, str)]


def chat(content, reason="stop", usage=None, **more) -> dict:
    return {"choices": [{"message": {"content": content} | more, "finish_reason": reason}], "usage": usage}


@given(st.lists(BODY, min_size=1, max_size=4), MODE)
@example([chat("yes", usage={"prompt_tokens": float("inf"), "completion_tokens": 1})], "chat")
@example([chat("yes", usage={"prompt_tokens": 10, "completion_tokens": 10**9})], "chat")
@example([chat("yes", usage={"prompt_tokens": True, "completion_tokens": "1"})], "chat")
@example([chat(0)], "chat")
@example([chat({})], "chat")
@example([{"choices": [{"finish_reason": "stop"}]}], "raw")
@example([{"choices": [{"message": {}, "finish_reason": "stop"}]}], "chat")
@example([[]], "chat")
@example(["text"], "chat")
def test_a_reply_is_a_text_that_was_said_or_a_failure_with_a_reason(url, bodies, mode):
    for body, reply in zip(bodies, ask(url, [whole(body) for body in bodies], mode) or ()):
        if reply.text is not None:
            texts = [text.encode(errors="replace").decode() for text in said(body, mode)]
            assert any(text.endswith(reply.text) for text in texts)
            assert not reply.text.lstrip().startswith("<think>") and not body.get("error")
            assert body["choices"][0]["finish_reason"] not in ("error", "abort")


@pytest.mark.parametrize(
    ("body", "text", "failure"),
    [
        (chat("<think>It is\nfour.</think>\n\n4"), "4", ""),
        (chat([{"type": "text", "text": "<think>hm</think>"}, {"type": "text", "text": "4"}]), "4", ""),
        (chat("It is four.\n</think>\n\n4"), "4", ""),
        (chat("Write <think> before </think>."), "Write <think> before </think>.", ""),
        (chat("<think>It is", "length"), None, "only thinking"),
        (chat("<think>It is</think>"), None, "only thinking"),
        (chat(None, "length"), None, "only thinking"),
        (
            chat(None, "tool_calls", tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
            None,
            "tool call",
        ),
        (chat("", "function_call", function_call={"name": "f", "arguments": ""}), None, "tool call"),
        (chat("4", "tool_calls", tool_calls=[{"id": "1"}]), "4", ""),
        (chat(None, "content_filter"), None, "flagged"),
        (chat("", "content_filter"), None, "flagged"),
        (chat("Half an ans", "error"), None, "error body"),
        (chat(None), None, "bad body"),
        (chat(7), None, "bad body"),
        (chat(""), "", ""),
        (chat([]), "", ""),
        (chat(None, refusal="No."), "No.", ""),
    ],
)
def test_what_stands_in_place_of_a_text_is_a_failure_of_its_own_kind(url, body, text, failure):
    (reply,) = ask(url, [whole(body)])
    assert (reply.text, reply.failure) == (text, failure)


@given(USAGE)
@example({"prompt_tokens": 10, "completion_tokens": 0})
@example({"prompt_tokens": 3, "completion_tokens": 2**64})
def test_tokens_that_cannot_be_cost_the_most_that_the_call_can_cost(url, usage):
    (reply,) = ask(url, [whole(chat("yes", usage=usage))])
    counts = [usage.get(f"{name}_tokens") for name in ("prompt", "completion")] if isinstance(usage, dict) else [None]
    sound = all(type(count) is int and count > 0 for count in counts) and counts[0] + 10 * counts[1] <= WORST_USD * 1e6
    if sound or reply.cost_usd < WORST_USD:  # the client reads "5" and 5.0 as 5
        assert [reply.tokens_in, reply.tokens_out] == [int(count) for count in counts] and reply.tokens_in * reply.tokens_out > 0
        assert reply.cost_usd == pytest.approx((reply.tokens_in + 10 * reply.tokens_out) / 1e6)
    else:
        assert (reply.tokens_in, reply.tokens_out, reply.cost_usd) == (0, 0, pytest.approx(WORST_USD))


STATUS = st.one_of(st.integers(200, 206), st.integers(300, 308), st.integers(400, 431), st.integers(500, 511))
TYPES = st.sampled_from(
    ["application/json", "text/html", "text/plain; charset=latin-1", "application/octet-stream", "text/event-stream", ""]
)
RETRY = st.sampled_from(["", "0", "-5", "nan", "inf", "1e400", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "\u00e4"])
BYTES = st.one_of(
    BODY.map(json.dumps).map(str.encode),
    st.binary(max_size=50),
    st.sampled_from([b"", b"<html>busy</html>", b"{", b"[" * 20_000, b"\xef\xbb\xbf{}", b'"', b"9" * 5000]),
)


@given(st.lists(st.tuples(STATUS, TYPES, RETRY, BYTES, st.sampled_from([b"", b"\xef\xbb\xbf"])), min_size=1, max_size=4))
@example([(200, "application/json", "", b"[" * 20_000, b"")])
@example([(200, "application/json", "", b"9" * 5000, b"")])
@example([(204, "application/json", "", b"", b"")])
@example([(503, "text/html", "inf", b"busy", b"")])
def test_any_bytes_under_any_status_are_a_reply_a_failure_or_one_error(url, answers):
    ask(url, [(status, {"Content-Type": kind, "Retry-After": after}, mark + body) for status, kind, after, body, mark in answers])


@pytest.mark.parametrize("kind", ["application/json", "text/html", "text/plain; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_whole_reply_is_read_under_any_type_and_behind_a_byte_order_mark(url, kind, mark):
    (reply,) = ask(url, [(200, {"Content-Type": kind}, mark + json.dumps(chat("\u00e4")).encode())])
    assert reply.text == "\u00e4"
