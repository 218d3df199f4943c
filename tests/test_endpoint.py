import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace

import fake_endpoint
import pytest
from fake_endpoint import FakeEndpoint
from stub_stage import JUDGE, StubStage

from bezoar_utils.calls import attempts, replies
from bezoar_utils.calls.budget import Budget, BudgetReached
from bezoar_utils.calls.endpoint import Endpoint, EndpointError, Request, open_endpoint, record_calls
from bezoar_utils.study.profile import CODE

SETTINGS = {"api_key_env": "TEST_KEY", "local_server": "fake", "concurrency": 8, "timeout_s": 5.0, "attempts": 3}
SETTINGS |= {"lose_at_most": 1.0, "parameters": {}}
NOWHERE = "http://127.0.0.1:9/v1"
PRICE = (1.0, 10.0)
WORST_USD = (len("prompt 00") + 64 + 10 * 20) / 1e6  # of one call of `many`, at PRICE
REAL_USD = (10 + 10 * 5) / 1e6  # what the fake endpoint's usage makes of it


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_S", 0.01)
    monkeypatch.delenv("TEST_KEY", raising=False)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "calls.jsonl"


def chat(prompt: str) -> Request:
    return Request(prompt, {"temperature": 0.0, "max_tokens": 20}, "chat", "v1")


def many(count: int) -> list[Request]:
    return [chat(f"prompt {n:02}") for n in range(count)]


def always(fault: str, prompts: tuple = ()):
    return lambda prompt, attempt: fault if not prompts or prompt in prompts else None


def once(fault: str | None):
    return lambda prompt, attempt: fault if attempt == 1 else None


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------------- what is sent


def test_replies_come_in_the_order_of_the_requests_however_they_arrive(ledger):
    def slow_first(prompt: str) -> str:
        time.sleep(0.1 if prompt.endswith("0") else 0.0)
        return prompt.upper()

    with FakeEndpoint(slow_first) as fake:
        replies = Endpoint("m", SETTINGS, fake.url, ledger).ask(many(25))
    assert [r.text for r in replies] == [f"PROMPT {n:02}" for n in range(25)]
    assert {(r.tokens_in, r.tokens_out, r.failure) for r in replies} == {(10, 5, "")}


def test_chat_and_raw_prompts_go_to_their_own_address_with_their_settings(ledger):
    settings = {"temperature": 0.5, "max_tokens": 7, "top_k": 3}
    with FakeEndpoint() as fake:
        requests = [Request("a", settings, "chat", "v1"), Request("b", settings, "raw", "v1")]
        replies = Endpoint("m", SETTINGS, fake.url, ledger).ask(requests)
    assert [r.text for r in replies] == ["A", "B"]
    sent = sorted(fake.bodies, key=lambda body: "prompt" in body)
    assert sent == [
        {"model": "m", "messages": [{"role": "user", "content": "a"}], **settings},
        {"model": "m", "prompt": "b", **settings},
    ]


def test_no_more_than_so_many_calls_are_in_flight(ledger):
    in_flight, most = [], []

    def watch(prompt: str) -> str:
        in_flight.append(prompt)
        most.append(len(in_flight))
        time.sleep(0.02)
        in_flight.remove(prompt)
        return prompt

    with FakeEndpoint(watch) as fake:
        Endpoint("m", SETTINGS | {"concurrency": 3}, fake.url, ledger).ask(many(20))
    assert max(most) == 3


def test_progress_counts_to_the_number_of_requests(ledger):
    seen = []
    with FakeEndpoint() as fake:
        endpoint = Endpoint("m", SETTINGS, fake.url, ledger)
        endpoint.ask(many(3))
        endpoint.ask([*many(5), *many(5)], lambda done, total: seen.append((done, total)))
    assert seen == [(8, 10), (10, 10)]


def test_equal_requests_are_sent_once(ledger):
    with FakeEndpoint() as fake:
        replies = Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a"), chat("b"), chat("a")])
    assert [r.text for r in replies] == ["A", "B", "A"] and fake.received == {"a": 1, "b": 1}


