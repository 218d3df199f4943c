"""One attempt at a call: at which address, what can go wrong, and how long to wait before the next. Nothing is sent here."""

import contextlib
import ipaddress
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any
from urllib.parse import urlsplit

from .ledger import HOPELESS

BACKOFF_S = 0.5  # the first pause before a retry is at most this long, each further one at most twice the one before
LONGEST_PAUSE_S = 60.0
AVOID_S = 30.0  # how long a silent address is skipped before one more call tests whether it is back
PASSING = {408, 409, 429}  # and every 5xx: the same request may well be answered later
REFUSED = {
    "400",
    "422",
    "prompt cut",
    "only thinking",
    "tool call",
}  # not tried twice in a run; asked again in the next
A_DOZEN = 12  # failures of one kind in a row, after which going on is pointless
# What providers say, in words that changed little over the years
QUOTA = re.compile(
    r"insufficient_quota|exceeded your current quota|insufficient (credit|balance|funds)|credit balance|billing_(hard|not)", re.I
)
A_MINUTES = re.compile(r"gemini-api/docs/rate-limits|retry in \d", re.IGNORECASE)  # Gemini says quota of a minute's limit too
FLAGGED = re.compile(r"flagged|moderation|content.?(policy|filter)|safety system", re.IGNORECASE)
TOO_LONG = re.compile(r"context (length|window|size)|context_length|too long|maximum (input|prompt|sequence)", re.IGNORECASE)


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all: it does not answer, or it refuses the key or the model."""


class Unanswered(Exception):
    """An attempt without an answer: the reason in a word, the error text, and the pause in seconds that the server asks for.

    `final`: nothing can mend this prompt. `retried`: the same request may be answered in this run.
    """

    def __init__(self, reason: str, text: str, pause_s: float | None = None):
        super().__init__(reason)
        self.reason, self.text, self.pause_s = reason, text, pause_s
        self.silent = reason in ("timeout", "connection")
        self.final, self.retried = reason in HOPELESS, reason not in HOPELESS | REFUSED


def status_error(status: int, text: str, retry_after: str | None, where: str) -> Exception:
    """What an HTTP error status means: try again or give up this prompt (Unanswered), or give up the endpoint (EndpointError).

    `where` names address and model. The texts must not hold the key.
    """
    if QUOTA.search(text) and not A_MINUTES.search(text):
        return EndpointError(f"{where}: its quota is used up (HTTP {status}): {text}")
    if status in (400, 413, 422):
        return Unanswered("too long" if status == 413 or TOO_LONG.search(text) else str(status), text)
    if status == 403 and FLAGGED.search(text):
        return Unanswered("flagged", text)
    if status in PASSING or status >= 500:
        return Unanswered(str(status), text, retry_after_s(retry_after))
    return EndpointError(f"{where} (HTTP {status}): {text}")


def check_key(name: str, key: str) -> None:
    """Raises EndpointError for a key that no provider gives out, before it is sent; the message holds no part of it."""
    if not key or re.fullmatch(r"[\x21-\x7e]+", key):
        return
    wrong = "a line break" if re.search(r"[\r\n]", key) else "a space" if re.search(r"\s", key) else "a character outside ASCII"
    raise EndpointError(f"the key in {name} holds {wrong}: set the variable again, with the key alone")


def require_enough(failures: list[str], calls: int, settings: dict, model: str, last_error: str) -> None:
    """Raises EndpointError when more calls failed than `lose_at_most` (a share) allows, but for those that no rerun can mend."""
    lost = Counter(failure for failure in failures if failure not in HOPELESS)
    if lost.total() > settings["lose_at_most"] * calls:
        kinds = ", ".join(f"{reason}: {count}" for reason, count in lost.most_common())
        raise EndpointError(
            f"{lost.total()} of {calls} calls to {model} got no answer ({kinds}), and lose_at_most is {settings['lose_at_most']}; "
            f"the last said: {last_error}. What was answered is kept: run again, and only the rest is asked"
        )


def through_proxies(url: str) -> bool:
    """Whether the proxies of the environment are meant for this address: never for one of this machine."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"


def retry_after_s(header: str | None) -> float | None:
    """Seconds from now that a Retry-After header asks for, as a number or as a date; None when it is neither."""
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, float(header or ""))
    with contextlib.suppress(ValueError, OverflowError):
        if date := parsedate_tz(header or ""):
            return max(0.0, mktime_tz(date) - time.time())
    return None


def pause_s(unanswered: Unanswered, attempt: int) -> float:
    """Seconds before the next attempt: what the server asks for, or a random part of a limit that doubles with each attempt."""
    if unanswered.pause_s is None:
        return random.uniform(0, min(LONGEST_PAUSE_S, BACKOFF_S * 2 ** (attempt - 1)))
    return min(unanswered.pause_s, LONGEST_PAUSE_S) + random.uniform(0, BACKOFF_S)  # not all calls in the same instant


@dataclass
class Address:
    """One of several equal servers. `silent_until` is a time of the monotonic clock, 0.0 while the server answers."""

    url: str
    client: Any
    in_flight: int = 0
    silent_until: float = 0.0

    def attempt_ended(self, silent: bool) -> None:
        self.in_flight -= 1
        self.silent_until = time.monotonic() + AVOID_S if silent else 0.0


def next_address(addresses: list[Address], attempts: Counter) -> Address:
    """The address for the next attempt: the one with the fewest calls in flight among those that answer, for a retry another
    one if possible. A silent address gets one call at a time, and only after AVOID_S. `attempts` counts this call's, by URL."""
    now = time.monotonic()
    best = min(addresses, key=lambda a: (a.silent_until > now, attempts[a.url], a.in_flight))
    attempts[best.url] += 1
    best.in_flight += 1
    if best.silent_until:
        best.silent_until = now + AVOID_S
    return best
