"""A reward model: one number a reply, learned from pairs (Bradley and Terry), through TRL. What it is good for stands here too:
the best and the worst of several replies (arXiv 2405.07863), and a DPO that knows by how much one is better (arXiv 2406.11704).

Pairs reach TRL as `dpo.dpo_examples` returns them: the study's template, one BOS at most, EOS last. The number is read at that EOS.
"""

from operator import itemgetter
from pathlib import Path

from .generation import by_length
from .labels import encode
from .loop import arguments, run
from .models import claim_adapter, load_model, lora_config
from .precision import autocast
from .tokens import chat_ids


def reward_loss(chosen, rejected):
    """Bradley and Terry's loss of rewards of shape (pairs,): -ln of the probability that people choose the chosen reply."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen - rejected)


def rpo_loss(log_ratio_difference, reward_gap, beta: float, eta: float, kl: bool = False):
    """Reward-aware preference optimisation (arXiv 2406.11704): losses of shape (pairs,), 0 where beta times the difference of two
    replies' log-ratios (policy to reference) equals eta times the difference of their rewards.

    Squared, or with `kl` the divergence of two coins: the reward model's, which says who wins, from the policy's.
    """
    from torch.nn.functional import logsigmoid

    policy, target = beta * log_ratio_difference, eta * reward_gap
    if not kl:
        return (policy - target) ** 2
    wins = target.sigmoid() * (logsigmoid(target) - logsigmoid(policy))
    return wins + (-target).sigmoid() * (logsigmoid(-target) - logsigmoid(-policy))


def best_and_worst(replies: list[dict], penalty: float = 0.0) -> tuple[dict | None, str]:
    """(a pair with its rewards or None, what became of it): of one prompt's replies the best and the worst by `reward`, less
    `penalty` for each character of the reply. A reply that was cut short (`ended` false) is never the best. Equal replies, or
    equal rewards, teach nothing."""
    scored = [(row["reward"] - penalty * len(row["reply"]), row) for row in replies if row["reply"]]
    if not (ended := [pair for pair in scored if pair[1]["ended"]]):
        return None, "no reply ended"
    (low, worst), (high, best) = min(scored, key=itemgetter(0)), max(ended, key=itemgetter(0))
    if high <= low or best["reply"] == worst["reply"]:
        return None, "a tie"
    texts = {"prompt": best["prompt"], "chosen": best["reply"], "rejected": worst["reply"]}
    return texts | {"chosen_reward": high, "rejected_reward": low}, "a pair"


# ------------------------------------------------------------------------------------------------------------- training


def train(
    training: list[dict], validation: list[dict], base: Path, tokenizer, recipe: dict, *, folder: Path, progress
) -> tuple[object, list[dict]]:
    """A reward model on `base`, in this process: (model with its adapter and head, log rows).

    `recipe` is chapter 81's `stage.parameters`. The head begins at random, from the seed. A rerun goes on from `folder`.
    """
    from transformers import set_seed

    set_seed(recipe["seed"])
    trainer = reward_trainer(load_model(base, recipe["quantisation"], outputs=1), tokenizer, training, validation, recipe, folder)
    claim_adapter(trainer.model, {})
    return run(trainer, recipe, progress)


def reward_trainer(model, tokenizer, training: list[dict], validation: list[dict], recipe: dict, folder: Path):
    """TRL's trainer, ready to run on these pairs."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    parts = [
        [{side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")} for pair in part]
        for part in (training, validation)
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(recipe, folder), max_length=None),
        train_dataset=Dataset.from_list(parts[0]),
        eval_dataset=Dataset.from_list(parts[1]),
        processing_class=tokenizer,
        peft_config=_lora_with_head(recipe["lora"], model),
    )
    trainer.model.config.pad_token_id = trainer.data_collator.pad_token_id = padding(tokenizer)
    return trainer


def _lora_with_head(lora: dict, model):
    """LoRA as everywhere, and the head that gives the number, trained as a whole."""
    config = lora_config(lora, model)
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    config.target_modules = set(config.target_modules) - {"score"}
    return config


