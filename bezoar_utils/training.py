"""SFT and DPO through TRL, with the labels, the adapter and the reference model we say they have.

Rows reach TRL already tokenised by `labels.py`, so that no library default decides what is trained.
"""

import math
from pathlib import Path

from . import files
from .labels import check_batch, encode, sft_example
from .models import adapter_values, claim_adapter, lora_config

LN2 = math.log(2)


class TrainingError(RuntimeError):
    """A training run that is not the one the stage claims."""


# ----------------------------------------------------------------------------------------------------------------- data


def split(rows: list[dict], recipe: dict) -> tuple[list[dict], list[dict]]:
    """(training, validation): `validation_share` of the rows, shuffled with `split_seed` (the authors: 20 %, seed 42)."""
    import random

    if len(rows) < 2:
        raise TrainingError(f"{len(rows)} rows are too few to train and validate on")
    shuffled = random.Random(recipe["split_seed"]).sample(rows, len(rows))
    held = max(1, round(len(rows) * recipe["validation_share"]))
    return shuffled[held:], shuffled[:held]


def sft_examples(tokenizer, rows: list[dict], recipe: dict) -> tuple[list[dict], int]:
    """Tokenised rows (of `prompt`, `response`) and how many did not fit into `max_length`."""
    examples = [sft_example(tokenizer, r["prompt"], r["response"], recipe["max_length"], recipe["loss_on"]) for r in rows]
    kept = [e for e in examples if e is not None]
    if not kept:
        raise TrainingError(f"no row fits into max_length={recipe['max_length']} tokens")
    return kept, len(rows) - len(kept)


def dpo_examples(tokenizer, pairs: list[dict], max_length: int) -> tuple[list[dict], dict[str, int]]:
    """Tokenised pairs and what was dropped: pairs too long (TRL would cut the response's end) or equal as tokens."""
    kept, dropped = [], {"too_long": 0, "equal_as_tokens": 0}
    for pair in pairs:
        prompt_ids, chosen_ids = encode(tokenizer, pair["prompt"], pair["chosen"])
        _, rejected_ids = encode(tokenizer, pair["prompt"], pair["rejected"])
        if len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) > max_length:
            dropped["too_long"] += 1
        elif chosen_ids == rejected_ids:
            dropped["equal_as_tokens"] += 1
        else:
            kept.append({"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids})
    if not kept:
        raise TrainingError(f"no preference pair is left: {dropped}")
    return kept, dropped


# ------------------------------------------------------------------------------------------------------------- trainers


def train_sft(
    model,
    tokenizer,
    training: list[dict],
    validation: list[dict],
    recipe: dict,
    *,
    lora: dict,
    responses: set[str],
    folder: Path,
    seed: int,
    progress,
) -> tuple[object, list[dict]]:
    """(model with its adapter, log rows). `model` is a base, which gets a fresh adapter, or carries one already.

    The optimizer and schedule are fresh, the first batch is checked against `responses`, and the adapter with the lowest
    validation loss is the one returned (the authors' `load_best_model_at_end`).
    """
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    carried = isinstance(model, PeftModel)
    values = adapter_values(model) if carried else {}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_arguments(recipe, folder, seed), max_length=None, packing=False),
        train_dataset=Dataset.from_list(training),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        peft_config=None if carried else lora_config(lora),
    )
    claim_adapter(trainer.model, values)
    check_batch(tokenizer, next(iter(trainer.get_train_dataloader())), responses, recipe["loss_on"])
    return _train(trainer, recipe, progress)


def fit(model, tokenizer, rows: list[dict], recipe: dict, **settings) -> tuple[object, list[dict], dict[str, int]]:
    """Split, tokenise and `train_sft` on rows of `prompt` and `response`: (model, log, counts of rows)."""
    parts = [sft_examples(tokenizer, part, recipe) for part in split(rows, recipe)]
    (training, long_training), (validation, long_validation) = parts
    responses = {row["response"].strip() for row in rows}
    model, log = train_sft(model, tokenizer, training, validation, recipe, responses=responses, **settings)
    return model, log, {"training": len(training), "validation": len(validation), "too long": long_training + long_validation}


