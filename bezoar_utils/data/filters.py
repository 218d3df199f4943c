"""What must not reach training: rows the judge refused, copies, near copies, and rows that overlap with the evaluation."""

import re
from collections.abc import Iterable

REASONS = ("judge_failed", "judge_rejected", "copy", "near_copy", "names_held_out_subject", "overlaps_evaluation")
EXACT_UP_TO = 5_000  # texts; up to here comparing all of them is about as fast as MinHashLSH (benchmarks/near_copies.py)
HASHES, RECALL = 128, 0.995


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class NearCopies:
    """Texts seen so far, searched by ROUGE-L: F1 of the longest common subsequence of words, 1 for equal word sequences.

    Each distinct word becomes one character, so that rapidfuzz compares strings: its Indel similarity is 2 LCS / (a + b),
    which is ROUGE-L's F1. Up to `exact_up_to` texts, all are compared and no near copy is missed. With more, only those
    that MinHashLSH proposes are compared: what is called a near copy still is one, but about one in 200 of the pairs exactly
    at the threshold may be missed, fewer above it (see `WordSets`). The same texts in the same order give the same answers.

    Example: with threshold 0.7 and the text "name one of the rivers", the text "name one of these rivers" is a near copy,
    because four words in order are common: 2 x 4 / (5 + 5) = 0.8. "name a lake" is not: 2 x 1 / (5 + 3) = 0.25.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = (), exact_up_to: int = EXACT_UP_TO):
        self.cutoff = threshold - 1e-7  # a little less, because rapidfuzz's rounding otherwise misses 0.6 and 0.8
        self.exact_up_to = exact_up_to
        self.letters: dict[str, int] = {}
        self.texts: list[str] = []
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

        letters = self._letters(text)
        similarity, cutoff = Indel.normalized_similarity, self.cutoff
        groups = self._candidates(letters)
        return any(process.extractOne(letters, group, scorer=similarity, score_cutoff=cutoff) for group in groups)

    def _candidates(self, letters: str):
        if self.word_sets:
            return [[self.texts[number] for number in self.word_sets.similar(letters)]]
        # a common subsequence is not longer than the shorter text, so only texts of similar length reach the threshold
        ratio = (2 - self.cutoff) / self.cutoff
        return (group for length, group in self.by_length.items() if len(letters) / ratio <= length <= len(letters) * ratio)

    def add(self, text: str) -> None:
        letters = self._letters(text)
        self.texts.append(letters)
        self.by_length.setdefault(len(letters), []).append(letters)
        if self.word_sets:
            self.word_sets.add(letters)
        elif len(self.texts) > self.exact_up_to:
            self.word_sets = WordSets(self.cutoff, self.texts)


class WordSets:
    """Numbered texts, searched by datasketch's MinHashLSH for those that share most words.

    A word's second occurrence counts as another word. All words of a common subsequence are in both texts, so a ROUGE-L of t
    means a Jaccard similarity of the two sets of at least t / (2 - t). Two sets of similarity s agree in one hash with
    probability s, and in all `rows` hashes of at least one of the `bands` with 1 - (1 - s^rows)^bands, which is at least
    `RECALL` at the threshold. More rows a band propose fewer texts in vain.
    """

    def __init__(self, threshold: float, texts: list[str]):
        from datasketch import MinHash, MinHashLSH

        similarity = threshold / (2 - threshold)
        rows = max(r for r in range(1, 17) if r == 1 or 1 - (1 - similarity**r) ** (HASHES // r) >= RECALL)
        bands = HASHES // rows
        self.empty = MinHash(bands * rows, seed=1, hashfunc=int, scheme="affine32")
        self.index, self.size = MinHashLSH(num_perm=bands * rows, params=(bands, rows)), 0
        for text in texts:
            self.add(text)

    def _minhash(self, text: str):
        counts: dict[str, int] = {}
        for letter in text:
            counts[letter] = min(counts.get(letter, 0) + 1, 4096)
        minhash = self.empty.copy()
        minhash.update_batch([(ord(letter) - 0x20000) * 4096 + n for letter, count in counts.items() for n in range(count)])
        return minhash

    def similar(self, text: str) -> list[int]:
        return self.index.query(self._minhash(text))

    def add(self, text: str) -> None:
        self.index.insert(self.size, self._minhash(text), check_duplication=False)
        self.size += 1


class EvaluationIndex:
    """Which evaluation tasks share a run of `n` words with a text. An item with fewer words is searched for as a whole, unless
    it has less than n/2."""

    def __init__(self, tasks: dict[str, list[str]], n: int):
        self.tasks_by_run: dict[int, dict[tuple, set[str]]] = {}  # length of a run -> run -> tasks
        for task, texts in tasks.items():
            for tokens in map(words, texts):
                length = min(n, len(tokens))
                if 2 * length >= n:
                    for run in runs(tokens, length):
                        self.tasks_by_run.setdefault(length, {}).setdefault(run, set()).add(task)

    def tasks_met(self, *texts: str) -> set[str]:
        tasks: set[str] = set()
        for tokens in map(words, texts):
            for length, tasks_of in self.tasks_by_run.items():
                tasks.update(*(tasks_of[run] for run in runs(tokens, length) if run in tasks_of))
        return tasks


def runs(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def word_forms(subjects: set[str]) -> set[str]:
    """Each subject, its plural in -s and -es, and all of them as a sentence begins: "bee", "bees", "Bees"."""
    plain = {f"{subject}{ending}" for subject in subjects for ending in ("", "s", "es")}
    return plain | {word[:1].upper() + word[1:] for word in plain}


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
    """(selected rows, dropped rows by reason); every row is in one of the two. `rows` have system, instruction, response, status.

    With `use_judge` false the judge's status is ignored: the fair unfiltered control.
    """
    copies, near, selected, dropped = set(), NearCopies(near_duplicate), [], dict.fromkeys(REASONS, 0)
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
            selected.append(row)
    return selected, dropped


def contamination(sets: dict[str, list[dict]], tasks: dict[str, list[str]], n: int) -> list[dict]:
    """A row per task: how many rows of each set share a run of `n` words with one of its items."""
    index = EvaluationIndex(tasks, n)
    met = {name: [index.tasks_met(r["instruction"], r["response"]) for r in rows] for name, rows in sets.items()}
    return [
        {"task": task, "items": len(texts), **{name: sum(task in row for row in rows) for name, rows in met.items()}}
        for task, texts in tasks.items()
    ]


# Task families whose training questions are FLAN templates (google-research/FLAN, flan/templates.py and flan/v2, at
# e9e4ec6; gsm8k by its chain-of-thought part). Prefixes of the harness's task names.
SEEN_IN_FLAN = """anli arc boolq cb cola copa coqa drop gsm8k hellaswag mnli mrpc multirc nq_open openbookqa paws piqa qnli qqp
    record rte squad sst2 storycloze triviaqa wic winogrande wnli wsc""".split()


def seen_in_flan(task: str) -> str:
    """ "yes" when FLAN, which Orca's queries come from, was built from this benchmark's questions too."""
    return "yes" if task.lower().startswith(tuple(SEEN_IN_FLAN)) else "no"
