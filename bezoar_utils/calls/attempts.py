"""One attempt at a call: at which address, what can go wrong, and how long to wait before the next. Nothing is sent here."""

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any

from .ledger import HOPELESS

BACKOFF_S = 0.5  # the first pause before a retry is at most this long, each further one at most twice the one before
LONGEST_PAUSE_S = 60.0
AVOID_S = 30.0  # how long a silent address is skipped before one more call tests whether it is back
PASSING = {408, 409, 429}  # and every 5xx: the same request may well be answered later


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all: it does not answer, or it refuses the key or the model."""


class Unanswered(Exception):
    """An attempt without an answer: the reason in a word, the error text, and the pause in seconds that the server asks for."""

    def __init__(self, reason: str, text: str, pause_s: float | None = None):
        super().__init__(reason)
        self.reason, self.text, self.pause_s = reason, text, pause_s
        self.silent = reason in ("timeout", "connection")


def status_error(status: int, text: str, retry_after: str | None, where: str) -> Exception:
    """What an HTTP error status means: try again or give up this prompt (Unanswered), or give up the endpoint (EndpointError).

    `where` names address and model. The texts must not hold the key.
    """
    if status in PASSING or status >= 500 or str(status) in HOPELESS:
        return Unanswered(str(status), text, retry_after_s(retry_after))
    return EndpointError(f"{where} (HTTP {status}): {text}")


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
