"""Direct preference optimisation and its relatives through TRL, with the reference model we say they have.

Pairs reach every trainer already tokenised by `labels.py`, so that no library default decides what is compared. What
`recipe["method"]` may be, and what `beta` means to it:

- `dpo`: arXiv 2305.18290, equation 7; beta weighs the distance to the reference. The paper's method.
- `ipo`: arXiv 2310.12036, equation 17; beta is its tau. TRL divides log-probs by the replies' lengths, as its authors do.
- `simpo`: arXiv 2405.14734, equation 6; no reference, mean log-probs, beta scales them (2.0 to 2.5 there), `gamma` is the margin.
- `orpo`: arXiv 2403.07691, equation 6; no reference, beta is its lambda; likelihood of prompt and chosen reply included.
- `tr_dpo`: arXiv 2404.09656; DPO with a reference that follows: every `sync_every` steps it takes `sync_weight` of the policy's
  adapter (there of all weights).
- `rpo`, `rpo_kl`: arXiv 2406.11704; the policy's margin shall equal `eta` times that of the rewards `chosen_reward` and
  `rejected_reward` of each row (chapter 81 makes some), by the square of the distance or by KL divergence.

Beyond the paper's method all are ours to try. Keys of another method are not read.
"""

import contextlib
import json
import math
from pathlib import Path

from ..study import files
from . import launch
from .labels import IGNORED, encode
from .loop import TrainingError, arguments, run, supervised_positions_only
from .models import claim_adapter, lora_config
from .precision import autocast, current
from .reward import reward_aware

LN2 = math.log(2)
REWARD_AWARE = ("rpo", "rpo_kl")  # methods whose rows bring rewards
FIXED_REFERENCE = ("dpo", "ipo", *REWARD_AWARE)  # methods for which `reference_log_probs` saves a forward pass of each step
REFERENCE_FREE = ("simpo", "orpo")
REFERENCE = "ref"  # TRL's name of the adapter that is the reference
METHODS = ("dpo", "ipo", *REFERENCE_FREE, "tr_dpo", *REWARD_AWARE)


