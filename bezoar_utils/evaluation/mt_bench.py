"""MT-Bench's machinery (arXiv 2306.05685): two-turn questions by category, graded answer by answer and pair by pair.

Judge words are ours. A failed grade stays a failure: it is counted, and no score is made up for it. Both turns of a
question hang together, so every interval here is over questions, not over answers.
"""

import random
from pathlib import Path

from ..calls.judge import Comparison, Grade, judge_prompt
from ..data import sources
from ..data.sources import SourceError
from ..data.template import clean_response, render_prompt
from ..study import files
from ..training.generation import generate
from .stats import agreement

QUESTION_COLUMNS = {"question_id": int, "category": str, "turns": list}  # FastChat's format
REFERENCE_COLUMNS = {"question_id": int, "choices": list}
TURNS = 2
OTHER = {"first": "second", "second": "first", "tie": "tie"}  # a comparison's word once its answers are put back in order


# -------------------------------------------------------------------------------------------------------------- questions


def read_questions(source: dict, references: dict | None, stage) -> list[dict]:
    """Question rows of FastChat's format, each with `reference`: two texts, None where a turn has none.

    `references`, a source of FastChat's reference answers, takes the place of a row's own. Raises SourceError naming the
    question for a missing or empty turn, a repeated question_id and any other shape.
    """
    questions = [check_question(row) for row in sources.read(source, QUESTION_COLUMNS, stage)]
    by_id = _unique(questions, "question")
    answers = [check_reference(row) for row in sources.read(references, REFERENCE_COLUMNS, stage)] if references else []
    for number, answer in _unique(answers, "reference answer").items():
        if number in by_id:
            by_id[number]["reference"] = answer["reference"]
    return questions


def check_question(row: dict) -> dict:
    """The row's four columns. Its own `reference` may be absent, empty, or two texts, of which one may be empty."""
    where = f"question {row['question_id']}"
    turns = _two_texts(row["turns"], f"{where}: turns")
    if blank := [number for number, text in enumerate(turns, 1) if not text.strip()]:
        raise SourceError(f"{where}: turn {blank[0]} is empty")
    own = row.get("reference")
    reference = _two_texts(own, f"{where}: reference") if own not in (None, []) else [None, None]
    return {
        "question_id": row["question_id"],
        "category": row["category"],
        "turns": turns,
        "reference": [text or None for text in reference],
    }


def check_reference(row: dict) -> dict:
    """question_id and `reference` of one row of FastChat's reference answers, its first choice."""
    where = f"the reference answer to question {row['question_id']}"
    choice = row["choices"][0] if row["choices"] else None
    if not isinstance(choice, dict) or "turns" not in choice:
        raise SourceError(f"{where}: choices must begin with a mapping that has turns")
    turns = _two_texts(choice["turns"], f"{where}: turns")
    return {"question_id": row["question_id"], "reference": [text or None for text in turns]}


def _two_texts(value, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) != TURNS or not all(isinstance(text, str) for text in value):
        raise SourceError(f"{where} must be a list of exactly {TURNS} texts, got {value!r:.60}")
    return value


def _unique(rows: list[dict], what: str) -> dict[int, dict]:
    by_id: dict[int, dict] = {}
    for row in rows:
        if row["question_id"] in by_id:
            raise SourceError(f"{what} {row['question_id']} is there twice")
        by_id[row["question_id"]] = row
    return by_id


# ---------------------------------------------------------------------------------------------------------------- answers


def kept_answers(folder: Path, key: list, answer) -> list[dict]:
    """The rows of `answer()`, from `folder` if they were finished there under the same key (of plain values)."""
    return files.kept_json(folder / f"{files.sha256_json(key)}.json", answer)