@pytest.mark.parametrize("other", [{"settings": {}}, {"mode": "raw"}, {"scheme": "v2"}, {"repeat": 1}])
def test_other_settings_another_mode_scheme_or_repeat_is_another_call(ledger, other):
    with FakeEndpoint() as fake:
        Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a"), replace(chat("a"), **other)])
    assert fake.received == {"a": 2}


def test_no_requests_are_no_calls(ledger):
    assert Endpoint("m", SETTINGS, NOWHERE, ledger).ask([]) == []
    assert not ledger.exists()


def test_it_works_inside_a_running_event_loop(ledger):
    async def notebook_cell(url: str):
        return Endpoint("m", SETTINGS, url, ledger).ask([chat("a")])

    with FakeEndpoint() as fake:
        assert asyncio.run(notebook_cell(fake.url))[0].text == "A"


def test_an_interrupt_ends_the_calls_at_once_and_keeps_the_finished_ones(ledger):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores interrupts
    with FakeEndpoint(latency_s=0.05) as fake:
        endpoint = Endpoint("m", SETTINGS, fake.url, ledger)

        def interrupt(done: int, total: int) -> None:
            if done == 10:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            endpoint.ask(many(80), interrupt)
        assert len(rows(ledger)) < 40
        assert len(Endpoint("m", SETTINGS, fake.url, ledger).ask(many(80))) == 80
    signal.signal(signal.SIGINT, before)


# ----------------------------------------------------------------------------------------------------------- the ledger


def test_an_answered_call_is_never_sent_again(ledger):
    with FakeEndpoint() as fake:
        first = Endpoint("m", SETTINGS, fake.url, ledger).ask(many(5))
        again = Endpoint("m", SETTINGS, fake.url, ledger)
        assert again.ask(many(6))[:5] == first
    assert fake.received.total() == 6 and again.sent == 1
    assert Endpoint("other", SETTINGS, NOWHERE, ledger).ledger.finished.keys() == {row["key"] for row in rows(ledger)}


def test_the_counts_are_those_of_this_object(ledger):
    with FakeEndpoint(faults=always("too-long", ("prompt 00",))) as fake:
        endpoint = Endpoint("m", SETTINGS, fake.url, ledger, PRICE, Budget(ledger.with_name("spend.jsonl"), 1.0))
        first = endpoint.ask(many(4))
        again = Endpoint("m", SETTINGS, fake.url, ledger)
        second = again.ask(many(4))
    assert first == second  # a reply from the ledger tells the same tokens and cost
    assert (endpoint.sent, endpoint.failures) == (4, {"too long": 1})
    assert (sum(r.tokens_in for r in first), sum(r.tokens_out for r in first)) == (30, 15)
    assert sum(r.cost_usd for r in first) == pytest.approx(3 * REAL_USD)
    assert (again.sent, again.failures) == (0, {})


def test_each_row_says_what_came_and_what_it_cost(ledger):
    with FakeEndpoint(faults=lambda prompt, attempt: "cut-short" if prompt == "b" else None) as fake:
        budget = Budget(ledger.with_name("spend.jsonl"), 1.0)
        Endpoint("m", SETTINGS | {"concurrency": 1}, fake.url, ledger, PRICE, budget).ask([chat("a"), chat("b")])
    whole, cut = rows(ledger)
    assert whole == {"key": whole["key"], "text": "A", "tokens_in": 10, "tokens_out": 5, "cost_usd": pytest.approx(REAL_USD)}
    assert cut["note"] == "finish_reason length"


@pytest.mark.parametrize(("fault", "text", "note"), [("empty", "", None), ("refusal", "I will not.", "refusal")])
def test_an_empty_reply_and_a_refusal_are_answers(ledger, fault, text, note):
    with FakeEndpoint(faults=always(fault)) as fake:
        for _ in range(2):
            assert Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a")])[0].text == text
    assert fake.received == {"a": 1} and rows(ledger)[0].get("note") == note