def dpo_examples(tokenizer, pairs: list[dict], max_length: int) -> tuple[list[dict], dict[str, int]]:
    """Tokenised pairs and what was dropped: pairs too long (TRL would cut the response's end) or equal as tokens."""
    fitting, dropped = [], {"too_long": 0, "equal_as_tokens": 0}
    for pair in pairs:
        prompt_ids, chosen_ids = encode(tokenizer, pair["prompt"], pair["chosen"])
        _, rejected_ids = encode(tokenizer, pair["prompt"], pair["rejected"])
        if len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) > max_length:
            dropped["too_long"] += 1
        elif chosen_ids == rejected_ids:
            dropped["equal_as_tokens"] += 1
        else:
            gap = {"reward_gap": pair["chosen_reward"] - pair["rejected_reward"]} if "chosen_reward" in pair else {}
            fitting.append({"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids, **gap})
    if not fitting:
        raise TrainingError(f"no preference pair is left: {dropped}")
    return fitting, dropped


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta: float):
    """DPO's loss (arXiv 2305.18290, equation 7): (losses, chosen rewards, rejected rewards), each of shape (pairs,).

    The inputs, of shape (pairs,), are sums of the log-probs in nats of a reply's tokens. A reward is beta times the
    log-ratio of policy and reference, without gradient. TRL trains with its own; the tests hold the two equal.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected)
    return -logsigmoid(chosen - rejected), chosen.detach(), rejected.detach()


# ------------------------------------------------------------------------------------------------------------- training


def train(
    training: list[dict], validation: list[dict], base: Path, tokenizer, recipe: dict, *, folder: Path, progress
) -> tuple[object, list[dict]]:
    """Align `base` on pairs as `dpo_examples` or `reference_log_probs` returns them: (trained model, log rows).

    `recipe` is chapter 50's `stage.parameters`: method, beta, learning rate to batch, lora, quantisation, seed, threads, and how
    many processes (`launch`). Checkpoints go to `folder`; a rerun goes on from there. Raises TrainingError.
    """
    return launch.run_job(launch.Job("dpo", base, training, validation, recipe, folder), tokenizer, progress)


def train_model(model, tokenizer, job: launch.Job, progress) -> tuple[object, list[dict]]:
    """(trained model, log rows) by `recipe["method"]`, in this process.

    The model gets a fresh adapter; the reference is the same model with the adapter off, for `tr_dpo` with an adapter of its own.
    `nll_weight` adds that share of the chosen replies' mean negative log-likelihood to `dpo` and `tr_dpo` (0 is neither).

    Rows hold loss, rewards/{chosen,rejected,margins,accuracies} and logps/{chosen,rejected}, and each as eval_. Logps are
    sums in nats over a reply, for `simpo` and `orpo` means over its tokens; there rewards are beta times those.
    Raises TrainingError for an unknown method, and unless policy and reference start equal (`check_first_dpo_loss`).
    """
    trainer, method = preference_trainer(model, tokenizer, job), _method(job.recipe)
    claim_adapter(trainer.model, {})
    model, log = run(trainer, job.recipe, progress)
    if REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
    if method not in REFERENCE_FREE:
        check_first_dpo_loss(log, job.recipe["nll_weight"], method)
    return model, log


def check_first_dpo_loss(log: list[dict], nll_weight: float, method: str = "dpo") -> float:
    """The DPO loss of the first step, which must be ln 2: rewards are beta times the log-ratio of policy and reference, so
    all are 0 as long as the two are one model. Where the logged loss is more or other (`nll_weight`, `ipo`, `rpo`) they decide."""
    first = next(row for row in log if "loss" in row)
    reward = max(abs(first["rewards/chosen"]), abs(first["rewards/rejected"]))
    plain = not nll_weight and method in ("dpo", "tr_dpo")
    dpo_loss = first["loss"] if plain else math.log1p(math.exp(-first["rewards/margins"]))
    if abs(dpo_loss - LN2) > 1e-3 or reward > 1e-3:
        raise TrainingError(f"the first DPO loss is {dpo_loss:.5f}, not ln 2: policy and reference did not start equal")
    return dpo_loss


def _method(recipe: dict) -> str:
    if recipe["method"] not in METHODS:
        raise TrainingError(f"method {recipe['method']!r} is not one of {', '.join(METHODS)}")
    return recipe["method"]


def preference_trainer(model, tokenizer, job: launch.Job):
    """TRL's trainer for `recipe["method"]`, ready to run on these pairs. Raises TrainingError for an unknown method."""
    from datasets import Dataset

    recipe, training, validation = job.recipe, job.training, job.validation
    method, common = _method(recipe), arguments(recipe, job.folder) | {"beta": recipe["beta"]}
    if method in REWARD_AWARE and not all("reward_gap" in pair for pair in (*training, *validation)):
        raise TrainingError(f"method {method} needs chosen_reward and rejected_reward in every row: score them as chapter 81 does")
    if method in REFERENCE_FREE:
        trainer, settings = _reference_free(model, recipe, common)
        training, validation = _whole_sequences(training), _whole_sequences(validation)
    else:
        cached = method != "tr_dpo" and all("ref_chosen_logps" in part[0] for part in (training, validation))
        trainer, settings = _fixed_reference(model, recipe, common | {"precompute_ref_log_probs": cached})
    data = {"train_dataset": Dataset.from_list(training), "eval_dataset": Dataset.from_list(validation)}
    made = trainer(**settings, **data, processing_class=tokenizer)
    if method == "tr_dpo":
        made.add_callback(_moving_reference(made.model, recipe["sync_every"], recipe["sync_weight"]))
    return made


def _fixed_reference(model, recipe: dict, common: dict) -> tuple[type, dict]:
    from trl import DPOConfig

    method, nll_weight = _method(recipe), recipe["nll_weight"]
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_weight]} if nll_weight else {}
    if method == "ipo":
        loss = {"loss_type": ["ipo"]}
    if method == "tr_dpo":  # no checkpoint holds the reference, and each validation loss is measured against another one
        common = common | {"save_strategy": "no", "load_best_model_at_end": False}
    trainer = _tokenised_dpo_trainer()
    if method in REWARD_AWARE:
        loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, nll_weight]}  # TRL's own part; ours is added to it
        trainer = reward_aware(trainer, recipe)
    args = DPOConfig(**common, **loss, max_length=None)
    return trainer, {"model": model, "args": args, "peft_config": lora_config(recipe["lora"], model)}


