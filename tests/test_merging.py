"""Several adapters as one: what each way of merging gives, by hand, and a search that goes on and does not lose."""

import peft
import pytest
import torch
from peft.utils import merge_utils
from torch import nn

from bezoar_utils.training import merging, search


@pytest.fixture
def model():
    """Two adapters of rank 2 on one layer of 3 x 4."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 3, bias=False))
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
    merged = peft.get_peft_model(base, config, adapter_name="one")
    merged.add_adapter("other", config)
    return merged


def change(model, name: str):
    return model.base_model.model[0].get_delta_weight(name).detach()


def factors(model, name: str):
    layer = model.base_model.model[0]
    return layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()


def test_cat_is_the_weighted_sum_of_what_the_adapters_change(model):
    merging.merge(model, {"one": 0.5, "other": 1.25}, "cat", 1.0, seed=1)
    torch.testing.assert_close(change(model, "merged"), 0.5 * change(model, "one") + 1.25 * change(model, "other"))


def test_linear_adds_the_factors_and_so_brings_in_their_mixed_products(model):
    merging.merge(model, {"one": 1.0, "other": 1.0}, "linear", 1.0, seed=1)
    (a, b), (other_a, other_b) = factors(model, "one"), factors(model, "other")
    torch.testing.assert_close(change(model, "merged"), (b + other_b) @ (a + other_a))


def test_ties_takes_the_sign_that_weighs_more_and_the_mean_of_those_who_agree():
    changes = [torch.tensor([1.0, -4.0, 0.1, 2.0]), torch.tensor([3.0, 2.0, 5.0, -0.2])]
    # half is kept of each: (-4, 2) and (3, 5); signs elected: +, -, +, +; agreeing values: 3, -4, 5, 2
    merged = merge_utils.ties(changes, torch.tensor([1.0, 1.0]), density=0.5)
    # a value that was dropped has no vote and is not counted
    torch.testing.assert_close(merged, torch.tensor([3.0, -4.0, 5.0, 2.0]))


@pytest.mark.parametrize("way", merging.SPARSE)
def test_a_sparse_merge_keeps_the_share_asked_for_and_differs_from_the_sum(model, way):
    merging.merge(model, {"one": 1.0, "other": 1.0}, way, 0.5, seed=3)
    a, _ = factors(model, "merged")
    assert (a == 0).any()
    assert not torch.allclose(change(model, "merged"), change(model, "one") + change(model, "other"))


def test_dare_drops_the_same_values_for_the_same_seed_whatever_was_drawn_before(model):
    weights = {"one": 1.0, "other": 1.0}
    merging.merge(model, weights, "dare_ties", 0.5, seed=3)
    first = change(model, "merged").clone()
    torch.rand(5)
    merging.merge(model, weights, "dare_ties", 0.5, seed=3)
    assert torch.equal(first, change(model, "merged"))
    merging.merge(model, weights, "dare_ties", 0.5, seed=4)
    assert not torch.equal(first, change(model, "merged"))


def test_the_merged_adapter_answers_alone(model):
    merging.merge(model, {"one": 0.0, "other": 0.0}, "cat", 1.0, seed=1)
    x = torch.randn(2, 4)
    assert model.active_adapters == ["merged"]
    torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x))


@pytest.mark.parametrize("way", ["linear", "ties", "dare_ties"])
def test_adapters_of_unequal_rank_are_refused_before_anything_is_merged(way):
    with pytest.raises(ValueError, match="one 2, other 8: train them alike, or merge by cat"):
        merging.check({"one": 2, "other": 8}, way)


def test_cat_takes_adapters_of_any_rank():
    merging.check({"one": 2, "other": 8}, "cat")


def test_the_search_finds_better_weights_than_the_mean_it_begins_with(model, tmp_path):
    wanted = 0.9 * change(model, "one") + 0.2 * change(model, "other")

    def loss(merged):
        return float((change(merged, "merged") - wanted).square().sum())

    trials = merging.best_weights(model, ["one", "other"], "cat", loss, most=1.5, budget=40, seed=1, folder=tmp_path)
    assert trials[0]["values"] == {"one": 0.5, "other": 0.5}
    assert len(trials) == 40 and merging.best(trials)["found"][0] < trials[0]["found"][0] / 4


def test_a_search_that_was_killed_goes_on_with_the_trials_it_has(tmp_path):
    def costly(trial):
        calls.append(trial.number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return (trial.suggest_float("x", -1, 1) - 0.5) ** 2

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        search.search(costly, search.CMA_ES, 6, 1, tmp_path)
    told = []
    rows = search.search(costly, search.CMA_ES, 6, 1, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert len(rows) == 6 and len(calls) == 7 and told == [(4, 6), (5, 6), (6, 6)]
    assert search.search(costly, search.CMA_ES, 6, 1, tmp_path) == rows and len(calls) == 7


def test_the_same_seed_searches_the_same_way(tmp_path):
    def bowl(trial):
        return trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_float("y", -1, 1) ** 2

    one, again, other = (
        search.search(bowl, search.CMA_ES, 8, seed, tmp_path / name) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert one == again and one != other


def test_two_numbers_make_a_front(tmp_path):
    def two(trial):
        x = trial.suggest_float("x", 0, 1)
        return x, (1 - x) ** 2

    rows = search.search(two, search.NSGA_II, 12, 1, tmp_path, numbers=2, first=[{"x": 0.25}])
    assert rows[0] == {"values": {"x": 0.25}, "found": [0.25, 0.5625]} and len(search.front(rows)) == 12


def test_the_front_holds_what_nothing_else_beats_each_once():
    trials = [{"found": found} for found in ([1, 5], [2, 4], [2, 6], [1, 5], [3, 4], [4, 1])]
    assert [trial["found"] for trial in search.front(trials)] == [[1, 5], [2, 4], [4, 1]]