def test_a_torn_line_costs_one_call_and_no_error_even_inside_a_character(ledger):
    with FakeEndpoint(lambda prompt: "déjà vu €") as fake:
        Endpoint("m", SETTINGS, fake.url, ledger).ask(many(3))
        data = ledger.read_bytes()
        ledger.write_bytes(data[: data.rindex("€".encode()) + 1])
        Endpoint("m", SETTINGS, fake.url, ledger).ask(many(3))
        Endpoint("m", SETTINGS, fake.url, ledger).ask(many(3))
    assert fake.received.total() == 4


@pytest.mark.parametrize("text", ["one\u2028two\u2029three\x85four\x1cfive\r\nsix", "half a pair \ud83d"])
def test_no_character_in_a_reply_makes_its_call_be_sent_twice(ledger, text):
    with FakeEndpoint(lambda prompt: text) as fake:
        first = Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a")])
        assert Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a")]) == first
    assert fake.received == {"a": 1} and first[0].text == text.replace("\ud83d", "?")


# ----------------------------------------------------------------------------------------------------------- what goes wrong

PASSING_FAULTS = ["429", "429-retry-after", "500", "timeout", "close", "truncated-json", "half-sent", "error-body", "no-choices"]


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_passing_fault_is_tried_again_and_answered(ledger, fault):
    with FakeEndpoint(faults=once(fault), retry_after="0.01") as fake:
        replies = Endpoint("m", SETTINGS | {"timeout_s": 0.3}, fake.url, ledger).ask(many(4))
    assert [r.text for r in replies] == [f"PROMPT {n:02}" for n in range(4)]
    assert fake.received.total() == 8 and len(rows(ledger)) == 4


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "429"),
        ("500", "500"),
        ("timeout", "timeout"),
        ("close", "connection"),
        ("half-sent", "connection"),
        ("truncated-json", "bad body"),
        ("no-choices", "bad body"),
        ("error-body", "error body"),
    ],
)
def test_a_fault_that_stays_is_a_failure_with_its_reason_and_is_tried_again_in_a_later_run(ledger, fault, reason):
    with FakeEndpoint(faults=always(fault, ("prompt 01",))) as fake:
        endpoint = Endpoint("m", SETTINGS | {"timeout_s": 0.2}, fake.url, ledger)
        endpoint.ask([chat("prompt 00")])
        replies = endpoint.ask(many(3))
        assert [(r.text, r.failure) for r in replies] == [("PROMPT 00", ""), (None, reason), ("PROMPT 02", "")]
        assert fake.received == {"prompt 00": 1, "prompt 01": SETTINGS["attempts"], "prompt 02": 1}
        assert endpoint.failures == {reason: 1}
        assert [row["failure"] for row in rows(ledger) if "failure" in row] == [reason]
        fake.faults = lambda prompt, attempt: None
        assert [r.text for r in Endpoint("m", SETTINGS, fake.url, ledger).ask(many(3))][1] == "PROMPT 01"


@pytest.mark.parametrize(("fault", "reason", "times"), [("too-long", "too long", 1), ("flagged", "flagged", 1), ("400", "400", 2)])
def test_only_a_prompt_that_nothing_can_mend_is_never_sent_again(ledger, fault, reason, times):
    """Most other 400s are mended on the server: a chat template, a parameter, credit."""
    with FakeEndpoint(faults=always(fault, ("prompt 01",))) as fake:
        for _ in range(2):
            replies = Endpoint("m", SETTINGS, fake.url, ledger).ask(many(3))
            assert [(r.text, r.failure) for r in replies] == [("PROMPT 00", ""), (None, reason), ("PROMPT 02", "")]
    assert fake.received["prompt 01"] == times


def test_a_chapter_that_lost_more_than_it_may_is_not_done_and_the_rerun_asks_only_for_the_rest(ledger):
    few = SETTINGS | {"lose_at_most": 0.2, "attempts": 1}
    with FakeEndpoint(faults=always("500", ("prompt 00", "prompt 01"))) as fake:
        with pytest.raises(EndpointError, match=r"2 of 5 calls.*500: 2.*lose_at_most is 0\.2.*run again"):
            Endpoint("m", few, fake.url, ledger).ask(many(5))
        assert len(Endpoint("m", few, fake.url, ledger).ask(many(10))) == 10, "two of ten are few enough"
        fake.faults = lambda prompt, attempt: None
        before = fake.received.total()
        assert all(r.text for r in Endpoint("m", few, fake.url, ledger).ask(many(10)))
        assert fake.received.total() == before + 2


