"""What a chapter of trials shows of each question: a sentence, a table and a chart of its variants against one of them."""

from ..evaluation import ablations
from ..study import files
from . import charts, show


def answer(stage, scores: list[dict], question: str, own: str) -> list[dict]:
    """Show how the variants of `question` differ from `own`, and return the comparisons. The first of `ablations.MAIN` that there
    is, else the first metric, is what the chart shows and the stage's headline numbers are of; those rows are `main`, if higher
    is better. Seeds and intervals are the stage's."""
    seeds, intervals, seed = (stage.parameters[name] for name in ("seeds", "intervals", "seed"))
    kinds = list(dict.fromkeys(r["metric"] for r in scores if r["question"] == question))
    kinds.sort(key=lambda kind: ablations.MAIN.index(kind) if kind in ablations.MAIN else len(ablations.MAIN))
    compared = {kind: ablations.compare(scores, question, own, kind, intervals, seed) for kind in kinds}
    for row in compared[kinds[0]]:
        numbers = {name: row[name] for name in ("low", "high", "n", "asked")}
        stage.measure(f"{question}/{row['variant']}", row["difference"], **numbers, unit=f"difference of {kinds[0]}")
        print(ablations.sentence(row))
    rows = [row | {"main": kind == kinds[0] != "loss"} for kind, some in compared.items() for row in some]
    columns = ["variant", "metric", "after", "before", "difference", "low", "high", "n", "seeds"]
    show.table(rows, columns, caption=f"{question}: each variant (after) against {own} (before)", limit=30)
    title = f"{question}: {kinds[0].replace('_', ' ')} (n = {compared[kinds[0]][0]['n']}, {seeds} seed{'s' * (seeds > 1)})"
    figure = charts.differences(compared[kinds[0]], title, "difference, share of items")
    show.figure(figure, f"Difference of each variant from {own}, question {question}, with intervals.")
    return rows


def save_choices(
    stage, compared: list[dict], flops: dict[str, float] | None = None, megabytes: dict[str, float] | None = None
) -> None:
    """Write `choices.json`, which chapter 91 puts on one chart: every `main` comparison of a stage, and what the
    variant and the one that it stands against cost, in FLOPs to make and in MB to keep (weights in 16 bits where not rounded)."""
    rows = [
        row
        | {
            name: [costs[row[side]] for side in ("variant", "against")]
            for name, costs in (("flops", flops), ("mb", megabytes))
            if costs
        }
        for row in compared
        if row["main"]
    ]
    files.write_json(stage.output("choices.json"), rows)
