"""From a prompt and its response to token ids and labels, and the guards that keep them what they claim to be.

One function encodes for SFT, DPO and chat alike, so that training and generation see the same boundary. The prompt is
always tokenised alone, as it is at generation time; the response continues it.
"""

from .tokens import begin

IGNORED = -100
LEADS = ("\n", "x", ":", " ")  # Llama 3 merges a line break with those that follow it, most tokenizers a letter with letters
AUTHORS_CUT = 256  # tokens at which the authors' code cuts a row by default [A]


class LabelError(ValueError):
    """Labels, BOS, EOS or padding are not what the stage claims."""


def encode(tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """(prompt ids as the tokenizer begins a text, response ids with EOS). `response` follows the prompt without anything between.

    Where a token would straddle the boundary (joint and separate tokenisation differ) the response is tokenised after a lead that
    it does not merge with, so the prompt stays as the model will meet it. Raises LabelError when no lead does that.
    """
    prompt_ids = tokenizer(prompt)["input_ids"]
    joint = tokenizer(prompt + response)["input_ids"]
    if joint[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, [*joint[len(prompt_ids) :], tokenizer.eos_token_id]
    text = tokenizer.decode(joint)
    for lead in LEADS:
        lead_ids = tokenizer(lead, add_special_tokens=False)["input_ids"]
        ids = tokenizer(lead + response, add_special_tokens=False)["input_ids"]
        response_ids = ids[len(lead_ids) :]
        if ids[: len(lead_ids)] == lead_ids and tokenizer.decode(prompt_ids + response_ids) == text:
            return prompt_ids, [*response_ids, tokenizer.eos_token_id]
    raise LabelError(f"cannot tokenise {response[:60]!r} after {prompt[-20:]!r} without loss")


def sft_example(tokenizer, prompt: str, response: str, max_length: int, loss_on: str) -> dict | None:
    """{"input_ids", "labels"} of one row, or None when it does not fit into `max_length` tokens (count it, do not cut it).

    `loss_on="full"` labels every token, as the authors' code does; "completion" labels the response and its EOS.
    """
    prompt_ids, response_ids = encode(tokenizer, prompt, response)
    ids = prompt_ids + response_ids
    if len(ids) > max_length:
        return None
    hidden = 0 if loss_on == "full" else len(prompt_ids)
    return {"input_ids": ids, "labels": [IGNORED] * hidden + ids[hidden:]}


def check_batch(tokenizer, batch: dict, responses: set[str], loss_on: str) -> None:
    """Hold a collated batch against its claim. Raises LabelError naming the first row that breaks it.

    Checked: BOS at the start where the tokenizer puts one there, and nowhere else; padding never supervised, whatever token it is;
    the last supervised token is EOS; under "completion" the supervised tokens decode to one of `responses` and nothing else.
    """
    bos, eos, begun = tokenizer.bos_token_id, tokenizer.eos_token_id, bool(begin(tokenizer))
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), batch["attention_mask"].tolist())
    for number, (ids, labels, mask) in enumerate(rows):
        length = sum(mask)
        supervised = [label for label in labels if label != IGNORED]
        text = ids[: length - (bos == eos)]  # of a tokenizer whose one special token is both, the last one is the end
        if (ids[0] == bos) != begun or text.count(bos) != begun:
            raise LabelError(
                f"row {number}: " + ("not exactly one BOS at the start" if begun else "a BOS that this tokenizer never puts")
            )
        if any(label != IGNORED for label in labels[length:]):
            raise LabelError(f"row {number}: padding is supervised")
        if not supervised or supervised[-1] != eos:
            raise LabelError(f"row {number}: the last supervised token is not EOS")
        if loss_on == "full" and len(supervised) < length - 1:
            raise LabelError(f"row {number}: loss_on full, but {length - len(supervised)} tokens are hidden")
        if loss_on == "completion" and not _is_one_of(tokenizer, supervised[:-1], responses):
            raise LabelError(f"row {number}: the labels decode to {tokenizer.decode(supervised)!r}, no response of the data")


def _is_one_of(tokenizer, ids: list[int], responses: set[str]) -> bool:
    """Whether these tokens are one of the texts, or what this tokenizer's normalisation makes of one (Qwen's composes accents)."""
    text = tokenizer.decode(ids).strip()
    if text in responses:
        return True
    return any(text == tokenizer.decode(tokenizer(r, add_special_tokens=False)["input_ids"]).strip() for r in responses)


def roles(ids: list[int], labels: list[int], mask: list[int], eos: int) -> list[str]:
    """What each token of a padded row is for: "start" (the first, which nothing predicts), "context", "trained", "end"
    (a trained EOS) or "padding"."""

    def role(token: int, label: int, attended: int) -> str:
        if not attended:
            return "padding"
        if label == IGNORED:
            return "context"
        return "end" if token == eos else "trained"

    found = [role(*three) for three in zip(ids, labels, mask)]
    if 1 in mask:
        found[mask.index(1)] = "start"
    return found


def length_facts(lengths: list[int], max_length: int) -> dict:
    """Of rows of so many tokens: how long they are, and what share does not fit, here and under the authors' cut."""
    rows = len(lengths)
    return {
        "rows": rows,
        "mean tokens": sum(lengths) / rows if rows else None,
        "longest": max(lengths, default=None),
        f"longer than max_length ({max_length})": sum(n > max_length for n in lengths) / rows if rows else None,
        f"longer than the authors' cut ({AUTHORS_CUT})": sum(n > AUTHORS_CUT for n in lengths) / rows if rows else None,
    }
