"""Weights in fewer bits: each quantiser against numbers worked out by hand, an independent implementation, or its own promise."""

import pytest
import torch

from bezoar_utils.training import bits, models, sft, tokens


def correlated(columns: int, tokens: int = 400, seed: int = 0, dtype=torch.float32):
    """(second, size) of inputs whose columns go together, a few of them large."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns // 4, generator=generator) @ torch.randn(columns // 4, columns, generator=generator)
    x = (mixed + 0.3 * torch.randn(tokens, columns, generator=generator)).to(dtype)
    x[:, ::7] *= 8
    return x.T @ x / tokens, x.abs().mean(0)


def weights(rows: int, columns: int, seed: int = 1, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand_of_obq(weight, second, width: int, group: int):
    """Optimal brain quantisation in the columns' order: after each column the inverse is made smaller by Gaussian elimination."""
    weight, rounded = weight.clone(), torch.zeros_like(weight)
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    inverse = torch.linalg.inv(damped)
    for j in range(weight.shape[1]):
        if j % group == 0:
            low = weight[:, j : j + group].min(1).values.clamp(max=0)
            step = (weight[:, j : j + group].max(1).values.clamp(min=0) - low) / (2**width - 1)
        level = (torch.round(weight[:, j] / step) - torch.round(low / step)).clamp(0, 2**width - 1)
        rounded[:, j] = step * (level + torch.round(low / step))
        weight -= ((weight[:, j] - rounded[:, j]) / inverse[j, j])[:, None] * inverse[j][None, :]
        inverse -= inverse[:, j : j + 1] @ inverse[j : j + 1, :] / inverse[j, j]
    return rounded


def test_two_bits_leave_four_even_steps_from_the_lowest_to_the_highest_weight():
    weight = torch.tensor([[-1.0, -0.4, 0.6, 2.0], [0.0, 1.0, 2.2, 3.0]])
    assert bits.rtn(weight, 2, 4).tolist() == [[-1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]]


def test_each_group_of_a_row_has_a_scale_of_its_own():
    weight = torch.tensor([[0.0, 3.0, 0.0, 0.3]])
    assert torch.equal(bits.rtn(weight, 2, 2), weight) and bits.rtn(weight, 2, 4)[0, 3] == 0


def test_weights_that_are_all_zero_stay_so():
    assert not bits.rtn(torch.zeros(2, 8), 3, 4).any()


def test_gptq_makes_up_for_a_column_with_the_next_one():
    """Both columns always see the same input: what the first loses by rounding, the second takes over before it is rounded."""
    weight, second = torch.tensor([[0.4, 0.4, 3.0, 0.0]]), torch.eye(4)
    second[0, 1] = second[1, 0] = 1.0
    assert bits.rtn(weight, 2, 4).tolist() == [[0.0, 0.0, 3.0, 0.0]]
    assert bits.gptq(weight, second, 2, 4).tolist() == [[0.0, 1.0, 3.0, 0.0]], "0.4 + 0.4 is nearer to 1 than to 0"


@pytest.mark.parametrize("width", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [24, 8])
def test_gptq_is_optimal_brain_quantisation_in_the_columns_order(width, group):
    second, _ = correlated(24, dtype=torch.float64)
    weight = weights(6, 24, dtype=torch.float64)
    assert torch.allclose(bits.gptq(weight, second, width, group), by_hand_of_obq(weight, second, width, group), atol=1e-9)


@pytest.mark.parametrize("width", [4, 3, 2])
@pytest.mark.parametrize("seed", range(5))
def test_on_inputs_that_go_together_gptq_and_awq_cost_less_than_rounding_to_nearest(width, seed):
    (second, size), weight = correlated(64, seed=seed), weights(32, 64, seed=seed + 100)
    nearest = bits.squared_error(weight, bits.rtn(weight, width, 32), second)
    assert bits.squared_error(weight, bits.gptq(weight, second, width, 32), second) < nearest
    assert bits.squared_error(weight, bits.awq(weight, second, size, width, 32), second) < nearest


@pytest.mark.parametrize("width", [8, 4, 3, 2])
def test_awq_is_never_worse_than_rounding_to_nearest_on_its_own_texts(width):
    for seed in range(10):
        x = weights(50, 32, seed=seed).exp()
        weight, second, size = weights(8, 32, seed=seed + 50), x.T @ x / 50, x.abs().mean(0)
        worst = bits.squared_error(weight, bits.rtn(weight, width, 16), second)
        assert bits.squared_error(weight, bits.awq(weight, second, size, width, 16), second) <= worst


def test_awq_rounds_a_column_with_large_inputs_more_finely():
    weight, size = weights(64, 32), torch.ones(32)
    size[5] = 100.0
    change = (bits.awq(weight, torch.diag(size**2), size, 3, 32) - weight).abs().mean(0)
    assert change[5] < 0.25 * change.mean()


