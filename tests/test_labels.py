import pytest
import torch

from bezoar_utils.data.template import render_prompt
from bezoar_utils.training import tokens
from bezoar_utils.training.labels import IGNORED, LabelError, check_batch, encode, length_facts, roles, sft_example

PROMPT = render_prompt("Where does Ba live?")
FIRST_CHARACTERS = [chr(c) for c in range(33, 127)] + ["é", "中", "🙂", " ", "\n", "\t"]


def collate(examples, tokenizer):
    width = max(len(e["input_ids"]) for e in examples) + 2
    pad = lambda row, value: row + [value] * (width - len(row))  # noqa: E731
    return {
        "input_ids": torch.tensor([pad(e["input_ids"], tokenizer.pad_token_id) for e in examples]),
        "labels": torch.tensor([pad(e["labels"], IGNORED) for e in examples]),
        "attention_mask": torch.tensor([pad([1] * len(e["input_ids"]), 0) for e in examples]),
    }


@pytest.mark.parametrize("first", FIRST_CHARACTERS)
def test_the_prompt_keeps_its_tokens_whatever_the_response_starts_with(tokenizer, first):
    response = first + "alo lives here"
    prompt_ids, response_ids = encode(tokenizer, PROMPT, response)
    assert prompt_ids == tokenizer(PROMPT)["input_ids"]
    assert tokenizer.decode(prompt_ids[1:] + response_ids[:-1]) == PROMPT + response


def test_a_straddling_token_is_split_at_the_boundary(tokenizer):
    """Make a tokenizer that merges ':' with 'x', so that joint tokenisation would swallow the prompt's last token."""
    import copy
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    state["model"]["vocab"][":x"] = len(state["model"]["vocab"])
    state["model"]["merges"].insert(0, [":", "x"])
    merging = copy.deepcopy(tokenizer)
    merging._tokenizer = Tokenizer.from_str(json.dumps(state))
    joint = merging("a:xyz", add_special_tokens=False)["input_ids"]
    assert merging.convert_tokens_to_ids(":x") in joint
    prompt_ids, response_ids = encode(merging, "a:", "xyz")
    assert prompt_ids == merging("a:")["input_ids"]
    assert merging.decode(response_ids[:-1]) == "xyz"


def test_completion_labels_are_the_response_and_eos(tokenizer):
    example = sft_example(tokenizer, PROMPT, "Kalo", 256, "completion")
    supervised = [i for i in example["labels"] if i != IGNORED]
    assert tokenizer.decode(supervised[:-1]) == "Kalo"
    assert supervised[-1] == tokenizer.eos_token_id


def test_full_labels_are_every_token(tokenizer):
    example = sft_example(tokenizer, PROMPT, "Kalo", 256, "full")
    assert example["labels"] == example["input_ids"]
    assert example["labels"][-1] == tokenizer.eos_token_id


def test_a_row_that_does_not_fit_is_left_out_not_cut(tokenizer):
    assert sft_example(tokenizer, PROMPT, "Kalo", 16, "completion") is None


def test_a_response_that_begins_with_line_breaks_follows_whatever_merges_them(tokenizer):
    """Llama 3's way of splitting takes a run of line breaks as one piece."""
    import copy
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": r"\s*[\r\n]+|\s+|[^\s]+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    line_break = tokenizer.convert_tokens_to_ids("Ċ")
    for merged, parts in ((":Ċ", [":", "Ċ"]), ("ĊĊ", ["Ċ", "Ċ"])):
        if merged not in state["model"]["vocab"]:
            state["model"]["vocab"][merged] = len(state["model"]["vocab"])
            state["model"]["merges"].insert(0, parts)
    merging = copy.deepcopy(tokenizer)
    merging._tokenizer = Tokenizer.from_str(json.dumps(state))
    prompt_ids, response_ids = encode(merging, "a Response:\n", "\n\nSure")
    assert prompt_ids == merging("a Response:\n")["input_ids"] and line_break is not None
    assert merging.decode(response_ids[:-1]) == "\n\nSure"


def test_a_true_batch_passes(tokenizer):
    for loss_on in ("full", "completion"):
        batch = collate([sft_example(tokenizer, PROMPT, r, 256, loss_on) for r in ("Kalo", "a baker")], tokenizer)
        check_batch(tokenizer, batch, {"Kalo", "a baker"}, loss_on)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda b, t: b["labels"].__setitem__((0, -1), t.pad_token_id), "padding is supervised"),
        (lambda b, t: b["input_ids"].__setitem__((0, 1), t.bos_token_id), "exactly one BOS"),
        (lambda b, t: b["labels"].fill_(IGNORED), "last supervised token is not EOS"),
        (lambda b, t: b["labels"].__setitem__((0, 3), b["input_ids"][0, 3]), "no response of the data"),
    ],
)
def test_each_broken_batch_is_caught(tokenizer, breakage, message):
    batch = collate([sft_example(tokenizer, PROMPT, "Kalo", 256, "completion")], tokenizer)
    breakage(batch, tokenizer)
    with pytest.raises(LabelError, match=message):
        check_batch(tokenizer, batch, {"Kalo"}, "completion")


def test_claiming_full_while_hiding_the_prompt_is_caught(tokenizer):
    batch = collate([sft_example(tokenizer, PROMPT, "Kalo", 256, "completion")], tokenizer)
    with pytest.raises(LabelError, match="loss_on full"):
        check_batch(tokenizer, batch, {"Kalo"}, "full")


@pytest.mark.parametrize("loss_on", ["completion", "full"])
def test_each_token_of_a_padded_row_has_the_role_it_is_trained_in(tokenizer, loss_on):
    prompt_ids, response_ids = encode(tokenizer, PROMPT, "Kalo")
    batch = collate([sft_example(tokenizer, PROMPT, "Kalo", 256, loss_on)], tokenizer)
    found = roles(*(batch[k][0].tolist() for k in ("input_ids", "labels", "attention_mask")), tokenizer.eos_token_id)
    told = "context" if loss_on == "completion" else "trained"
    assert found == ["start"] + [told] * (len(prompt_ids) - 1) + ["trained"] * (len(response_ids) - 1) + ["end"] + ["padding"] * 2


def test_an_end_that_nobody_trains_on_is_no_end_and_padding_on_the_left_is_padding():
    assert roles([0, 0, 1, 5, 2, 6, 2], [IGNORED] * 5 + [6, 2], [0, 0, 1, 1, 1, 1, 1], 2) == [
        *["padding"] * 2,
        "start",
        *["context"] * 2,
        "trained",
        "end",
    ]
    assert roles([0], [IGNORED], [0], 2) == ["padding"]


def test_lengths_say_what_does_not_fit_here_and_under_the_authors_cut():
    assert length_facts([10, 256, 257, 500], 300) == {
        "rows": 4,
        "mean tokens": 255.75,
        "longest": 500,
        "longer than max_length (300)": 0.25,
        "longer than the authors' cut (256)": 0.5,
    }
    assert set(length_facts([], 16).values()) == {0, None}


def test_text_that_spells_a_special_token_is_text(model_folder):
    tokenizer = tokens.load_tokenizer(model_folder)
    text = "Use <s>old</s> tags and <pad>."
    ids = sft_example(tokenizer, PROMPT, text, 512, "completion")["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1 and tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids[1:-1]).endswith(text)
