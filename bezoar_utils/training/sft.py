"""Supervised fine-tuning through TRL, with the labels and the adapter we say it has.

Rows reach TRL already tokenised by `labels.py`, so that no library default decides what is trained.
"""

from pathlib import Path

from . import launch
from .labels import check_batch, encode, sft_example
from .loop import TrainingError, arguments, run, split
from .models import adapter_values, claim_adapter, lora_config
from .precision import autocast


def sft_examples(tokenizer, rows: list[dict], recipe: dict) -> tuple[list[dict], int]:
    """Tokenised rows (of `prompt`, `response`) and how many did not fit into `max_length`."""
    examples = [sft_example(tokenizer, r["prompt"], r["response"], recipe["max_length"], recipe["loss_on"]) for r in rows]
    fitting = [e for e in examples if e is not None]
    if not fitting:
        raise TrainingError(f"no row fits into max_length={recipe['max_length']} tokens; raise it")
    return fitting, len(rows) - len(fitting)


def train(
    rows: list[dict], base: Path, tokenizer, recipe: dict, *, folder: Path, progress, carried: Path | None = None
) -> tuple[object, list[dict], dict[str, int]]:
    """Fine-tune `base` on rows of `prompt` and `response`: (model with its adapter, log rows, counts of rows).

    The adapter is fresh, or the one that lies in `carried`. `recipe` is a training chapter's `stage.parameters`: learning rate
    to batch, `loss_on`, lora, quantisation, seed, threads, and how many processes (`launch`). Checkpoints go to `folder`; a
    rerun goes on from there. Raises TrainingError.
    """
    (training, long_training), (validation, long_validation) = (
        sft_examples(tokenizer, part, recipe) for part in split(rows, recipe)
    )
    job = launch.Job("sft", base, training, validation, recipe, folder, carried, sorted({row["response"].strip() for row in rows}))
    model, log = launch.run_job(job, tokenizer, progress)
    return model, log, {"training": len(training), "validation": len(validation), "too long": long_training + long_validation}


def train_model(model, tokenizer, job: launch.Job, progress) -> tuple[object, list[dict]]:
    """(model with its adapter, log rows) in this process. `model` is a base, which gets a fresh adapter, or carries one already;
    where the recipe's `lora` is None all weights are trained.

    The optimizer and schedule are fresh, the first batch is checked against the responses, and the adapter with the lowest
    validation loss is the one returned (the authors' `load_best_model_at_end`).
    """
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    carried = isinstance(model, PeftModel)
    values = adapter_values(model) if carried else {}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(job.recipe, job.folder), max_length=None, packing=False),
        train_dataset=Dataset.from_list(job.training),
        eval_dataset=Dataset.from_list(job.validation),
        processing_class=tokenizer,
        peft_config=lora_config(job.recipe["lora"], model) if job.recipe["lora"] and not carried else None,
    )
    claim_adapter(trainer.model, values)
    check_batch(tokenizer, next(iter(trainer.get_train_dataloader())), job.responses, job.recipe["loss_on"])
    return run(trainer, job.recipe, progress)


def mean_loss(model, tokenizer, examples: list[dict], batch_size: int = 32) -> float:
    """Mean loss in nats per supervised token over tokenised rows, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    total = count = 0
    model.eval()
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        ids = pad_sequence([torch.tensor(e["input_ids"]) for e in batch], True, tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor(e["labels"]) for e in batch], True, -100)
        mask = pad_sequence([torch.ones(len(e["input_ids"]), dtype=torch.long) for e in batch], True, 0)
        supervised = int((labels[:, 1:] != -100).sum())
        with torch.no_grad(), autocast(model.device.type):
            loss = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), labels=labels.to(model.device)).loss
        total, count = total + float(loss) * supervised, count + supervised
    return total / count


def response_losses(model, tokenizer, rows: list[dict], batch_size: int = 32) -> list[float]:
    """Nats per token of each row's response and its EOS, after its prompt; e to the power of that is its perplexity."""
    import torch

    losses = []
    for start in range(0, len(rows), batch_size):
        parts = [encode(tokenizer, row["prompt"], row["response"]) for row in rows[start : start + batch_size]]
        ids = {"input_ids": [prompt + response for prompt, response in parts]}
        batch = tokenizer.pad(ids, padding_side="right", return_tensors="pt").to(model.device)
        with torch.no_grad(), autocast(model.device.type):
            logits = model.eval()(**batch, use_cache=False).logits[:, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        losses += [float(row[len(p) - 1 : len(p) + len(r) - 1].mean()) for row, (p, r) in zip(nats, parts)]
    return losses
