"""What a profile's calls will be before any is made: how many, how many tokens, what they cost, how long they take.

Counts are upper bounds: no row is a copy, every evolution survives. Tokens and speed are the profile's `plan` section.
What a GPU will have to hold is estimated in `memory.py`; here it is printed.
"""

from ..calls.budget import cost_usd
from ..following import form
from ..study import files
from ..study.profile import STAGES, Profile
from ..study.stage import RUNS
from . import memory


def expected_calls(profile: Profile) -> list[dict]:
    """A row for each stage and model role: stage, role, model, calls, tokens in and out, expected and worst USD, hours.

    The worst case has every reply as long as it may be. A local server and local weights cost nothing.
    """
    lamini, evol, judging, bench = profile.lamini, profile.evol, profile.judge_filter, profile.mt_bench
    lists = lamini.example_guided_calls + lamini.topic_guided_calls + lamini.continued_calls
    prompts, instructions = lists + lamini.magpie_calls, lists * lamini.instructions_per_call + lamini.magpie_calls
    queries = sum(profile.orca.per_collection.values())
    evolutions = evol.seeds_per_category * profile.plan.seed_categories * evol.epochs
    taken = any(scheme.released for scheme in (lamini, profile.orca, evol))  # how many rows those are, the plan's work says
    released = (profile.plan.work.sft_rows if profile.plan.work else 1) if taken else 0
    judged = instructions + queries + evolutions + released if judging.verdicts == "judge" else 0
    again = judging.repeat_rows if judged else 0  # asked anew, in the other order, longer, with a plea
    turns = 2 * profile.plan.questions
    graded = len(profile.checkpoints) * turns
    graded_again = min(bench.repeat_rows, graded)
    equality = "equality judge" if evol.equality_judge else "judge"
    tests, reward = profile.ablations, profile.reward
    variants = 4 + len(tests.methods) + len(tests.dpo_rates)  # models whose sampled replies chapter 80 has judged; 81: eight
    counts = [
        ("10_lamini", "teacher", profile.teacher, prompts + instructions),
        ("11_orca", "teacher", profile.teacher, queries),
        ("12_evol_instruct", "teacher", profile.teacher, (1 + (evol.rewriter == "teacher")) * evolutions),
        ("12_evol_instruct", equality, evol.equality_judge or profile.judge, evolutions),
        ("20_judge_filter", "judge", profile.judge, judged + 4 * again),
        ("20_judge_filter", "second judge", judging.second_judge, 5 * again),
        ("35_pairs", "judge", profile.judge, profile.pairs.rows * profile.pairs.replies),
        ("50_dpo", "judge", profile.judge, 2 * profile.dpo.sampled_prompts),
        ("61_mt_bench", "judge", profile.judge, graded + graded_again + 2 * turns * len(bench.pairs)),
        ("61_mt_bench", "second judge", bench.second_judge, graded_again),
        ("80_ablations", "judge", profile.judge, tests.seeds * variants * tests.sampled_prompts),
        ("81_reward", "judge", profile.judge, reward.seeds * 8 * reward.sampled_prompts),
    ]
    stages = profile.chapters()
    return [_row(profile, *count) for count in counts if count[0] in stages and count[2] and count[3]]


def roles_by_stage(profile: Profile) -> dict[str, list[str]]:
    """stage -> the model roles (teacher, judge, ...) that it calls."""
    roles: dict[str, list[str]] = {}
    for row in expected_calls(profile):
        roles.setdefault(row["stage"], []).append(row["role"])
    return roles


def _row(profile: Profile, stage: str, role: str, caller, calls: int) -> dict:
    expected = profile.plan.teacher if role == "teacher" else profile.plan.judge
    longest = caller.max_new_tokens if role == "teacher" else caller.max_tokens
    remote = caller.endpoint and caller.endpoint.base_url
    price = profile.money.prices[caller.model] if remote else (0.0, 0.0)
    tokens_in, tokens_out = calls * expected.prompt_tokens, calls * expected.reply_tokens
    return {
        "stage": stage,
        "role": role,
        "model": caller.model,
        "calls": calls,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "usd": cost_usd(price, tokens_in, tokens_out),
        "worst_usd": cost_usd(price, tokens_in, calls * longest),
        "hours": calls / expected.calls_per_second / 3600,
    }


