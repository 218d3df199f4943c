"""Weights rounded to fewer bits, simulated: each function gives the float weights that a file of so many bits would stand for.

Round to nearest, GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978), as *Low-bit LLaMA3* (arXiv 2404.14047) compares them. Weights
are (rows, columns), as in torch's linear layers; `group` neighbouring weights of a row share a scale and a zero point. What the
calibration texts say of a layer is in `second`, (columns, columns): the mean of x xᵀ over its inputs x, so that a change d of a row
costs d second dᵀ in squared output. The inputs themselves are not kept, and one layer is in work at a time.
"""

from collections.abc import Callable

from .precision import autocast

LEAST, MOST = 2, 8  # bits
STEPS = 20  # of each search that AWQ makes


def check(columns: int, bits: int, group: int) -> None:
    """Raises ValueError for bits or a group that rows of so many weights cannot be rounded with."""
    if not LEAST <= bits <= MOST:
        raise ValueError(f"weights can be rounded to {LEAST} to {MOST} bits, not to {bits}")
    if group < 1 or columns % group:
        raise ValueError(f"a group of {group} weights does not divide rows of {columns}: take one that does")


def group_of(columns: int, most: int) -> int:
    """The largest group that divides a row of so many weights, `most` at most."""
    return next(size for size in range(min(most, columns), 0, -1) if columns % size == 0)


def _grid(blocks, bits: int, shrink: float = 1.0):
    """(scale, zero point), last axis 1, of 2^bits even steps from the lowest to the highest value of the last axis and zero."""
    low, high = (end * shrink for end in (blocks.amin(-1, True).clamp(max=0), blocks.amax(-1, True).clamp(min=0)))
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return scale, (-low / scale).round()


def _rounded(values, scale, zero, bits: int):
    return scale * (((values / scale).round() + zero).clamp(0, 2**bits - 1) - zero)


def rtn(weight, bits: int, group: int):
    """Round to nearest: `weight` (rows, columns) with each value at the closest step of its group's even grid."""
    check(weight.shape[1], bits, group)
    blocks = weight.reshape(len(weight), -1, group)
    return _rounded(blocks, *_grid(blocks, bits), bits).reshape(weight.shape)


def gptq(weight, second, bits: int, group: int, damping: float = 0.01):
    """GPTQ: column by column, in order, what rounding a column costs is made up for by the columns still to come.

    `weight` is (rows, columns), `second` (columns, columns). Row j of the Cholesky factor of second⁻¹ says how far later columns
    move for an error in column j. `damping` times the mean of second's diagonal is added to it, so that there is an inverse.
    """
    import torch

    check(weight.shape[1], bits, group)
    mean = second.diagonal().mean().clamp(min=1e-12)
    damped = second + damping * mean * torch.eye(len(second), dtype=second.dtype, device=second.device)
    moves = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, rounded = weight.clone(), torch.empty_like(weight)
    for j in range(weight.shape[1]):
        if j % group == 0:
            scale, zero = _grid(left[:, j : j + group], bits)
        rounded[:, j : j + 1] = _rounded(left[:, j : j + 1], scale, zero, bits)
        error = (left[:, j] - rounded[:, j]) / moves[j, j]
        left[:, j:] -= torch.outer(error, moves[j, j:])
    return rounded


def awq(weight, second, size, bits: int, group: int):
    """AWQ: columns with large inputs are scaled up before rounding, and back after it, so that they are rounded more finely.

    `weight` is (rows, columns), `second` (columns, columns), `size` the mean |x| of each column. The scale is size^alpha, alpha the
    best of 20 steps from 0, which is round to nearest; then each group's range is clipped, by up to a half, where that helps. Each
    layer has a scale of its own here; in a file, layers with one input share it.
    """
    check(weight.shape[1], bits, group)
    powers = [size.clamp(min=1e-4) ** (step / STEPS) for step in range(STEPS)]
    scales = [power / (power.max() * power.min()).sqrt() for power in powers]
    scale = min(scales, key=lambda s: squared_error(weight, rtn(weight * s, bits, group) / s, second))
    clipped = _clipped(weight * scale, second / scale / scale[:, None], bits, group) / scale
    plain = rtn(weight * scale, bits, group) / scale
    return min((clipped, plain), key=lambda rounded: squared_error(weight, rounded, second))


