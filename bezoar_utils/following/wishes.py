"""Wishes that a program can check, read back from an instruction's own text. The idea is IFEval's (arXiv 2311.07911); the
kinds, sentences and checks are ours.

A wish is read only where it is sure to be one: a sentence of `KINDS`, letter for letter but for the case of its first letter,
before or after the task. What stands inside the task, in quotation marks, in a list or after a colon belongs to the task.

What is counted, plainly. A *word* stands between white space or long dashes and has a letter or digit of any script: "well-known",
"3.5" and "1." are one each, "-" is none. A word is *found* whatever its case where no letter or digit touches it: "moon" is in
"moon-lit" and "moon's", not in "moonlit". A *line* ends at a line feed or carriage return only.

Every check takes time in proportion to the reply. An empty reply uses no commas and fulfils that wish: see `form`.
"""

import re
import unicodedata
from collections.abc import Callable
from itertools import combinations, groupby, zip_longest
from operator import eq, ge, le
from typing import Any, NamedTuple

from ..study import files


class Wish(NamedTuple):
    """`argument` is a number, a word or phrase, a set of keys, or None for a kind that has none."""

    kind: str
    argument: int | str | frozenset[str] | None = None


# ---------------------------------------------------------------------------------------------------------- what is measured

STOPS, CLOSERS, OPENERS = ".!?…。！？؟", "\"'”’»)]}*_`", "\"'“‘«([{*_`"
ABBREVIATION = re.compile(r"(?:Mr|Mrs|Ms|Dr|Prof|St|vs|[A-HJ-Z]|(?:[A-Z]\.)+[A-Z])\.", re.IGNORECASE)  # J. Smith, U.S., e.g.
LIST_MARK = re.compile(r"[0-9]{1,5}[.)]|[-*•#]+")
# without white space after it, "*" is emphasis and "-" may be a minus or part of a rule; "-milk" is a bullet
BULLET = re.compile(r"\s*(?:[-*]\s+\S|-[^\W\d_]|•\s*\S)")
NUMBERED = re.compile(r"\s*([0-9]{1,5})[.)](?!\d)\s*\S")  # not "3.5 litres"
TITLE = re.compile(r"<<[^\S\n]*[^<>\s][^<>\n]*>>")
NUMBER = re.compile(r"\s*[-+−]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\.?\s*")
YES_NO = re.compile(r"\s*(?:yes|no)\.?\s*", re.IGNORECASE)
QUOTED = re.compile(r'\s*["“„]\s*\S.*["”“]\s*', re.DOTALL)
QUESTION = re.compile(rf".*[?？؟][\s{re.escape(CLOSERS)}]*", re.DOTALL)
FENCE = re.compile(r"```\w*\s*")


def lines(text: str) -> list[str]:
    return re.split(r"\r\n?|\n", text)


def folded(text: str) -> str:
    """The text for comparing: no case, composed letters, straight apostrophes, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.casefold()).replace("’", "'").split())


def has_word(text: str) -> bool:
    return any(map(str.isalnum, text))


def word_count(text: str) -> int:
    return sum(map(has_word, re.findall(r"[^\s\u200b—]+", text)))


def sentence_count(text: str) -> int:
    """Sentences that have a word.

    One ends at . ! ? or … before white space (quotation marks and brackets may close in between) and at the end of a line. None
    ends inside a word (3.5), after an initial, a title or an abbreviation with points (J. Smith, Dr., e.g.), after the mark of a
    list item, or before a lower-case letter, except at a plain full stop: texts in lower case have sentences too.
    """
    words = [(word, place == 0) for line in lines(text) for place, word in enumerate(line.split())]
    count, begun = 0, False
    for (word, first), (following, new_line) in zip_longest(words, words[1:], fillvalue=("", True)):
        if first and not new_line and LIST_MARK.fullmatch(word):
            continue
        begun, goes_on = begun or has_word(word), following[:1].islower()
        if begun and (_ends_sentence(word, goes_on) or (new_line and not goes_on)):
            count, begun = count + 1, False
    return count


def _ends_sentence(word: str, goes_on: bool) -> bool:
    core = word.rstrip(CLOSERS)
    if not core.endswith(tuple(STOPS)) or ABBREVIATION.fullmatch(core.lstrip(OPENERS)):
        return False
    return not goes_on or (core == word and core.endswith(".") and not core.endswith(".."))


def paragraph_count(text: str) -> int:
    """Blocks of lines between empty ones; one that is only a title in double angle brackets is not a paragraph."""
    blocks = [" ".join(block) for filled, block in groupby(map(str.strip, lines(text)), bool) if filled]
    return sum(not TITLE.fullmatch(block) for block in blocks)


def item_count(text: str) -> int:
    """How many lines are numbered, if they are so from 1 on in order, else 0."""
    numbers = [int(match[1]) for line in lines(text) if (match := NUMBERED.match(line))]
    return len(numbers) if numbers == list(range(1, len(numbers) + 1)) else 0


def bullet_count(text: str) -> int:
    return sum(map(bool, map(BULLET.match, lines(text))))


def json_keys(text: str) -> frozenset[str] | None:
    """The keys of a JSON object, which may stand in a code fence; None for anything else."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = files.strict_json(rest.removesuffix("```") if FENCE.fullmatch(first) and rest.endswith("```") else text)
    except ValueError:
        return None
    return frozenset(value) if isinstance(value, dict) else None


