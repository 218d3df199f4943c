"""What must not reach training: rows the judge refused, copies, near-copies, and rows that overlap with the evaluation."""

import re

REASONS = ("judge_failed", "judge_rejected", "copy", "near_copy", "names_held_out_subject", "overlaps_evaluation")
EXACT_UP_TO = 10_000  # texts that are all compared with each other; with more, datasketch proposes whom to compare
HASHES, RECALL = 128, 0.995


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class NearCopies:
    """Texts seen so far, searched by ROUGE-L: F1 of the longest common subsequence of words, 1 for equal word sequences.

    Each distinct word becomes one character, so that rapidfuzz compares strings: its Indel similarity is 2 LCS / (a + b),
    which is ROUGE-L's F1. The first `exact_up_to` texts are all compared, so nothing is missed among them. After that, only
    the texts that MinHashLSH proposes are compared (see `WordSets`): an accepted near copy is always a real one, but of the
    pairs exactly at the threshold at most one in 200 is missed, fewer above it. The same texts in the same order always
    give the same answers.

    Example: with threshold 0.7 and the text "name one of the rivers", the text "name one of these rivers" is a near copy,
    because four words in order are common: 2 x 4 / (5 + 5) = 0.8. "name a lake" is not: 2 x 1 / (5 + 3) = 0.25.
    """

    def __init__(self, threshold: float, texts: list[str] = (), exact_up_to: int = EXACT_UP_TO):
        self.threshold, self.exact_up_to = threshold, exact_up_to
        self.letters: dict[str, int] = {}
        self.seen: list[str] = []
        self.by_length: dict[int, list[str]] = {}
        self.word_sets: WordSets | None = None
        for text in texts:
            self.add(text)

    def _letters(self, text: str) -> str:
        # from U+20000 on there are no surrogates, and room for 900,000 different words
        return "".join(chr(0x20000 + self.letters.setdefault(word, len(self.letters))) for word in words(text))

    def holds(self, text: str) -> bool:
        """Is the text a near copy of one that was added?"""
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        # a little less than the threshold, which rapidfuzz's rounding otherwise misses at 0.6 and 0.8
        cutoff, letters = self.threshold - 1e-7, self._letters(text)
        how = {"scorer": Indel.normalized_similarity, "score_cutoff": cutoff, "processor": None}
        return any(process.extractOne(letters, group, **how) for group in self._candidates(letters, cutoff))

    def _candidates(self, letters: str, cutoff: float):
        if self.word_sets:
            return [[self.seen[number] for number in self.word_sets.like(letters)]]
        # a common subsequence is not longer than the shorter text, so 2 LCS / (a + b) bounds the lengths
        longest, shortest = len(letters) * (2 - cutoff) / cutoff, len(letters) * cutoff / (2 - cutoff)
        return (group for length, group in self.by_length.items() if shortest <= length <= longest)

    def add(self, text: str) -> None:
        letters = self._letters(text)
        self.seen.append(letters)
        if self.word_sets:
            self.word_sets.add(letters)
        elif len(self.seen) > self.exact_up_to:
            self.word_sets = WordSets(self.threshold, self.seen)
        else:
            self.by_length.setdefault(len(letters), []).append(letters)


class WordSets:
    """Texts by MinHashLSH over their words, a word's second occurrence counting as another word.

    Two texts with ROUGE-L t share a word set of Jaccard similarity t / (2 - t) or more, since all words of the common
    subsequence are in both. `bands_and_rows` finds such pairs with a probability of at least `RECALL`.
    """

    def __init__(self, threshold: float, texts: list[str]):
        from datasketch import MinHash, MinHashLSH

        bands, rows = bands_and_rows(threshold / (2 - threshold))
        self.blank = MinHash(bands * rows, seed=1, hashfunc=int, scheme="affine32")
        self.index, self.size = MinHashLSH(num_perm=bands * rows, params=(bands, rows)), 0
        for text in texts:
            self.add(text)

    def _minhash(self, text: str):
        counts: dict[str, int] = {}
        minhash = self.blank.copy()
        for letter in text:
            counts[letter] = counts.get(letter, -1) + 1
        minhash.update_batch([(ord(c) - 0x20000) * 4096 + n for c, last in counts.items() for n in range(min(last, 4095) + 1)])
        return minhash

    def like(self, text: str) -> list[int]:
        return self.index.query(self._minhash(text))

    def add(self, text: str) -> None:
        self.index.insert(self.size, self._minhash(text), check_duplication=False)
        self.size += 1


def bands_and_rows(similarity: float) -> tuple[int, int]:
    """(bands, rows a band) of the most selective LSH that finds a pair of this Jaccard similarity often enough.

    A pair shares a band of r hash values with probability similarity^r, so one of b bands with 1 - (1 - similarity^r)^b.
    """
    for rows in range(16, 1, -1):
        if 1 - (1 - similarity**rows) ** (HASHES // rows) >= RECALL:
            return HASHES // rows, rows
    return HASHES, 1


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
