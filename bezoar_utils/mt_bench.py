"""MT-Bench's machinery (arXiv 2306.05685): two-turn questions by category, single-answer grading from 1 to 10.

Judge words are ours. A failed grade stays a failure: it is counted, and no score is made up for it.
"""

from .generation import generate
from .template import clean_response, render_prompt

QUESTION_COLUMNS = {"question_id": int, "category": str, "turns": list}  # FastChat's format


def answer_questions(model, tokenizer, questions: list[dict], settings: dict, seed: int, progress=None) -> list[dict]:
    """One row a question and turn: model answers with its own first answer as history of the second turn."""
    rows = []
    first = _turn(model, tokenizer, questions, [None] * len(questions), 0, settings, seed, progress)
    histories = [[(q["turns"][0], a)] for q, a in zip(questions, first)]
    second = _turn(model, tokenizer, questions, histories, 1, settings, seed, progress)
    for question, *answers in zip(questions, first, second):
        for turn, answer in enumerate(answers):
            rows.append(
                {
                    "question_id": question["question_id"],
                    "category": question["category"],
                    "turn": turn + 1,
                    "question": question["turns"][turn],
                    "answer": answer,
                }
            )
    return rows


def _turn(model, tokenizer, questions, histories, turn, settings, seed, progress) -> list[str]:
    """Answers in question order. Questions are grouped by their category's temperature, as published."""
    answers: list[str] = [""] * len(questions)
    temperatures = [settings["temperature"].get(q["category"], settings["default_temperature"]) for q in questions]
    for temperature in sorted(set(temperatures)):
        chosen = [i for i, t in enumerate(temperatures) if t == temperature]
        prompts = [render_prompt(questions[i]["turns"][turn], history=histories[i]) for i in chosen]
        texts = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=settings["max_new_tokens"],
            seed=seed + turn,
            temperature=temperature,
            progress=progress,
        )
        for i, text in zip(chosen, texts):
            answers[i] = clean_response(text)
    return answers


def mean_by(rows: list[dict], *keys: str) -> dict[tuple, float]:
    """Mean rating over graded rows for each value of `keys`."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["rating"] is not None:
            groups.setdefault(tuple(row[k] for k in keys), []).append(row["rating"])
    return {key: sum(values) / len(values) for key, values in groups.items()}
