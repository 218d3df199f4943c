"""What a profile's calls will be before any is made: how many, how many tokens, what they cost, how long they take.

Counts are upper bounds: nothing is a copy, every evolution survives. Tokens and speed are the profile's `plan` section.
"""

from . import files
from .money import cost_usd
from .profile import STAGES, Profile
from .stage import RUNS, ledgers


def expected_calls(profile: Profile) -> list[dict]:
    """A row a stage and speaker: stage, who, model, calls, tokens in and out, expected and worst USD, hours.

    The worst case has every reply as long as it may be. A local server and local weights cost nothing.
    """
    lamini, evol, judging = profile.lamini, profile.evol, profile.judge_filter
    prompts = lamini.example_guided_calls + lamini.topic_guided_calls
    instructions = prompts * lamini.instructions_per_call
    queries = sum(profile.orca.per_collection.values())
    evolutions = evol.seeds_per_category * profile.plan.seed_categories * evol.epochs
    judged = instructions + queries + evolutions if judging.verdicts == "judge" else 0
    again = 2 * judging.repeat_rows if judged else 0
    turns = 2 * profile.plan.questions
    graded = len(profile.checkpoints) * turns
    graded_again = min(profile.mt_bench.repeat_rows, graded)
    compared = 2 * turns * len(profile.mt_bench.pairs)
    counts = [
        ("10_lamini", "teacher", profile.teacher, prompts + instructions),
        ("11_orca", "teacher", profile.teacher, queries),
        ("12_evol_instruct", "teacher", profile.teacher, 2 * evolutions),
        ("12_evol_instruct", "judge", evol.equality_judge or profile.judge, evolutions),
        ("20_judge_filter", "judge", profile.judge, judged + again),
        ("20_judge_filter", "second judge", judging.second_judge, again),
        ("50_dpo", "judge", profile.judge, 2 * profile.dpo.sampled_prompts),
        ("61_mt_bench", "judge", profile.judge, graded + graded_again + compared),
        ("61_mt_bench", "second judge", profile.mt_bench.second_judge, graded_again),
    ]
    mine = profile.stages or STAGES
    return [_row(profile, *count) for count in counts if count[0] in mine and count[2] and count[3]]


def _row(profile: Profile, stage: str, who: str, speaker, calls: int) -> dict:
    reckoned = profile.plan.teacher if who == "teacher" else profile.plan.judge
    longest = speaker.max_new_tokens if who == "teacher" else speaker.max_tokens
    remote = speaker.endpoint and speaker.endpoint.base_url
    price = profile.money.prices[speaker.model] if remote else (0.0, 0.0)
    tokens_in, tokens_out = calls * reckoned.prompt_tokens, calls * reckoned.reply_tokens
    return {
        "stage": stage,
        "who": who,
        "model": speaker.model,
        "calls": calls,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "usd": cost_usd(price, tokens_in, tokens_out),
        "worst_usd": cost_usd(price, tokens_in, calls * longest),
        "hours": calls / reckoned.calls_per_second / 3600,
    }


def call_lines(profile_name: str, profile: Profile) -> list[str]:
    """The table that `make plan` prints, and what the budget says to it."""
    rows = expected_calls(profile)
    heads = ("stage", "who", "calls", "tokens in / out", "USD", "worst", "hours")
    lines = ["  {:18} {:13} {:>9} {:>24} {:>9} {:>9} {:>7}  model".format(*heads)]
    for r in rows:
        tokens = f"{r['tokens_in']:,} / {r['tokens_out']:,}"
        figures = f"{r['calls']:9,} {tokens:>24} {r['usd']:9.2f} {r['worst_usd']:9.2f} {r['hours']:7.2f}"
        lines.append(f"  {r['stage']:18} {r['who']:13} {figures}  {r['model']}")
    paths = [path for stage in STAGES for path in ledgers(RUNS / profile_name / stage)]
    finished = sum("text" in row for path in paths for row in files.read_jsonl(path))
    lines.append(f"{finished:,} answers of earlier runs are on disk; what is the same call is not sent again")
    return [*lines, budget_line(profile, sum(r["usd"] for r in rows), sum(r["worst_usd"] for r in rows))]


def budget_line(profile: Profile, usd: float, worst: float) -> str:
    budget = profile.money.budget_usd
    if worst == 0:
        return "no call costs money"
    if budget == 0:
        return f"about {usd:.2f} USD, at most {worst:.2f}; money.budget_usd is 0, so the first paid call stops the run: raise it"
    ends = (
        "the budget covers the worst case" if budget >= worst else "the run stops cleanly when it is spent, and goes on when raised"
    )
    return f"about {usd:.2f} USD, at most {worst:.2f}; budget {budget:.2f} USD: {ends}"