def finds(text: str, word: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(folded(word))}(?![^\W_])", text) is not None


def lacks(text: str, word: str) -> bool:
    return not finds(text, word)


def begins(text: str, word: str) -> bool:
    return re.match(rf"[\W_]*?{re.escape(folded(word))}(?![^\W_])", text) is not None


def ends(text: str, phrase: str) -> bool:
    closing = STOPS + CLOSERS + ",;: "
    text, phrase = text.rstrip(closing), folded(phrase).rstrip(closing)
    return text.endswith(phrase) and not text.removesuffix(phrase)[-1:].isalnum()


def capitals(text: str) -> int:
    return sum(c.isupper() or c.istitle() for c in text)


def is_upper(text: str) -> bool:
    return any(map(str.isalpha, text)) and not any(map(str.islower, text))


# ------------------------------------------------------------------------------------------------------------------ the kinds


class Kind(NamedTuple):
    """`sentences` carry the wish: "|" stands between wordings, a placeholder of `READERS` for the argument. A reply fulfils it when
    `fulfils(measure(reply), argument)`; else `reason`, filled with what was `found` and `asked`, says why."""

    sentences: str
    measure: Callable[[str], Any]
    fulfils: Callable[[Any, Any], bool]
    reason: str


def _some(found, _) -> bool:
    return bool(found)


def _none(found, _) -> bool:
    return not found


KINDS = {
    "one_sentence": Kind(
        "Answer in one sentence.|Use a single sentence.", sentence_count, lambda n, _: n == 1, "has {found} sentences, not one"
    ),
    "at_most_words": Kind(
        "Use at most {n} words.|Keep it under {fewer} words.", word_count, le, "uses {found} words, asked for at most {asked}"
    ),
    "at_least_words": Kind("(Use|Write) at least {n} words.", word_count, ge, "uses {found} words, asked for at least {asked}"),
    "contains": Kind('(Use|Include) the word "{word}".', folded, finds, 'does not use the word "{asked}"'),
    "avoids": Kind('(Do not use|Avoid) the word "{word}".', folded, lacks, 'uses the word "{asked}"'),
    "lower_case": Kind("Write everything in lower case.|Use no capital letters.", capitals, _none, "has {found} capital letters"),
    "upper_case": Kind("Write everything in capital letters.", is_upper, _some, "is not in capital letters"),
    "begins_with": Kind('(Begin|Start) with the word "{word}".', folded, begins, 'does not begin with the word "{asked}"'),
    "ends_with": Kind('(End|Finish) with the phrase "{phrase}".', folded, ends, 'does not end with "{asked}"'),
    "bullets": Kind("(Use|Give) exactly {n} bullet points.", bullet_count, eq, "has {found} bullet points, asked for {asked}"),
    "numbered": Kind("Give a numbered list of {n} items.", item_count, eq, "is not a list numbered from 1 to {asked}"),
    "no_commas": Kind("(Do not use|Use no) commas.", lambda reply: sum(map(reply.count, ",，、،")), _none, "has {found} commas"),
    "no_digits": Kind(
        "Do not use digits.|Write numbers in words.", lambda reply: sum(map(str.isdigit, reply)), _none, "has {found} digits"
    ),
    "json": Kind("Answer as JSON with the keys {keys}.", json_keys, eq, "is not a JSON object with exactly the keys asked for"),
    "quoted": Kind(
        "Put the whole answer in double quotation marks.", QUOTED.fullmatch, _some, "does not stand in double quotation marks"
    ),
    "paragraphs": Kind("(Write|Use) exactly {n} paragraphs.", paragraph_count, eq, "has {found} paragraphs, asked for {asked}"),
    "title": Kind("Put a title in double angle brackets.", TITLE.search, _some, "has no title in double angle brackets"),
    "number": Kind("Answer with a number only.", NUMBER.fullmatch, _some, "is not one number alone"),
    "yes_no": Kind('Answer with "yes" or "no" only.', YES_NO.fullmatch, _some, 'is not "yes" or "no" alone'),
    "question": Kind("End with a question.", QUESTION.fullmatch, _some, "does not end with a question mark"),
}


def unmet(wishes: list[Wish], reply: str) -> list[str]:
    """A plain reason for each wish that the reply does not fulfil, in order."""
    found = [(KINDS[wish.kind], KINDS[wish.kind].measure(reply), wish.argument) for wish in wishes]
    return [kind.reason.format(found=what, asked=asked) for kind, what, asked in found if not kind.fulfils(what, asked)]


