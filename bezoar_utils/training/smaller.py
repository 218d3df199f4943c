"""A smaller model cut out of a larger one, as LLaMA-NAS does (arXiv 2405.18377): some layers left out, and the MLPs narrowed to the
values that are largest over some texts. Of models whose blocks have gate, up and down projections, as Llama's.

A cut is {"layer 1": False, ..., "width": 0.5}: layers by number, where one that is not named stays, and the share of each MLP's
inner values that is kept.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from . import bits
from .search import NSGA_II, search

WIDTHS = (1.0, 0.75, 0.5, 0.25)  # shares of an MLP's inner values


def largest(size, share: float):
    """The numbers, in order, of the share of values that are largest: `size` is the mean |value| of each, shape (inner,)."""
    return size.topk(max(1, round(share * len(size)))).indices.sort().values


def kept_layers(cut: dict, depth: int) -> list[int]:
    """The numbers of the layers that stay. The first, which reads the embeddings, always does."""
    return [number for number in range(depth) if number == 0 or cut.get(f"layer {number}", True)]


def sizes(model, tokenizer, texts: list[str]) -> list:
    """Of each block the mean |value| of its MLP's inner values over the tokens of `texts`, shape (inner,) each.

    Raises ValueError for a model whose blocks have no gate, up and down projections.
    """
    found = []
    for layers in bits.blocks_of(model):
        mlp = getattr(layers[""], "mlp", None)
        if not all(hasattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")):
            raise ValueError(f"{type(model).__name__} cannot be made narrower: its MLPs have no gate, up and down projections")
        found += [size for _, size in bits.observe(model, {"": layers[""], "down": mlp.down_proj}, tokenizer, texts).values()]
    return found


def parameters(model, cut: dict) -> int:
    """How many parameters the model has once it is cut."""
    blocks, kept = model.model.layers, kept_layers(cut, len(model.model.layers))
    narrow = round(cut["width"] * model.config.intermediate_size)
    left_out = sum(p.numel() for number, block in enumerate(blocks) if number not in kept for p in block.parameters())
    values = model.config.intermediate_size - max(1, narrow)
    return sum(p.numel() for p in model.parameters()) - left_out - len(kept) * values * 3 * model.config.hidden_size


@contextlib.contextmanager
def as_if_cut(model, cut: dict, sizes: list):
    """Within it the model answers as its cut would, without a copy of its weights: layers are passed over, and the MLPs' small
    inner values are zero."""
    blocks, depth = model.model.layers, model.config.num_hidden_layers
    kept = kept_layers(cut, depth)

    def only(indices):
        def hook(_, inputs):
            mask = inputs[0].new_zeros(inputs[0].shape[-1])
            mask[indices] = 1
            return (inputs[0] * mask,)

        return hook

    hooks = [blocks[n].mlp.down_proj.register_forward_pre_hook(only(largest(sizes[n], cut["width"]))) for n in kept]
    model.model.layers, model.config.num_hidden_layers = type(blocks)(blocks[n] for n in kept), len(kept)
    try:
        yield model
    finally:
        model.model.layers, model.config.num_hidden_layers = blocks, depth
        for hook in hooks:
            hook.remove()


def cut_out(model, cut: dict, sizes: list):
    """The model itself made smaller: a GPU that holds a 3B model has no room for a copy."""
    from torch import nn

    kept = kept_layers(cut, len(model.model.layers))
    model.model.layers = nn.ModuleList(model.model.layers[n] for n in kept)
    for place, (block, number) in enumerate(zip(model.model.layers, kept)):
        indices, mlp = largest(sizes[number], cut["width"]), block.mlp
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight, layer.out_features = nn.Parameter(layer.weight.data[indices].clone()), len(indices)
        mlp.down_proj.weight, mlp.down_proj.in_features = nn.Parameter(mlp.down_proj.weight.data[:, indices].clone()), len(indices)
        block.self_attn.layer_idx = place
    model.config.num_hidden_layers, model.config.intermediate_size = len(kept), len(indices)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[n] for n in kept]
    return model


def untrained(model, seed: int):
    """A model of the same shape whose weights are drawn anew."""
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    return AutoModelForCausalLM.from_config(model.config)


def best_cuts(model, sizes: list, loss: Callable, *, budget: int, seed: int, folder: Path, progress=None) -> list[dict]:
    """The trials of a search for cuts with a low `loss(model)` and few parameters (`found`: loss, share of the parameters).

    It begins with the whole model, and with the whole model at each width.
    """

    def goal(trial):
        cut = {f"layer {n}": trial.suggest_categorical(f"layer {n}", [True, False]) for n in range(1, len(sizes))}
        cut["width"] = trial.suggest_categorical("width", WIDTHS)
        with as_if_cut(model, cut, sizes):
            found = loss(model)
        return found, parameters(model, cut) / parameters(model, {"width": 1.0})

    every = {f"layer {n}": True for n in range(1, len(sizes))}
    first = [every | {"width": width} for width in WIDTHS]
    return search(goal, NSGA_II, budget, seed, folder, first=first, numbers=2, progress=progress)
