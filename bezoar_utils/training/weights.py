"""Where a model comes from: an earlier stage, a folder, a GGUF file, an installed package, or the hub at a pinned commit.

Whatever it is, chapters get a folder of safetensors and tokenizer files. Other formats are converted once, by their content.
"""

import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..study import files
from ..study.profile import REHEARSAL, ROOT, STAGES, ProfileError

PACKAGE = "package:"  # begins the name of a file inside an installed package
EXTRAS = Path(sys.prefix) / "extras"  # where `make setup EXTRA=...` puts packages of which only the files are used
MADE_FROM = "made_from.json"  # of a converted folder, written last
# A model's files on the hub: its weights once, whatever its tokenizer lives in, no other library's copy of the weights.
BESIDE_WEIGHTS = ["*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt"]
OTHER_COPIES = ["*/*", "consolidated*"]


def locate_model(stage, reference: str, revision: str | None) -> tuple[Path, str]:
    """(folder, identity by content) of an earlier stage's model, a local folder or GGUF file, `package:NAME/FILE`, or a hub id
    (`owner/name`, or `owner/name/FILE.gguf`) at a pinned commit.

    Raises ProfileError for what is not a model, or a hub id without a full commit hash.
    """
    if reference.split("/")[0] in STAGES:
        path = stage.input(reference)
        recorded = {name: sha for name, sha in stage.inputs.items() if name.startswith(f"{reference}/")}
        return path, files.sha256_json(recorded)
    if path := local_path(reference):
        if problem := not_a_model(path):
            raise ProfileError(f"{reference} {problem}")
        identity = _identity(path)
        name = reference.removeprefix(PACKAGE).strip("/").replace("/", "--")
        return safe_weights(path, converted_folder(stage.profile) / f"{name}@{identity[:16]}"), identity
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ProfileError(f"{reference} is neither a stage's model nor a folder; a hub id needs its full commit hash as revision")
    path = _from_hub(reference, str(revision))
    return safe_weights(
        path, converted_folder(stage.profile) / f"{reference.replace('/', '--')}@{revision}"
    ), f"{reference}@{revision}"


def local_path(reference: str) -> Path | None:
    """The folder or file of this machine that a profile's model names, or None where it is a stage's or the hub's.

    Raises ProfileError for a file that no installed package holds.
    """
    if not reference.startswith(PACKAGE):
        path = ROOT / reference
        return path if path.is_dir() or (path.suffix == ".gguf" and path.is_file()) else None
    package, _, name = reference.removeprefix(PACKAGE).partition("/")
    found = find_spec(package) if package.isidentifier() else None
    places = [*(found.submodule_search_locations or ())] if found else []
    path = next((Path(place) / name for place in (*places, EXTRAS / package) if (Path(place) / name).exists()), None)
    if path is None:
        raise ProfileError(f"{reference}: no installed package holds it: make setup EXTRA=..., or install the package")
    return path


def not_a_model(path: Path) -> str:
    """Why a local folder or file cannot be a model, or "". Looks at names only."""
    if path.is_file() or list(path.glob("*.gguf")):
        return ""
    names = {p.name for p in path.iterdir()}
    if "config.json" not in names:
        adapter = "adapter_config.json" in names
        return (
            "is an adapter, not a model: merge it into its base first" if adapter else "holds no config.json, so it is not a model"
        )
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        return "holds no weights (*.safetensors or pytorch_model*.bin)"
    if not any(name.endswith((".model", ".jinja")) or name.startswith(("tokenizer", "vocab", "merges")) for name in names):
        return "holds no tokenizer: put the model's own beside its weights"
    return ""


@dataclass(frozen=True)
class Facts:
    """Of a local model, without loading it: its context in tokens (None if unlimited), and its chat template."""

    context: int | None
    chat_template: str


