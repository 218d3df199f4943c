"""A profile shrunk to a rehearsal: the same choices, but a handful of rows and steps, and endpoints on this machine. Pure."""

from fnmatch import fnmatch
from functools import reduce
from operator import getitem

from ..study.profile import Profile, flat, load_profile
from ..study.schema import MODEL_ROLES
from ..training.weights import in_repository

STEPS = {"steps": 4, "epochs": None, "warmup_steps": 1, "validate_every": 2, "log_every": 1}
TRAININGS = ("sft", "hh_sft", "dpo", "filter_test", "reward")
# the most that a rehearsal does of something; what a profile does not do at all it does not do here either
MOST = {
    "lamini.example_guided_calls": 4,
    "lamini.topic_guided_calls": 4,
    "lamini.continued_calls": 4,
    "lamini.magpie_calls": 4,
    "orca.per_collection.*": 6,
    "evol.seeds_per_category": 2,
    "judge_filter.repeat_rows": 8,
    "pairs.rows": 8,
    "dpo.sampled_prompts": 8,
    "mt_bench.repeat_rows": 8,
    "merge.budget": 2,
    "merge.limit": 8,
    "smaller.budget": 5,
    "smaller.calibration_rows": 8,
    "smaller.limit": 8,
    "bits.calibration_rows": 8,
    "bits.held_back_rows": 8,
    "bits.limit": 8,
    "launch.processes": 2,
    "*.accumulation": 2,
}
LIMIT = 8  # items a benchmark
PRETENDED_USD = 1000.0  # the budget is kept as in a real run, with pretended money


def rehearsed(profile: Profile, addresses: list[str], tasks: list[str]) -> dict:
    """The profile's values with its work cut down, every remote endpoint at `addresses`, and only those harness `tasks`.

    A list of equal servers stays a list, of as many as there are `addresses` (see `servers`)."""
    values = profile.model_dump(mode="json")
    for place, value in flat(values).items():
        most = next((most for pattern, most in MOST.items() if fnmatch(place, pattern)), None)
        if most is not None:
            put(values, place, min(value, most))
    for section in TRAININGS:
        values[section] |= STEPS
    values["ablations"] |= {"steps": 2, "dpo_steps": 2, "sampled_prompts": 4}
    values["merge"]["steps"] = values["smaller"]["recovery_steps"] = 2
    values["reward"] |= {"prompts": 4, "replies": 2, "filter_steps": 2, "round_steps": 2, "sampled_prompts": 4}
    values["benchmarks"]["limit"] = min(values["benchmarks"]["limit"] or LIMIT, LIMIT)
    values["money"]["budget_usd"] = PRETENDED_USD
    values["launch"]["config_file"] = None
    values["offline"] = False
    if not values["evaluation"]["tasks_from"]:
        values["evaluation"]["tasks"] = tasks
        values["benchmarks"]["fewshot"] = {t: n for t, n in values["benchmarks"]["fewshot"].items() if t in tasks}
        if tasks and values["filter_test"]["task"] not in tasks:
            values["filter_test"]["task"] = tasks[0]
    if "00_miniature" in (profile.stages or ("00_miniature",)):
        values["miniature"] = load_profile("tiny").miniature.model_dump(mode="json")
    roles = [at(values, place) for place in MODEL_ROLES]
    for named in [values["base_model"], *values["checkpoints"].values(), *filter(None, roles)]:
        if named["revision"]:
            named["model"], _ = in_repository(named["model"])  # a stand-in for one GGUF file is a whole repository
    for asked in remote_endpoints(values).values():
        several = isinstance(asked["endpoint"]["base_url"], list)
        asked["endpoint"]["base_url"] = addresses if several else addresses[0]
    return values


def servers(values: dict) -> int:
    """How many servers a rehearsal needs: two represent any list of equal ones."""
    return 1 + any(isinstance(asked["endpoint"]["base_url"], list) for asked in remote_endpoints(values).values())


def put(values: dict, place: str, value) -> None:
    *above, last = place.split(".")
    reduce(getitem, above, values)[last] = value


def at(values: dict, place: str):
    """What stands at a dotted place of nested sections."""
    return reduce(getitem, place.split("."), values)


def remote_endpoints(values: dict) -> dict[str, dict]:
    """Place -> teacher or judge that answers over a network."""
    found = {place: at(values, place) for place in MODEL_ROLES}
    return {place: asked for place, asked in found.items() if asked and asked["endpoint"] and asked["endpoint"]["base_url"]}


def sources(values, place: str = "") -> dict[str, dict]:
    """Place -> source, of every set of rows that a profile names."""
    if not isinstance(values, dict):
        return {}
    if {"artifact", "file", "hub"} <= values.keys():
        return {place: values}
    return {p: s for key, value in values.items() for p, s in sources(value, f"{place}.{key}".strip(".")).items()}


def changes(profile: Profile, values: dict) -> list[dict]:
    """What the rehearsal does otherwise: place, the profile's value, the rehearsal's."""
    before, after = flat(profile.model_dump(mode="json")), flat(values)
    return [{"value": k, "profile": v, "rehearsal": after.get(k)} for k, v in before.items() if after.get(k) != v]