@pytest.mark.parametrize("method", bits.METHODS)
def test_eight_bits_lose_next_to_nothing(method):
    (second, size), weight = correlated(64), weights(32, 64)
    lost = bits.squared_error(weight, bits.METHODS[method](weight, second, size, 8, 64), second)
    assert lost < 1e-4 * bits.squared_error(0 * weight, weight, second)


@pytest.mark.parametrize("method", bits.METHODS)
def test_columns_that_no_text_uses_are_no_obstacle(method):
    weight, second, size = weights(4, 16), torch.zeros(16, 16), torch.zeros(16)
    assert torch.isfinite(bits.METHODS[method](weight, second, size, 3, 16)).all()


@pytest.mark.parametrize("method", bits.METHODS)
def test_a_layer_is_rounded_by_its_rows_together_and_by_operations_on_whole_groups(method, monkeypatch):
    """Calls into the grid grow with GPTQ's groups and AWQ's search steps, never with rows or columns."""
    calls, grid = [], bits._grid
    monkeypatch.setattr(bits, "_grid", lambda *args, **more: calls.append(1) or grid(*args, **more))
    counts = []
    for rows in (16, 512):
        (second, size), weight = correlated(512), weights(rows, 512)
        calls.clear()
        assert bits.METHODS[method](weight, second, size, 4, 128).shape == (rows, 512)
        counts.append(len(calls))
    assert counts[0] == counts[1] == {"rtn": 1, "gptq": 4, "awq": 2 * bits.STEPS + 1}[method]


@pytest.mark.parametrize(("width", "group", "said"), [(1, 8, "bits"), (9, 8, "bits"), (4, 5, "divide"), (4, 0, "divide")])
@pytest.mark.parametrize("method", bits.METHODS)
def test_bits_out_of_range_and_a_group_that_does_not_divide_are_one_line(method, width, group, said):
    with pytest.raises(ValueError, match=said) as error:
        bits.METHODS[method](weights(2, 16), torch.eye(16), torch.ones(16), width, group)
    assert "\n" not in str(error.value)


def test_the_group_is_the_largest_divisor_that_is_allowed():
    assert [bits.group_of(columns, 128) for columns in (4096, 192, 64, 100, 131)] == [128, 96, 64, 100, 1]


# ------------------------------------------------------------------------------------------------------------------ a model

TEXTS = ["The capital of the north is", "x y z", "One and two are three, and four are more than that."]


@pytest.fixture
def small(model_folder):
    return models.load_model(model_folder), tokens.load_tokenizer(model_folder)


@pytest.mark.parametrize("method", bits.METHODS)
def test_all_linear_layers_of_the_blocks_are_rounded_and_nothing_else_is(small, method):
    model, tokenizer = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = bits.quantise(model, tokenizer, TEXTS, method, 3, 32)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "_proj" in name} and len(rows) == len(changed)
    assert all(0 < row["error"] < 1 for row in rows)
    assert all(len(model.state_dict()[name][0, :32].unique()) <= 8 for name in changed) or method == "awq"
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_padding_is_no_calibration_text(small):
    model, tokenizer = small
    layers = bits.blocks_of(model)[0]
    together = bits.observe(model, layers, tokenizer, TEXTS)
    alone = bits.observe(model, layers, tokenizer, TEXTS, batch_size=1)
    assert all(torch.allclose(a, b, atol=1e-4) for name in alone for a, b in zip(alone[name], together[name]))


def test_a_later_block_is_rounded_on_what_the_rounded_blocks_before_it_give(small):
    model, tokenizer = small
    last = bits.blocks_of(model)[-1]
    second, _ = bits.observe(model, last, tokenizer, TEXTS)["self_attn.q_proj"]
    weight = last["self_attn.q_proj"].weight.data.clone()
    bits.quantise(model, tokenizer, TEXTS, "gptq", 2, 32)
    assert not torch.allclose(last["self_attn.q_proj"].weight.data, bits.gptq(weight, second, 2, 32))


def test_a_wrong_number_of_bits_is_said_before_a_weight_changes(small):
    model, tokenizer = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="not to 9"):
        bits.quantise(model, tokenizer, TEXTS, "rtn", 9, 32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_linear_layers_in_blocks_is_one_line(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no blocks of linear layers"):
        bits.quantise(model, None, TEXTS, "rtn", 4, 32)


def test_megabytes_count_what_is_not_rounded_in_sixteen_bits(small):
    model, _ = small
    numbers = sum(p.numel() for p in model.parameters())
    linear = sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    assert bits.megabytes(model, lambda columns: 16) == pytest.approx(2 * numbers / 1e6)
    assert bits.megabytes(model, lambda columns: 4) == pytest.approx((2 * (numbers - linear) + linear / 2) / 1e6)


def test_the_loss_of_a_response_is_the_models_own_whatever_stands_beside_it(small):
    model, tokenizer = small
    rows = [{"prompt": "A question:", "response": " four"}, {"prompt": "Another, and longer one:", "response": " no, not at all"}]
    together = sft.response_losses(model, tokenizer, rows)
    for row, loss in zip(rows, together):
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([[*tokenizer(row["prompt"] + row["response"])["input_ids"], tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        assert loss == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), abs=1e-5)
