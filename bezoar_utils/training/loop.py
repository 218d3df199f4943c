"""What all training has in common: the split, the trainer's arguments, one loop, its log."""

import contextlib
import math
import os
import resource
import time
from pathlib import Path

from ..study import files
from .precision import trainer_flags

MARKER, SPEED, FINISHED = "complete.json", "speed.jsonl", "finished"
RUN_TIME = ("_runtime", "_per_second")  # what the trainer logs of its own speed; it would differ in equal runs


class TrainingError(RuntimeError):
    """A training run that is not the one the stage claims."""


def split(rows: list[dict], recipe: dict, what: str = "this training") -> tuple[list[dict], list[dict]]:
    """(training, validation): `validation_share` of the rows, shuffled with `split_seed` (the authors: 20 %, seed 42)."""
    import random

    if len(rows) < 2:
        raise TrainingError(
            f"{what}: {len(rows)} rows are too few to train and validate on; chapter 20 says what was accepted, and why no more"
        )
    shuffled = random.Random(recipe["split_seed"]).sample(rows, len(rows))
    held = max(1, round(len(rows) * recipe["validation_share"]))
    return shuffled[held:], shuffled[:held]


def arguments(recipe: dict, folder: Path) -> dict:
    """What TRL's configs take from a recipe. `steps` or `epochs` ends the training; validation also writes a checkpoint."""
    import torch

    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": recipe["batch_size"],
        "per_device_eval_batch_size": 32,
        "gradient_accumulation_steps": recipe["accumulation"],
        "learning_rate": recipe["learning_rate"],
        "lr_scheduler_type": recipe["schedule"],
        "warmup_steps": recipe["warmup_steps"],
        "max_steps": recipe["steps"] or -1,
        "num_train_epochs": recipe["epochs"] or 1,
        "optim": usable_optimizer(recipe["optimizer"]),
        "gradient_checkpointing": recipe["gradient_checkpointing"],
        **trainer_flags(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": recipe["log_every"],
        "logging_first_step": True,
        "eval_strategy": "steps",
        "eval_steps": recipe["validate_every"],
        "save_strategy": "steps",
        "save_steps": recipe["validate_every"],
        "save_total_limit": 2,  # beside the best: the last one, and one to go on from when the last is the end
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": recipe["seed"],
        "data_seed": recipe["seed"],
    }


def usable_optimizer(name: str) -> str:
    """Paged 8-bit AdamW (the authors') lives in GPU memory; without a GPU plain AdamW takes its place."""
    import torch

    return name if torch.cuda.is_available() or name == "adamw_torch" else "adamw_torch"


def run(trainer, recipe: dict, progress) -> tuple[object, list[dict]]:
    """Train to the end, from the newest complete checkpoint of the trainer's folder if there is one: (model, log).

    A training that was finished there before is not done again. The log has a row a logged step, steps before a kill included,
    none twice. Raises TrainingError when the loss is not finite, the adapter is not float32 at the end, the warmup outlasts the
    training, or the disk is full.
    """
    from peft import PeftModel
    from transformers import PrinterCallback

    folder = Path(trainer.args.output_dir)
    if _is_complete(folder / FINISHED):
        return _finished(trainer.model, folder / FINISHED)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_keeper(progress, recipe["warmup_steps"]))
    start = newest_complete(folder)
    try:
        with supervised_positions_only():
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    except Exception as error:
        if "No space left" in str(error):
            newest = newest_complete(folder)
            at = (
                f"the checkpoint of {newest.name.replace('checkpoint-', 'step ')} is whole"
                if newest
                else "no checkpoint was finished"
            )
            raise TrainingError(f"no space left on the disk that holds {folder}; {at}: free some and run again") from None
        raise
    if wrong := {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad} - {"torch.float32"}:
        raise TrainingError(f"trained values are {', '.join(sorted(wrong))}, not float32 as claimed")
    log = [{k: float(v) for k, v in row.items()} for row in trainer.state.log_history]
    if any(not math.isfinite(row.get("loss", 0.0)) for row in log):
        raise TrainingError("the training loss is not finite")
    if isinstance(trainer.model, PeftModel) and trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder / FINISHED, selected_adapters=["default"])
        files.write_json(folder / FINISHED / "log.json", log)
        mark_complete(folder / FINISHED)
    return trainer.model, log


def _finished(model, folder: Path) -> tuple[object, list[dict]]:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    return model, files.read_json(folder / "log.json")


@contextlib.contextmanager
def supervised_positions_only():
    """Let TRL apply the language-model head to the positions that the loss counts, as it does where Triton runs.

    Elsewhere TRL 1.16 takes the logits of every position and then masks them: in rows of sixty tokens of which six are
    supervised, nine tenths of the head's work is thrown away. Losses and gradients were bit-equal, SFT 1.4 times as fast.
    """
    from trl.trainer import utils

    original = utils._use_triton
    utils._use_triton = lambda device: True  # in that module it only decides which positions are scored
    try:
        yield
    finally:
        utils._use_triton = original


