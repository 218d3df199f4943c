import json
import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from recipes import recipe, silent

from bezoar_utils.data.template import render_prompt
from bezoar_utils.training import dpo, loop, models
from bezoar_utils.training.launch import Job

RECIPE = recipe("50_dpo", nll_weight=0.0, sync_every=2, steps=5, validate_every=5, seed=0)
PAIRS = [
    {"prompt": render_prompt(f"Say number {i}."), "chosen": "Sure: yes" + " again" * (i % 4), "rejected": "Whatever: no"}
    | {"chosen_reward": 1.0, "rejected_reward": -1.0}  # which only some methods read
    for i in range(16)
]
LOGGED = [f"rewards/{k}" for k in ("chosen", "rejected", "margins", "accuracies")] + ["logps/chosen", "logps/rejected", "loss"]


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return dpo.dpo_examples(tokenizer, PAIRS, 256)[0]


@pytest.fixture
def train(model_folder, quantisation, tokenizer, pairs, tmp_path):
    """Train on the pairs with some of the recipe changed, in a folder of its own (or it would resume): (model, log)."""
    runs = count()

    def train(examples=pairs, **changed):
        job = Job("dpo", model_folder, examples[4:], examples[:4], RECIPE | changed, tmp_path / "scratch" / str(next(runs)))
        return dpo.train_model(models.load_model(model_folder, quantisation), tokenizer, job, silent)

    return train


@pytest.fixture
def trainer_for(model_folder, tokenizer, tmp_path):
    """TRL's trainer for a model on pairs, with some of the recipe changed."""

    def trainer_for(model, pairs, **changed):
        return dpo.preference_trainer(model, tokenizer, Job("dpo", model_folder, pairs, pairs, RECIPE | changed, tmp_path))

    return trainer_for


@pytest.fixture
def keep(tokenizer, tmp_path):
    """`reference_log_probs`, kept in one file."""

    def keep(model, pairs, tokenizer=tokenizer, model_hash="a", max_length=256):
        path = tmp_path / "reference.json"
        return dpo.reference_log_probs(model, tokenizer, pairs, model_hash=model_hash, max_length=max_length, path=path)

    return keep


# ----------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_is_the_one_computed_by_hand():
    """Log-ratios 1 and -2, beta 0.5: rewards 0.5 and -1, loss -ln sigmoid(1.5)."""
    given = [torch.tensor([v]) for v in (-9.0, -12.0, -10.0, -10.0)]
    loss, chosen, rejected = (float(v) for v in dpo.dpo_loss(*given, beta=0.5))
    assert (chosen, rejected) == (0.5, -1.0) and loss == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-6)
    same = torch.tensor([-3.0, -40.0])
    assert dpo.dpo_loss(same, same, same, same, beta=0.1)[0].tolist() == pytest.approx([math.log(2)] * 2)


def test_the_loss_is_the_one_trl_trains_with(model_folder, pairs, trainer_for):
    """TRL's own `_compute_loss`, given a policy whose log-probs are made up."""
    cached = [pair | {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0} for pair in pairs]
    trainer = trainer_for(models.load_model(model_folder), cached, beta=0.3)
    batch = trainer.data_collator(cached)
    mask = batch["completion_mask"][:, 1:]
    per_token = torch.randn(mask.shape, generator=torch.manual_seed(0)) * mask
    reference = torch.randn(2, len(pairs)) * 3
    batch |= {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
    said = SimpleNamespace(log_probs=per_token, entropy=per_token, mean_logits=per_token, is_top1=mask.bool())
    trl_loss = trainer._compute_loss(lambda **_: said, batch, return_outputs=False)
    losses, chosen, rejected = dpo.dpo_loss(*per_token.sum(1).chunk(2), *reference, beta=0.3)
    assert losses.shape == chosen.shape == rejected.shape == (len(pairs),)
    assert float(trl_loss) == pytest.approx(float(losses.mean()), rel=1e-5)
    told = trainer._metrics["train" if trainer.model.training else "eval"]
    assert told["rewards/chosen"] == [pytest.approx(float(chosen.mean()), rel=1e-4)]
    assert told["rewards/rejected"] == [pytest.approx(float(rejected.mean()), rel=1e-4)]


# ---------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_that_do_not_fit_or_are_equal_are_dropped_and_counted(tokenizer):
    pairs = [PAIRS[0], PAIRS[4], PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}, PAIRS[0] | {"chosen": "very " * 300}]
    kept, dropped = dpo.dpo_examples(tokenizer, pairs, 256)
    assert len(kept) == 2 and dropped == {"too_long": 1, "equal_as_tokens": 1}
    assert all(tokenizer.decode(k["chosen_ids"][:-1]) == "Sure: yes" for k in kept)


