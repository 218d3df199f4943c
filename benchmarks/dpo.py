"""What the study's way of DPO saves: one epoch on the same pairs, TRL's defaults against the study's settings.

    .venv/bin/python benchmarks/dpo.py [--quick]

As in benchmarks/sft.py: the same 4-bit model, adapter, batch, optimizer and seed on both sides, settings added one after
another, several rounds in one process. TRL's default asks the reference (the model with its adapter off) again in every
step. The study asks it once for each pair; that pass is part of its time in the column "with set-up", as everything is that
happens before the first step. There the whole pass is charged to a single epoch, which is the least it can save: with more
epochs it is paid once all the same. Figures are pairs a second.

The settings may change no number: tokens are compared one by one, then loss and gradient of the same batch with an adapter
that differs from the reference. Exit code 1 below 1.5 times with the reference's pass included, or when these differ.
"""

import random
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from benchmarks.sft import (
    BATCH,
    Case,
    Way,
    be_quiet,
    described,
    load_model,
    loss_and_gradient,
    print_differences,
    print_table,
    rounds_of,
    shared_arguments,
    small_case,
    supervised_positions_only,
)

WANTED, PAIRS, ROUNDS = 1.5, 192, 3
TOLERATED = {"loss of the same batch": 2e-3, "gradient of the same batch": 2e-2}

UNCHECKPOINTED = {"gradient_checkpointing": False}
PRECOMPUTED = UNCHECKPOINTED | {"precompute_ref_log_probs": True}
# the sampler reads a column of lengths, which the trainer would otherwise remove before it looks
BUCKETED = PRECOMPUTED | {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
LOGGED = BUCKETED | {"logging_steps": 1}  # TRL logs every tenth step, the study each
DEFAULTS = Way("TRL's defaults", tokenised=False)
STUDY = Way("… logits of the replies only (the study)", arguments=LOGGED, supervised_only=True)
WAYS = (
    DEFAULTS,
    Way("pairs tokenised beforehand"),
    Way("… without gradient checkpointing", arguments=UNCHECKPOINTED),
    Way("… the reference asked once a pair", arguments=PRECOMPUTED),
    Way("… pairs of like length share a batch", arguments=BUCKETED),
    STUDY,
)
OPTIONS = (Way("option: the study with eager attention", arguments=LOGGED, supervised_only=True, attention="eager"),)


def main() -> None:
    n_pairs, rounds = (PAIRS // 4, 1) if "--quick" in sys.argv[1:] else (PAIRS, ROUNDS)
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        case = small_case(Path(folder))
        pairs = hh_pairs(case.world, n_pairs, random.Random(1))
        lengths = [length_of(example) for example in tokenised(case, pairs)]
        print(f"{len(pairs)} pairs, longer replies: {described(lengths)}, {BATCH} a step\n")
        differences = compare(case, pairs)
        found = rounds_of(trainer_for, (*WAYS, *OPTIONS), case, pairs, len(pairs), rounds)
    ratio = print_table(found, STUDY.name, "pairs/s", "with set-up")
    wrong = print_differences(differences, TOLERATED)
    sys.exit(ratio < WANTED or wrong)


def hh_pairs(world, n: int, rng: random.Random) -> list[dict]:
    """Pairs as the DPO chapter has them: from dialogs of one or two turns."""
    from bezoar_utils.data import preferences
    from bezoar_utils.miniature import corpus

    pairs, _ = preferences.preference_pairs(corpus.preference_rows(world, 2 * n, rng, held_out=False))
    return pairs[:n]


def tokenised(case: Case, pairs: list[dict]) -> list[dict]:
    from bezoar_utils.training.dpo import dpo_examples

    examples, dropped = dpo_examples(case.tokenizer, pairs, 512)
    assert not any(dropped.values()), dropped
    return examples


def length_of(example: dict) -> int:
    return len(example["prompt_ids"]) + max(len(example["chosen_ids"]), len(example["rejected_ids"]))


def reference_log_probs(case: Case, model, examples: list[dict]) -> list[dict]:
    """The pairs with the reference's log-probs beside them: what a stage computes once and keeps on disk."""
    from bezoar_utils.training.dpo import pair_log_probs

    values = pair_log_probs(model, case.tokenizer, examples)
    return [e | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected} for e, (chosen, rejected) in zip(examples, values)]


def trainer_for(way: Way, case: Case, pairs: list[dict], seed: int):
    """TRL's trainer, `way` over its defaults, on the study's 4-bit model and adapter; the reference's pass is done here."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from bezoar_utils.training import dpo, models

    model = load_model(way, case)
    examples = [e | {"length": length_of(e)} for e in tokenised(case, pairs)] if way.tokenised else pairs
    if way.arguments.get("precompute_ref_log_probs"):
        examples = reference_log_probs(case, model, examples)
    torch.manual_seed(seed)  # of the adapter's start
    trainer = (dpo._tokenised_dpo_trainer() if way.tokenised else DPOTrainer)(
        model=model,
        args=DPOConfig(**shared_arguments(case, "dpo", seed) | way.arguments),
        train_dataset=Dataset.from_list(examples),
        processing_class=case.tokenizer,
        peft_config=models.lora_config(case.profile.lora.model_dump(), model),
    )
    if way.tokenised:
        models.claim_adapter(trainer.model, {})
    return trainer


def compare(case: Case, pairs: list[dict]) -> dict[str, tuple[float, float]]:
    """{what: (value of TRL's way, value of the study's way)}, a gradient's difference being given as (0, relative)."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    theirs = trainer_for(DEFAULTS, case, pairs, 0)
    with supervised_positions_only():
        ours = trainer_for(STUDY, case, pairs, 0)
        our_loss, our_gradient = loss_and_gradient(ours, range(BATCH))
    assert all(list(theirs.train_dataset[c]) == list(ours.train_dataset[c]) for c in columns), "the two ways train other tokens"
    assert sorted(ours._get_train_sampler()) == list(range(len(pairs))), "an epoch must take each pair once"
    loss, gradient = loss_and_gradient(theirs, range(BATCH))
    return {
        "loss of the same batch": (loss, our_loss),
        "gradient of the same batch": (0.0, float((our_gradient - gradient).norm() / gradient.norm())),
    }


if __name__ == "__main__":
    main()