def _keeper(progress, warmup_steps: int):
    """Tells how far training is, notes each step's time and memory, and marks a checkpoint complete once it is written."""
    import torch
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            if warmup_steps >= state.max_steps:
                raise TrainingError(f"warmup_steps={warmup_steps} outlasts the training of {state.max_steps} steps")
            self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            now, cuda = time.perf_counter(), torch.cuda.is_available()
            # ru_maxrss is in KiB on Linux
            peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            row = {"step": state.global_step, "seconds": now - self.began, "peak_memory_mb": peak / 2**20}
            self.began = now
            if state.is_world_process_zero:
                files.append_jsonl(Path(args.output_dir) / SPEED, row)
                progress(state.global_step, state.max_steps)

        def on_save(self, args, state, control, **_):
            if state.is_world_process_zero:
                mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Keeper()


# ---------------------------------------------------------------------------------------------------------- checkpoints


def mark_complete(checkpoint: Path) -> None:
    """Written last, with the size of every file: without it a checkpoint is torn, and a torn one is never resumed from."""
    for path in checkpoint.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files.write_json(checkpoint / MARKER, {p.name: p.stat().st_size for p in checkpoint.iterdir() if p.name != MARKER})


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose marker is there, whose files all have the size it names, and that has steps left to train.

    transformers itself would go on from one without its optimizer, with a fresh optimizer and other losses, silently; and
    from one of the last step it would train a step too many.
    """
    newest_first = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    return next((checkpoint for checkpoint in newest_first if _is_complete(checkpoint) and _has_steps_left(checkpoint)), None)


def _has_steps_left(checkpoint: Path) -> bool:
    state = files.read_json(checkpoint / "trainer_state.json")
    return state["global_step"] < state["max_steps"]


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = files.read_json(checkpoint / MARKER)
    except (OSError, ValueError):
        return False
    present = {p.name: p.stat().st_size for p in checkpoint.iterdir()}
    return bool(sizes) and all(present.get(name) == size for name, size in sizes.items())


# ----------------------------------------------------------------------------------------------------------------- logs


def write_log(path: Path, log: list[dict], **labels: str) -> None:
    """What was learned as csv, one row a logged step: the source of every loss chart, equal in equal runs."""
    import pandas as pd

    rows = [{k: v for k, v in row.items() if not k.endswith(RUN_TIME)} for row in log if "train_runtime" not in row]
    files.write_bytes(path, pd.DataFrame([labels | row for row in rows]).to_csv(index=False).encode())


def trained_tokens(log: list[dict]) -> int:
    """How many tokens a training read, padding left out, by the trainer's own running count; 0 where it keeps none."""
    return int(max((row.get("num_tokens", 0) for row in log), default=0))


def flops(parameters: float, *, trained: int = 0, every_weight: int = 0, read: int = 0) -> float:
    """FLOPs of so many tokens through a model of so many parameters: 2 each where a text is only read or written, 4 where an
    adapter learns from it, 6 where all weights do. What attention adds with a text's length is left out."""
    return parameters * (4.0 * trained + 6.0 * every_weight + 2.0 * read)


def write_speed(path: Path, log: list[dict], folder: Path) -> dict[str, float]:
    """How it went as csv, one row a step: seconds, tokens a second (where the log counts tokens), peak memory in MiB.

    Steps a kill made run twice appear once, as they ran last. Returns the means of the whole training.
    """
    import pandas as pd

    rows = {row["step"]: row for row in files.read_jsonl(folder / SPEED)}
    counted = {row["step"]: row["num_tokens"] for row in log if "loss" in row and "num_tokens" in row}
    for before, step in zip([0, *counted], counted):
        tokens = counted[step] - counted.get(before, 0.0)
        seconds = sum(rows[s]["seconds"] for s in range(int(before) + 1, int(step) + 1) if s in rows)
        rows.setdefault(step, {"step": step}).update(tokens=tokens, tokens_per_second=tokens / seconds if seconds else None)
    table = pd.DataFrame([rows[step] for step in sorted(rows)])
    files.write_bytes(path, table.to_csv(index=False).encode())
    return {column: float(table[column].mean()) for column in ("seconds", "tokens_per_second") if column in table}


def curve_facts(log: list[dict]) -> dict[str, float]:
    """What a loss chart shows, in numbers: first and last training loss (means of a tenth of the steps), lowest validation loss and
    its step, last validation loss. Losses in nats per supervised token, of DPO per pair. Rows as in the log's csv. (Ours.)"""
    training = [row["loss"] for row in log if _is_number(row.get("loss"))]
    validation = [(row["eval_loss"], int(row["step"])) for row in log if _is_number(row.get("eval_loss"))]
    tenth = max(1, len(training) // 10)
    lowest, step = min(validation)
    return {
        "first training loss": sum(training[:tenth]) / tenth,
        "last training loss": sum(training[-tenth:]) / tenth,
        "lowest validation loss": lowest,
        "at step": step,
        "last validation loss": validation[-1][0],
    }


def _is_number(value) -> bool:
    return value is not None and math.isfinite(value)
