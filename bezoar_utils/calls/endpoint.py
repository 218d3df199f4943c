"""One client for whoever answers over an OpenAI-compatible API: a local vLLM, llama.cpp or Ollama, or a provider.

Many calls are in flight at once; each one that ends is on disk before the next is started in its place, so that a kill
costs the calls in flight and no others. What was answered is never asked, nor paid for, twice.
"""

import asyncio
import contextlib
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path

from ..study import files
from ..study.profile import load_profile
from ..study.stage import RUNS
from .budget import Budget, BudgetReached, cost_usd
from .ledger import HOPELESS, Ledger

BACKOFF_S = 0.5  # the first pause before a retry is at most this long, each further one at most twice the one before
LONGEST_PAUSE_S = 60.0
PURSE_WAIT_S = 0.05
PATHS = {"chat": "/chat/completions", "raw": "/completions"}
PASSING = {408, 409, 429}  # and every 5xx: the same request may well be answered later
SILENCE = {"timeout", "connection"}
AVOID_S = 30.0  # how long an address that fell silent is passed over before one more call asks whether it is back
CUT_SHORT = "finish_reason length"
TEMPLATE_TOKENS = 64  # what a chat template adds, at most; a text itself has no more tokens than UTF-8 bytes


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all: nobody answers, or it refuses the key or the model."""


@dataclass(frozen=True)
class Request:
    """One call. `settings` go into the API's request as they are (temperature, max_tokens, top_p, seed, ...).

    `mode` is "chat" or "raw" (the prompt is completed as it stands). `scheme` names the version of the prompt's wording.
    `repeat` is sent nowhere: it tells apart calls that ask the same thing again.
    """

    prompt: str
    settings: dict
    mode: str
    scheme: str
    repeat: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back. `text` is None when the call failed, and `failure` says why in a word or two.

    `note` is CUT_SHORT when the reply reached its length limit, "refusal" for a refusal, else another finish reason or empty.
    """

    text: str | None
    failure: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    note: str = ""


def open_endpoint(stage, asked: dict) -> "Endpoint":
    """The endpoint of a profile's teacher or judge: remote, or a local server that lives as long as the stage.

    Finished calls stand in the stage's `calls.jsonl`, spending in the run's `spend.jsonl`, one budget for all stages.
    """
    settings = asked["endpoint"]
    money = load_profile(stage.profile).money
    price = money.prices.get(asked["model"], (0.0, 0.0)) if settings["base_url"] else (0.0, 0.0)
    budget = Budget(RUNS / stage.profile / "spend.jsonl", money.budget_usd) if any(price) else None
    ledger = stage.output("calls.jsonl")
    if settings["base_url"]:
        return Endpoint(asked["model"], settings, settings["base_url"], ledger, price, budget)
    world = stage.input("00_miniature/world.json")
    address = stage.enter(_local_server(settings["local_server"], str(world)))
    return Endpoint(asked["model"], settings, address, ledger, version=_served_code(settings["local_server"], world))


def _served_code(module: str, world: Path) -> str:
    """Content of what a local server runs: with other code it is another judge, and old answers are none of its own.

    Importing the module here makes it part of the code that the stage records, so that a change makes the stage stale.
    """
    folder = Path(importlib.import_module(module).__file__).parent
    return files.sha256_json([files.sha256_file(path) for path in (*sorted(folder.glob("*.py")), world)])


def record_calls(stage, replies: list["Reply"]) -> None:
    """Count what these replies took, now or in an earlier run, as the stage's. Equal requests were one call: one object."""
    calls = {id(reply): reply for reply in replies}.values()
    tokens = sum(r.tokens_in + r.tokens_out for r in calls)
    stage.spend(tokens=tokens, calls=len(calls), cost_usd=sum(r.cost_usd for r in calls))


