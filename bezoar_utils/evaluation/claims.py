"""The paper's claims as tests on paired items. Thresholds were set before the runs they judge."""

from pathlib import Path

from .stats import bootstrap_difference, bootstrap_mean, no_loss_verdict, verdict

BASE, SFT, HH, DPO = "base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO"

NOT_REPRODUCED = [
    {
        "what": "The paper's numbers on LM Eval Harness and MT-Bench",
        "why": "Its tables, task list and shots are not among the facts known to us; its judge Claude 2.1 is retired.",
    },
    {
        "what": "Beating many models at the 3B scale, and the then best 3B model of the Open LLM Leaderboard in one category",
        "why": "Comparison models and scores are not known; a two-million-parameter world has no leaderboard.",
    },
    {
        "what": "GPT-4 as human proxy: accept rates and agreement with people",
        "why": "Prompt, scale and version are unknown and the model of 2023 is retired; here an exact oracle judges.",
    },
    {
        "what": "The teacher at its 2023 quantisation",
        "why": "The GGML level used then is unknown, and its runtime is no longer maintained.",
    },
    {
        "what": "SFT and DPO at the authors' values",
        "why": "Learning rates, batch, epochs, lengths and all of DPO's settings as run are unknown.",
    },
    {"what": "Cost and hours on the authors' hardware", "why": "Neither is among the facts known to us."},
]


MARKS = ("P", "C", "A", "S", "I", "X")
PAPER_COLUMNS = ("measure", "value", "mark", "source")
ARTIFACTS = {  # chapter -> what its claims were computed from
    "50_dpo": "sampled_replies.parquet",
    "60_benchmarks": "scores.parquet",
    "61_mt_bench": "answers.parquet",
    "75_filter": "scores.parquet",
}


def measures(scores: list[dict], grades: list[dict], intervals: dict, seed: int) -> dict[str, dict]:
    """What the paper's tables would hold, as measured here: `task/metric/model` and `two-turn grade/model`, each with value,
    interval, n and unit."""
    values: dict[str, list[float]] = {}
    for row in scores:
        values.setdefault(f"{row['task']}/{row['metric']}/{row['model']}", []).append(row["value"])
    for model in dict.fromkeys(row["model"] for row in grades):
        graded = [grade for grade in question_grades(grades, model) if grade is not None]
        values |= {f"two-turn grade/{model}": graded} if graded else {}
    found = {}
    for name, some in values.items():
        mean, low, high = bootstrap_mean(some, **intervals, seed=seed)
        found[name] = {"value": mean, "low": low, "high": high, "n": len(some), "unit": "grade" if max(some) > 1 else "share"}
    return found


def question_grades(grades: list[dict], model: str) -> list[float | None]:
    """One grade a question, the mean of its turns, which hang together; None where a grade of a turn failed."""
    turns: dict[int, list] = {}
    for row in grades:
        if row["model"] == model:
            turns.setdefault(row["question_id"], []).append(row["rating"])
    whole = {question: all(r is not None and r == r for r in some) for question, some in turns.items()}
    return [sum(some) / len(some) if whole[question] else None for question, some in turns.items()]


def read_paper_values(path: Path) -> dict[str, dict]:
    """What is known of the paper's tables: measure -> {value, mark, source}, from a csv that anyone can fill.

    Raises ValueError naming file, line and column for a missing column, a value that is no number, an unknown mark (one of
    `MARKS`), a row without a source, and a measure that stands there twice.
    """
    import csv

    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != PAPER_COLUMNS:
            raise ValueError(
                f"{path.name}: columns must be {', '.join(PAPER_COLUMNS)}, not {', '.join(rows.fieldnames or ['none'])}"
            )
        known: dict[str, dict] = {}
        for row in rows:
            at = f"{path.name}, line {rows.line_num}"
            try:
                value = float(row["value"] or "")
            except ValueError:
                raise ValueError(f"{at}: value {row['value']!r} is no number") from None
            if row["mark"] not in MARKS:
                raise ValueError(f"{at}: mark {row['mark']!r} is none of {', '.join(MARKS)}")
            if not row["source"]:
                raise ValueError(f"{at}: a value of the paper needs its source")
            if row["measure"] in known:
                raise ValueError(f"{at}: {row['measure']!r} stands there twice")
            known[row["measure"]] = {"value": value, "mark": row["mark"], "source": row["source"]}
    return known