def _clipped(weight, second, bits: int, group: int):
    """Round to nearest on the range of each row's group that costs least in the output of that group alone."""
    import torch

    blocks, starts = weight.reshape(len(weight), -1, group), range(0, len(second), group)
    seconds = torch.stack([second[i : i + group, i : i + group] for i in starts])  # (groups, group, group)
    best, least = blocks, torch.full_like(blocks[..., :1], torch.inf)
    for step in range(STEPS):
        tried = _rounded(blocks, *_grid(blocks, bits, 1 - step / (2 * STEPS)), bits)
        cost = (torch.einsum("rgi,gij->rgj", tried - blocks, seconds) * (tried - blocks)).sum(-1, keepdim=True)
        best, least = torch.where(cost < least, tried, best), torch.minimum(cost, least)
    return best.reshape(weight.shape)


def squared_error(weight, rounded, second) -> float:
    """The mean squared change of a layer's output, summed over its rows."""
    change = rounded - weight
    return float(((change @ second) * change).sum())


METHODS: dict[str, Callable] = {
    "rtn": lambda weight, second, size, bits, group: rtn(weight, bits, group),
    "gptq": lambda weight, second, size, bits, group: gptq(weight, second, bits, group),
    "awq": awq,
}


# ----------------------------------------------------------------------------------------------------------- a whole model


def blocks_of(model) -> list[dict]:
    """The linear layers of each block by name, in order. The embeddings and the head are in none. Raises ValueError without any."""
    from torch import nn

    depth = model.config.num_hidden_layers
    stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    found = [{"": block} | {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)} for block in next(stacks, [])]
    if not found or not all(len(layers) > 1 for layers in found):
        raise ValueError(f"{type(model).__name__} has no blocks of linear layers that can be rounded: take a Llama-like model")
    return found


def megabytes(model, bits_a_weight: Callable[[int], float]) -> float:
    """Size of a file with `bits_a_weight(columns)` in the blocks' linear layers, and 16 bits for all else."""
    layers = [layer.weight for block in blocks_of(model) for name, layer in block.items() if name]
    rest = sum(p.numel() for p in model.parameters()) - sum(weight.numel() for weight in layers)
    return (rest * 16 + sum(weight.numel() * bits_a_weight(weight.shape[1]) for weight in layers)) / 8e6


def quantise(model, tokenizer, texts: list[str], method: str, bits: int, group: int, progress=None) -> list[dict]:
    """Round the linear layers of all blocks in place, in order, each block as the rounded ones before it reach it.

    A group is `group` weights, or the largest divisor of a layer's columns below that. Returns a row per layer: its name, and the
    squared error of its outputs on `texts` as a share of their squared size. Raises ValueError before anything is changed.
    """
    blocks = blocks_of(model)
    for layer in (layer for block in blocks for name, layer in block.items() if name):
        check(layer.weight.shape[1], bits, group_of(layer.weight.shape[1], max(1, group)))
    rows = []
    for number, layers in enumerate(blocks):
        for name, (second, size) in observe(model, layers, tokenizer, texts).items():
            weight = layers[name].weight.data
            rounded = METHODS[method](weight, second, size, bits, group_of(weight.shape[1], group))
            whole = squared_error(0 * weight, weight, second)
            rows.append({"layer": f"{number}.{name}", "error": squared_error(weight, rounded, second) / max(whole, 1e-12)})
            layers[name].weight.data = rounded
        if progress:
            progress(number + 1, len(blocks))
    return rows


class _ReachedError(Exception):
    """The block in work is done; what comes after it need not be computed."""


def observe(model, layers: dict, tokenizer, texts: list[str], batch_size: int = 16) -> dict[str, tuple]:
    """name -> (`second`, `size`) of each linear layer of a block, over the tokens of `texts`. layers[""] is the block itself."""
    import torch

    sums: dict[str, list] = {name: [0.0, 0.0, 0] for name in layers if name}

    def look(name):
        def hook(_, inputs):
            x = inputs[0][batch["attention_mask"].bool()].float()  # (tokens, columns)
            sums[name] = [old + new for old, new in zip(sums[name], (x.T @ x, x.abs().sum(0), len(x)))]

        return hook

    def reached(*_):
        raise _ReachedError

    hooks = [layers[name].register_forward_pre_hook(look(name)) for name in sums] + [layers[""].register_forward_hook(reached)]
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True).to(model.device)
        try:
            with torch.no_grad(), autocast(model.device.type):
                model.eval()(**batch)
        except _ReachedError:
            pass
    for hook in hooks:
        hook.remove()
    return {name: (second / tokens, size / tokens) for name, (second, size, tokens) in sums.items()}
