"""MT-Bench's machinery (arXiv 2306.05685): two-turn questions by category, graded answer by answer and pair by pair.

The wording of the judge's prompts is ours. A failed grade stays a failure: it is counted and not replaced by a score. The
two turns of a question are not independent, so every interval here is over questions, not over answers.
"""

import random
from typing import Annotated

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, BeforeValidator, StrictInt, StrictStr, ValidationError

from ..calls.judge import Comparison, Grade, judge_prompt
from ..data import sources
from ..data.sources import SourceError
from ..data.template import clean_response, render_prompt
from ..training.generation import generate
from . import stats

TURNS = 2
OTHER = {"first": "second", "second": "first", "tie": "tie"}  # a comparison's word once its answers are put back in order


# -------------------------------------------------------------------------------------------------------------- questions


def _text(text: str) -> str:
    text.encode()  # raises a ValueError for half a character, which JSON can spell but no tokenizer reads
    return text


TwoTexts = Annotated[list[Annotated[StrictStr, AfterValidator(_text)]], Len(TURNS, TURNS)]


class Question(BaseModel):
    """A row of FastChat's question file. Its `reference` may be absent, empty, or two texts, one of which may be empty."""

    question_id: StrictInt
    category: StrictStr
    turns: TwoTexts
    reference: Annotated[TwoTexts, BeforeValidator(lambda value: [""] * TURNS if value in (None, []) else value)] = [""] * TURNS


class Choice(BaseModel):
    turns: TwoTexts


class Reference(BaseModel):
    """A row of FastChat's reference answers, of which the first choice counts."""

    question_id: StrictInt
    choices: Annotated[list[Choice], Len(1)]


QUESTION_COLUMNS = {"question_id": int, "category": str, "turns": list}
REFERENCE_COLUMNS = {"question_id": int, "choices": list}


def read_questions(source: dict, references: dict | None, stage) -> list[dict]:
    """Question rows of FastChat's format, each with `reference`: two texts, None where a turn has none.

    `references`, a source of FastChat's reference answers, takes the place of a row's own. Raises SourceError naming the
    question for a missing or empty turn, a repeated question_id and any other shape.
    """
    questions = [check_question(row) for row in sources.read(source, QUESTION_COLUMNS, stage)]
    by_id = _unique(questions, "question_id")
    rows = sources.read(references, REFERENCE_COLUMNS, stage) if references else []
    for number, row in _unique(rows, "question_id of the reference answers").items():
        answer = _validated(Reference, row, "reference answer to question")
        if number in by_id:
            by_id[number]["reference"] = [text or None for text in answer.choices[0].turns]
    return questions


def check_question(row: dict) -> dict:
    """The four columns of `Question`, `reference` as two texts or None each. Raises SourceError naming the question."""
    question = _validated(Question, row, "question")
    if blank := [number for number, text in enumerate(question.turns, 1) if not text.strip()]:
        raise SourceError(f"question {question.question_id}: turn {blank[0]} is empty")
    return question.model_dump() | {"reference": [text or None for text in question.reference]}


def _validated(model: type[BaseModel], row: dict, what: str) -> BaseModel:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise SourceError(f"{what} {row['question_id']}: {place}: {fault['msg']}, got {fault['input']!r:.60}") from None


def _unique(rows: list[dict], what: str) -> dict[int, dict]:
    by_id: dict[int, dict] = {}
    for row in rows:
        if row["question_id"] in by_id:
            raise SourceError(f"duplicate {what} {row['question_id']}")
        by_id[row["question_id"]] = row
    return by_id


# ---------------------------------------------------------------------------------------------------------------- answers


def answer_questions(model, tokenizer, questions: list[dict], settings: dict, seed: int, progress=None) -> list[dict]:
    """One row per question and turn; the model's own first answer is the history of the second turn.

    `ended` is false for an answer that was cut at `max_new_tokens`.
    """
    first = _turn(model, tokenizer, questions, [None] * len(questions), 0, settings, seed, progress)
    histories = [[(q["turns"][0], answer)] for q, (answer, _) in zip(questions, first)]
    second = _turn(model, tokenizer, questions, histories, 1, settings, seed, progress)
    return [
        {"question_id": question["question_id"], "category": question["category"], "turn": turn}
        | {"question": question["turns"][turn - 1], "answer": answer, "ended": ended}
        for question, *both in zip(questions, first, second)
        for turn, (answer, ended) in enumerate(both, 1)
    ]


def _turn(model, tokenizer, questions, histories, turn, settings, seed, progress) -> list[tuple[str, bool]]:
    """Answers in question order. Questions are grouped by their category's temperature, as published."""
    answers: list[tuple[str, bool]] = [("", True)] * len(questions)
    temperatures = [settings["temperature"].get(q["category"], settings["default_temperature"]) for q in questions]
    for temperature in sorted(set(temperatures)):
        numbers, cut = [i for i, t in enumerate(temperatures) if t == temperature], set()
        prompts = [render_prompt(questions[i]["turns"][turn], history=histories[i]) for i in numbers]
        texts = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=settings["max_new_tokens"],
            seed=seed + turn,
            temperature=temperature,
            progress=progress,
            cut=cut,
        )
        for place, (i, text) in enumerate(zip(numbers, texts)):
            answer = clean_response(text)
            # a text that went on with another turn had ended its own
            answers[i] = (answer, place not in cut or answer != text.strip())
    return answers


