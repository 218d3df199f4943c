"""HH-RLHF's dialogs as preference pairs in the study's template.

A row holds two texts of turns marked `\\n\\nHuman:` and `\\n\\nAssistant:`. What comes before the last assistant turn is the
history, which both texts must share; the last assistant turns are the chosen and the rejected reply. Rows for which that
does not hold are dropped and counted. Rendering earlier turns into the template is ours (the authors' rule is unknown).
"""

import re

from .template import render_prompt

MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):")
REWARDS = ("chosen_reward", "rejected_reward")  # columns that a row may bring, for a DPO that knows by how much one is better
REASONS = ("malformed", "histories_differ", "empty_reply", "identical_replies")


def turns(text: str) -> list[tuple[str, str]] | None:
    """[(role, text), …] or None unless Human and Assistant alternate, Human first and Assistant last."""
    before, *parts = MARK.split(text.replace("\r\n", "\n"))
    pairs = [(role, words.strip()) for role, words in zip(parts[::2], parts[1::2])]
    alternate = [role for role, _ in pairs] == ["Human", "Assistant"] * (len(pairs) // 2)
    return pairs if pairs and alternate and not before.strip() else None


def preference_pair(row: dict) -> tuple[dict | None, str | None]:
    """({"prompt", "chosen", "rejected"}, None), or (None, reason) with a reason of `REASONS`.

    Example: chosen "\\n\\nHuman: Hi\\n\\nAssistant: Hello!" and rejected "\\n\\nHuman: Hi\\n\\nAssistant: What?" share the history
    "Hi", so the pair is {"prompt": render_prompt("Hi"), "chosen": "Hello!", "rejected": "What?"}. With "\\n\\nHuman: Hey" at
    the start of one of them it would be (None, "histories_differ").
    """
    chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
    if chosen is None or rejected is None:
        return None, "malformed"
    if chosen[:-1] != rejected[:-1]:
        return None, "histories_differ"
    if not chosen[-1][1] or not rejected[-1][1]:
        return None, "empty_reply"
    if chosen[-1] == rejected[-1]:
        return None, "identical_replies"
    texts = [text for _, text in chosen[:-1]]
    prompt = render_prompt(texts[-1], history=list(zip(texts[:-1:2], texts[1:-1:2])))
    rewards = {name: row[name] for name in REWARDS if name in row}
    return {"prompt": prompt, "chosen": chosen[-1][1], "rejected": rejected[-1][1]} | rewards, None


def preference_pairs(rows: list[dict]) -> tuple[list[dict], dict[str, int]]:
    """All usable pairs in order, and how many rows were dropped for each reason."""
    dropped, pairs = dict.fromkeys(REASONS, 0), []
    for row in rows:
        pair, reason = preference_pair(row)
        if pair:
            pairs.append(pair)
        elif reason:
            dropped[reason] += 1
    return pairs, dropped


def pair_of_replies(replies: list[dict]) -> tuple[dict | None, str]:
    """(a row as HH-RLHF has them, or None; what became of the instruction). `replies` are a model's to one `instruction`, each with
    `reply` and the judge's `status`, or None where it gave none. The first accepted one is chosen, the first refused one rejected.
    """
    by_status = {status: [row["reply"] for row in replies if row["status"] == status] for status in ("Accept", "Reject")}
    if not any(by_status.values()):
        return None, "no verdict"
    if not all(by_status.values()):
        return None, "all accepted" if by_status["Accept"] else "all refused"
    dialog = f"\n\nHuman: {replies[0]['instruction']}\n\nAssistant: "
    row = {kind: dialog + by_status[status][0] for kind, status in (("chosen", "Accept"), ("rejected", "Reject"))}
    pair, reason = preference_pair(row)
    return (row, "a pair") if pair else (None, str(reason))