def test_a_dozen_failures_of_one_kind_in_a_row_end_a_run_of_thousands(ledger):
    with FakeEndpoint(faults=lambda prompt, attempt: "400") as fake, pytest.raises(EndpointError, match=r"12 calls in a row.*400"):
        Endpoint("m", SETTINGS, fake.url, ledger).ask(many(500))
    assert fake.received.total() <= 12 + SETTINGS["concurrency"]


def test_a_quota_that_runs_out_ends_the_run_at_once(ledger):
    with FakeEndpoint(faults=always("quota", ("prompt 03",))) as fake, pytest.raises(EndpointError, match="quota is used up"):
        Endpoint("m", SETTINGS | {"concurrency": 1}, fake.url, ledger).ask(many(9))
    assert fake.received["prompt 03"] == 1 and len(rows(ledger)) == 3


@pytest.mark.parametrize(
    ("key", "wrong"), [("sk-CANARY\nsk-TWO", "line break"), ("sk CANARY", "space"), ("sk-CANARY\u201d", "ASCII")]
)
def test_a_key_that_cannot_be_one_is_refused_before_anything_is_sent_and_not_shown(ledger, monkeypatch, key, wrong):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(EndpointError, match=f"TEST_KEY holds a.*{wrong}") as error:
        Endpoint("m", SETTINGS, NOWHERE, ledger)
    assert "CANARY" not in str(error.value)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_an_address_of_this_machine_is_never_asked_through_a_proxy(ledger, monkeypatch, proxy):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with FakeEndpoint() as fake:
        assert Endpoint("m", SETTINGS, fake.url, ledger).ask(many(1))[0].text == "PROMPT 00"


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("http://127.0.0.1:1/v1", False),
        ("http://127.8.8.8/v1", False),
        ("http://localhost:1/v1", False),
        ("http://[::1]:1/v1", False),
        ("http://127.0.0.1.example.com/v1", True),
        ("http://10.0.0.1/v1", True),
        ("https://example.com/v1", True),
    ],
)
def test_only_addresses_of_this_machine_pass_by_the_proxies(url, through):
    assert attempts.through_proxies(url) == through


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTPS_PROXY", "socks://x:1"), ("SSL_CERT_FILE", "/")]
)
def test_proxies_and_certificates_that_cannot_be_used_are_named_and_stop_no_call_to_this_machine(ledger, monkeypatch, name, value):
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(EndpointError, match=f"model.invalid.*{name}"):
        Endpoint("m", SETTINGS, "https://model.invalid/v1", ledger).ask(many(1))
    with FakeEndpoint() as fake:
        assert Endpoint("m", SETTINGS, fake.url, ledger).ask(many(1))[0].text == "PROMPT 00"


@pytest.mark.parametrize("usage", [{"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": -1, "completion_tokens": 5}])
def test_tokens_that_cannot_be_cost_the_worst_case(ledger, usage):
    with FakeEndpoint(usage=usage) as fake:
        endpoint = Endpoint("m", SETTINGS, fake.url, ledger, PRICE, Budget(ledger.with_name("spend.jsonl"), 1.0))
        assert endpoint.ask(many(1))[0].cost_usd == pytest.approx(WORST_USD)


def test_a_prompt_that_the_server_cut_is_a_failure_and_not_an_answer(ledger):
    with FakeEndpoint(usage={"prompt_tokens": 2048, "completion_tokens": 5}) as fake:
        (reply,) = Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("long " * 20_000)])
    assert (reply.text, reply.failure) == (None, "prompt cut")


def test_a_reply_of_thinking_alone_is_not_an_answer():
    message = SimpleNamespace(refusal=None, content=None, reasoning_content="Let me see")
    with pytest.raises(attempts.Unanswered, match="only thinking"):
        replies.answer(SimpleNamespace(message=message, finish_reason="length"), "chat")


