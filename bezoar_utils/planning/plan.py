"""What a profile's calls will be before any is made: how many, how many tokens, what they cost, how long they take.

Counts are upper bounds: nothing is a copy, every evolution survives. Tokens and speed are the profile's `plan` section.
What a GPU will have to hold is reckoned in `memory.py`; here it is printed.
"""

from ..calls.budget import cost_usd
from ..study import files
from ..study.profile import STAGES, Profile
from ..study.stage import RUNS
from . import memory


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
        (
            "12_evol_instruct",
            "equality judge" if evol.equality_judge else "judge",
            evol.equality_judge or profile.judge,
            evolutions,
        ),
        ("20_judge_filter", "judge", profile.judge, judged + again),
        ("20_judge_filter", "second judge", judging.second_judge, again),
        ("50_dpo", "judge", profile.judge, 2 * profile.dpo.sampled_prompts),
        ("61_mt_bench", "judge", profile.judge, graded + graded_again + compared),
        ("61_mt_bench", "second judge", profile.mt_bench.second_judge, graded_again),
    ]
    mine = profile.stages or STAGES
    return [_row(profile, *count) for count in counts if count[0] in mine and count[2] and count[3]]


def asked(profile: Profile) -> dict[str, list[str]]:
    """stage -> who is asked in it."""
    found: dict[str, list[str]] = {}
    for row in expected_calls(profile):
        found.setdefault(row["stage"], []).append(row["who"])
    return found


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
    lines = ["  {:18} {:14} {:>9} {:>24} {:>9} {:>9} {:>7}  model".format(*heads)]
    for r in rows:
        tokens = f"{r['tokens_in']:,} / {r['tokens_out']:,}"
        figures = f"{r['calls']:9,} {tokens:>24} {r['usd']:9.2f} {r['worst_usd']:9.2f} {r['hours']:7.2f}"
        lines.append(f"  {r['stage']:18} {r['who']:14} {figures}  {r['model']}")
    paths = [RUNS / profile_name / stage / "calls.jsonl" for stage in STAGES]
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


FORMULAS = """\
weights: 4 bytes a value in float32; in 4 bits {four_bit:.3f} a value of linear layers ({linear:,} of N = {n:,}), the rest float32
adapter: {adapter:,} values, each with a gradient in float32 and AdamW's two moments (1 byte each if 8-bit, else 4)
activations: a block saves {saved:,} bytes a token, with checkpoints {stream:,}, and a block at work takes {working:,}; tokens are
  batch_size x max_length in training (x 2 in 50_dpo), 32 x max_length in validation and beside the merged model; answering has
  {kept:g} GiB of keys and values at {kv:,} bytes a token
all: with {context:g} GiB for CUDA's context; beside: what is served on this GPU, every call's context full
hours: {tflops:g} TFLOP/s x {share:g}; training 6 N a token (forward, again, gradients), 4 N without checkpoints, else 2 N;
  each step of an answer reads 4 N bytes at {speed:g} GB/s x {share:g}, and every answer is as long as it may be
Counts and saved activations are tested on a CPU. We measured no GPU: working buffers, share and hours are guesses."""


def gpu_lines(profile: Profile) -> list[str]:
    """What `make plan` says of the GPU: memory by stage and moment, the verdict, hours, disk, the formulas."""
    gpu, base = profile.plan.gpu, profile.plan.base
    if not gpu:
        return ["training needs no GPU"]
    served = asked(profile)
    rows, hours, parts = memory.stage_memory(profile, served), memory.stage_hours(profile), memory.disk_gb(profile)
    columns = ("weights", "adapter", "activations", "logits", "beside", "all")
    lines = ["  {:18} {:16} {:>8} {:>8} {:>12} {:>8} {:>8} {:>8}  hours".format("GPU memory, GiB", "when", *columns)]
    for place, row in enumerate(rows):
        first = place == 0 or rows[place - 1]["stage"] != row["stage"]
        time = f"{hours[row['stage']]:7.2f}" if first and row["stage"] in hours else ""
        figures = [f"{row[c] / memory.GIB:{12 if c == 'activations' else 8}.2f}" for c in columns]
        lines.append(f"  {row['stage'] if first else '':18} {row['moment']:16} {' '.join(figures)}{time}".rstrip())
    where = f"{gpu.memory_gib:g} GiB ({gpu.name})"
    lines += memory.too_large(profile, served) or [f"fits in {where}, one stage at a time: JOBS=1"]
    lines.append(f"about {sum(hours.values()):.1f} hours of that GPU beside the calls")
    lines.append(f"disk: {sum(parts.values()):.0f} GB: " + ", ".join(f"{name} {size:.1f}" for name, size in parts.items()))
    figures = {
        "four_bit": memory.four_bit_values(profile.quantisation.double),
        "n": memory.parameters(base),
        "linear": memory.linear_values(base),
        "adapter": memory.adapter_values(base, profile.lora),
        "saved": memory.saved_bytes(base, profile.lora),
        "stream": 4 * base.hidden,
        "working": memory.working_bytes(base),
        "kv": memory.kept_bytes(base),
        "kept": memory.KEPT_BYTES / memory.GIB,
        "context": memory.CONTEXT / memory.GIB,
    }
    return [*lines, *FORMULAS.format(**figures, tflops=gpu.tflops, share=gpu.share, speed=gpu.gb_per_second).splitlines()]
