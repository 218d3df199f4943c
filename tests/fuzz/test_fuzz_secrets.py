"""Keys: whatever a provider says and however it spells it, no part of eight characters of a key is shown or kept."""

import html
import json
import string
import tempfile
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bezoar_utils.calls import attempts, local_server
from bezoar_utils.calls.endpoint import Endpoint, EndpointError, Request
from bezoar_utils.calls.secret import PART, without_key

SETTINGS = {"api_key_env": "TEST_KEY", "local_server": None, "concurrency": 1, "timeout_s": 0.5, "attempts": 1, "lose_at_most": 0.0}
SETTINGS |= {"parameters": {}}
SIGNS = string.ascii_letters + string.digits + string.punctuation
KEY = st.one_of(
    st.text(SIGNS, min_size=1, max_size=60),
    st.text("\\\"'%&;u0xA41+/=<", min_size=8, max_size=30),
    st.from_regex(r"sk-(proj-)?[A-Za-z0-9_\-]{20,100}", fullmatch=True),
)
WAYS = {
    "plain": str,
    "repr": repr,
    "in a mapping": lambda text: str({"message": text}),
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps({"error": text})),
    "JSON in a mapping": lambda text: repr(json.dumps(text)),
    "slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "hexadecimal": lambda text: "".join(f"\\u{ord(c):04X}" if c in "+&<>'\"" else c for c in text),
    "page": html.escape,
    "address": lambda text: quote(text, safe=""),
    "bytes": lambda text: repr(text.encode()),
}


def parts(key: str) -> set[str]:
    size = min(PART, len(key))
    return {key[i : i + size] for i in range(len(key) - size + 1)}


def leaks(shown: str, key: str) -> set[str]:
    """The parts of a key that a text holds, as it is or for who reads through its escapes."""
    plain = {part for part in parts(key) for view in (shown, html.unescape(shown), unquote(shown)) if part in view}
    return plain | {part for part in parts(key.replace("\\", "")) - {""} if part in shown.replace("\\", "")}


@settings(max_examples=20 * settings.default.max_examples)  # they are cheap
@given(KEY, st.sampled_from(sorted(WAYS)), st.text(max_size=10), st.integers(0, 320), st.integers(0, 60), st.integers(0, 60))
@example("sk-abcdefghij" + 'k"l' * 9, "JSON in JSON", "", 0, 0, 60)
@example("a'b\"c\\d" * 3, "repr", "", 0, 0, 60)
@example("sk-proj-0123456789", "plain", "", 295, 0, 60)
@example("0\\X00", "JSON", "", 0, 0, 0)
@example("sk-proj-0123456789", "plain", "", 0, 2, 15)
def test_no_part_of_a_key_survives_any_spelling_any_cut_and_any_place(key, way, around, place, first, last):
    shown = without_key(WAYS[way](f"{around}{'.' * place}{key[first:last]} {around} {key}"), key)[:300]
    assert not leaks(shown, key) or any(part in "[key]" for part in parts(key))


def test_what_is_no_part_of_the_key_stays_as_it_was():
    assert without_key("The  key sk-1234567890abc\nis\twrong", "sk-1234567890abc") == "The key [key] is wrong"
    assert without_key("Incorrect key sk-12**********bc", "sk-1234567890abc") == "Incorrect key sk-12**********bc"
    assert without_key("no key: 100 %, \\d & more", "") == "no key: 100 %, \\d & more"


class Echo(local_server.Handler):
    """Repeats the key it was given, in the way that is set, wherever a reply has room for a text."""

    say: ClassVar = str
    kind: ClassVar = "401"

    def do_POST(self):
        self.received()
        said = type(self).say(self.headers["Authorization"].removeprefix("Bearer "))
        bodies = {
            "error body": {"error": said},
            "bad body": {"choices": said},
            "reason": {"choices": [{"message": {"content": "a"}, "finish_reason": said}]},
        }
        if self.kind == "header":
            self.wfile.write(f"HTTP/1.1 {said}\r\n\r\n".encode())
            self.close_connection = True
        elif self.kind in bodies:
            self.tell(200, bodies[self.kind])
        elif self.kind == "no JSON":
            self.tell(200, f"{{{said}".encode(), {"Content-Type": "application/json"})
        elif self.kind == "moved":
            self.tell(307, b"", {"Location": f"http://127.0.0.1:1/{said}"})
        else:
            self.tell(int(self.kind), {"error": {"message": f"{'.' * 250} the key {said} is wrong: {said}"}})


@pytest.fixture(scope="module")
def url():
    with local_server.serving(Echo) as address:
        yield f"{address}/v1"


KINDS = ["400", "401", "403", "404", "422", "429", "500", "error body", "bad body", "no JSON", "reason", "header", "moved"]


@given(KEY.filter(lambda key: len(key) >= PART), st.sampled_from(sorted(WAYS)), st.sampled_from(KINDS))
def test_no_error_path_shows_or_keeps_a_part_of_a_key(url, key, way, kind):
    Echo.say, Echo.kind = staticmethod(WAYS[way]), kind
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KEY", f" {key}\n")  # as a shell reads it from a file
        patch.setattr(attempts, "BACKOFF_S", 0.0)
        ledger, seen = Path(folder) / "calls.jsonl", ""
        try:
            Endpoint("m", SETTINGS, url, ledger).ask([Request("a", {}, "chat", "v1")])
        except EndpointError as error:
            seen = f"{error} {error.__context__}"
        seen += ledger.read_text() if ledger.exists() else ""
    assert not leaks(seen, key) or len(key.replace("\\", "")) < PART
