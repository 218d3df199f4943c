"""The one place where models are loaded, adapted and merged; `weights.py` says where they come from."""

import os
from pathlib import Path

from ..study import files
from ..study.profile import ProfileError
from .precision import current, resolve
from .precision import use as use_precision
from .tokens import stop_ids
from .weights import locate_model


def prepare_torch(threads: int, seed: int, precision: str = "auto", stage=None):
    """torch, with a fixed number of CPU threads and a precision (both part of what makes a run repeatable) and quiet libraries.

    What was chosen, why, and which kernels the CPU runs, is noted in `stage`. Raises precision.PrecisionError for a precision that
    this device does not have.
    """
    import torch
    import transformers

    chosen = use_precision(precision)
    if stage:
        stage.note("precision", chosen._asdict() | {"kernels": torch.backends.cpu.get_cpu_capability()})
    torch.set_num_threads(threads)
    transformers.set_seed(seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch


def load_model(path: Path, quantisation: dict | None = None, packed: bool = False, outputs: int = 0):
    """A causal LM from safetensors in float32, or in 4 bits when `quantisation` is given. With `outputs`, so many numbers a text
    in place of words: a reward model, whose head is random where the folder holds none.

    A CPU that computes in float32 unpacks 4-bit weights once, here, and not at every token: the rounding stays, losses and
    gradients are equal to the last bit, a LoRA step is 1.4 times and generation 2.5 times as fast. `packed` keeps them in 4 bits.

    On CPUs with AVX512-BF16, bitsandbytes re-packs 4-bit weights at the first forward in eval mode and later trains with an
    op that has no gradient: gradients were 63 % wrong (relative norm), silently. The packing is switched off here.
    """
    import gc

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    gc.collect()  # modules hold each other: a model nobody names any more goes before the next one comes
    # one process a GPU: accelerate tells each which is its own
    device = {"": int(os.environ.get("LOCAL_RANK", "0"))} if torch.cuda.is_available() else {"": "cpu"}
    options = {"dtype": torch.float32, "device_map": device, "use_safetensors": True, "trust_remote_code": False}
    if quantisation:
        options["quantization_config"] = _four_bit(quantisation)
        _plain_linear_layers()
    if outputs:
        options["num_labels"] = outputs
    try:
        model = (AutoModelForSequenceClassification if outputs else AutoModelForCausalLM).from_pretrained(path, **options)
    except RuntimeError as error:
        if quantisation and "mismatched" in str(error):  # transformers 5.23 on GPT-2's Conv1D
            raise ProfileError(f"transformers cannot load {path.name} in 4 bits: write quantisation: null") from None
        raise
    except (OSError, ValueError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        kind = "reward" if outputs else "causal language"
        raise ProfileError(f"{path.name} cannot be loaded as a {kind} model: {why}") from None
    if quantisation:
        keep_weights_unpacked(model, path)
    unpack = quantisation and not packed and model.device.type == "cpu" and current().dtype == "float32"
    return dequantised(model) if unpack else model


def dequantised(model):
    """A 4-bit model's rounded weights in float32, on plain layers; `rounded_by` says how they were rounded."""
    import torch

    rounded_by = str(model.config.quantization_config)
    model = model.dequantize(torch.float32).to(torch.float32)
    model.rounded_by = rounded_by
    model.is_loaded_in_4bit = False  # stays behind, and TRL would round what trains to bfloat16
    return model


def with_adapter(base: Path, adapter: Path | None, quantisation: dict | None):
    """The base, with a saved adapter to train on if one is given."""
    from peft import PeftModel

    model = load_model(base, quantisation)
    return PeftModel.from_pretrained(model, adapter, is_trainable=True) if adapter else model


def _four_bit(quantisation: dict):
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantisation["type"],
        bnb_4bit_use_double_quant=quantisation["double"],
        bnb_4bit_compute_dtype=getattr(torch, resolve(quantisation["compute_dtype"])),
    )


def _plain_linear_layers() -> None:
    """Falcon names its linear layers by a class of its own, which computes the same and which 4-bit loading passes over."""
    from torch import nn
    from transformers.models.falcon import modeling_falcon

    modeling_falcon.FalconLinear = nn.Linear


def keep_weights_unpacked(model, path: Path) -> None:
    """Raises ProfileError when no layer is in 4 bits: layers of a class of their own stay as they are."""
    import bitsandbytes as bnb

    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    if not layers:
        raise ProfileError(f"4-bit weights were asked for, but no layer of {path.name} can hold them: load it in full precision")
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


# what q, k and v are called: Llama and most others; Falcon and GPT-NeoX; Phi-3; GPT-2
ATTENTION = (("q_proj", "k_proj", "v_proj"), ("query_key_value",), ("qkv_proj",), ("c_attn",))


def lora_config(lora: dict, model):
    """LoRA as the authors trained it: r 16, alpha 16, dropout 0.05, no bias, on q, k and v (model card, confidence C)."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=target_modules(lora["target_modules"], model),
        bias="none",
        task_type="CAUSAL_LM",
    )


def target_modules(asked: list[str] | str, model) -> list[str]:
    """The names of the model's layers that are meant: a list of names, "attention" (q, k and v) or "all-linear" (all but the head).

    Raises ProfileError, with the names there are, for one that no layer has.
    """
    names = linear_layers(model)
    if asked == "all-linear":
        return names
    attention = next((group for group in ATTENTION if set(group) <= set(names)), ())
    wanted = list(attention) if asked == "attention" else list(asked)
    if missing := [name for name in wanted if name not in names] or ([] if wanted else ["attention"]):
        there = ", ".join(names)
        raise ProfileError(f"lora.target_modules: no layer of the base model is called {', '.join(missing)}; there are {there}")
    return wanted


def linear_layers(model) -> list[str]:
    """The names of a model's linear layers but the head, each once."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    return sorted({name.rpartition(".")[2] for name in linear})


def parameter_count(folder: Path) -> int:
    """How many the model in a folder has, by its configuration alone; tied ones once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False)).num_parameters()


def layer_names(folder: Path) -> list[str]:
    """Those of the model in a folder, by its configuration alone. Raises ProfileError for an architecture that is not known."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return linear_layers(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False)))
    except (OSError, ValueError) as error:
        raise ProfileError(
            f"{folder.name} is of no architecture that can be trained: {' '.join(str(error).split())[:160]}"
        ) from None


def adapter_values(model) -> dict:
    """The trainable values by name, copied, for `claim_adapter` after a trainer has had its hands on them."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def claim_adapter(model, values: dict) -> int:
    """Make the adapter float32, as the authors' 32 MB files show, with `values` (of a carried adapter) put back exactly.

    TRL 1.16 casts LoRA weights on a 4-bit base to bfloat16 without a word: a carried adapter would be rounded at each
    stage. Returns the number of trainable values.
    """
    import torch

    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        parameter.data = values.get(name, parameter.data).to(torch.float32)
    return sum(p.numel() for p in trainable.values())


MERGES = ("dequantised", "into_4bit", "full_precision")


def merge(base: Path, adapter: Path, quantisation: dict | None, onto: str, outputs: int = 0):
    """The adapter merged into the base, one of `MERGES`.

    `dequantised`: onto the 4-bit base as float, which is the model that was trained. `into_4bit`: PEFT's merge into the 4-bit
    weights, which rounds the sum to 4 bits again. `full_precision`: onto the base as it came, as the authors did in fp16.
    """
    from peft import PeftModel

    model = load_model(base, None if onto == "full_precision" else quantisation, packed=True, outputs=outputs)
    if onto == "dequantised" and quantisation:
        model = dequantised(model)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def merge_difference(trained, merged, tokenizer, texts: list[str], progress=None, batch_size: int = 4) -> float:
    """How far the merged model's logits are from the model's as trained: relative Frobenius norm over `texts`.

    A few texts at a time: of 32 dialogs and a vocabulary of 49,152, the logits of both models would take 12 GB.
    """
    import torch

    moved = whole = 0.0
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True).to(trained.device)
        keep = batch["attention_mask"].bool()
        with torch.no_grad():
            wanted, got = (model.eval()(**batch).logits[keep].float() for model in (trained, merged))
        moved, whole = moved + float((got - wanted).pow(2).sum()), whole + float(wanted.pow(2).sum())
        if progress:
            progress(min(start + batch_size, len(texts)), len(texts))
    return (moved / whole) ** 0.5


def merge_table(
    trained, base: Path, adapter: Path, quantisation: dict, tokenizer, rows: list[dict], max_new_tokens: int, progress
) -> list[dict]:
    """Each way of merging against the model as trained: logits over the rows' texts, and greedy answers to their prompts, of
    which `progress(done, total)` is told.

    The merged models are made one after another: of a 3B base no two float copies need fit into memory.
    """
    import gc

    from .generation import generate

    ways = MERGES if quantisation else ("full_precision",)
    texts, prompts, table = [row["prompt"] + row["response"] for row in rows], [row["prompt"] for row in rows], []

    def greedy_answers(model, number: int) -> list[str]:
        def tell(done, _):
            progress(number * len(prompts) + done, (1 + len(ways)) * len(prompts))

        tell(0, None)
        return generate(model, tokenizer, prompts, seed=0, max_new_tokens=max_new_tokens, progress=tell)

    said = greedy_answers(trained, 0)
    for number, way in enumerate(ways, 1):
        model = merge(base, adapter, quantisation, way)
        if way == "into_4bit" and model.device.type == "cpu" and current().dtype == "float32":
            model = dequantised(model)  # the same weights and answers, sooner: as in load_model
        answers = greedy_answers(model, number)
        table.append(
            {
                "merged": way,
                "relative difference of logits": merge_difference(trained, model, tokenizer, texts),
                "same greedy answers": sum(map(str.__eq__, answers, said)) / len(prompts),
                "n": len(prompts),
            }
        )
        del model
        gc.collect()  # modules hold each other, so the name alone does not hold the memory
    return table


def save_model(model, tokenizer, folder: Path) -> None:
    """Weights as safetensors; beside them tokenizer, the study's prompt template and how to generate: sampling, as the
    authors' card says [C]. Its `max_new_tokens` of 1,024 is left to the caller: stored, it would overrule the `max_length`
    that LM Eval Harness asks for, and every reply of a benchmark would run on to it."""
    from transformers import GenerationConfig

    from ..data.template import DEFAULT_SYSTEM, TEMPLATE

    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    stops = stop_ids(tokenizer)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tokens |= {"eos_token_id": stops if len(stops) > 1 else stops[0]}
    GenerationConfig(**tokens, do_sample=True).save_pretrained(folder)
    files.write_json(folder / "prompt_template.json", {"template": TEMPLATE, "default_system": DEFAULT_SYSTEM})


def require_template(folder: Path) -> Path:
    """The checkpoint's folder. Raises ValueError when it carries no prompt template, or another than the study's: asked in a
    form that it was not trained on, a model would be measured wrong and nobody would see it."""
    from ..data.template import DEFAULT_SYSTEM, TEMPLATE

    path = folder / "prompt_template.json"
    if not path.exists():
        raise ValueError(
            f"{folder.name} has no prompt_template.json beside its weights: in which form it wants to be asked is unknown"
        )
    if files.read_json(path) != {"template": TEMPLATE, "default_system": DEFAULT_SYSTEM}:
        raise ValueError(f"{folder.name} was trained with another prompt template than this study's; see its prompt_template.json")
    return folder


def locate_checkpoints(stage, checkpoints: dict[str, dict]) -> dict[str, tuple[Path, str]]:
    """name -> (folder, identity) of a profile's `checkpoints`, the base first. Raises ValueError as `require_template` does
    for a tuned one of our own; the authors' carry no template file, but theirs is the study's [C]."""
    found = {name: locate_model(stage, c["model"], c["revision"]) for name, c in checkpoints.items()}
    for name in list(found)[1:]:
        if checkpoints[name]["revision"] is None:
            require_template(found[name][0])
    return found