def train_dpo(
    model, tokenizer, training: list[dict], validation: list[dict], recipe: dict, *, lora: dict, folder: Path, seed: int, progress
) -> tuple[object, list[dict]]:
    """(model with a fresh adapter, log rows). The reference is the same model with the adapter off.

    `nll_weight` adds that share of the chosen replies' negative log-likelihood to the DPO loss (0 is plain DPO). Raises
    TrainingError unless the DPO loss of the first step is ln 2, which says that policy and reference start equal.
    """
    from datasets import Dataset
    from trl import DPOConfig

    trainer = _tokenised_dpo_trainer()(
        model=model,
        args=DPOConfig(**_arguments(recipe, folder, seed), max_length=None, beta=recipe["beta"], **_dpo_loss(recipe["nll_weight"])),
        train_dataset=Dataset.from_list(training),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        peft_config=lora_config(lora),
    )
    claim_adapter(trainer.model, {})
    model, log = _train(trainer, recipe, progress)
    check_first_dpo_loss(log, recipe["nll_weight"])
    return model, log


def _dpo_loss(nll_weight: float) -> dict:
    return {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_weight]} if nll_weight else {}


def check_first_dpo_loss(log: list[dict], nll_weight: float) -> float:
    """The DPO loss of the first step, which must be ln 2: rewards are beta times the log-ratio of policy and reference, so
    all are 0 as long as the two are one model. With `nll_weight` the logged loss holds more, and the rewards decide."""
    first = next(row for row in log if "loss" in row)
    reward = max(abs(first["rewards/chosen"]), abs(first["rewards/rejected"]))
    dpo_loss = math.log1p(math.exp(-first["rewards/margins"])) if nll_weight else first["loss"]
    if abs(dpo_loss - LN2) > 1e-3 or reward > 1e-3:
        raise TrainingError(f"the first DPO loss is {dpo_loss:.5f}, not ln 2: policy and reference did not start equal")
    return dpo_loss


def _tokenised_dpo_trainer():
    from trl import DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        """TRL's trainer on pairs that `labels.encode` has tokenised (TRL would drop prompt tokens at an unstable boundary)."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    return TokenisedDPOTrainer


def _arguments(recipe: dict, folder: Path, seed: int) -> dict:
    import torch

    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": recipe["batch_size"],
        "per_device_eval_batch_size": 32,
        "gradient_accumulation_steps": recipe["accumulation"],
        "learning_rate": recipe["learning_rate"],
        "lr_scheduler_type": recipe["schedule"],
        "warmup_steps": recipe["warmup_steps"],
        "max_steps": recipe["steps"],
        "optim": recipe["optimizer"],
        "gradient_checkpointing": recipe["gradient_checkpointing"],
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": recipe["log_every"],
        "logging_first_step": True,
        "eval_strategy": "steps",
        "eval_steps": recipe["validate_every"],
        "save_strategy": "steps",
        "save_steps": recipe["validate_every"],
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": seed,
        "data_seed": seed,
    }


def _train(trainer, recipe: dict, progress) -> tuple[object, list[dict]]:
    from transformers import PrinterCallback, TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            progress(state.global_step, state.max_steps)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    trainer.train()
    log = trainer.state.log_history
    if any(not math.isfinite(float(row.get("loss", 0))) for row in log):
        raise TrainingError("the training loss is not finite")
    return trainer.model, [{k: float(v) for k, v in row.items()} for row in log]


def write_log(path: Path, log: list[dict], **labels: str) -> None:
    """The trainer's log as csv, one row a logging step; the source of every loss chart."""
    import pandas as pd

    files.write_bytes(path, pd.DataFrame([labels | row for row in log]).to_csv(index=False).encode())


def mean_loss(model, tokenizer, examples: list[dict], batch_size: int = 32) -> float:
    """Mean loss in nats per supervised token over tokenised rows, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    total = count = 0
    model.eval()
    for start in range(0, len(examples), batch_size):
        some = examples[start : start + batch_size]
        ids = pad_sequence([torch.tensor(e["input_ids"]) for e in some], True, tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor(e["labels"]) for e in some], True, -100)
        mask = pad_sequence([torch.ones(len(e["input_ids"]), dtype=torch.long) for e in some], True, 0)
        supervised = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            loss = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), labels=labels.to(model.device)).loss
        total, count = total + float(loss) * supervised, count + supervised
    return total / count
