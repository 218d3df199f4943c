import math
from copy import deepcopy
from itertools import count

import pytest
import torch
from recipes import recipe, silent

from bezoar_utils.data.template import render_prompt
from bezoar_utils.study.profile import ProfileError
from bezoar_utils.training import dpo, loop, models, reward, weights
from bezoar_utils.training.launch import Job

RECIPE = recipe("50_dpo", nll_weight=0.0, steps=12, validate_every=12, batch_size=8, seed=0)
PAIRS = [
    {"prompt": render_prompt(f"Say number {i}."), "chosen": f"Sure: {i}" + " again" * (i % 4), "rejected": f"Whatever: {i}"}
    for i in range(32)
]


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return dpo.dpo_examples(tokenizer, PAIRS, 256)[0]


@pytest.fixture(scope="module")
def trained(model_folder, tokenizer, pairs, tmp_path_factory):
    """(reward model, log) learned from pairs of which the first 24 begin with another word on each side."""
    folder, settings = tmp_path_factory.mktemp("reward"), RECIPE | {"quantisation": None}
    return reward.train(pairs[:24], pairs[24:], model_folder, tokenizer, settings, folder=folder, progress=silent)


@pytest.fixture
def untrained(model_folder):
    return models.load_model(model_folder, outputs=1)


@pytest.fixture
def trainer(model_folder, tokenizer, pairs, tmp_path):
    model = models.load_model(model_folder, outputs=1)
    return reward.reward_trainer(model, tokenizer, pairs, pairs, RECIPE | {"batch_size": 32}, tmp_path)


def replies(side: str, pairs=PAIRS) -> list[dict]:
    return [{"prompt": pair["prompt"], "reply": pair[side]} for pair in pairs]


def rewards(model, tokenizer, rows: list[dict], **settings) -> list[float]:
    return reward.score(model, tokenizer, rows, **settings)[0]


# ------------------------------------------------------------------------------------------------------------- training