def _moving_reference(model, every: int, weight: float):
    """Gives the model a second adapter, equal to its first and never trained, which TRL then takes for the reference; every so many
    steps the callback moves it towards the first. (TRL's own `sync_ref_model` refuses adapters.)"""
    import torch
    from transformers import TrainerCallback

    model.add_adapter(REFERENCE, model.peft_config["default"])
    trained = {name: value for name, value in model.named_parameters() if ".default." in name}
    pairs = [(value, model.get_parameter(name.replace(".default.", f".{REFERENCE}."))) for name, value in trained.items()]
    for policy, reference in pairs:
        reference.data = policy.data.float().clone()
    model.set_adapter("default")

    class Follow(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % every == 0:
                with torch.no_grad():
                    for policy, reference in pairs:
                        reference.lerp_(policy, weight)

    return Follow()


def _reference_free(model, recipe: dict, common: dict) -> tuple[type, dict]:
    from datasets import disable_progress_bars
    from peft import get_peft_model
    from transformers import set_seed
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    disable_progress_bars()
    common = common | {"max_length": recipe["max_length"], "remove_unused_columns": False}
    if _method(recipe) == "simpo":
        trainer, args = CPOTrainer, CPOConfig(**common, loss_type="simpo", simpo_gamma=recipe["gamma"], cpo_alpha=0.0)
    else:
        trainer, args = ORPOTrainer, ORPOConfig(**common)
    # given a peft_config instead, these trainers round a 4-bit model's embeddings to bfloat16, in place
    set_seed(common["seed"])
    adapted = get_peft_model(model, lora_config(recipe["lora"], model))
    return _counting(trainer), {"model": adapted, "args": args}


def _counting(trainer: type) -> type:
    """A reference-free trainer of TRL's on tokenised pairs, which counts the tokens that it trains on, as TRL's others do."""

    class Counting(trainer):
        tokenize_row, seen = staticmethod(lambda row: row), None

        def compute_loss(self, model, inputs, *args, **named):
            if self.seen is None:  # a resumed training goes on from the count of the steps before
                self.seen = max((row.get("num_tokens", 0) for row in self.state.log_history), default=0)
            if model.training:
                tokens = inputs["chosen_attention_mask"].sum() + inputs["rejected_attention_mask"].sum()
                self.seen += int(self.accelerator.gather_for_metrics(tokens).sum())
            return super().compute_loss(model, inputs, *args, **named)

        def log(self, logs, *args, **named):
            return super().log(logs | ({"num_tokens": self.seen} if "loss" in logs else {}), *args, **named)

    return Counting


def _whole_sequences(pairs: list[dict]) -> list[dict]:
    """Pairs in the columns that TRL's reference-free trainers collate: prompt and reply in one, the prompt not labelled."""
    rows = []
    for pair in pairs:
        row = {}
        for side in ("chosen", "rejected"):
            prompt, reply = pair["prompt_ids"], pair[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + reply
            row[f"{side}_attention_mask"] = [1] * len(prompt + reply)
            row[f"{side}_labels"] = [IGNORED] * len(prompt) + reply
        rows.append(row)
    return rows


def _tokenised_dpo_trainer() -> type:
    from trl import DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        """TRL's trainer on pairs that `labels.encode` has tokenised (TRL would drop prompt tokens at an unstable boundary)."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

        def _precompute_ref_logps(self, dataset, *_):
            return dataset  # only asked for when the pairs hold them already

    return TokenisedDPOTrainer


# ------------------------------------------------------------------------------------------------- reference log-probs


def reference_log_probs(
    model, tokenizer, pairs: list[dict], *, model_hash: str, max_length: int, path: Path, batch_size: int = 32
) -> list[dict]:
    """The tokenised pairs with `ref_chosen_logps` and `ref_rejected_logps` (nats), for `train` to go without a reference.

    Computed once and kept at `path`, under a key of the model's content (`model_hash`), how it is loaded, the tokenizer, the
    pairs and `max_length`. A file of another key, or a damaged one, is not used: stale values would train against a
    model that is not the reference (trl#1139). Raises TrainingError when a value is not finite.
    """
    key = _reference_key(model, tokenizer, pairs, model_hash, max_length)
    values = _stored_values(path, key)
    if values is None:
        values = pair_log_probs(model, tokenizer, pairs, batch_size)
        files.write_json(path, {"seal": files.sha256_json([key, values]), "values": values})
    return [pair | {"ref_chosen_logps": both[0], "ref_rejected_logps": both[1]} for pair, both in zip(pairs, values)]


def pair_log_probs(model, tokenizer, pairs: list[dict], batch_size: int = 32) -> list[list[float]]:
    """[chosen, rejected] of each pair, in order: sums of log-probs in nats under the model, an adapter of it switched off.

    Computed as TRL computes the policy's in training (the same autocast, its own language-model head), or the two would
    differ by rounding alone. Longest pairs first, so that running out of memory shows at once.
    """
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    tokens = [{name: pair[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for pair in pairs]
    longest_first = sorted(range(len(pairs)), key=lambda i: -sum(map(len, tokens[i].values())))
    values = [None] * len(pairs)
    model.eval()
    with torch.no_grad(), autocast(model.device.type), _as_reference(model), supervised_positions_only():
        for start in range(0, len(pairs), batch_size):
            places = longest_first[start : start + batch_size]
            batch = {name: tensor.to(model.device) for name, tensor in collate([tokens[i] for i in places]).items()}
            labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
            log_probs = model(**batch, labels=labels, use_cache=False, fused_lm_head=True).log_probs.float().sum(1)
            for i, *both in zip(places, *log_probs.view(2, -1).tolist()):
                values[i] = both
    if not all(math.isfinite(value) for both in values for value in both):
        raise TrainingError("a reference log-probability is not finite")
    return values


@contextlib.contextmanager
def _as_reference(model):
    """The model with its adapter off and TRL's head on, which gives labels' log-probs without a vocabulary of logits each."""
    from peft import PeftModel
    from trl.trainer.utils import add_fused_lm_head

    adapted = isinstance(model, PeftModel)
    bare = model.get_base_model() if adapted else model
    before = vars(bare).get("forward")
    add_fused_lm_head(bare)
    try:
        with model.disable_adapter() if adapted else contextlib.nullcontext():
            yield
    finally:
        if before:
            bare.forward = before
        else:
            del bare.forward


def _reference_key(model, tokenizer, pairs: list[dict], model_hash: str, max_length: int) -> str:
    rounded_by = getattr(model, "rounded_by", str(getattr(model.config, "quantization_config", None)))
    loaded = [current().dtype, str(model.dtype), model.device.type, rounded_by]
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    # how the last call padded is part of it too, and changes nothing here
    vocabulary = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
    tokens = [files.sha256_json([pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]]) for pair in pairs]
    return files.sha256_json([model_hash, loaded, vocabulary, tokens, max_length])


def _stored_values(path: Path, key: str) -> list[list[float]] | None:
    try:
        stored = files.read_json(path)
        return stored["values"] if stored["seal"] == files.sha256_json([key, stored["values"]]) else None
    except (OSError, ValueError, TypeError, KeyError):  # never written, torn, or some other file
        return None
