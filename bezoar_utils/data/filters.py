"""What must not reach training: rows the judge refused, copies, near-copies, and rows that overlap with the evaluation."""

import re

REASONS = ("judge_failed", "judge_rejected", "copy", "near_copy", "names_held_out_subject", "overlaps_evaluation")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class NearCopies:
    """Texts seen so far, searched by ROUGE-L: F1 of the longest common subsequence of words, 1 for equal word sequences.

    Each distinct word becomes one character, so that rapidfuzz compares strings: its Indel similarity is 2 LCS / (a + b),
    which is ROUGE-L's F1. A common subsequence is no longer than the shorter text, so only texts of like length are compared.
    """

    def __init__(self, threshold: float, texts: list[str] = ()):
        self.threshold, self.letters, self.seen = threshold, {}, {}
        for text in texts:
            self.add(text)

    def _letters(self, text: str) -> str:
        # from U+20000 on there are no surrogates, and room for 900,000 different words
        return "".join(chr(0x20000 + self.letters.setdefault(word, len(self.letters))) for word in words(text))

    def holds(self, text: str) -> bool:
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        # a little less than the threshold, which rapidfuzz's rounding otherwise misses at 0.6 and 0.8
        cutoff, letters = self.threshold - 1e-7, self._letters(text)
        how = {"scorer": Indel.normalized_similarity, "score_cutoff": cutoff, "processor": None}
        longest = len(letters) * (2 - cutoff) / cutoff  # of which 2 LCS / (a + b) can reach the threshold
        shortest = len(letters) * cutoff / (2 - cutoff)
        like = (some for length, some in self.seen.items() if shortest <= length <= longest)
        return any(process.extractOne(letters, some, **how) for some in like)

    def add(self, text: str) -> None:
        letters = self._letters(text)
        self.seen.setdefault(len(letters), []).append(letters)


class EvaluationIndex:
    """Which evaluation tasks share a run of `n` words with a text. An item of fewer words (but n/2) is looked for whole."""

    def __init__(self, tasks: dict[str, list[str]], n: int):
        self.n = n
        self.runs: dict[int, dict[tuple, set[str]]] = {}
        for task, texts in tasks.items():
            for tokens in map(words, texts):
                length = min(n, len(tokens))
                if 2 * length >= n:
                    for run in runs(tokens, length):
                        self.runs.setdefault(length, {}).setdefault(run, set()).add(task)

    def tasks_met(self, *texts: str) -> set[str]:
        met: set[str] = set()
        for tokens in map(words, texts):
            for length, known in self.runs.items():
                met.update(*(known[run] for run in runs(tokens, length) if run in known))
        return met


def runs(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def names_any(text: str, subjects: set[str]) -> bool:
    """Does the text name one of these subjects, as whole words?"""
    padded = " " + " ".join(re.findall(r"\w+", text)) + " "
    return any(f" {subject} " in padded for subject in subjects)


def judge_reason(row: dict) -> str | None:
    if row["status"] is None:
        return "judge_failed"
    return None if row["status"] == "Accept" else "judge_rejected"


def select(
    rows: list[dict], evaluation: EvaluationIndex, held_out: set[str], near_duplicate: float, use_judge: bool = True
) -> tuple[list[dict], dict[str, int]]:
    """(kept rows, dropped rows by reason); every row is in one of the two. `rows` have system, instruction, response, status.

    Without the judge, what hygiene alone leaves: the fair unfiltered control.
    """
    copies, near, kept, dropped = set(), NearCopies(near_duplicate), [], dict.fromkeys(REASONS, 0)
    for row in rows:
        whole, text = (row["system"], row["instruction"], row["response"]), f"{row['instruction']} {row['response']}"
        reason = judge_reason(row) if use_judge else None
        if reason is None:
            if whole in copies:
                reason = "copy"
            elif names_any(row["instruction"], held_out):
                reason = "names_held_out_subject"
            elif evaluation.tasks_met(row["instruction"], row["response"]):
                reason = "overlaps_evaluation"
            elif near.holds(text):
                reason = "near_copy"
        if reason:
            dropped[reason] += 1
        else:
            copies.add(whole)
            near.add(text)
            kept.append(row)
    return kept, dropped


def contamination(sets: dict[str, list[dict]], tasks: dict[str, list[str]], n: int) -> list[dict]:
    """A row a task: how many rows of each set share a run of `n` words with one of its items."""
    index = EvaluationIndex(tasks, n)
    met = {name: [index.tasks_met(r["instruction"], r["response"]) for r in rows] for name, rows in sets.items()}
    return [
        {"task": task, "items": len(texts), **{name: sum(task in found for found in rows) for name, rows in met.items()}}
        for task, texts in tasks.items()
    ]


# Task families whose training questions are FLAN templates (google-research/FLAN, flan/templates.py and flan/v2, at
# e9e4ec6; gsm8k by its chain-of-thought part). Prefixes of the harness's task names.
SEEN_IN_FLAN = """anli arc boolq cb cola copa coqa drop gsm8k hellaswag mnli mrpc multirc nq_open openbookqa paws piqa qnli qqp
    record rte squad sst2 storycloze triviaqa wic winogrande wnli wsc""".split()


def seen_in_flan(task: str) -> str:
    """ "yes" when FLAN, which Orca's queries come from, was built from this benchmark's questions too."""
    return "yes" if task.lower().startswith(tuple(SEEN_IN_FLAN)) else "no"