def paper_and_ours(ours: dict[str, dict], paper: dict[str, dict]) -> list[dict]:
    """One row a measure of either side; a cell nobody knows is empty and the last column says why."""
    rows = []
    for name in [*ours, *(n for n in paper if n not in ours)]:
        mine, theirs = ours.get(name), paper.get(name)
        why = "another base, data and judge than the paper's: compare the direction only"
        if mine is None:
            why = "not measured in this run"
        elif theirs is None:
            why = "the paper's value is not known to us"
        rows.append(
            {
                "measure": name,
                "paper": theirs and theirs["value"],
                "mark": theirs["mark"] if theirs else "U",
                "ours": mine and mine["value"],
                "low": mine and mine["low"],
                "high": mine and mine["high"],
                "n": mine and mine["n"],
                "difference": mine["value"] - theirs["value"] if mine and theirs else None,
                "why": f"{why} ({theirs['source']})" if theirs else why,
            }
        )
    return rows


def test_all(
    scores: list[dict], ablation: list[dict], sampled: list[dict], grades: list[dict], samples: int, confidence: float, seed: int
) -> tuple[list[dict], list[dict]]:
    """(a row a claim: what was compared, the paired difference with its interval, and the verdict; the claims that this run
    has nothing to test on, each with why)."""

    def row(id, claim, test, before, after, unit, chapter, judge=verdict, limit=0.0):
        before, after = _complete(before, after)
        if not before:
            return {"what": claim, "why": f"This profile measures nothing that tests it: {test} (chapter {chapter})."}
        difference, low, high = bootstrap_difference(after, before, samples, confidence, seed)
        return {
            "id": id,
            "claim": claim,
            "test": test,
            "before": sum(before) / len(before),
            "after": sum(after) / len(after),
            "difference": difference,
            "low": low,
            "high": high,
            "n": len(before),
            "unit": unit,
            "verdict": judge(difference, low, high, limit),
            "chapter": chapter,
            "artifact": f"{chapter}/{ARTIFACTS[chapter]}",
        }

    def found(model):
        return [r["value"] for r in scores if (r["model"], r["task"], r["metric"]) == (model, "mini_answers", "answer_found")]

    def filtered(condition):
        return [r["value"] for r in ablation if (r["condition"], r["metric"]) == (condition, "strict_match")]

    def said(model, key):
        return [r[key] for r in sampled if r["model"] == model]

    def grade(model):
        return question_grades(grades, model)

    share, points = "share of items", "grade points"
    rows = [
        row(
            "sft_over_base",
            "Instruction tuning on the three schemes makes the base answer",
            "answer found, at least +0.30",
            found(BASE),
            found(SFT),
            share,
            "60_benchmarks",
            limit=0.30,
        ),
        row(
            "filter_over_unfiltered",
            "Filtering by the judge makes better training data",
            "strict match, accepted against unfiltered rows, equal steps",
            filtered("unfiltered"),
            filtered("accepted"),
            share,
            "75_filter",
        ),
        row(
            "filter_over_random",
            "… and not because the set is smaller",
            "strict match, accepted against a random subset of that size",
            filtered("random_subset"),
            filtered("accepted"),
            share,
            "75_filter",
        ),
        row(
            "dpo_preferred",
            "DPO aligns replies with people's preferences",
            "preferred rate of sampled replies, at least +0.10",
            said(HH, "preferred"),
            said(DPO, "preferred"),
            "share of replies",
            "50_dpo",
            limit=0.10,
        ),
        row(
            "dpo_keeps_answers",
            "DPO does not cost correctness",
            "exact answers among sampled replies, loses at most 0.05",
            said(HH, "exact"),
            said(DPO, "exact"),
            "share of replies",
            "50_dpo",
            judge=no_loss_verdict,
            limit=0.05,
        ),
        row(
            "chat_sft_over_base",
            "The tuned model converses better than the base",
            "two-turn grade, SFT against base",
            grade(BASE),
            grade(SFT),
            points,
            "61_mt_bench",
        ),
        row(
            "chat_dpo_over_hh",
            "DPO does not make conversation worse",
            "two-turn grade, DPO against HH-SFT, loses nothing",
            grade(HH),
            grade(DPO),
            points,
            "61_mt_bench",
            judge=no_loss_verdict,
            limit=0.0,
        ),
        row(
            "dpo_best_of_family",
            "The DPO checkpoint is the best of the family",
            "two-turn grade, DPO against SFT",
            grade(SFT),
            grade(DPO),
            points,
            "61_mt_bench",
        ),
    ]
    return [r for r in rows if "id" in r], [r for r in rows if "id" not in r]


def _complete(before: list, after: list) -> tuple[list[float], list[float]]:
    """Pairs in which neither side failed (None or NaN)."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None and b == b and a == a]
    return [b for b, _ in pairs], [a for _, a in pairs]