@contextlib.contextmanager
def _local_server(module: str, world: str):
    """A module run with the miniature's world as its argument; it ends when its standard input closes, so at the latest
    with this process."""
    server = subprocess.Popen(
        [sys.executable, "-m", module, world], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        address = server.stdout.readline().strip()
        if not address.startswith("http://127.0.0.1:"):
            raise EndpointError(f"{module} did not start (exit code {server.poll()})")
        yield address
    finally:
        server.stdin.close()
        server.terminate()
        server.wait()


class _Unanswered(Exception):
    """One attempt that brought no answer: the reason, what was said, and how long the server asks to wait."""

    def __init__(self, reason: str, said: str, pause_s: float | None = None):
        super().__init__(reason)
        self.reason, self.said, self.pause_s = reason, said, pause_s


@dataclass
class _Address:
    """One of several equal servers. `silent_until` is 0.0 while it answers."""

    url: str
    client: object
    in_flight: int = 0
    silent_until: float = 0.0


@dataclass
class _Call:
    key: str
    request: Request
    tried: Counter = field(default_factory=Counter)  # attempts by address


class Endpoint:
    """Asks one model, at one address or at several equal ones, and keeps each finished call in the ledger.

    `settings` has api_key_env, local_server, concurrency, timeout_s and attempts. `price` is in US dollars a million prompt
    and reply tokens; above 0 it needs a `budget`. `version` tells apart servers that go by one name. `sent` and `failures` count
    the calls that this object ended, not those found in the ledger. The key goes nowhere but into the client. A call's key in
    the ledger has no address in it, so results do not depend on who answered.
    Raises EndpointError when a remote endpoint's key is not in its environment variable, ValueError for a price without a budget.
    """

    def __init__(
        self,
        model: str,
        settings: dict,
        base_url: str | list[str],
        ledger: Path,
        price=(0.0, 0.0),
        budget: Budget | None = None,
        version="",
    ):
        self.urls = [base_url] if isinstance(base_url, str) else base_url
        key_name = settings["api_key_env"]
        self._secret = os.environ.get(key_name or "", "").strip()  # a stray newline would get past the redaction
        if key_name and not self._secret and not settings["local_server"]:
            raise EndpointError(f"{model} at {self._where()} needs its key in the environment variable {key_name}")
        if any(price) and budget is None:
            raise ValueError(f"{model} has a price, so its calls need a budget to be paid from")
        self.model, self.version, self.settings, self.ledger = model, version, settings, Ledger(ledger)
        self.price, self.budget = price, budget
        self.sent = 0
        self.failures: Counter[str] = Counter()
        self._anyone_there, self._paid_under_way = False, 0

    def ask(self, requests: list[Request], progress: Callable[[int, int], None] | None = None) -> list[Reply]:
        """A reply a request, in their order. Equal requests are one call; what the ledger holds is not sent again.

        Raises EndpointError when going on is pointless and money.BudgetReached when the budget is; either way the calls in
        flight end and are kept first. Works inside a running event loop too.
        """
        keys = [self._key(request) for request in requests]
        copies = Counter(keys)
        replies = {key: _reply(self.ledger.finished[key]) for key in copies if key in self.ledger.finished}
        missing = {key: _Call(key, request) for key, request in zip(keys, requests) if key not in replies}
        done = sum(copies[key] for key in replies)

        def arrived(row: dict) -> None:
            nonlocal done
            replies[row["key"]], done = _reply(row), done + copies[row["key"]]
            if progress:
                progress(done, len(requests))

        if missing:
            _run_apart(self._send(deque(missing.values()), arrived))
        return [replies[key] for key in keys]

    async def _send(self, waiting: deque[_Call], arrived: Callable[[dict], None]) -> None:
        import httpx2  # the HTTP client under openai
        import openai
        import tenacity

        stopped, errors = asyncio.Event(), []

        async def pause(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), seconds)
            if errors:
                raise errors[0]

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _Unanswered) and error.reason not in HOPELESS),
            stop=tenacity.stop_after_attempt(max(self.settings["attempts"], len(self.urls))),
            wait=_pause_s,
            sleep=pause,
            reraise=True,
        )

        async def work(addresses: list[_Address]) -> None:
            while waiting and not errors:
                try:
                    arrived(await self._call(retrying, addresses, waiting.popleft()))
                except Exception as error:  # kept, so that the other workers' calls end before it is raised
                    errors.append(error)
                    stopped.set()

        workers = min(self.settings["concurrency"], len(waiting))
        async with contextlib.AsyncExitStack() as stack:
            addresses = []
            for url in self.urls:
                client = openai.AsyncOpenAI(
                    base_url=url,
                    api_key=self._secret or "local",
                    timeout=self.settings["timeout_s"],
                    max_retries=0,
                    http_client=openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_keepalive_connections=workers)),
                )
                addresses.append(_Address(url, await stack.enter_async_context(client)))
            await asyncio.gather(*(work(addresses) for _ in range(workers)))
        if errors:
            raise errors[0]

    async def _call(self, retrying, addresses: list[_Address], call: _Call) -> dict:
        try:
            row = await retrying.copy()(self._attempt, addresses, call)
        except _Unanswered as missed:
            if missed.reason in SILENCE and not self._anyone_there:
                raise EndpointError(f"no answer from {self._where()} (model {self.model}): {missed.said}") from None
            row = {"key": call.key, "failure": missed.reason, "said": missed.said}
            self.ledger.append(row)
            self.failures[missed.reason] += 1
        self.sent += 1
        return row

    async def _attempt(self, addresses: list[_Address], call: _Call) -> dict:
        """One try, its worst case set aside before. Raises _Unanswered, EndpointError, BudgetReached."""
        worst_usd = self._worst_usd(call.request)
        if not worst_usd:
            return await self._exchange(_freest(addresses, call), call, None, 0.0)
        ticket = await self._ticket(worst_usd)
        self._paid_under_way += 1
        try:
            return await self._exchange(_freest(addresses, call), call, ticket, worst_usd)
        finally:
            self._paid_under_way -= 1

    async def _ticket(self, worst_usd: float) -> str:
        """Money for one call. A full budget is waited for while calls are under way: they cost less than their worst case."""
        while True:
            try:
                return self.budget.reserve(worst_usd)
            except BudgetReached:
                if not self._paid_under_way:
                    raise
            await asyncio.sleep(PURSE_WAIT_S)

    async def _exchange(self, address: _Address, call: _Call, ticket: str | None, worst_usd: float) -> dict:
        """One HTTP request; the ledger's row of its answer."""
        import httpx2
        import openai

        missed, request = None, call.request
        address.in_flight += 1
        try:
            response = await address.client.post(PATHS[request.mode], cast_to=httpx2.Response, body=self._body(request))
        except openai.APITimeoutError:
            missed = _Unanswered("timeout", f"no reply within {self.settings['timeout_s']} s")
        except openai.APIConnectionError as error:
            missed = _Unanswered("connection", self._redacted(error.__cause__ or error))
        except openai.APIStatusError as error:
            missed = self._refusal(error, address.url)
            if ticket:
                self.budget.settle(ticket, 0.0)
        finally:
            address.in_flight -= 1
        silent = isinstance(missed, _Unanswered) and missed.reason in SILENCE
        address.silent_until = time.monotonic() + AVOID_S if silent else 0.0
        if missed:
            raise missed  # out here, or the client's own error would hang on it, and that may hold the key
        text, note, usage = self._read(response, request.mode)
        usd = cost_usd(self.price, *usage) if usage else worst_usd
        tokens_in, tokens_out = usage or (0, 0)
        row = {"key": call.key, "text": text, "tokens_in": tokens_in, "tokens_out": tokens_out, "cost_usd": usd}
        row |= {"note": note} if note else {}
        self.ledger.append(row)
        if ticket:  # after the ledger: a kill in between counts the call too dear, never sends it twice
            self.budget.settle(ticket, usd)
        self._anyone_there = True
        return row

    def _where(self) -> str:
        return ", ".join(self.urls)

    def _key(self, request: Request) -> str:
        return files.sha256_json({"model": self.model, "version": self.version, **vars(request)})

    def _body(self, request: Request) -> dict:
        chat = {"messages": [{"role": "user", "content": request.prompt}]}
        asked = chat if request.mode == "chat" else {"prompt": request.prompt}
        return {"model": self.model, **asked, **request.settings}

    def _worst_usd(self, request: Request) -> float:
        """The most one attempt can cost, in US dollars. Raises ValueError when nothing bounds it."""
        if not any(self.price):
            return 0.0
        if "max_tokens" not in request.settings:
            raise ValueError(f"a call to {self.model} costs money, so its settings need max_tokens to bound what it can cost")
        return cost_usd(self.price, len(request.prompt.encode()) + TEMPLATE_TOKENS, request.settings["max_tokens"])

    def _refusal(self, error, url: str) -> Exception:
        """What an HTTP error status means: wait and try again, give up this prompt, or give up the endpoint."""
        status, said = error.status_code, self._redacted(error)
        if status in PASSING or status >= 500 or str(status) in HOPELESS:
            return _Unanswered(str(status), said, _asked_pause_s(error.response.headers.get("retry-after")))
        return EndpointError(f"{url} refuses model {self.model} (HTTP {status}): {said}")

    def _read(self, response, mode: str) -> tuple[str, str, tuple[int, int] | None]:
        """Text, note and usage of a 200. Whether a body that is none was billed nobody knows: its reservation stays."""
        try:
            body = json.loads(response.content)
            if body.get("error"):
                raise _Unanswered("error body", self._redacted(body["error"]))
            return (*_answer(body["choices"][0], mode), _usage(body))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Unanswered("bad body", self._redacted(response.text)) from None

    def _redacted(self, said) -> str:
        """One short line without the key, which providers like to repeat in their error texts."""
        text = " ".join(str(said).split())
        return (text.replace(self._secret, "[key]") if self._secret else text)[:300]


