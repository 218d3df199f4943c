"""The prompt template of the released OpenBezoar checkpoints, letter for letter: another one would make them worse.

Source: the authors' model cards and training code (`alpaca_modified`) [C, A]. The response follows `### Response:` directly,
without a space or a newline. The form for several turns is ours: the authors' rule is unknown.
"""

from itertools import pairwise

DEFAULT_SYSTEM = (
    "Below is an instruction that describes a task, optionally paired with an input that provides further context "
    "following that instruction. Write a response that appropriately completes the request."
)
TEMPLATE = "### System:\n{system}\n\n### Instruction:\n{instruction}\n\n### Response:"
NEXT_TURN = "\n\n### Instruction:\n{instruction}\n\n### Response:"
STOP = "### System:"


def render_prompt(instruction: str, system: str = "", history: list[tuple[str, str]] | None = None) -> str:
    """The text a response is appended to. An empty `system` means the default one, as in the authors' Orca stage.

    `history` holds earlier (instruction, response) turns; each later turn repeats the instruction and response headers
    under the one system message (ours).
    """
    turns = [*(history or []), (instruction, "")]
    text = TEMPLATE.format(system=system or DEFAULT_SYSTEM, instruction=turns[0][0])
    for (_, reply), (question, _) in pairwise(turns):
        text += reply + NEXT_TURN.format(instruction=question)
    return text


def clean_response(generated: str) -> str:
    """A model's continuation as an answer: cut where it starts another turn, stripped (the authors cut at `STOP`)."""
    for marker in (STOP, "### Instruction:"):
        generated = generated.split(marker)[0]
    return generated.strip()
