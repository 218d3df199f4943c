"""Direct preference optimisation (arXiv 2305.18290) through TRL, with the reference model we say it has.

Pairs reach TRL already tokenised by `labels.py`, so that no library default decides what is compared.
"""

import math
from pathlib import Path

from .labels import encode
from .models import claim_adapter, lora_config
from .training import TrainingError, arguments, run

LN2 = math.log(2)


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
        args=DPOConfig(**arguments(recipe, folder, seed), max_length=None, beta=recipe["beta"], **_dpo_loss(recipe["nll_weight"])),
        train_dataset=Dataset.from_list(training),
        eval_dataset=Dataset.from_list(validation),
        processing_class=tokenizer,
        peft_config=lora_config(lora),
    )
    claim_adapter(trainer.model, {})
    model, log = run(trainer, recipe, progress)
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