def call_lines(profile_name: str, profile: Profile) -> list[str]:
    """The table of calls that `make plan` prints, with what the budget means for it."""
    rows = expected_calls(profile)
    heads = ("stage", "role", "calls", "tokens in / out", "USD", "worst", "hours")
    lines = ["  {:18} {:14} {:>9} {:>24} {:>9} {:>9} {:>7}  model".format(*heads)]
    for r in rows:
        tokens = f"{r['tokens_in']:,} / {r['tokens_out']:,}"
        figures = f"{r['calls']:9,} {tokens:>24} {r['usd']:9.2f} {r['worst_usd']:9.2f} {r['hours']:7.2f}"
        lines.append(f"  {r['stage']:18} {r['role']:14} {figures}  {r['model']}")
    paths = [RUNS / profile_name / stage / "calls.jsonl" for stage in STAGES]
    finished = sum("text" in row for path in paths for row in files.read_jsonl(path))
    lines.append(f"{finished:,} answers of earlier runs are on disk; the same call is not sent again")
    lines += screen_lines(profile_name, profile, next((r for r in rows if r["stage"] == "20_judge_filter"), None))
    return [*lines, budget_line(profile, sum(r["usd"] for r in rows), sum(r["worst_usd"] for r in rows))]


REPLIES = {"10_lamini/lamini": "response", "11_orca/orca": "explained_targets", "12_evol_instruct/evol": "response"}


def screen_lines(profile_name: str, profile: Profile, judging: dict | None) -> list[str]:
    """What `judge_filter.screen` saves of the calls in `judging`, a row of `expected_calls`: known once the rows are written."""
    if not profile.judge_filter.screen or not judging:
        return []
    paths = {RUNS / profile_name / f"{name}.parquet": column for name, column in REPLIES.items()}
    replies = [row[column] for path, column in paths.items() if path.exists() for row in files.read_table(path, (column,))]
    if not replies:
        return ["judge_filter.screen: how many rows need no call is known once chapters 10 to 12 are done"]
    share = sum(form.fault(reply) is not None for reply in replies) / len(replies)
    usd = share * judging["usd"]
    return [f"judge_filter.screen: {share:.1%} of {len(replies):,} rows are refused for their form alone, about {usd:.2f} USD less"]


def budget_line(profile: Profile, usd: float, worst: float) -> str:
    budget = profile.money.budget_usd
    if worst == 0:
        return "no call costs money"
    if budget == 0:
        return f"about {usd:.2f} USD, at most {worst:.2f}; money.budget_usd is 0, so the first paid call stops the run: raise it"
    outcome = "the budget covers the worst case" if budget >= worst else "when it is spent the run stops, and goes on when raised"
    return f"about {usd:.2f} USD, at most {worst:.2f}; budget {budget:.2f} USD: {outcome}"


def gpu_lines(profile: Profile) -> list[str]:
    """What `make plan` says about the GPU: memory by stage and moment, whether it fits, hours, disk."""
    gpu = profile.plan.gpu
    if not gpu:
        held = f"; its largest chapter takes about {profile.plan.memory_gb:g} GB of memory" if profile.plan.memory_gb else ""
        return [f"training needs no GPU{held}"]
    roles = roles_by_stage(profile)
    rows, hours, parts = memory.stage_memory(profile, roles), memory.stage_hours(profile), memory.disk_gb(profile)
    columns = ("weights", "adapter", "activations", "logits", "beside", "all")
    lines = ["  {:18} {:16} {:>8} {:>8} {:>12} {:>8} {:>8} {:>8}  hours".format("GPU memory, GiB", "when", *columns)]
    for place, row in enumerate(rows):
        first = place == 0 or rows[place - 1]["stage"] != row["stage"]
        time = f"{hours[row['stage']]:7.2f}" if first and row["stage"] in hours else ""
        figures = [f"{row[c] / memory.GIB:{12 if c == 'activations' else 8}.2f}" for c in columns]
        lines.append(f"  {row['stage'] if first else '':18} {row['moment']:16} {' '.join(figures)}{time}".rstrip())
    where = f"{gpu.memory_gib:g} GiB ({gpu.name})"
    lines += memory.too_large(profile, roles) or [f"fits in {where}, one stage at a time: JOBS=1"]
    by_target: dict[str, float] = {}
    for stage, found in hours.items():
        target = STAGES[stage].target
        by_target[target] = by_target.get(target, 0.0) + found
    told = ", ".join(f"make {target} {found:.1f}" for target, found in by_target.items())
    lines.append(f"about so many hours of that GPU: {told}; calls not included, beside the recipe nor evaluations")
    lines.append(f"disk: {sum(parts.values()):.0f} GB: " + ", ".join(f"{name} {size:.1f}" for name, size in parts.items()))
    return [
        *lines,
        "The formulas are in bezoar_utils/planning/memory.py. Nothing was measured on a GPU: hours and buffers are guesses.",
    ]
