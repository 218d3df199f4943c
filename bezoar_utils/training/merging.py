"""Several adapters of one base as one, by PEFT, and CMA-ES for their weights (arXiv 2403.13187)."""

from collections.abc import Callable
from pathlib import Path

from .models import load_model
from .search import CMA_ES, search

WAYS = ("cat", "linear", "ties", "dare_ties")  # PEFT's names: the exact sum, and three that merge the adapters' factors
SPARSE = ("ties", "dare_ties")  # those that keep a share (density) of each adapter's values


def check(ranks: dict[str, int], way: str) -> None:
    """Raises ValueError, before anything is trained, when adapters of these ranks cannot be merged in this way."""
    if way != "cat" and len(set(ranks.values())) > 1:
        told = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        raise ValueError(f"{way} merges adapters of one rank, and these have {told}: train them alike, or merge by cat")


def together(base: Path, adapters: dict[str, Path], quantisation: dict | None):
    """The base with all of these saved adapters, under their names, to answer only."""
    from peft import PeftModel

    first, *others = adapters
    model = PeftModel.from_pretrained(load_model(base, quantisation), adapters[first], adapter_name=first)
    for name in others:
        model.load_adapter(adapters[name], adapter_name=name)
    return model.eval()


def merge(model, weights: dict[str, float], way: str, density: float, seed: int) -> None:
    """Give `model`, a PeftModel that holds the adapters named in `weights`, their merge as its active adapter `merged`.

    `cat` is the exact sum of weight times adapter, of as much rank as all together. The others merge the factors A and B each by
    itself: of two adapters B₁A₁ and B₂A₂ the sum of A times the sum of B, which brings B₁A₂ and B₂A₁ with it.
    """
    import torch

    check({name: model.peft_config[name].r for name in weights}, way)
    torch.manual_seed(seed)  # DARE drops values by torch's global generator, and PEFT takes no other
    if "merged" in model.peft_config:
        model.delete_adapter("merged")
    share = {"density": density} if way in SPARSE else {}
    model.add_weighted_adapter([*weights], [*weights.values()], "merged", combination_type=way, **share)
    model.set_adapter("merged", inference_mode=True)


def best_weights(
    model, names: list[str], way: str, loss: Callable, *, most: float, budget: int, seed: int, folder: Path, progress=None
) -> list[dict]:
    """The trials of a search for the weights, 0 to `most` each, and the density with the lowest `loss(model)`.

    It begins with the plain mean, so that what it finds is no worse on the rows that the loss is of.
    """

    def goal(trial):
        weights = {name: trial.suggest_float(name, 0.0, most) for name in names}
        density = trial.suggest_float("density", 0.1, 1.0) if way in SPARSE else 1.0
        merge(model, weights, way, density, seed)
        return loss(model)

    mean = dict.fromkeys(names, 1 / len(names)) | ({"density": 0.5} if way in SPARSE else {})
    return search(goal, CMA_ES, budget, seed, folder, first=[mean], progress=progress)


def best(trials: list[dict]) -> dict:
    """The trial that found least."""
    return min(trials, key=lambda trial: trial["found"])