def test_calls_without_an_answer_are_noted_in_the_stage_by_their_reason(ledger, tmp_path):
    stage = StubStage(tmp_path)
    with FakeEndpoint(faults=always("too-long", ("prompt 00",))) as fake:
        record_calls(stage, Endpoint("m", SETTINGS, fake.url, ledger).ask(many(3)))
    assert stage.notes == {"unanswered": {"too long": 1}}


def test_parameters_are_sent_under_the_servers_names_or_left_out(ledger):
    """Today's OpenAI models refuse `max_tokens` and any temperature; some servers know no `seed`."""
    names = {"max_tokens": "max_completion_tokens", "temperature": None}
    request = Request("hello", {"max_tokens": 9, "temperature": 0.0, "seed": 1}, "chat", "v1")
    with FakeEndpoint() as fake:
        Endpoint("m", SETTINGS | {"parameters": names}, fake.url, ledger).ask([request])
    (body,) = fake.bodies
    assert body["max_completion_tokens"] == 9 and body["seed"] == 1 and not {"max_tokens", "temperature"} & body.keys()


def test_a_paid_call_whose_bound_is_left_out_is_refused_before_it_is_sent(ledger):
    unbounded = SETTINGS | {"parameters": {"max_tokens": None}}
    with FakeEndpoint() as fake:
        endpoint = Endpoint("m", unbounded, fake.url, ledger, PRICE, Budget(ledger.with_name("spend.jsonl"), 1.0))
        with pytest.raises(ValueError, match="max_tokens"):
            endpoint.ask(many(1))
    assert fake.received.total() == 0


def test_content_in_parts_is_its_text_without_the_thinking():
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes "}, {"type": "text", "text": "and no"}]
    choice = SimpleNamespace(message=SimpleNamespace(refusal=None, content=parts), finish_reason="stop")
    assert replies.answer(choice, "chat") == ("yes and no", "")


def test_a_wrong_model_is_an_error_at_once_and_nothing_finished_is_lost(ledger):
    with FakeEndpoint(faults=always("wrong-model", ("prompt 20",))) as fake:
        with pytest.raises(EndpointError, match=f"{fake.url}.*model big-one.*404") as error:
            Endpoint("big-one", SETTINGS, fake.url, ledger).ask(many(60))
        assert "\n" not in str(error.value)
        assert 12 < len(rows(ledger)) < 40 and fake.received["prompt 20"] == 1
        fake.faults = lambda prompt, attempt: None
        Endpoint("big-one", SETTINGS, fake.url, ledger).ask(many(60))
    assert set(fake.answered.values()) == {1} and len(fake.answered) == 60


def test_an_error_does_not_wait_for_pauses_before_retries(ledger):
    faults = {"prompt 00": "429-retry-after", "prompt 01": "401"}
    with FakeEndpoint(faults=lambda prompt, attempt: faults[prompt], latency_s=0.05, retry_after="30") as fake:
        before = time.monotonic()
        with pytest.raises(EndpointError, match="401"):
            Endpoint("m", SETTINGS, fake.url, ledger).ask(many(2))
    assert time.monotonic() - before < 3


def test_a_dead_endpoint_is_an_error_that_says_so_before_all_prompts_are_tried(ledger):
    endpoint = Endpoint("m", SETTINGS, NOWHERE, ledger)
    with pytest.raises(EndpointError, match=f"{NOWHERE}.*model m"):
        endpoint.ask(many(1000))
    assert endpoint.sent < 10


def test_an_endpoint_that_never_answers_in_time_is_dead_too(ledger):
    with (
        FakeEndpoint(faults=always("timeout")) as fake,
        pytest.raises(EndpointError, match="no reply within"),
    ):
        Endpoint("m", SETTINGS | {"timeout_s": 0.1}, fake.url, ledger).ask(many(20))


def test_retry_after_is_honoured(ledger):
    with FakeEndpoint(faults=once("429-retry-after"), retry_after="1") as fake:
        before = time.monotonic()
        assert Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a")])[0].text == "A"
    assert 1.0 <= time.monotonic() - before < 2.5


