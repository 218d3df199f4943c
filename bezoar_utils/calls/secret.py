"""Hiding a key in what others say: providers repeat it in their errors, whole or in part, plain or escaped."""

import html
import re
from urllib.parse import unquote

PART = 8  # characters of a key in a row that are never shown; fewer, as providers show to tell keys apart, may be
FURTHEST = 5_000  # characters that are looked at; what is kept of an error is much shorter
SPELLINGS = [  # of one character: plain; escaped by JSON or Python, however often; in an address; on a page
    re.compile(spelling, re.IGNORECASE)
    for spelling in (
        ".",
        r"\\*.",
        r"\\+(?:u00|x)[0-9a-f]{2}|\\*.",
        "%[0-9a-f]{2}|.",
        r"&(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-f]+);|.",
    )
]


def without_key(text: str, key: str) -> str:
    """The text on one line, with [key] in place of the key and of each part of it that is PART characters long."""
    text = " ".join(text[:FURTHEST].replace("\0", " ").split())
    shown = list(text)
    for spelling in SPELLINGS:
        secret = key.replace("\\", "") if "\\\\" in spelling.pattern else key
        size, pieces = min(PART, len(secret)), list(spelling.finditer(text))
        parts = {secret[i : i + size] for i in range(len(secret) - size + 1)} - {""}
        signs = "".join(_sign(piece[0]) for piece in pieces)
        for i in range(len(signs) - size + 1):
            if signs[i : i + size] in parts:
                start, end = pieces[i].start(), pieces[i + size - 1].end()
                shown[start:end] = "\0" * (end - start)
    return re.sub("\0+", "[key]", "".join(shown))


def _sign(spelled: str) -> str:
    """The one character that is spelled so."""
    bare = spelled.lstrip("\\") or "\\"
    if len(bare) > 1 and bare[0] in "uUxX":
        return chr(int(bare[-2:], 16))
    return html.unescape(unquote(bare, "latin-1"))[:1] or "\0"