def test_after_training_the_chosen_reply_of_unseen_pairs_is_scored_above_the_rejected_one(trained, tokenizer):
    model, log = trained
    chosen, rejected = (rewards(model, tokenizer, replies(side, PAIRS[24:])) for side in ("chosen", "rejected"))
    assert all(high > low for high, low in zip(chosen, rejected))
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[0] == pytest.approx(math.log(2), abs=0.2) and losses[-1] < 0.4
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_trainer_meets_exactly_our_tokens_with_one_bos_and_the_end_token(trainer, tokenizer, pairs):
    batch = next(iter(trainer.get_eval_dataloader()))
    met = [ids[: sum(mask)] for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist())]
    assert met == [pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    assert all(ids.count(tokenizer.bos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id for ids in met)


def test_the_loss_is_bradley_and_terrys_and_the_one_that_trl_trains_with(trainer, pairs):
    assert float(reward.reward_loss(torch.tensor(2.0), torch.tensor(0.5))) == pytest.approx(math.log(1 + math.exp(-1.5)))
    batch = trainer.data_collator(trainer.eval_dataset)
    trainer.model.eval()
    with torch.no_grad():
        numbers = trainer.model(**batch).logits[:, 0]
        assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(
            float(reward.reward_loss(*numbers.chunk(2)).mean())
        )


def test_a_saved_reward_model_scores_as_it_did_when_it_was_trained(trained, tokenizer, model_folder, tmp_path):
    trained[0].save_pretrained(tmp_path / "adapter")
    merged = models.merge(model_folder, tmp_path / "adapter", None, "full_precision", outputs=1)
    models.save_model(merged, tokenizer, tmp_path / "saved")
    again = rewards(reward.open_model(tmp_path / "saved", []), tokenizer, replies("chosen"))
    assert again == pytest.approx(rewards(trained[0], tokenizer, replies("chosen")), abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("pad", ["pad_token", "eos_token"])
def test_the_number_is_read_at_the_replys_end_token_whatever_the_padding(pad, untrained, tokenizer):
    """Also where the tokenizer pads with EOS itself, as many do: transformers would then read it a token too early."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.pad_token = getattr(tokenizer, pad)
    rows = [{"prompt": render_prompt("Hi."), "reply": "yes" + " again" * n} for n in range(9)]
    found = rewards(untrained, tokenizer, rows)
    assert found == pytest.approx(rewards(untrained, tokenizer, rows, batch_size=1), abs=1e-5)
    for row, number in zip(rows, found):
        ids = tokenizer(row["prompt"] + row["reply"])["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            every = untrained.score(untrained.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
        assert number == pytest.approx(float(every[-1]), abs=1e-4) and number != pytest.approx(float(every[-2]), abs=1e-4)


def save_reward_model(model_folder, tokenizer, folder, outputs: int):
    models.save_model(models.load_model(model_folder, outputs=outputs), tokenizer, folder)
    return folder


def test_several_numbers_become_one_by_the_weights_that_are_named(model_folder, tokenizer, tmp_path):
    folder = save_reward_model(model_folder, tokenizer, tmp_path / "five", 5)
    model = reward.open_model(folder, [0.3, 0.74, 0.46, 0.47, -0.33])
    each = [rewards(model, tokenizer, replies("chosen"), weights=[float(i == k) for i in range(5)]) for k in range(5)]
    wanted = [0.3 * a + 0.74 * b + 0.46 * c + 0.47 * d - 0.33 * e for a, b, c, d, e in zip(*each)]
    assert rewards(model, tokenizer, replies("chosen"), weights=[0.3, 0.74, 0.46, 0.47, -0.33]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("outputs", "named"), [(5, []), (5, [1.0]), (1, [1.0, 2.0]), (2, [])])
def test_numbers_and_weights_that_do_not_fit_are_one_line_before_a_weight_is_read(
    outputs, named, model_folder, tokenizer, tmp_path, monkeypatch
):
    folder = save_reward_model(model_folder, tokenizer, tmp_path / "model", outputs)
    monkeypatch.setattr(reward, "load_model", None)
    with pytest.raises(ValueError, match=rf"gives {outputs} numbers .*weights are {len(named)}") as error:
        reward.open_model(folder, named)
    assert "\n" not in str(error.value)


def test_a_language_model_is_not_taken_for_a_reward_model(model_folder):
    """Its head would be random, and nobody would see it."""
    with pytest.raises(ValueError, match="is not a reward model"):
        reward.open_model(model_folder, [])


def test_a_reward_model_of_the_hub_needs_its_full_commit_hash():
    for revision in (None, "main"):
        with pytest.raises(ProfileError, match="full commit hash"):
            weights.locate_model(None, "some/reward-model", revision)


# ------------------------------------------------------------------------------------------------------- best and worst


def made(*replies: tuple, ended: bool = True) -> list[dict]:
    return [{"prompt": "p", "reply": reply, "reward": number, "ended": ended} for reply, number in replies]


def test_the_best_reply_is_set_against_the_worst_and_a_length_penalty_can_change_which_they_are():
    rows = made(("y" * 10, 1.5), ("y" * 100, 2.0), ("y", 0.0))
    pair, outcome = reward.best_and_worst(rows)
    assert outcome == "a pair"
    assert pair == {"prompt": "p", "chosen": "y" * 100, "rejected": "y", "chosen_reward": 2.0, "rejected_reward": 0.0}
    pair, _ = reward.best_and_worst(rows, penalty=0.03)
    assert (pair["chosen"], pair["rejected"]) == ("y" * 10, "y" * 100) and pair["chosen_reward"] == pytest.approx(1.2)


def test_a_reply_that_was_cut_short_can_be_rejected_but_never_chosen():
    pair, _ = reward.best_and_worst(made(("whole", 1.0)) + made(("long and", 2.0), ("bad and", 0.0), ended=False))
    assert (pair["chosen"], pair["rejected"]) == ("whole", "bad and")
    assert reward.best_and_worst(made(("one", 1.0), ("other", 2.0), ended=False)) == (None, "no reply ended")


@pytest.mark.parametrize(
    "replies", [[], [("same", 1.0), ("same", 1.1)], [("one", 1.0), ("other", 1.0)], [("", 0.0), ("some", 1.0)]]
)
def test_a_tie_an_empty_reply_or_none_at_all_makes_no_pair(replies):
    pair, outcome = reward.best_and_worst(made(*replies))
    assert pair is None and outcome


# ------------------------------------------------------------------------------------------------------------------ RPO


def test_the_losses_of_rpo_are_the_ones_computed_by_hand():
    """Log-ratios 3 apart, rewards 2 apart, beta 0.5, eta 0.25: 1.5 of the policy against 0.5 of the rewards."""
    given = (torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]), 0.5, 0.25)
    assert reward.rpo_loss(*given).tolist() == pytest.approx([1.0, 0.0])
    p, q = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-1.5))  # 0.6225 of the rewards, 0.8176 of the policy
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert reward.rpo_loss(*given, kl=True).tolist() == pytest.approx([divergence, 0.0], abs=1e-6)
    assert divergence == pytest.approx(0.1049, abs=1e-4)


def test_a_reward_gap_however_large_leaves_the_kl_form_finite():
    """Against a policy that gives both replies alike it tends to ln 2."""
    losses = reward.rpo_loss(torch.zeros(2), torch.tensor([400.0, -400.0]), 0.1, 1.0, kl=True)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.fixture
def align(model_folder, tokenizer, tmp_path):
    runs = count()

    def align(method: str, pairs: list[dict], **changed):
        examples = dpo.dpo_examples(tokenizer, pairs, 256)[0]
        job = Job(
            "dpo", model_folder, examples[8:], examples[:8], RECIPE | {"method": method} | changed, tmp_path / str(next(runs))
        )
        return dpo.train_model(models.load_model(model_folder), tokenizer, job, silent)

    return align


@pytest.mark.parametrize("method", dpo.REWARD_AWARE)
def test_rpo_starts_at_the_loss_of_equal_log_ratios_and_moves_the_margin_towards_the_rewards(method, align):
    """Rewards that prefer what the columns call rejected turn the margin round: it is they that decide."""
    for sign in (1.0, -1.0):
        _, log = align(method, [pair | {"chosen_reward": sign * 1.5, "rejected_reward": 0.5 * sign} for pair in PAIRS], eta=0.5)
        first, last = [row for row in log if "loss" in row][:: RECIPE["steps"] - 1]
        start = reward.rpo_loss(torch.zeros(1), torch.tensor([sign]), RECIPE["beta"], 0.5, method == "rpo_kl")
        assert first["loss"] == pytest.approx(float(start), abs=1e-4) and last["loss"] < first["loss"]
        assert sign * last["rewards/margins"] > 0.05


def test_rpo_without_rewards_is_one_clear_line(align):
    with pytest.raises(loop.TrainingError, match="needs chosen_reward and rejected_reward"):
        align("rpo", PAIRS)
