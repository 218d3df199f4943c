"""A search with a budget, through Optuna: CMA-ES where one number counts, NSGA-II where two do. Each trial is kept, so that a
killed search goes on, and the way it took can be drawn."""

from collections.abc import Callable
from pathlib import Path

CMA_ES, NSGA_II = "CmaEsSampler", "NSGAIISampler"
GENERATIONS = 5  # of NSGA-II; Optuna's 50 trials a generation would be a random search with a budget like ours


def search(
    goal: Callable, method: str, budget: int, seed: int, folder: Path, *, first=(), numbers: int = 1, progress=None
) -> list[dict]:
    """`budget` trials of `goal(trial)`, which asks an Optuna trial for its values and returns `numbers` numbers to be made small:
    one row a trial, in order, of `values` (what was asked for) and `found` (a list).

    `first` are choices to begin with, such as the plain mean. What lies in `folder` from before counts toward the budget; a
    trial that a kill cut short does not. The same seed gives the same trials, unless the search was killed.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"population_size": max(2, budget // GENERATIONS)} if method == NSGA_II else {}
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "trials.log"))),
        sampler=getattr(optuna.samplers, method)(seed=seed, **settings),
        study_name="search",
        directions=["minimize"] * numbers,
        load_if_exists=True,
    )
    for values in first:
        study.enqueue_trial(values, skip_if_exists=True)
    complete = (optuna.trial.TrialState.COMPLETE,)
    while (done := len(study.get_trials(deepcopy=False, states=complete))) < budget:
        study.optimize(goal, n_trials=1)
        if progress:
            progress(done + 1, budget)
    return [{"values": trial.params, "found": trial.values} for trial in study.get_trials(states=complete)]


def front(trials: list[dict]) -> list[dict]:
    """Those that no other trial beats in one number without losing in another, by their first number; equal ones once."""
    once = list({tuple(trial["found"]): trial for trial in reversed(trials)}.values())
    found = [t for t in once if not any(o is not t and all(a <= b for a, b in zip(o["found"], t["found"])) for o in once)]
    return sorted(found, key=lambda trial: trial["found"])
