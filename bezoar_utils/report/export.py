"""A checkpoint as one file for llama.cpp, Ollama and LM Studio: GGUF, with its tokenizer and the study's prompt template in it.

`python -m bezoar_utils.report.export --profile x --checkpoint 50_dpo/OpenBezoar-HH-RLHF-DPO --quant Q8_0` writes it, and an Ollama
Modelfile beside it, into `runs/x/exports/`. What llama.cpp expects is read off its own `gguf` package and converter.
"""

import argparse
import json
import sys
from pathlib import Path

from ..data.template import DEFAULT_SYSTEM, NEXT_TURN, STOP, TEMPLATE
from ..study import files
from ..study.stage import RUNS
from ..training.tokens import begin, load_tokenizer, stop_ids
from .publish import checkpoint

FORMAT, QUANTS = "gguf", ("F16", "Q8_0", "Q4_0")
OTHERS = "llama.cpp's own convert_hf_to_gguf.py knows more of them"


def write_gguf(folder: Path, path: Path, quant: str) -> None:
    """The Llama in `folder` as a GGUF file, one tensor in memory at a time. Raises ValueError for what it could not hold truly."""
    import gguf
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if problem := unfit(config):
        raise ValueError(f"{folder.name} {problem}: {OTHERS}")
    partial, names = path.with_suffix(".partial"), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(partial, "llama", use_temp_file=True)
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe(writer, config)
    _add_tokenizer(writer, load_tokenizer(folder), config.vocab_size)
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 not a dictionary
                value = interleaved(name, tensors.get_tensor(name).float(), config).numpy()
                stored = gguf.GGMLQuantizationType[stored_as(name, value.shape, quant)]
                place = names.get_name(name, try_suffixes=(".weight",))
                writer.add_tensor(place, gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def unfit(config) -> str:
    """Why a model of this configuration cannot be written, or ""."""
    if config.model_type != "llama":
        return f"is of the architecture {config.model_type!r}, and only Llama's is written"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "has biases, which are not written"
    if (kind := config.rope_parameters.get("rope_type", "default")) != "default":
        return f"stretches its rotary positions ({kind}), which is not written"
    return ""


def stored_as(name: str, shape: tuple, quant: str) -> str:
    """How a tensor is kept: norms in full, embeddings and head in eight bits or more, rows of no whole blocks of 32 in F16."""
    if len(shape) == 1:
        return "F32"
    if shape[-1] % 32:
        return "F16"
    return "Q8_0" if quant == "Q4_0" and ("embed_tokens" in name or "lm_head" in name) else quant


def interleaved(name: str, value, config):
    """llama.cpp turns neighbouring pairs of a head's values by its positions; transformers turns the first half with the second."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return value
    heads = config.num_attention_heads if name.endswith("q_proj.weight") else config.num_key_value_heads
    return value.reshape(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)


def _describe(writer, config) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer, tokenizer, rows: int) -> None:
    """Byte-level BPE. A row of the embedding that no token has is a token nobody can write."""
    from gguf import TokenType

    written = json.loads(tokenizer.backend_tokenizer.to_str())
    added = tokenizer.added_tokens_decoder
    kinds = {i: TokenType.CONTROL if token.special else TokenType.USER_DEFINED for i, token in added.items()}
    words = [tokenizer.convert_ids_to_tokens(i) if i < len(tokenizer) else None for i in range(rows)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(written))
    writer.add_token_list([f"[UNUSED{i}]" if word is None else word for i, word in enumerate(words)])
    writer.add_token_types([TokenType.UNUSED if word is None else kinds.get(i, TokenType.NORMAL) for i, word in enumerate(words)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in written["model"]["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    if others := stop_ids(tokenizer)[1:]:
        writer.add_eot_token_id(others[0])
    writer.add_add_bos_token(bool(begin(tokenizer)))
    writer.add_chat_template(chat_template())


def splitting(written: dict) -> str:
    """llama.cpp's name for how a tokenizer.json splits text before its merges. Raises ValueError for one unknown here."""
    splitter = written["pre_tokenizer"] or {}
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in splitter.get("pretokenizers", [splitter])]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    known = {"gpt-2": [byte_level], "smollm": [{"type": "Digits", "individual_digits": True}, byte_level]}
    name = next((name for name, same in known.items() if steps == same), None)
    if name is None or written["model"]["type"] != "BPE" or written["normalizer"]:
        raise ValueError(f"its tokenizer is not a byte-level BPE with the splitting of GPT-2 or SmolLM: {OTHERS}")
    return name


def chat_template() -> str:
    """The study's prompt in Jinja, for a system message and any number of turns: what `render_prompt` writes."""
    head, (before, after) = TEMPLATE.partition("{system}")[0], NEXT_TURN.split("{instruction}")
    system = "{% if messages[0]['role'] == 'system' and messages[0]['content'] %}{{ messages[0]['content'] }}{% else %}"
    turn = f"{{{{ {json.dumps(before)} + message['content'] + {json.dumps(after)} }}}}"
    turns = "{% for message in messages %}{% if message['role'] == 'user' %}" + turn
    turns += "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{% endif %}{% endfor %}"
    return f"{{{{ {json.dumps(head)} }}}}{system}{{{{ {json.dumps(DEFAULT_SYSTEM)} }}}}{{% endif %}}{turns}"


def modelfile(gguf_name: str, context: int) -> str:
    """How Ollama asks the model: the study's prompt in its template language, and where a reply ends."""
    turn = NEXT_TURN.format(instruction="{{ .Content }}")
    turns = '{{ range .Messages }}{{ if eq .Role "user" }}' + turn
    turns += '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{TEMPLATE.partition("{system}")[0]}{{{{ .System }}}}{turns}"""']
    lines += [f'SYSTEM """{DEFAULT_SYSTEM}"""', f"PARAMETER num_ctx {context}"]
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in (STOP, "### Instruction:"))]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.export")
    for name in ("profile", "checkpoint", "format", "quant"):
        parser.add_argument(f"--{name}", required=name != "format", default=FORMAT)
    options = parser.parse_args(arguments)
    try:
        if options.format != FORMAT or options.quant not in QUANTS:
            expected = f"FORMAT={FORMAT} and QUANT={' or '.join(QUANTS)}"
            raise ValueError(f"FORMAT={options.format} QUANT={options.quant}: expected {expected}")
        folder, _ = checkpoint(options.profile, options.checkpoint)
        name = f"{folder.name}-{options.quant}"
        path = RUNS / options.profile / "exports" / name / f"{name}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(folder, path, options.quant)
        context = files.read_json(folder / "config.json")["max_position_embeddings"]
        (path.parent / "Modelfile").write_text(modelfile(path.name, context), encoding="utf-8")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{path.relative_to(RUNS.parent)}  {path.stat().st_size / 1e6:.1f} MB, and beside it a Modelfile: ollama create NAME -f it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