def answers_by(rows: list[dict]) -> dict[tuple[str, int], list[str]]:
    """(model, question_id) -> its answers, turn by turn."""
    texts: dict[tuple[str, int], list[str]] = {}
    for row in sorted(rows, key=lambda row: row["turn"]):
        texts.setdefault((row["model"], row["question_id"]), []).append(row["answer"])
    return texts


# ---------------------------------------------------------------------------------------------------------------- judging


def sections(question: dict, sides: dict[str, list[str]], turn: int, guided: bool) -> dict[str, str]:
    """What a judge is shown of a dialog up to `turn`: questions, the reference where `guided`, and each side's answers.

    Names of parts from turns before the judged one begin with `earlier_`.
    """
    parts = {}
    for number in range(turn):
        before = "earlier_" if number + 1 < turn else ""
        parts[f"{before}question"] = question["turns"][number]
        if guided and question["reference"][number]:
            parts[f"{before}reference"] = question["reference"][number]
        parts |= {f"{before}{side}": texts[number] for side, texts in sides.items()}
    return parts


def grade_prompts(questions: list[dict], answers: list[dict], reference_categories: list[str]) -> list[str]:
    """A prompt per answer, in order; the second turn is graded with the whole dialog in view."""
    by_id, texts, prompts = _unique(questions, "question_id"), answers_by(answers), []
    for row in answers:
        sides = {"answer": texts[row["model"], row["question_id"]]}
        guided = row["category"] in reference_categories
        prompts.append(judge_prompt(Grade, **sections(by_id[row["question_id"]], sides, row["turn"], guided)))
    return prompts


def pair_rows(questions: list[dict], answers: list[dict], pairs: list, reference_categories: list[str]) -> list[dict]:
    """A row for each pair of models, question and turn, with the prompt in both orders (`prompt`, `turned`)."""
    texts, rows = answers_by(answers), []
    for model, against in pairs:
        for question in questions:
            one, other = texts[model, question["question_id"]], texts[against, question["question_id"]]
            orders = {"prompt": {"first": one, "second": other}, "turned": {"first": other, "second": one}}
            guided = question["category"] in reference_categories
            for turn in range(1, TURNS + 1):
                prompts = {o: judge_prompt(Comparison, **sections(question, sides, turn, guided)) for o, sides in orders.items()}
                row = {"model": model, "against": against, "question_id": question["question_id"], "turn": turn}
                rows.append(row | prompts)
    return rows


def pair_outcome(straight: str | None, turned: str | None) -> dict:
    """What two words on one pair mean for the side that was first in `straight` and second in `turned`.

    `outcome`: 1 won, -1 lost, 0 tie (the two orders must agree on a winner); None when a word is missing. `flipped`: the
    word changed with the order.

    Example: "first", then "second" in the turned order, is the same winner: {"outcome": 1, "flipped": False}. "first" in both
    orders only shows that the judge likes the first answer: {"outcome": 0, "flipped": True}.
    """
    if straight is None or turned is None:
        return {"outcome": None, "flipped": None}
    agreed = straight == OTHER[turned]
    return {"outcome": {"first": 1, "second": -1, "tie": 0}[straight] if agreed else 0, "flipped": not agreed}


def pair_counts(rows: list[dict]) -> dict:
    """How many pair rows were asked about, and how many of those were won, tied, lost, failed and flipped."""
    outcomes = [row["outcome"] for row in rows]
    counts = {name: outcomes.count(outcome) for name, outcome in {"won": 1, "tie": 0, "lost": -1, "failed": None}.items()}
    return {"asked": len(rows), **counts, "flipped": sum(row["flipped"] is True for row in rows)}


# ---------------------------------------------------------------------------------------------------------------- numbers


def mean_by(rows: list[dict], *keys: str) -> dict[tuple, float]:
    """Mean rating over graded rows for each value of `keys`."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["rating"] is not None:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["rating"])
    return {key: sum(values) / len(values) for key, values in groups.items()}


def some_places(n: int, most: int, seed: int) -> list[int]:
    """At most `most` of n places by chance, in order: every fourth of them would all be first turns."""
    return sorted(random.Random(seed).sample(range(n), min(most, n)))


def grade_agreement(first: list[int | None], second: list[int | None]) -> dict:
    """How two grades of the same answers agree: n of asked, exact (share), within one point (share), Cohen's kappa of the exact
    ones."""
    exact = stats.agreement(first, second)
    distances = [abs(a - b) for a, b in zip(first, second) if a is not None and b is not None]
    near = sum(distance <= 1 for distance in distances) / len(distances) if distances else None
    counts = {name: exact[name] for name in ("n", "asked")}
    return counts | {"exact": exact["agree"], "within one point": near, "kappa": exact["kappa"]}


def differences(answers: list[dict], model: str, against: str) -> tuple[list[float], list[float]]:
    """(grades, words): how much `model` has more than `against`, per question of which both have all grades."""
    sides = [[r | {"words": len(r["answer"].split())} for r in answers if r["model"] == name] for name in (against, model)]
    grades, words = (stats.pair(*(stats.by_question(side, column) for side in sides)) for column in ("rating", "words"))
    return [after - before for before, after in grades.values()], [words[q][1] - words[q][0] for q in grades]
