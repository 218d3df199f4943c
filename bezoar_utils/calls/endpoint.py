"""One client for every OpenAI-compatible API: a local vLLM, llama.cpp or Ollama, or a provider.

Many calls are in flight at once. Each call is on disk before the next one starts in its place, so a kill costs only the calls
in flight. An answered call is never sent, nor paid for, again.
"""

import asyncio
import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..study import files
from ..study.profile import load_profile
from ..study.stage import RUNS
from ..training.tokens import Shown, chat_turns
from . import local_server
from .attempts import (
    A_DOZEN,
    Address,
    EndpointError,
    Unanswered,
    check_key,
    next_address,
    pause_s,
    require_enough,
    status_error,
    through_proxies,
)
from .budget import Budget, BudgetReached, cost_usd
from .in_thread import run_in_thread
from .ledger import Answers, Ledger
from .replies import Reply, answer, counted_tokens, reply_of, require_whole
from .secret import without_key

BUDGET_WAIT_S = 0.05
TEMPLATE_TOKENS = 64  # what a chat template adds, at most; a text itself has no more tokens than UTF-8 bytes


@dataclass(frozen=True)
class Request:
    """One call. `settings` go into the API's request as they are (temperature, max_tokens, top_p, seed, ...).

    `mode` is "chat" or "raw" (the prompt is completed as it is). `scheme` names the version of the prompt's wording.
    `repeat` is not sent: it tells apart calls that ask the same thing again. In mode chat `system` is a system message, and what
    is `shown` are earlier turns, as (prompt, reply).
    """

    prompt: str
    settings: dict
    mode: str
    scheme: str
    repeat: int = 0
    system: str = ""
    shown: Shown = ()

    def told(self) -> dict:
        """What tells this call from others: all of it but what it lacks."""
        return {name: value for name, value in vars(self).items() if value or name not in ("system", "shown")}


def open_endpoint(stage, role: dict) -> "Endpoint":
    """The endpoint of a profile's teacher or judge: remote, or a local server that lives as long as the stage.

    Finished calls are in the stage's `calls.jsonl`, spending in the run's `spend.jsonl`, one budget for all stages.
    """
    model, settings, ledger = role["model"], role["endpoint"], stage.output("calls.jsonl")
    if not settings["base_url"]:
        module = settings["local_server"]
        paths = [stage.input(artifact) for artifact in local_server.artifacts(module)]
        address = stage.enter(local_server.running(module, paths))
        return Endpoint(model, settings, address, ledger, version=local_server.version(module, paths))
    money = load_profile(stage.profile).money
    price = money.prices.get(model, (0.0, 0.0))
    budget = Budget(RUNS / stage.profile / "spend.jsonl", money.budget_usd) if any(price) else None
    return Endpoint(model, settings, settings["base_url"], ledger, price, budget)


def record_calls(stage, replies: list[Reply]) -> None:
    """Count what these replies took, now or in an earlier run, as the stage's, and note those without an answer by their reason.

    Equal requests were one call: one object.
    """
    calls = {id(reply): reply for reply in replies}.values()
    if lost := Counter(reply.failure for reply in calls if reply.text is None):
        stage.note("unanswered", dict(Counter(stage.notes.get("unanswered", {})) + lost))
    tokens = sum(r.tokens_in + r.tokens_out for r in calls)
    stage.spend(tokens=tokens, calls=len(calls), cost_usd=sum(r.cost_usd for r in calls))


@dataclass
class _Call:
    """A request on its way. `ticket` is the budget's reservation for the attempt that is under way."""

    key: str
    request: Request
    worst_usd: float
    attempts: Counter = field(default_factory=Counter)  # by address
    ticket: str | None = None


