"""What may not change a training, and what must: small models, one thread, no dropout."""

import ast
import random

import nbformat
import pytest
import torch
from recipes import LORA, NF4, RESPONSES, ROWS, recipe, silent

from bezoar_utils.study.profile import CODE, STAGES, Profile, _section_of, load_profile, stage_parameters
from bezoar_utils.training import loop, models, sft
from bezoar_utils.training.launch import Job

STILL = LORA | {"dropout": 0.0}
SHORT = recipe(steps=4, validate_every=4, warmup_steps=1, lora=STILL, seed=5)


def losses(base, tokenizer, folder, **changes):
    models.prepare_torch(threads=1, seed=5)
    examples, _ = sft.sft_examples(tokenizer, ROWS, SHORT | changes)
    job = Job("sft", base, examples[8:], examples[:8], SHORT | changes, folder, responses=RESPONSES)
    _, log = sft.train_model(models.load_model(base, NF4), tokenizer, job, silent)
    return [row["loss"] for row in log if "loss" in row], [row["grad_norm"] for row in log if "grad_norm" in row]


@pytest.fixture(scope="module")
def plain(model_folder, tokenizer, tmp_path_factory):
    return losses(model_folder, tokenizer, tmp_path_factory.mktemp("plain"))


def test_four_rows_at_once_are_four_rows_one_by_one(plain, model_folder, tokenizer, tmp_path):
    one_by_one, _ = losses(model_folder, tokenizer, tmp_path, batch_size=1, accumulation=4)
    assert one_by_one == pytest.approx(plain[0], abs=5e-3)  # bfloat16 in other batch shapes; a wrong mean would be off by far more
    assert max(plain[0]) - min(plain[0]) > 0.02


def test_gradient_checkpointing_saves_memory_and_changes_nothing(plain, model_folder, tokenizer, tmp_path):
    checkpointed = losses(model_folder, tokenizer, tmp_path, gradient_checkpointing=True)
    assert checkpointed[0] == pytest.approx(plain[0], abs=1e-3) and checkpointed[1] == pytest.approx(plain[1], rel=2e-2)


def test_the_same_seed_trains_the_same(plain, model_folder, tokenizer, tmp_path):
    assert losses(model_folder, tokenizer, tmp_path) == plain


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"schedule": "constant", "steps": 6},
        {"warmup_steps": 3},
        {"batch_size": 2},
        {"loss_on": "full"},
        {"lora": STILL | {"r": 4}},
        {"lora": STILL | {"alpha": 64}},
        {"lora": STILL | {"target_modules": ["q_proj"]}},
        {"lora": LORA},
    ],
    ids=str,
)
def test_a_changed_knob_changes_the_training(change, plain, model_folder, tokenizer, tmp_path):
    assert losses(model_folder, tokenizer, tmp_path, **change) != plain


def test_neither_order_nor_padding_changes_a_rows_loss(model_folder, tokenizer):
    model = models.load_model(model_folder)
    rows = [{"prompt": r["prompt"], "response": "word " * (1 + n % 9) + str(n)} for n, r in enumerate(ROWS)]
    examples, _ = sft.sft_examples(tokenizer, rows, SHORT)
    alone = [sft.mean_loss(model, tokenizer, [e]) for e in examples]
    counts = [sum(label != -100 for label in e["labels"][1:]) for e in examples]
    together = sum(a * c for a, c in zip(alone, counts)) / sum(counts)
    shuffled = random.Random(1).sample(examples, len(examples))
    for ordered, size in ((examples, 40), (shuffled, 7), (examples[::-1], 3)):
        assert sft.mean_loss(model, tokenizer, ordered, size) == pytest.approx(together, abs=1e-5)


def test_an_untrained_adapter_says_what_the_base_says(model_folder, tokenizer):
    from peft import get_peft_model

    model = models.load_model(model_folder)
    ids = torch.tensor([tokenizer("### Response:number one")["input_ids"]])
    with torch.no_grad():
        before = model(ids).logits.clone()
        assert torch.equal(get_peft_model(model, models.lora_config(STILL, model)).eval()(ids).logits, before)


def words_of(source: str) -> set[str]:
    """Every name, attribute, keyword and string of a piece of code."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        names |= {getattr(node, field) for field in ("id", "attr", "arg") if isinstance(getattr(node, field, None), str)}
        names |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
    return names


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_of_a_stage_is_read_by_its_chapter_or_a_helper(stage):
    helpers = [p for p in (CODE / "bezoar_utils").rglob("*.py") if p.name != "profile.py"]
    known = set().union(*(words_of(path.read_text()) for path in helpers))
    cells = [c for c in nbformat.read(CODE / "notebooks" / f"{stage}.ipynb", 4).cells if c.cell_type == "code"]
    own = set().union(*(words_of(c.source) for c in cells if "parameters" not in c.metadata.get("tags", [])))
    own |= {word for text in own for word in text.replace("{", " ").replace("}", " ").split()}  # names inside formatted texts
    unread = [name for name in stage_parameters(load_profile("mini"), stage) if name not in own | known]
    assert not unread


def test_every_key_of_a_shared_section_is_read_somewhere():
    sources = [p.read_text() for p in (CODE / "bezoar_utils").rglob("*.py") if p.name != "profile.py"]
    sources += [c.source for p in (CODE / "notebooks").glob("*.ipynb") for c in nbformat.read(p, 4).cells if c.cell_type == "code"]
    words = set().union(*map(words_of, sources))
    sections = ("money", "plan", "teacher", "judge", "launch", "lora", "quantisation", "evaluation", "intervals", "base_model")
    keys = {key for section in sections for key in _section_of(Profile.model_fields[section].annotation).model_fields}
    assert not sorted(keys - words)


def test_a_trainings_tokens_are_its_highest_count_whatever_row_the_log_ends_with():
    log = [{"loss": 2.0, "num_tokens": 900.0}, {"loss": 1.0, "num_tokens": 1800.0}, {"eval_loss": 1.5, "eval_num_tokens": 1800.0}]
    assert loop.trained_tokens([*log, {"train_runtime": 3.0}]) == 1800
    assert loop.trained_tokens([{"loss": 1.0}]) == loop.trained_tokens([]) == 0
