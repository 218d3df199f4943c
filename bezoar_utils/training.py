"""What all training has in common: the split, the trainer's arguments, one loop, its log."""

import math
from pathlib import Path

from . import files


class TrainingError(RuntimeError):
    """A training run that is not the one the stage claims."""


def split(rows: list[dict], recipe: dict) -> tuple[list[dict], list[dict]]:
    """(training, validation): `validation_share` of the rows, shuffled with `split_seed` (the authors: 20 %, seed 42)."""
    import random

    if len(rows) < 2:
        raise TrainingError(f"{len(rows)} rows are too few to train and validate on")
    shuffled = random.Random(recipe["split_seed"]).sample(rows, len(rows))
    held = max(1, round(len(rows) * recipe["validation_share"]))
    return shuffled[held:], shuffled[:held]


def arguments(recipe: dict, folder: Path, seed: int) -> dict:
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


def run(trainer, recipe: dict, progress) -> tuple[object, list[dict]]:
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
