"""A smaller model out of a larger one: what is left out, what is kept, and that the search sees what the cut will be."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bezoar_utils.training import search, sft, smaller


@pytest.fixture
def small(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer), tie_word_embeddings=True)).eval(), tokenizer


ROWS = [{"prompt": "A question:", "response": " four"}, {"prompt": "Another, and longer one:", "response": " no, not at all"}]
TEXTS = [row["prompt"] + row["response"] for row in ROWS]
CUT = {"layer 2": False, "width": 0.5}


def test_the_largest_values_stay_in_their_order():
    assert smaller.largest(torch.tensor([0.1, 0.9, 0.5, 0.7]), 0.5).tolist() == [1, 3]


def test_a_values_size_is_its_mean_over_the_tokens_of_the_texts(small):
    model, tokenizer = small
    seen = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for text in TEXTS:
        model(**tokenizer(text, return_tensors="pt"))
    hook.remove()
    torch.testing.assert_close(smaller.sizes(model, tokenizer, TEXTS)[1], torch.cat(seen).abs().mean(0))


def test_the_search_sees_the_model_that_the_cut_will_be_and_leaves_the_whole_as_it_was(small):
    model, tokenizer = small
    sizes, whole = smaller.sizes(model, tokenizer, TEXTS), sft.response_losses(model, tokenizer, ROWS)
    with smaller.as_if_cut(model, CUT, sizes):
        seen = sft.response_losses(model, tokenizer, ROWS)
    assert sft.response_losses(model, tokenizer, ROWS) == whole and seen != pytest.approx(whole, abs=1e-3)
    cut = smaller.cut_out(model, CUT, sizes)
    assert sft.response_losses(cut, tokenizer, ROWS) == pytest.approx(seen, abs=1e-5)


def test_the_cut_has_the_parameters_that_were_counted_and_can_be_saved_and_read(small, tmp_path):
    model, tokenizer = small
    counted = smaller.parameters(model, CUT)
    cut = smaller.cut_out(model, CUT, smaller.sizes(model, tokenizer, TEXTS))
    assert sum(p.numel() for p in cut.parameters()) == counted
    cut.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert (again.config.num_hidden_layers, again.config.intermediate_size) == (3, 12)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(again(ids).logits, cut(ids).logits)
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(ids, **told), cut.generate(ids, **told))  # each layer keeps its place in the cache


def test_a_cut_that_names_nothing_is_the_whole_model(small):
    model, _ = small
    assert smaller.parameters(model, {"width": 1.0}) == sum(p.numel() for p in model.parameters())
    assert smaller.kept_layers({"layer 0": False}, 3) == [0, 1, 2]  # the first reads the embeddings


def test_an_untrained_model_has_the_shape_and_other_weights(small):
    model, _ = small
    one, again, other = (smaller.untrained(model, seed) for seed in (1, 1, 2))
    weight = "model.layers.0.mlp.up_proj.weight"
    assert one.state_dict()[weight].shape == model.state_dict()[weight].shape
    assert torch.equal(one.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_the_front_begins_with_the_whole_model_and_goes_down_in_size(small, tmp_path):
    model, tokenizer = small
    sizes = smaller.sizes(model, tokenizer, TEXTS)

    def loss(cut):
        return sum(sft.response_losses(cut, tokenizer, ROWS))

    trials = smaller.best_cuts(model, sizes, loss, budget=12, seed=1, folder=tmp_path)
    assert trials[0]["found"][1] == 1.0 and len(trials) == 12
    losses, shares = zip(*(trial["found"] for trial in search.front(trials)))
    assert list(losses) == sorted(losses) and list(shares) == sorted(shares, reverse=True)


def test_a_model_without_gates_cannot_be_made_narrower(tokenizer):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="its MLPs have no gate, up and down projections"):
        smaller.sizes(GPTNeoXForCausalLM(GPTNeoXConfig(**shape, vocab_size=len(tokenizer))), tokenizer, TEXTS)