@cache
def facts(path: Path) -> Facts:
    """Of a folder, by its files; of a GGUF file, by its header. Raises ProfileError for one that cannot be read."""
    if path.suffix == ".gguf":
        from gguf import GGUFReader

        try:
            fields = GGUFReader(path).fields
            kind = fields["general.architecture"].contents()
            context, template = fields.get(f"{kind}.context_length"), fields.get("tokenizer.chat_template")
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ProfileError(f"{path.name} cannot be read as GGUF ({type(error).__name__}): it may be cut short") from None
        return Facts(context and context.contents(), template.contents() if template else "")
    named = [path / "chat_template.jinja", path / "chat_template.json", path / "tokenizer_config.json"]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in named if file.exists()]
    config = files.read_json(path / "config.json") if (path / "config.json").exists() else {}
    template = next((text for text, file in zip(texts, named) if "template" in file.name or '"chat_template"' in text), "")
    return Facts(config.get("max_position_embeddings") or config.get("n_positions"), template)


def _identity(path: Path) -> str:
    if path.is_file():
        return files.sha256_file(path)
    return files.sha256_json({p.name: files.sha256_file(p) for p in sorted(path.iterdir()) if p.is_file()})


def in_repository(reference: str) -> tuple[str, str]:
    """(owner/name, a file of it or "") of a hub's model."""
    parts = reference.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _from_hub(reference: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    repository, file = in_repository(reference)
    if file:
        return Path(hf_hub_download(repository, file, revision=revision))
    for weights in (["*.safetensors"], ["pytorch_model*.bin", "pytorch_model*.bin.index.json"]):
        wanted = {"allow_patterns": BESIDE_WEIGHTS + weights, "ignore_patterns": OTHER_COPIES}
        folder = Path(snapshot_download(reference, revision=revision, **wanted))
        if list(folder.glob(weights[0])):
            break
    return folder


def converted_folder(profile: str) -> Path:
    """Shared by all profiles, but a rehearsal's stand-in must never be found under a real model's name."""
    return ROOT / "runs" / profile / "models" if profile.startswith(REHEARSAL) else ROOT / "runs" / "models"


def safe_weights(path: Path, converted: Path) -> Path:
    """The folder itself if it holds safetensors, else what it or the GGUF file was converted to, once."""
    if path.is_dir() and list(path.glob("*.safetensors")):
        return path
    if not (converted / MADE_FROM).exists():
        converted.mkdir(parents=True, exist_ok=True)
        shards = [path] if path.is_file() else sorted([*path.glob("pytorch_model*.bin"), *path.glob("*.gguf")])
        if not shards:
            raise ProfileError(f"{path.name} holds no weights")
        (_convert_gguf if shards[0].suffix == ".gguf" else _convert_pickles)(shards, converted)
        files.write_json(converted / MADE_FROM, {shard.name: files.sha256_file(shard) for shard in shards})
    return converted


def _convert_pickles(shards: list[Path], converted: Path) -> None:
    """OpenLLaMA 3B v2 has only `.bin`, a pickle: it is read with weights_only=True, which runs no code."""
    import shutil

    import torch
    from safetensors.torch import save_file

    for path in shards[0].parent.iterdir():
        if path.is_file() and path.suffix != ".bin" and path.name != "pytorch_model.bin.index.json":
            shutil.copy(path, converted / path.name)
    weights = {name: value.clone() for shard in shards for name, value in torch.load(shard, "cpu", weights_only=True).items()}
    save_file(weights, converted / "model.safetensors", metadata={"format": "pt"})


def _convert_gguf(shards: list[Path], converted: Path) -> None:
    """By transformers' own reader: llama.cpp's file as the weights it stands for, in float32. Raises ProfileError in one line."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = shards[0]
    if len(shards) > 1:
        raise ProfileError(f"{path.parent.name} holds {len(shards)} GGUF files: name one")
    try:
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # the reader has no errors of its own: ValueError, KeyError, IndexError, struct.error ...
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ProfileError(
            f"{path.name} cannot be read as GGUF ({why}): it may be cut short, or its architecture is not known"
        ) from None
    # what was read still says that it is quantised, and would not be saved
    config = read.config.__class__.from_dict({k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(converted)
    tokenizer.save_pretrained(converted)