def test_no_pair_left_is_a_clear_error(tokenizer):
    with pytest.raises(loop.TrainingError, match="no preference pair is left"):
        dpo.dpo_examples(tokenizer, [PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}], 256)


def sequences(batch):
    """(ids, which of them are the reply's) of each sequence of a batch, chosen first, in either of TRL's forms."""
    if "input_ids" in batch:
        parts = [(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])]
    else:
        sides = [[batch[f"{side}_{k}"] for k in ("input_ids", "attention_mask", "labels")] for side in ("chosen", "rejected")]
        parts = [(ids, mask, (labels != -100).long()) for ids, mask, labels in sides]
    for ids, mask, reply in parts:
        for row in range(len(ids)):
            length = int(mask[row].sum())
            assert not reply[row, length:].any() and mask[row, :length].all()
            yield ids[row, :length].tolist(), reply[row, :length].tolist()


@pytest.mark.parametrize("method", dpo.METHODS)
def test_every_method_meets_exactly_our_tokens(method, model_folder, tokenizer, pairs, trainer_for):
    """The trainers of some methods would tokenise by themselves, with their own ideas of BOS, EOS and the boundary."""
    trainer = trainer_for(models.load_model(model_folder), pairs, method=method, batch_size=16)
    for batch in (next(iter(trainer.get_train_dataloader())), next(iter(trainer.get_eval_dataloader()))):
        met = list(sequences(batch))
        ours = [
            (p["prompt_ids"] + p[side], [0] * len(p["prompt_ids"]) + [1] * len(p[side]))
            for side in ("chosen_ids", "rejected_ids")
            for p in pairs
        ]
        assert sorted(met[:16]) == sorted(ours[:16]) and sorted(met[16:]) == sorted(ours[16:])
        for ids, _ in met:
            assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
            assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("nll_weight", [0.0, 0.2])
def test_dpo_starts_at_ln_2_with_the_adapter_off_as_reference(train, nll_weight):
    model, log = train(nll_weight=nll_weight)
    losses = [r["loss"] for r in log if "loss" in r]
    assert dpo.check_first_dpo_loss(log, nll_weight) == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]
    assert (losses[0] > 1.0) == (nll_weight > 0), "the likelihood term comes on top"
    assert list(model.peft_config) == ["default"]


def test_the_trained_model_with_its_adapter_off_is_the_base(train, model_folder, quantisation, tokenizer, pairs):
    model, _ = train()
    base = models.load_model(model_folder, quantisation)
    reference = dpo.pair_log_probs(base, tokenizer, pairs)
    assert dpo.pair_log_probs(model, tokenizer, pairs) == reference
    ids = torch.tensor([pairs[0]["prompt_ids"]])
    with torch.no_grad():
        on, off = model(ids).logits, base(ids).logits
    assert (on - off).abs().max() > 0.1, "and with it on it is another model"


@pytest.mark.parametrize("method", ["ipo", "simpo", "orpo", "tr_dpo"])
def test_every_other_method_trains_and_logs_the_same_columns(method, train, pairs):
    model, log = train(method=method, beta=2.0 if method == "simpo" else 0.1, learning_rate=2e-3)
    rows, evaluations = [r for r in log if "loss" in r], [r for r in log if "eval_loss" in r]
    assert len(rows) == RECIPE["steps"] and len(evaluations) == 1
    assert all(name in row for row in rows for name in LOGGED)
    assert all(f"eval_{name}" in evaluations[0] for name in LOGGED)
    if method in ("simpo", "orpo"):
        assert rows[-1]["loss"] < rows[0]["loss"]
    else:
        assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-3) and rows[2]["loss"] < rows[0]["loss"]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.float32, "TRL's reference-free trainers would round them"
    assert list(model.peft_config) == ["default"], "nor does a reference's adapter stay behind"
    counted = sum(len(p["prompt_ids"] + p[side]) for p in pairs[4:] for side in ("chosen_ids", "rejected_ids"))
    assert loop.trained_tokens(log) == pytest.approx(counted * RECIPE["steps"] * RECIPE["batch_size"] / len(pairs[4:]), rel=0.05)


