"""HH-RLHF's dialogs as preference pairs in the study's template.

A row holds two texts of turns marked `\\n\\nHuman:` and `\\n\\nAssistant:`. What comes before the last assistant turn is the
history, which both texts must share; the last assistant turns are the chosen and the rejected reply. Rows for which that
does not hold are dropped and counted. Rendering earlier turns into the template is ours (the authors' rule is unknown).
"""

import re

from .template import render_prompt

MARK = re.compile(r"\n\n(Human|Assistant):")
REASONS = ("malformed", "histories_differ", "empty_reply", "identical_replies")


def turns(text: str) -> list[tuple[str, str]] | None:
    """[(speaker, text), …] or None unless Human and Assistant alternate, Human first and Assistant last."""
    parts = MARK.split(text)
    if parts[0].strip():
        return None
    found = [(speaker, words.strip()) for speaker, words in zip(parts[1::2], parts[2::2])]
    wanted = ["Human", "Assistant"] * (len(found) // 2)
    return found if found and [speaker for speaker, _ in found] == wanted else None


def preference_pair(row: dict) -> tuple[dict | None, str | None]:
    """({"prompt", "chosen", "rejected"}, None), or (None, reason) with a reason of `REASONS`."""
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
    return {"prompt": prompt, "chosen": chosen[-1][1], "rejected": rejected[-1][1]}, None


def preference_pairs(rows: list[dict]) -> tuple[list[dict], dict[str, int]]:
    """All usable pairs in order, and how many rows were dropped for each reason."""
    dropped, pairs = dict.fromkeys(REASONS, 0), []
    for row in rows:
        pair, reason = preference_pair(row)
        if pair:
            pairs.append(pair)
        else:
            dropped[reason] += 1
    return pairs, dropped