def _freest(addresses: list[_Address], call: _Call) -> _Address:
    """The address with the fewest calls in flight, of those that answer; a retry goes to another one if it can.

    One call at a time is risked on an address that fell silent, and only after AVOID_S.
    """
    now = time.monotonic()
    best = min(addresses, key=lambda a: (a.silent_until > now, call.tried[a.url], a.in_flight))
    call.tried[best.url] += 1
    if best.silent_until:
        best.silent_until = now + AVOID_S
    return best


def _answer(choice: dict, mode: str) -> tuple[str, str]:
    """An empty reply and a refusal are answers like any other; the note tells them apart from a finished text."""
    message = choice["message"] if mode == "chat" else {"content": choice["text"]}
    refusal, reason = message.get("refusal"), choice.get("finish_reason")
    text = message.get("content") or refusal or ""
    note = "refusal" if refusal else "" if reason == "stop" else f"finish_reason {reason}"
    return text.encode(errors="replace").decode(), note  # half a surrogate pair cannot be written to a file


def _usage(body: dict) -> tuple[int, int] | None:
    try:
        return int(body["usage"]["prompt_tokens"]), int(body["usage"]["completion_tokens"])
    except (LookupError, TypeError, ValueError):
        return None


def _asked_pause_s(header: str | None) -> float | None:
    """Retry-After in seconds from now, given as a number or as a date; None when it says neither."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, mktime_tz(parsedate_tz(header)) - time.time())
    return None


def _pause_s(state) -> float:
    """Seconds before the next attempt: what the server asks for, or a random part of twice the last limit."""
    import tenacity

    asked = state.outcome.exception().pause_s
    if asked is None:
        return tenacity.wait_random_exponential(multiplier=BACKOFF_S, max=LONGEST_PAUSE_S)(state)
    return min(asked, LONGEST_PAUSE_S) + random.uniform(0, BACKOFF_S)  # not all of them in the same instant


def _reply(row: dict) -> Reply:
    amounts = (row.get(k, 0) for k in ("tokens_in", "tokens_out", "cost_usd"))
    return Reply(row.get("text"), row.get("failure", ""), *amounts, row.get("note", ""))


def _run_apart(calls) -> None:
    """Runs a coroutine in a thread of its own, as a Jupyter kernel has a loop running here already. An interrupt ends it."""
    cancel = []

    async def cancellable() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await calls

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, cancellable())
        try:
            running.result()
        except BaseException:
            with contextlib.suppress(IndexError, RuntimeError):  # not begun, or over already
                cancel[0]()
            raise