def test_each_loss_starts_where_its_paper_says(train):
    """IPO at 1/(2 beta) squared; SimPO at a margin of mean log-probs; neither can be another loss under its name."""
    first = {m: next(r for r in train(method=m, steps=2, beta=0.5, warmup_steps=0)[1] if "loss" in r) for m in ("ipo", "simpo")}
    assert first["ipo"]["loss"] == pytest.approx(1.0, abs=1e-3)
    simpo = first["simpo"]
    assert simpo["rewards/chosen"] == pytest.approx(0.5 * simpo["logps/chosen"], rel=1e-3)
    assert simpo["loss"] == pytest.approx(math.log1p(math.exp(1.0 - simpo["rewards/margins"])), abs=0.05)


def adapters(model) -> list[list[torch.Tensor]]:
    """The values of the policy's adapter and of the reference's."""
    return [[p.detach().clone() for n, p in model.named_parameters() if f".{name}." in n] for name in ("default", "ref")]


@pytest.mark.parametrize(("weight", "every", "follows"), [(1.0, 2, 1.0), (0.6, 2, 0.6), (1.0, 3, 0.0)])
def test_the_moving_reference_follows_the_policy(model_folder, quantisation, pairs, trainer_for, weight, every, follows):
    model = models.load_model(model_folder, quantisation)
    trainer = trainer_for(model, pairs, method="tr_dpo", sync_weight=weight, sync_every=every, steps=2, learning_rate=1e-3)
    start, reference = adapters(trainer.model)
    assert start and all(torch.equal(a, b) for a, b in zip(start, reference))
    trainer.train()
    policy, reference = adapters(trainer.model)
    assert not all(torch.equal(a, b) for a, b in zip(start, policy))
    for first, now, behind in zip(start, policy, reference):
        torch.testing.assert_close(behind, first + follows * (now - first))


def test_the_moving_reference_is_what_the_loss_is_measured_against(train):
    """Wholly taken over after every step, it is the policy: no reward is left, where a reference that stays leaves some."""
    rewards = {}
    for every in (1, 100):
        _, log = train(method="tr_dpo", sync_every=every, sync_weight=1.0, learning_rate=2e-3, warmup_steps=0)
        rewards[every] = abs([row for row in log if "loss" in row][-1]["rewards/margins"])
    assert rewards[1] < 1e-3 < rewards[100]


def test_an_unknown_method_is_a_clear_error(train):
    with pytest.raises(loop.TrainingError, match="'kto' is not one of dpo, ipo, simpo, orpo, tr_dpo"):
        train(method="kto")


def test_a_reference_that_is_not_the_policy_is_caught():
    equal = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0}
    for row, weight in (({"loss": 0.52, **equal}, 0.0), ({"loss": 1.3, **equal, "rewards/margins": 0.1}, 0.2)):
        with pytest.raises(loop.TrainingError, match="not ln 2"):
            dpo.check_first_dpo_loss([row], weight)
    with pytest.raises(loop.TrainingError, match="did not start equal"):
        dpo.check_first_dpo_loss([{"loss": math.log(2), **equal, "rewards/chosen": -0.4, "rewards/rejected": -0.4}], 0.0)


# ------------------------------------------------------------------------------------------------- reference log-probs


def test_reference_log_probs_are_those_trl_computes_itself(model_folder, quantisation, tokenizer, pairs, trainer_for):
    model = models.load_model(model_folder, quantisation)
    ours = torch.tensor(dpo.pair_log_probs(model, tokenizer, pairs, batch_size=5))
    assert "forward" not in vars(model), "the model is left as it was"
    trainer = trainer_for(model, pairs)
    theirs = torch.stack(trainer.compute_ref_log_probs(trainer.model, trainer.data_collator(pairs)), 1)
    assert (ours - theirs).abs().max() < 0.02