def answer_questions(model, tokenizer, questions: list[dict], settings: dict, seed: int, progress=None) -> list[dict]:
    """One row a question and turn: model answers with its own first answer as history of the second turn.

    `ended` is false for an answer that was still going at `max_new_tokens`.
    """
    first = _turn(model, tokenizer, questions, [None] * len(questions), 0, settings, seed, progress)
    histories = [[(q["turns"][0], answer)] for q, (answer, _) in zip(questions, first)]
    second = _turn(model, tokenizer, questions, histories, 1, settings, seed, progress)
    return [
        {
            "question_id": question["question_id"],
            "category": question["category"],
            "turn": turn,
            "question": question["turns"][turn - 1],
            "answer": answer,
            "ended": ended,
        }
        for question, *both in zip(questions, first, second)
        for turn, (answer, ended) in enumerate(both, 1)
    ]


def _turn(model, tokenizer, questions, histories, turn, settings, seed, progress) -> list[tuple[str, bool]]:
    """Answers in question order. Questions are grouped by their category's temperature, as published."""
    answers: list[tuple[str, bool]] = [("", True)] * len(questions)
    temperatures = [settings["temperature"].get(q["category"], settings["default_temperature"]) for q in questions]
    for temperature in sorted(set(temperatures)):
        chosen, cut = [i for i, t in enumerate(temperatures) if t == temperature], set()
        prompts = [render_prompt(questions[i]["turns"][turn], history=histories[i]) for i in chosen]
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
        for place, (i, text) in enumerate(zip(chosen, texts)):
            answer = clean_response(text)
            # a text that began another turn had ended its own
            answers[i] = (answer, place not in cut or answer != text.strip())
    return answers


def answers_by(rows: list[dict]) -> dict[tuple[str, int], list[str]]:
    """(model, question_id) -> its answers, turn by turn."""
    said: dict[tuple[str, int], list[str]] = {}
    for row in sorted(rows, key=lambda row: row["turn"]):
        said.setdefault((row["model"], row["question_id"]), []).append(row["answer"])
    return said


# ---------------------------------------------------------------------------------------------------------------- judging


def sections(question: dict, sides: dict[str, list[str]], turn: int, guided: bool) -> dict[str, str]:
    """What a judge is shown of a dialog up to `turn`: questions, the reference where `guided`, and what each side said.

    Parts of turns before the judged one begin with `earlier_`.
    """
    parts = {}
    for number in range(turn):
        before = "earlier_" if number + 1 < turn else ""
        parts[f"{before}question"] = question["turns"][number]
        if guided and question["reference"][number]:
            parts[f"{before}reference"] = question["reference"][number]
        parts |= {f"{before}{side}": said[number] for side, said in sides.items()}
    return parts


def grade_prompts(questions: list[dict], answers: list[dict], reference_categories: list[str]) -> list[str]:
    """A prompt an answer, in order; the second turn is graded with the whole dialog shown."""
    by_id, said = _unique(questions, "question"), answers_by(answers)
    return [
        judge_prompt(
            Grade,
            **sections(
                by_id[row["question_id"]],
                {"answer": said[row["model"], row["question_id"]]},
                row["turn"],
                row["category"] in reference_categories,
            ),
        )
        for row in answers
    ]


def pair_rows(questions: list[dict], answers: list[dict], pairs: list, reference_categories: list[str]) -> list[dict]:
    """A row for each pair of models, question and turn, with the prompt in both orders (`prompt`, `turned`)."""
    said, rows = answers_by(answers), []
    for one, other in pairs:
        for question in questions:
            mine, theirs = said[one, question["question_id"]], said[other, question["question_id"]]
            orders = ({"first": mine, "second": theirs}, {"first": theirs, "second": mine})
            guided = question["category"] in reference_categories
            for turn in range(1, TURNS + 1):
                prompts = [judge_prompt(Comparison, **sections(question, sides, turn, guided)) for sides in orders]
                row = {"model": one, "against": other, "question_id": question["question_id"], "turn": turn}
                rows.append(row | dict(zip(("prompt", "turned"), prompts)))
    return rows


def pair_outcome(straight: str | None, turned: str | None) -> dict:
    """What two words on one pair are worth to the side that stood first in `straight` and second in `turned`.

    `outcome`: 1 won, -1 lost, 0 tie (the two orders must agree on a winner); None when a word is missing. `flipped`: the
    word changed with the order.
    """
    if straight is None or turned is None:
        return {"outcome": None, "flipped": None}
    agreed = straight == OTHER[turned]
    return {"outcome": {"first": 1, "second": -1, "tie": 0}[straight] if agreed else 0, "flipped": not agreed}