NEVER_BOTH = (  # kinds that no reply can fulfil together
    ("lower_case", "upper_case"),
    ("number", "json"),
    ("number", "no_digits"),
    ("number", "upper_case"),
    ("number", "yes_no"),
    ("numbered", "no_digits"),
    ("yes_no", "json"),
)


def conflict(wishes: list[Wish]) -> str | None:
    """Two wishes that no reply can fulfil together, in words, or None. Not every such pair is known: the rest fail one by one.

    Example: [Wish("lower_case"), Wish("upper_case")] gives "lower case and upper case".
    """
    for one, other in combinations(wishes, 2):
        pair = {one.kind: one.argument, other.kind: other.argument}
        if any(pair.keys() == set(kinds) for kinds in NEVER_BOTH) or _arguments_differ(one, other, pair):
            return f"{one.kind} and {other.kind}".replace("_", " ")
    return None


def _arguments_differ(one: Wish, other: Wish, pair: dict) -> bool:
    if one.kind == other.kind:
        return one.kind in ("bullets", "json", "numbered", "paragraphs") and one.argument != other.argument
    if pair.keys() == {"at_least_words", "at_most_words"}:
        return pair["at_least_words"] > pair["at_most_words"]
    if pair.keys() == {"json", "no_commas"}:
        return len(pair["json"]) > 1
    return "avoids" in pair and bool({"contains", "begins_with"} & pair.keys()) and len({*map(folded, pair.values())}) == 1


# -------------------------------------------------------------------------------------------------------------------- reading

NUMBERS = {word: n for n, word in enumerate("two three four five six seven eight nine ten".split(), 2)}
LONGEST = 400  # signs at the end of a text in which a wish is looked for; more than any has
_N, _KEY = rf"[1-9][0-9]{{0,4}}|{'|'.join(NUMBERS)}", r'"[^"\n]{1,60}"'
# placeholder -> (regular expression, how to read what it found); a word or phrase has a letter or digit
READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": (_N, lambda text: NUMBERS.get(text) or int(text)),
    "fewer": (_N, lambda text: (NUMBERS.get(text) or int(text)) - 1),
    "word": (r'(?=[^"\s]{0,59}[^\W_])[^"\s]{1,60}', str),
    "phrase": (r'(?=[^"\n]{0,199}[^\W_])[^"\n]{1,200}', str),
    "keys": (rf"{_KEY}(?:(?:, {_KEY})? and {_KEY})?", lambda text: frozenset(re.findall(r'"(.+?)"', text))),
}


def _pattern(kind: str, sentences: str) -> str:
    """A kind's sentences as a group of its name, their first letters in either case, placeholders as groups in it."""
    either = re.sub(r"(^|[(|])([A-Z])", lambda m: f"{m[1].replace('(', '(?:')}(?i:{m[2]})", sentences.replace(".", r"\."))
    filled = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{kind}__{m[1]}>{READERS[m[1]][0]})", either)
    return f"(?P<{kind}>{filled})"


_ANY = "|".join(_pattern(kind, row.sentences) for kind, row in KINDS.items())
FIRST = re.compile(rf"\s*(?:{_ANY})(?=\s|\Z)")
# after the start of the text, a sentence's end, or the end of a line that goes on neither with a colon nor with a comma
LAST = re.compile(rf"(\A|[{STOPS}][{re.escape(CLOSERS)}]*(?=\s)|[^\s:,](?=[^\S\n]*[\r\n]))\s*(?:{_ANY})\Z")


def _wish(match: re.Match) -> Wish:
    kind, found = str(match.lastgroup), match.groupdict()
    arguments = [read_it(found[f"{kind}__{name}"]) for name, (_, read_it) in READERS.items() if found.get(f"{kind}__{name}")]
    return Wish(kind, *arguments)


def split(instruction: str) -> tuple[list[Wish], str]:
    """(the wishes in the order of the text, the task without them).

    Below an empty line a context may follow, as Evol-Instruct puts a seed's: where the whole text has no wish, those of what stands
    before its first empty line count.
    """
    found, task = _split(instruction)
    head, line, context = instruction.partition("\n\n")
    if found or not line:
        return found, task
    found, task = _split(head)
    return found, f"{task}{line}{context}".strip()


def _split(instruction: str) -> tuple[list[Wish], str]:
    before, after, start, end = [], [], 0, len(instruction.rstrip())
    while match := LAST.search(instruction, max(0, end - LONGEST), end):
        after.append(_wish(match))
        end = match.end(1)
    while match := FIRST.match(instruction, start, end):
        before.append(_wish(match))
        start = match.end()
    return before + after[::-1], instruction[start:end].strip()


def read(instruction: str) -> list[Wish]:
    """The wishes in an instruction, in the order of its text; a sentence that is none of ours is not a wish.

    Example: 'Name a river. Use at most five words. Avoid the word "Rhine".' gives
    [Wish("at_most_words", 5), Wish("avoids", "Rhine")].
    """
    return split(instruction)[0]


def without(instruction: str) -> str:
    """The task alone."""
    return split(instruction)[1]