@dataclass
class _Round:
    """The calls of one `ask`. The first error stops it: calls in flight end, no other starts, and no pause is waited out."""

    waiting: deque[_Call]
    answers: Answers
    addresses: list[Address] = field(default_factory=list)
    error: Exception | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self, error: Exception) -> None:
        self.error = self.error or error
        self.stopped.set()

    async def pause(self, seconds: float) -> None:
        """Raises the error that stops the round meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)
        if self.error:
            raise self.error


class Endpoint:
    """Asks one model, at one address or at several equal ones, and keeps each finished call in the ledger.

    `settings` has api_key_env, local_server, concurrency, timeout_s and attempts. `price` is in US dollars a million prompt
    and reply tokens; above 0 it needs a `budget`. `version` tells apart servers that share one name. `sent` and `failures` count
    the calls that this object ended, not those read from the ledger. The key goes into the client and nowhere else. A call's key
    in the ledger has no address in it, so results do not depend on which server answered.
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
        check_key(key_name, self._secret)
        if key_name and not self._secret and not settings["local_server"]:
            raise EndpointError(f"{model} at {', '.join(self.urls)} needs its key in the environment variable {key_name}")
        if any(price) and budget is None:
            raise ValueError(f"{model} has a price, so its calls need a budget to be paid from")
        self.model, self.version, self.settings, self.ledger = model, version, settings, Ledger(ledger)
        self.price, self.budget = price, budget
        self.sent = 0
        self.failures: Counter[str] = Counter()
        self._has_answered = False
        self._in_a_row: Counter[str] = Counter()  # failures since the last answer
        self._last_error = ""

    def ask(self, requests: list[Request], progress: Callable[[int, int], None] | None = None) -> list[Reply]:
        """A reply for each request, in their order. Equal requests are one call; what the ledger holds is not sent again.

        Raises EndpointError when going on is pointless, budget.BudgetReached when the budget is spent, ValueError for a paid
        request that nothing bounds; the calls in flight end and are kept first. Works inside a running event loop too.
        """
        keys = [self._key(request) for request in requests]
        answers, by_key = Answers(keys, self.ledger.finished, progress), dict(zip(keys, requests))
        calls = deque(_Call(key, by_key[key], self._worst_usd(by_key[key])) for key in answers.missing)
        if calls:
            run_in_thread(self._send(_Round(calls, answers)))
        replies = {key: reply_of(row) for key, row in answers.rows.items()}
        failures = [replies[key].failure for key in keys if replies[key].text is None]
        require_enough(failures, len(keys), self.settings, self.model, self._last_error)
        return [replies[key] for key in keys]

    async def _send(self, calls: _Round) -> None:
        workers = min(self.settings["concurrency"], len(calls.waiting))
        async with contextlib.AsyncExitStack() as stack:
            for url in self.urls:
                try:
                    client = self._client(url, workers)
                except (
                    ImportError,
                    OSError,
                    ValueError,
                ) as error:  # SOCKS, a proxy without a scheme, a missing file of certificates
                    setting = "see HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR in the environment"
                    raise EndpointError(f"{url} cannot be asked: {self._redacted(error)}; {setting}") from None
                calls.addresses.append(Address(url, await stack.enter_async_context(client)))
            await asyncio.gather(*(self._work(calls) for _ in range(workers)))
        if calls.error:
            raise calls.error

    def _client(self, url: str, connections: int):
        import httpx2  # the HTTP client under openai
        import openai

        return openai.AsyncOpenAI(
            base_url=url,
            api_key=self._secret or "local",
            timeout=self.settings["timeout_s"],
            max_retries=0,  # retries are ours: each attempt reserves its money
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(max_keepalive_connections=connections), trust_env=through_proxies(url)
            ),
        )

    async def _work(self, calls: _Round) -> None:
        while calls.waiting and not calls.error:
            try:
                row = await self._finish(calls, calls.waiting.popleft())
                self.sent += 1
                calls.answers.add(row)
            except Exception as error:  # kept, so that the other workers' calls end before it is raised
                calls.stop(error)

    async def _finish(self, calls: _Round, call: _Call) -> dict:
        """The row of one call, answered or given up."""
        last = max(self.settings["attempts"], len(self.urls))
        for attempt in range(1, last + 1):
            try:
                return await self._attempt(calls.addresses, call)
            except Unanswered as unanswered:
                if attempt == last or not unanswered.retried:
                    return self._give_up(call, unanswered)
                pause = pause_s(unanswered, attempt)
            await calls.pause(pause)
        raise AssertionError("the last attempt has an answer or is given up")

    def _give_up(self, call: _Call, unanswered: Unanswered) -> dict:
        if unanswered.silent and not self._has_answered:
            raise EndpointError(f"no answer from {', '.join(self.urls)} (model {self.model}): {unanswered.text}") from None
        row = {"key": call.key, "failure": unanswered.reason, "said": unanswered.text}
        self.ledger.append(row)
        self.failures[unanswered.reason] += 1
        if not unanswered.final:
            self._in_a_row[unanswered.reason] += 1
            self._last_error = f"{unanswered.reason}: {unanswered.text}"
            if self._in_a_row[unanswered.reason] >= A_DOZEN:
                raise EndpointError(f"{A_DOZEN} calls in a row to {self.model} failed, the last with {self._last_error}")
        return row

    async def _attempt(self, addresses: list[Address], call: _Call) -> dict:
        """The ledger's row of one answered HTTP request, its worst case reserved before it.

        Raises Unanswered, EndpointError, BudgetReached.
        """
        call.ticket = await self._reserve(call.worst_usd, addresses) if call.worst_usd else None
        address, completion = next_address(addresses, call.attempts), None
        try:
            completion = await self._completion(address, call)
        finally:
            address.attempt_ended(silent=isinstance(completion, Unanswered) and completion.silent)
        if isinstance(completion, Exception):
            raise completion
        row = self._row(call, completion)
        self.ledger.append(row)
        self._settle(call, row["cost_usd"])  # after the ledger: a kill in between counts too much, and never sends a call twice
        self._has_answered = True
        self._in_a_row.clear()
        return row

    async def _reserve(self, usd: float, addresses: list[Address]) -> str:
        """Money for one call. While calls are in flight a full budget is waited for: they cost less than their worst case."""
        assert self.budget
        while True:
            try:
                return self.budget.reserve(usd)
            except BudgetReached:
                if not any(address.in_flight for address in addresses):
                    raise
            await asyncio.sleep(BUDGET_WAIT_S)

    def _settle(self, call: _Call, usd: float) -> None:
        if call.ticket and self.budget:
            self.budget.settle(call.ticket, usd)

    async def _completion(self, address: Address, call: _Call):
        """The API's answer, or the error to raise: raised here it would carry the client's own, which may hold the key."""
        import openai

        request, client, names = call.request, address.client, self.settings["parameters"]
        body = {names.get(name, name): value for name, value in request.settings.items() if names.get(name, name)}
        body |= self.settings.get("extra", {})
        try:
            if request.mode == "chat":
                messages = chat_turns(request.prompt, request.system, request.shown)
                return await client.chat.completions.create(model=self.model, messages=messages, extra_body=body)
            return await client.completions.create(model=self.model, prompt=request.prompt, extra_body=body)
        except openai.APITimeoutError:
            return Unanswered("timeout", f"no reply within {self.settings['timeout_s']} s")
        except openai.APIConnectionError as error:
            return Unanswered("connection", self._redacted(error.__cause__ or error))
        except openai.APIStatusError as error:
            self._settle(call, 0.0)
            where, retry_after = f"{address.url} refuses model {self.model}", error.response.headers.get("retry-after")
            return status_error(error.status_code, self._redacted(error), retry_after, where)
        except (ValueError, RecursionError) as error:  # the body is not JSON
            return Unanswered("bad body", self._redacted(getattr(error, "doc", error)))

    def _row(self, call: _Call, completion) -> dict:
        """The ledger's row of an HTTP 200. Raises Unanswered when it holds no answer; we cannot know whether such a reply was
        billed, so its reservation stays."""
        if error := getattr(completion, "error", None):
            raise Unanswered("error body", self._redacted(error))
        try:
            text, note = answer(completion.choices[0], call.request.mode)
        except (AttributeError, LookupError, TypeError):
            raise Unanswered("bad body", self._redacted(completion)) from None
        tokens = counted_tokens(completion, text)
        require_whole(call.request.prompt, tokens)
        if tokens and cost_usd(self.price, *tokens) > call.worst_usd:
            tokens = None  # more than was asked for: a count that cannot be
        usd = cost_usd(self.price, *tokens) if tokens else call.worst_usd
        tokens_in, tokens_out = tokens or (0, 0)
        row = {"key": call.key, "text": text, "tokens_in": tokens_in, "tokens_out": tokens_out, "cost_usd": usd}
        return row | ({"note": self._redacted(note)} if note else {})

    def _key(self, request: Request) -> str:
        extra = {"extra": asked} if (asked := self.settings.get("extra")) else {}
        return files.sha256_json({"model": self.model, "version": self.version, **extra, **request.told()})

    def _worst_usd(self, request: Request) -> float:
        """The most that one attempt can cost, in US dollars. Raises ValueError when nothing bounds it."""
        if not any(self.price):
            return 0.0
        most, sent = request.settings.get("max_tokens"), self.settings["parameters"].get("max_tokens", "max_tokens")
        if not sent or not isinstance(most, int) or most < 1:  # to some servers -1 means without end
            raise ValueError(f"a call to {self.model} costs money, so its settings need max_tokens to bound what it can cost")
        text = request.system + request.prompt + "".join(asked + reply for asked, reply in request.shown)
        return cost_usd(self.price, len(text.encode()) + TEMPLATE_TOKENS * (1 + 2 * len(request.shown)), most)

    def _redacted(self, error) -> str:
        """One short line without the key, which providers like to repeat in their error texts. Cut last: half a key is one too."""
        return without_key(str(error), self._secret)[:300]