def padding(tokenizer) -> int:
    """A token to pad with that is not EOS: transformers reads the number at the last token that is not padding."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id, 0, 1) if i not in (None, tokenizer.eos_token_id))


# -------------------------------------------------------------------------------------------------------------- scoring


def require_reward_model(folder: Path, weights: list[float]) -> int:
    """How many numbers a reply the model in a folder gives. Raises ValueError for a model that is not one, or whose numbers
    are not as many as the `weights` that make one of them."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        kind = ", ".join(config.architectures or ["of no known kind"])
        raise ValueError(f"{folder.name} is not a reward model ({kind}): name one that is saved as ...ForSequenceClassification")
    if len(weights or [1.0]) != config.num_labels:
        raise ValueError(
            f"{folder.name} gives {config.num_labels} numbers a reply, and its weights are {len(weights)}: "
            "name one weight for each, in the model's order"
        )
    return config.num_labels


def open_model(folder: Path, weights: list[float]):
    """A finished reward model. Raises ValueError as `require_reward_model`, before its weights are loaded."""
    return load_model(folder, outputs=require_reward_model(folder, weights))


def score(model, tokenizer, rows: list[dict], *, weights=(), mode: str = "raw", batch_size: int = 64) -> tuple[list[float], int]:
    """(the reward of each row's `reply` to its `prompt`, in order; tokens read). Several numbers a reply are summed by `weights`.

    `mode: chat` is for a model of others, which gets the prompt as the user's turn of its own chat template.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(_ids(tokenizer, row["prompt"], row["reply"], mode)) for row in rows]
    weight, rewards = torch.tensor([*weights] or [1.0], device=model.device), [0.0] * len(rows)
    model.config.get_text_config().pad_token_id = padding(tokenizer)
    model.eval()
    for batch in by_length(ids, batch_size):
        padded = pad_sequence([ids[i] for i in batch], True, padding(tokenizer))
        mask = pad_sequence([torch.ones_like(ids[i]) for i in batch], True, 0)
        with torch.inference_mode(), autocast(model.device.type):
            numbers = model(input_ids=padded.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        for i, reward in zip(batch, (numbers.float() @ weight).tolist()):
            rewards[i] = reward
    return rewards, sum(map(len, ids))


def _ids(tokenizer, prompt: str, reply: str, mode: str) -> list[int]:
    if mode == "chat":
        return [*chat_ids(tokenizer, prompt), *tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt_ids, reply_ids = encode(tokenizer, prompt, reply)
    return prompt_ids + reply_ids


# ------------------------------------------------------------------------------------------------------- its use in DPO


def reward_aware(trainer: type, recipe: dict) -> type:
    """A DPO trainer of TRL with `rpo_loss` added to its own. TRL has no such loss, and would drop the rows' rewards."""
    import torch

    class RewardAwareTrainer(trainer):
        def __init__(self, **settings):
            super().__init__(**settings)
            collate = self.data_collator
            self.data_collator = lambda rows: collate(rows) | {"reward_gap": torch.tensor([row["reward_gap"] for row in rows])}

        def _set_signature_columns_if_needed(self):
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*self._signature_columns, "reward_gap"]

        def _compute_loss(self, model, inputs, return_outputs):
            gap, said = inputs.pop("reward_gap"), []

            def listen(**batch):
                said.append(model(**batch))
                return said[0]

            loss = super()._compute_loss(listen, inputs, return_outputs)
            kept = [inputs.get(f"ref_{side}_logps") for side in ("chosen", "rejected")]
            reference = kept if self.precompute_ref_logps else self.compute_ref_log_probs(self.model, inputs)
            chosen, rejected = said[0].log_probs.sum(1).chunk(2)
            difference = chosen - rejected - (reference[0] - reference[1])
            return loss + rpo_loss(difference, gap, recipe["beta"], recipe["eta"], recipe["method"] == "rpo_kl").mean()

    return RewardAwareTrainer
