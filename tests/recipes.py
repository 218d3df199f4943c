"""What the tests of training share: the recipe of the profile `tiny`, made quick to learn from, and rows to learn."""

from bezoar_utils.data.template import render_prompt
from bezoar_utils.study.profile import load_profile, stage_parameters

TINY = load_profile("tiny")
LORA, NF4 = TINY.lora.model_dump(), TINY.quantisation.model_dump()
ROWS = [{"prompt": render_prompt(f"Say number {i}."), "response": f"number {i} it is"} for i in range(40)]
RESPONSES = [row["response"] for row in ROWS]


def recipe(stage: str = "30_sft", **changes) -> dict:
    """A training stage's parameters with a high learning rate and room for every row, and `changes`."""
    return stage_parameters(TINY, stage) | {"learning_rate": 5e-3, "max_length": 256, "validation_share": 0.25} | changes


def silent(*_):
    """Progress that nobody watches."""
