"""What must not reach training: rows the judge refused, copies, and rows that overlap with the evaluation."""

import re

REASONS = ("judge_failed", "judge_rejected", "copy", "names_held_out_subject", "overlaps_evaluation")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """All runs of n words; a text shorter than n counts as one run."""
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))} if tokens else set()


def names_any(text: str, subjects: set[str]) -> bool:
    """Does the text name one of these subjects, as whole words?"""
    padded = " " + " ".join(re.findall(r"\w+", text)) + " "
    return any(f" {subject} " in padded for subject in subjects)


def judge_reason(row: dict) -> str | None:
    if row["status"] is None:
        return "judge_failed"
    return None if row["status"] == "Accept" else "judge_rejected"


def hygiene_reason(row: dict, seen: set, evaluation: set[tuple[str, ...]], held_out: set[str], n: int) -> str | None:
    if (row["system"], row["instruction"], row["response"]) in seen:
        return "copy"
    if names_any(row["instruction"], held_out):
        return "names_held_out_subject"
    if evaluation & ngrams(row["instruction"], n):
        return "overlaps_evaluation"
    return None


def select(
    rows: list[dict], evaluation_texts: list[str], held_out: set[str], n: int, use_judge: bool = True
) -> tuple[list[dict], dict[str, int]]:
    """(kept rows, dropped rows by reason); every row is in one of the two. `rows` have system, instruction, response, status.

    Without the judge, what hygiene alone leaves: the fair unfiltered control.
    """
    evaluation = set().union(*(ngrams(text, n) for text in evaluation_texts))
    seen, kept, dropped = set(), [], dict.fromkeys(REASONS, 0)
    for row in rows:
        reason = (judge_reason(row) if use_judge else None) or hygiene_reason(row, seen, evaluation, held_out, n)
        if reason:
            dropped[reason] += 1
        else:
            seen.add((row["system"], row["instruction"], row["response"]))
            kept.append(row)
    return kept, dropped