def test_they_are_sums_over_the_reply_alone(model_folder, tokenizer, pairs):
    """Against a plain forward in float32, one sequence at a time; bfloat16 autocast rounds."""
    model = models.load_model(model_folder)
    for pair, both in zip(pairs[:4], dpo.pair_log_probs(model, tokenizer, pairs[:4])):
        for side, found in zip(("chosen_ids", "rejected_ids"), both):
            ids, start = torch.tensor([pair["prompt_ids"] + pair[side]]), len(pair["prompt_ids"])
            with torch.no_grad():
                log_probs = model(ids).logits[0].log_softmax(-1)
            wanted = sum(float(log_probs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))
            assert found == pytest.approx(wanted, abs=0.1)


def test_neither_order_nor_padding_changes_a_pairs_log_probs(model_folder, tokenizer, pairs):
    model = models.load_model(model_folder)
    together = dpo.pair_log_probs(model, tokenizer, pairs)
    alone = torch.tensor(dpo.pair_log_probs(model, tokenizer, pairs, batch_size=1))
    assert (torch.tensor(together) - alone).abs().max() < 0.02
    turned = dpo.pair_log_probs(model, tokenizer, pairs[::-1], batch_size=3)[::-1]
    assert (torch.tensor(turned) - alone).abs().max() < 0.02


@pytest.mark.parametrize("method", dpo.FIXED_REFERENCE)
def test_training_on_kept_log_probs_runs_no_reference(method, train, keep, pairs, monkeypatch, model_folder, quantisation):
    from trl.trainer import dpo_trainer

    kept = keep(models.load_model(model_folder, quantisation), pairs)
    _, computed = train(method=method)
    monkeypatch.setattr(dpo_trainer, "use_adapter", None)  # what TRL's reference pass begins with
    _, cached = train(kept, method=method)
    for a, b in zip(computed, cached):
        assert "loss" not in a or b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    with pytest.raises(TypeError):
        train(method=method)


def test_kept_log_probs_are_used_again_without_the_model(keep, model_folder, pairs, monkeypatch):
    model = models.load_model(model_folder)
    first = keep(model, pairs)
    monkeypatch.setattr(dpo, "pair_log_probs", None)
    assert keep(model, pairs) == first == keep(model, first)


def test_kept_log_probs_of_another_reference_are_not_used(keep, model_folder, quantisation, tokenizer, pairs, monkeypatch):
    from copy import deepcopy

    model, other = models.load_model(model_folder), deepcopy(tokenizer)
    other.add_tokens(["another"])
    wider = [pairs[0] | {"chosen_ids": pairs[1]["chosen_ids"]}, *pairs[1:]]
    counted = []
    monkeypatch.setattr(dpo, "pair_log_probs", lambda _, __, pairs, *___: counted.append(1) or [[-1.0, -2.0]] * len(pairs))
    keep(model, pairs)
    changes = [{"model_hash": "b"}, {"max_length": 128}, {"tokenizer": other}, {"pairs": wider}, {"pairs": pairs[::-1]}]
    changes += [{"pairs": pairs[:-1]}, {"model": models.load_model(model_folder, quantisation)}]
    for number, changed in enumerate(changes, 1):
        keep(**{"model": model, "pairs": pairs} | changed)
        assert len(counted) == 2 * number, changed
        keep(model, pairs)  # which by now is the other one
    tokenizer(["a", "some more"], padding=True)
    keep(model, pairs)
    assert len(counted) == 1 + 2 * len(changes), "how the tokenizer padded last is no part of it"


def torn(text):
    return text[: len(text) // 2]


def altered(text):
    kept = json.loads(text)
    kept["values"][3][0] += 1.0
    return json.dumps(kept)


DAMAGES = [torn, altered, lambda _: "", lambda _: "[1, 2]", lambda _: '{"values": []}', lambda _: "\x00"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_log_probs_are_computed_again(damage, keep, model_folder, pairs, tmp_path):
    model, path = models.load_model(model_folder), tmp_path / "reference.json"
    first, whole = keep(model, pairs), path.read_text()
    path.write_text(damage(whole))
    assert keep(model, pairs) == first and path.read_text() == whole


def test_a_log_prob_that_is_no_number_is_an_error(keep, model_folder, pairs, tmp_path):
    model = models.load_model(model_folder)
    model.lm_head.weight.data[:] = float("nan")
    with pytest.raises(loop.TrainingError, match="not finite"):
        keep(model, pairs)
    assert not (tmp_path / "reference.json").exists()