def pair_counts(rows: list[dict]) -> dict:
    """won, tie, lost, failed, flipped of pair rows; they and `asked`, all rows, are counts."""
    outcomes = [row["outcome"] for row in rows]
    return {
        "asked": len(rows),
        "won": outcomes.count(1),
        "tie": outcomes.count(0),
        "lost": outcomes.count(-1),
        "failed": outcomes.count(None),
        "flipped": sum(row["flipped"] is True for row in rows),
    }


# ---------------------------------------------------------------------------------------------------------------- numbers


def by_question(rows: list[dict], column: str) -> list[float]:
    """The mean of `column` for each question that has a value at all, in the questions' order."""
    return list(_means(rows, column, "question_id").values())


def mean_by(rows: list[dict], *keys: str) -> dict[tuple, float]:
    """Mean rating over graded rows for each value of `keys`."""
    return _means(rows, "rating", *keys)


def _means(rows: list[dict], column: str, *keys: str) -> dict[tuple, float]:
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            groups.setdefault(tuple(row[k] for k in keys), []).append(row[column])
    return {key: sum(values) / len(values) for key, values in groups.items()}


def some_places(n: int, wanted: int, seed: int) -> list[int]:
    """At most `wanted` of n places by chance, in order: every fourth of them would all be first turns."""
    return sorted(random.Random(seed).sample(range(n), min(wanted, n)))


def grade_agreement(first: list[int | None], second: list[int | None]) -> dict:
    """How two grades of the same answers agree: n, exact (share), within one point (share), Cohen's kappa of the exact ones."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    exact = agreement(first, second)
    near = sum(abs(a - b) <= 1 for a, b in both) / len(both) if both else None
    return {"n": len(both), "exact": exact["agree"], "within one point": near, "kappa": exact["kappa"]}


def words(text: str) -> int:
    return len(text.split())


def differences(answers: list[dict], model: str, against: str) -> tuple[list[float], list[float]]:
    """(grades, words): how much `model` has more than `against`, a question, over the turns for which both have a grade."""
    rows = {name: {(r["question_id"], r["turn"]): r for r in answers if r["model"] == name} for name in (model, against)}
    apart = [
        {
            "question_id": key[0],
            "grade": one["rating"] - other["rating"],
            "words": words(one["answer"]) - words(other["answer"]),
        }
        for key, one in rows[model].items()
        if one["rating"] is not None and (other := rows[against][key])["rating"] is not None
    ]
    return by_question(apart, "grade"), by_question(apart, "words")


def at_equal_length(grades: list[float], lengths: list[float], samples: int, confidence: float, seed: int) -> dict:
    """The grade difference two models would have at equal length, if a line of grade on length differences holds.

    Least squares: grade difference = difference + slope x word difference, so `difference` is the intercept. `low` and
    `high` are its percentile bootstrap over questions. Where lengths differ nowhere, the slope is 0.
    Raises ValueError for lists of unequal length or none.
    """
    import numpy as np

    y, x = np.asarray(grades, dtype=float), np.asarray(lengths, dtype=float)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"a line needs as many grades as lengths and at least one, got {len(y)} and {len(x)}")
    difference, slope = _line(y, x)
    draws = np.random.default_rng(seed).integers(0, len(x), (samples, len(x)))
    low, high = np.quantile(_line(y[draws], x[draws])[0], [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"difference": float(difference), "low": float(low), "high": float(high), "slope": float(slope), "n": len(x)}


def _line(y, x):
    """(intercept, slope) of least squares along the last axis."""
    import numpy as np

    across = x - x.mean(-1, keepdims=True)
    spread = (across**2).sum(-1)
    slope = (across * y).sum(-1) / np.where(spread > 0, spread, 1)
    return y.mean(-1) - slope * x.mean(-1), slope
