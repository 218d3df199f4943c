"""What is wrong with a reply by its form alone, whatever it was asked: empty, a refusal, a loop, cut off. The rules are ours,
and would rather miss a fault than see one where there is none."""

import re
import unicodedata

from ..data.filters import runs, words
from .wishes import BULLET, NUMBERED, lines, word_count

LOOP_WORDS = 30  # from so many words on, loops are looked for: shorter texts may repeat themselves
DISTINCT_TRIGRAMS = 0.5  # share of a reply's runs of three words; a text told twice has half of them, three times a third
REPEATED_LINES = 3  # the same line so often in a row; songs have two
LONG_WORDS = 20  # from so many words on, a text without closing punctuation is cut off and not a short answer ...
LAST_LINE_WORDS = 8  # ... unless its last line is short: a verse, a signature, "Answer: 42"
OPEN_ENDS = tuple(",;:-–—([{“&/")
LONGEST_REFUSAL = 200  # signs at a reply's start in which a refusal is looked for

_SORRY = r"(?:(?:(?:i|we)(?:'m|'re| am| are) )?(?:(?:very|so) )?(?:sorry|afraid)|(?:i|we) apologi[sz]e|my apologies|unfortunately)"
_CANNOT = r"(?:i|we) (?:can't|cannot|can not)|(?:i|we)(?:'m|'re| am| are) (?:unable|not able)(?: to)?"
_HELP = r"(?:(?:help|assist)(?: you| with|[.!,]|$)|answer|provide|comply|fulfil|do that\b)"
_LACK = r"(?:i|we) (?:(?:do not|don't) (?:know|have (?:access|the ability|enough|any))|(?:must|have to) decline)"
_AS_AI = r"as an? (?:ai|artificial intelligence|(?:large )?language model)(?:,| i\b| (?:language )?model\b)"
# an apology is a refusal only with an inability right behind it: "I'm sorry for your loss" is kind, "I can't wait" is glad
REFUSAL = re.compile(rf"{_SORRY}[,.;:!]?(?: but| that)? (?:{_AS_AI}|(?:{_CANNOT}|{_LACK})\b)|(?:{_CANNOT}) {_HELP}|{_AS_AI}")


def fault(reply: str) -> str | None:
    """Why this reply is none, or None when its form is fine."""
    if not any(unicodedata.category(c)[0] in "LNS" for c in reply):
        return "empty: no letter, digit or symbol"
    if is_refusal(reply):
        return "a refusal"
    if is_loop(reply):
        return "repeats itself"
    return "cut off in the middle" if is_cut_off(reply) else None


def is_refusal(reply: str) -> bool:
    """Does it start with the words with which assistants refuse?"""
    start = " ".join(reply.lstrip()[:LONGEST_REFUSAL].lower().replace("’", "'").split())
    return REFUSAL.match(start) is not None


def is_loop(reply: str) -> bool:
    """One line again and again, or few distinct runs of three words among many."""
    spoken, written = words(reply), [line.strip() for line in lines(reply) if words(line)]
    if any(len(set(written[place : place + REPEATED_LINES])) == 1 for place in range(len(written) - REPEATED_LINES + 1)):
        return True
    return len(spoken) >= LOOP_WORDS and len(runs(spoken, 3)) / (len(spoken) - 2) < DISTINCT_TRIGRAMS


def is_cut_off(reply: str) -> bool:
    """A code fence that does not close, or a long text whose last line is prose and ends with a letter, a digit or one of
    `OPEN_ENDS`. JSON, tables and quotations end with other signs."""
    last = lines(reply.strip())[-1]
    is_open = last[-1:].isalnum() or last.endswith(OPEN_ENDS)
    is_prose = not (BULLET.match(last) or NUMBERED.match(last) or last.startswith(("#", "|")))
    is_long = is_open and is_prose and word_count(last) >= LAST_LINE_WORDS and word_count(reply) >= LONG_WORDS
    return is_long or reply.count("```") % 2 == 1