def test_retry_after_is_capped(ledger, monkeypatch):
    monkeypatch.setattr(attempts, "LONGEST_PAUSE_S", 0.1)
    with FakeEndpoint(faults=once("429-retry-after"), retry_after="86400") as fake:
        assert Endpoint("m", SETTINGS, fake.url, ledger).ask([chat("a")])[0].text == "A"


def test_retry_after_may_be_seconds_or_a_date_and_anything_else_is_ignored():
    seconds = attempts.retry_after_s
    assert seconds("2.5") == 2.5 and seconds("-3") == 0.0 and seconds("nan") == 0.0
    assert 25 < seconds(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [seconds(header) for header in (None, "soon", "Wed, 21 Foo 2015 07:28:00 GMT", "")] == [None] * 4


def test_with_many_faults_of_every_kind_each_prompt_is_answered_once(ledger):
    kinds = ["429", "500", "close", "truncated-json", "error-body", None]

    def faults(prompt: str, attempt: int) -> str | None:
        return kinds[sum(prompt.encode()) % 6] if attempt < 3 else None

    with FakeEndpoint(faults=faults) as fake:
        replies = Endpoint("m", SETTINGS | {"concurrency": 32}, fake.url, ledger).ask(many(100))
        assert [r.text for r in replies] == [f"PROMPT {n:02}" for n in range(100)]
    assert set(fake.answered.values()) == {1} and len(fake.answered) == 100


# ----------------------------------------------------------------------------------------------------------- the key


def test_a_remote_endpoint_without_its_key_is_an_error_naming_the_variable(ledger):
    with pytest.raises(RuntimeError, match="TEST_KEY"):
        Endpoint("m", SETTINGS | {"local_server": None}, NOWHERE, ledger)


# ----------------------------------------------------------------------------------------------------------- money


@pytest.fixture
def spend(tmp_path):
    return tmp_path / "spend.jsonl"


def test_a_price_without_a_budget_is_an_error(ledger):
    with pytest.raises(ValueError, match="budget"):
        Endpoint("m", SETTINGS, NOWHERE, ledger, (0.0, 1.0))


def test_a_paid_call_that_nothing_bounds_is_not_sent(ledger, spend):
    with FakeEndpoint() as fake, pytest.raises(ValueError, match="max_tokens"):
        Endpoint("m", SETTINGS, fake.url, ledger, PRICE, Budget(spend, 1.0)).ask([Request("a", {}, "chat", "v1")])
    assert not fake.received


def test_calls_without_a_price_leave_the_budget_alone(ledger, spend):
    with FakeEndpoint() as fake:
        Endpoint("m", SETTINGS, fake.url, ledger, budget=Budget(spend, 0.0)).ask(many(3))
    assert not spend.exists()


@pytest.mark.parametrize(
    ("fault", "usage", "settled", "reserved"),
    [
        (None, True, REAL_USD, 0),
        (None, False, WORST_USD, 0),  # without usage the worst case counts
        ("500", True, REAL_USD, 0),  # an HTTP error costs nothing
        ("timeout", True, REAL_USD, WORST_USD),  # these may have been billed
        ("close", True, REAL_USD, WORST_USD),
        ("truncated-json", True, REAL_USD, WORST_USD),
    ],
)
def test_a_call_is_settled_at_its_usage_and_stays_reserved_when_its_bill_is_unknown(ledger, spend, fault, usage, settled, reserved):
    with FakeEndpoint(usage=usage, faults=once(fault)) as fake:
        endpoint = Endpoint("m", SETTINGS | {"timeout_s": 1.0}, fake.url, ledger, PRICE, Budget(spend, 1.0))
        replies = endpoint.ask(many(7))
    assert Budget(spend, 1.0).spent() == (pytest.approx(7 * settled), pytest.approx(7 * reserved))
    assert sum(reply.cost_usd for reply in replies) == pytest.approx(7 * settled)


def test_the_budget_is_never_exceeded_and_a_higher_one_sends_only_the_rest(ledger, spend):
    busy = SETTINGS | {"concurrency": 16}
    budget = 30 * WORST_USD
    with FakeEndpoint(usage=False, latency_s=0.01) as fake:
        with pytest.raises(BudgetReached, match=r"money\.budget_usd"):
            Endpoint("m", busy, fake.url, ledger, PRICE, Budget(spend, budget)).ask(many(90))
        settled, unsettled = Budget(spend, budget).spent()
        assert settled + unsettled <= budget * (1 + 1e-9) and unsettled == 0
        assert fake.received.total() == len(rows(ledger)) == 30
        with pytest.raises(BudgetReached):
            Endpoint("m", busy, fake.url, ledger, PRICE, Budget(spend, budget)).ask(many(90))
        assert fake.received.total() == 30
        replies = Endpoint("m", busy, fake.url, ledger, PRICE, Budget(spend, 1.0)).ask(many(90))
    assert [r.text for r in replies] == [f"PROMPT {n:02}" for n in range(90)]
    assert set(fake.answered.values()) == {1}


def test_two_endpoints_pay_from_one_budget(tmp_path, spend):
    with FakeEndpoint(usage=False) as fake:
        teacher = Endpoint("t", SETTINGS, fake.url, tmp_path / "t.jsonl", PRICE, Budget(spend, 10 * WORST_USD))
        judge = Endpoint("j", SETTINGS, fake.url, tmp_path / "j.jsonl", PRICE, Budget(spend, 10 * WORST_USD))
        teacher.ask(many(6))
        with pytest.raises(BudgetReached):
            judge.ask(many(6))
    assert judge.sent == 4


def test_a_budget_is_used_up_before_it_stops_the_run(ledger, spend):
    """16 calls at once reserve 16 worst cases; what they leave over is spent on further calls, not on a stop too early."""
    budget = 16 * WORST_USD
    with FakeEndpoint(latency_s=0.02) as fake:
        endpoint = Endpoint("m", SETTINGS | {"concurrency": 16}, fake.url, ledger, PRICE, Budget(spend, budget))
        with pytest.raises(BudgetReached):
            endpoint.ask(many(100))
    settled, unsettled = Budget(spend, budget).spent()
    assert budget - WORST_USD < settled <= budget and unsettled == 0.0


def test_another_server_under_the_same_name_is_another_judge(ledger):
    with FakeEndpoint() as fake:
        for version in ("one", "one", "two"):
            Endpoint("m", SETTINGS, fake.url, ledger, version=version).ask(many(3))
    assert fake.received.total() == 6


# ------------------------------------------------------------------------------------------------------ a server of one's own

MODULE = """import sys
from pathlib import Path
from bezoar_utils.calls import local_server
{reads}
def answer(model, prompt):
    return " ".join([prompt, *(Path(path).read_text() for path in sys.argv[1:])])

if __name__ == "__main__":
    local_server.serve_until_closed(local_server.api(("m",), answer))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module(name, text)` writes a module that can be imported here and run with -m."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{CODE}")

    def write(name: str, text: str) -> dict:
        (tmp_path / f"{name}.py").write_text(text)
        return JUDGE | {"model": "m", "endpoint": JUDGE["endpoint"] | {"local_server": name}}

    return write


@pytest.mark.parametrize(("name", "reads"), [("without_reads", ""), ("with_reads", 'READS = ("10_lamini/words.txt",)')])
def test_a_server_module_of_ones_own_gets_the_artifacts_that_it_reads(tmp_path, module, name, reads):
    stage = StubStage(tmp_path / "stage")
    if reads:
        (tmp_path / "words.txt").write_text("and words")
        stage.inputs["10_lamini/words.txt"] = tmp_path / "words.txt"
    with stage.open:
        (reply,) = open_endpoint(stage, module(name, MODULE.format(reads=reads))).ask([chat("a")])
    assert reply.text == ("a and words" if reads else "a")


def test_a_server_module_that_prints_no_address_is_named(tmp_path, module):
    with pytest.raises(RuntimeError, match="prints_nothing"):
        open_endpoint(StubStage(tmp_path / "stage"), module("prints_nothing", ""))


# ------------------------------------------------------------------------------------------------ several equal servers


def test_two_servers_share_the_calls_evenly_and_the_results_are_those_of_one(tmp_path):
    with FakeEndpoint(latency_s=0.01) as one, FakeEndpoint(latency_s=0.01) as other:
        both = Endpoint("m", SETTINGS, [one.url, other.url], tmp_path / "both.jsonl").ask(many(60))
        shares = len(one.answered), len(other.answered)
        alone = Endpoint("m", SETTINGS, one.url, tmp_path / "alone.jsonl").ask(many(60))
    assert both == alone and sum(shares) == 60 and min(shares) >= 20
    assert sorted(map(str, rows(tmp_path / "both.jsonl"))) == sorted(map(str, rows(tmp_path / "alone.jsonl")))


def test_a_server_killed_halfway_costs_no_call(ledger, tmp_path):
    command = [sys.executable, fake_endpoint.__file__, "0.02", "0.0", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with FakeEndpoint(latency_s=0.02) as stays, subprocess.Popen(command, **pipes) as dies:
        urls = [dies.stdout.readline().strip(), stays.url]
        seen = []

        def kill(done: int, total: int) -> None:
            seen.append(done)
            if done == 50:
                dies.kill()

        endpoint = Endpoint("m", SETTINGS, urls, ledger)
        replies = endpoint.ask(many(100), kill)
    assert [r.text for r in replies] == [f"PROMPT {n:02}" for n in range(100)]
    assert not endpoint.failures and seen[-1] == 100 and 60 <= len(stays.answered) <= 95
    assert len({row["key"] for row in rows(ledger)}) == len(rows(ledger)) == 100


def test_with_all_servers_dead_the_error_names_each(ledger):
    with pytest.raises(EndpointError, match=r"no answer from http://127\.0\.0\.1:9/v1, http://127\.0\.0\.1:19/v1 \(model m\)"):
        Endpoint("m", SETTINGS, [NOWHERE, "http://127.0.0.1:19/v1"], ledger).ask(many(5))


def test_one_living_server_among_dead_ones_is_found_even_by_a_single_call(ledger):
    nowhere = [f"http://127.0.0.1:{port}/v1" for port in (9, 19, 29, 39)]
    with FakeEndpoint() as fake:
        assert Endpoint("m", SETTINGS | {"attempts": 1}, [*nowhere, fake.url], ledger).ask([chat("a")])[0].text == "A"


def test_a_retry_goes_to_another_server(ledger):
    with FakeEndpoint(faults=always("500")) as broken, FakeEndpoint() as sound:
        endpoint = Endpoint("m", SETTINGS | {"attempts": 2}, [broken.url, sound.url], ledger)
        assert all(reply.text for reply in endpoint.ask(many(20))) and len(sound.answered) == 20
    assert max(broken.received.values()) == 1


def test_a_silent_server_is_passed_over_and_asked_by_one_call_whether_it_is_back(ledger, monkeypatch):
    monkeypatch.setattr(attempts, "AVOID_S", 0.3)
    began = time.monotonic()
    down = lambda prompt, attempt: "close" if time.monotonic() < began + 1.0 else None  # noqa: E731
    with FakeEndpoint(latency_s=0.01, faults=down) as returns, FakeEndpoint(latency_s=0.01) as stays:
        endpoint = Endpoint("m", SETTINGS | {"concurrency": 4}, [returns.url, stays.url], ledger)
        assert all(reply.text for reply in endpoint.ask([chat(f"prompt {n}") for n in range(800)]))
        assert returns.received.total() - returns.answered.total() <= 2 + 4, "some at first, then one a pause"
        assert len(returns.answered) > 50, "it came back"


def test_a_server_that_refuses_the_model_is_named(ledger):
    with FakeEndpoint(faults=always("wrong-model")) as fake, pytest.raises(EndpointError, match=f"^{fake.url} refuses model m"):
        Endpoint("m", SETTINGS, [fake.url, NOWHERE], ledger).ask(many(9))
