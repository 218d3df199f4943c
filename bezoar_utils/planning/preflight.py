"""Why a profile cannot work, before anything runs, from the profile and the folders here alone. The network is not used."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from ..evaluation import benchmarks
from ..study.parts import near
from ..study.profile import ROOT, STAGES, Profile, ProfileError
from ..study.stages import names as stages_that
from ..training.models import layer_names, require_template
from ..training.reward import require_reward_model
from ..training.weights import PACKAGE, facts, local_path, not_a_model
from . import plan
from .memory import LLAMA_LAYERS, too_large

TRAININGS = stages_that("trains")
REVISION = re.compile("[0-9a-f]{40}")


def impossible(profile: Profile) -> list[str]:
    """One line for each reason why this profile cannot work as it is; for money see `unpaid`."""
    stages, roles = profile.chapters(), plan.roles_by_stage(profile)
    reasons = [*_missing(profile, stages), *_too_long(profile, stages, roles), *_wrong_template(profile, roles)]
    if not profile.plan.same_family:
        own = _judges_of_their_own(profile, ("judge",))
        reasons += [f"{line}: take another, or allow it with plan.same_family: true" for line in own]
    return [*reasons, *_wrong_rewards(profile), *_unknown_layers(profile), *too_large(profile, roles)]


def unknown_tasks(profile: Profile) -> list[str]:
    """A line for each name that the evaluation harness does not know. Looking through its files takes some seconds."""
    if not {"20_judge_filter", "60_benchmarks", "75_filter"} & set(profile.chapters()):
        return []
    return benchmarks.unknown_names(profile.evaluation.model_dump(), profile.benchmarks.fewshot)


def require_possible(profile: Profile, first_run: bool) -> None:
    """Raises ProfileError with every reason of `impossible`, before a first run also those of `unknown_tasks`."""
    if reasons := [*impossible(profile), *(unknown_tasks(profile) if first_run else ())]:
        raise ProfileError(*reasons)


def notes(profile: Profile) -> list[str]:
    """What does not stop a run and should be known: judges that are the teacher's model, a base with a chat template."""
    base, own = local_models(profile).get("base_model"), _judges_of_their_own(profile, ("equality judge", "second judge"))
    if base and facts(base).chat_template:
        own.append(f"base_model: {base.name} has a chat template of its own; the study trains and asks it in the study's template")
    return own


def _judges_of_their_own(profile: Profile, roles: tuple[str, ...]) -> list[str]:
    teacher, rows = profile.teacher.model, plan.expected_calls(profile)
    if not any(row["role"] == "teacher" for row in rows):
        return []
    judges = dict.fromkeys(row["role"] for row in rows if row["role"] in roles and row["model"] == teacher)
    return [f"the {role} {teacher} is the teacher's own model, which it may favour" for role in judges]


def unpaid(profile_name: str, profile: Profile) -> list[str]:
    """A reason when calls cost money and the budget is 0. It does not stop a rehearsal, which pays nothing."""
    costly = sorted({row["model"] for row in plan.expected_calls(profile) if row["worst_usd"]})
    if profile.money.budget_usd or not costly:
        return []
    return [
        f"money.budget_usd is 0 and {', '.join(costly)} costs money: write a profile of your own with `extends: {profile_name}` "
        "and `money: {budget_usd: …}`, and give that as PROFILE"
    ]


# ------------------------------------------------------------------------------------------------------- models and data


def _missing(profile: Profile, stages: list[str]) -> Iterator[str]:
    for key, model, revision in models_of(profile):
        maker = model.split("/")[0]
        if maker in STAGES:
            if maker not in stages:
                yield f"{key}: {model} is made by {maker}, which this profile does not run"
            continue
        try:
            path = local_path(model)
        except ProfileError as error:
            yield f"{key}: {error}"
            continue
        if path and (problem := not_a_model(path)):
            yield f"{key}: {model} {problem}"
        elif not path and not REVISION.fullmatch(revision or ""):
            yield f"{key}: {model} is not a folder here; a hub id needs its full commit hash as revision, not {revision!r}"
    for key, source in sources_of(profile, stages):
        if source.file and not (ROOT / source.file).is_file():
            yield f"{key}: the file {source.file} does not exist"
        if source.artifact and (maker := source.artifact.split("/")[0]) not in stages:
            yield f"{key}: {source.artifact} is made by {maker}, which this profile does not run"


def models_of(profile: Profile) -> list[tuple]:
    """(key, model, revision) of each model this profile loads itself."""
    base, stages, own = profile.base_model, profile.chapters(), profile.reward.model
    models = [("base_model", base.model, base.revision)] if {"30_sft", "75_filter"} & set(stages) else []
    models += [("reward.model", own.model, own.revision)] if own and "81_reward" in stages else []
    called = {row["model"] for row in plan.expected_calls(profile)}
    roles = profile.model_roles().items()
    models += [(place, role.model, role.revision) for place, role in roles if not role.endpoint and role.model in called]
    if {"60_benchmarks", "61_mt_bench"} & set(stages):
        models += [(f"checkpoints.{name}", c.model, c.revision) for name, c in profile.checkpoints.items()]
    return models


def reward_models(profile: Profile) -> dict[str, tuple[str, list[float]]]:
    """place -> (model, the weights of its numbers), of those that are to be reward models."""
    roles = {place: role for place, role in profile.model_roles().items() if getattr(role, "reward_model", None)}
    own = {"reward.model": (profile.reward.model.model, profile.reward.model.weights)} if profile.reward.model else {}
    return {place: (role.model, role.reward_model.weights) for place, role in roles.items()} | own


def local_models(profile: Profile) -> dict[str, Path]:
    """key -> folder or file, of the models that lie on this machine and could be one."""
    paths = {}
    for key, model, _ in models_of(profile):
        with contextlib.suppress(ProfileError):  # `_missing` says why
            paths[key] = None if model.split("/")[0] in STAGES else local_path(model)
    return {key: path for key, path in paths.items() if path and not not_a_model(path)}


def hub_models(profile: Profile) -> dict[str, str]:
    """Model id -> revision, of those that come from the hub: not made by a stage, not a folder here."""
    models = {model: revision for _, model, revision in models_of(profile)}
    elsewhere = (*STAGES, PACKAGE)
    return {m: revision for m, revision in models.items() if not m.startswith(elsewhere) and not local_path(m)}


def sources_of(profile: Profile, stages: list[str]) -> list[tuple]:
    """(key, source) of the rows that this profile's stages read."""
    lamini, evol, orca, tests = profile.lamini, profile.evol, profile.orca, profile.evaluation
    sources = [("lamini", "10_lamini", lamini.released or lamini.seeds), ("evol", "12_evol_instruct", evol.released or evol.seeds)]
    drawn = {"released": orca.released} if orca.released else {c: orca.collections[c] for c, n in orca.per_collection.items() if n}
    sources += [(f"orca.{name}", "11_orca", source) for name, source in drawn.items()]
    sources += [("preference_rows", stage, profile.preference_rows) for stage in ("40_hh_sft", "50_dpo")]
    sources += [("evaluation.questions", stage, tests.questions) for stage in ("20_judge_filter", "61_mt_bench")]
    sources += [
        ("dpo.questions", "50_dpo", profile.dpo.questions),
        ("mt_bench.references", "61_mt_bench", profile.mt_bench.references),
    ]
    return list({key: (key, source) for key, stage, source in sources if source and stage in stages}.values())


def _wrong_rewards(profile: Profile) -> Iterator[str]:
    """Reward models in a folder here that are none, or whose several numbers have no weights."""
    asked = reward_models(profile)
    for place, folder in local_models(profile).items():
        if place in asked:
            try:
                require_reward_model(folder, asked[place][1])
            except ValueError as error:
                yield f"{place}: {error}"


def _unknown_layers(profile: Profile) -> Iterator[str]:
    """Names in lora.target_modules that no layer of the base has, where those are known: of a Llama whose shape is planned with, of
    the miniature's, of a model in a folder here."""
    asked, folder = profile.lora.target_modules, local_models(profile).get("base_model")
    if isinstance(asked, str) or not set(TRAININGS) & set(profile.chapters()):
        return
    if folder and folder.is_dir():
        try:
            names = layer_names(folder)
        except ProfileError as error:
            yield f"base_model: {error}"
            return
    elif profile.plan.base or profile.base_model.model.split("/")[0] in STAGES:
        names = list(LLAMA_LAYERS)
    else:
        return
    for name in asked:
        if name not in names:
            there = ", ".join(names)
            yield f"lora.target_modules: no layer of the base model is called {name}{near(name, names)}; there are {there}"


# ---------------------------------------------------------------------------------------------------- contexts, templates


def _calls(roles: dict[str, list[str]], role: str) -> bool:
    return any(role in called for called in roles.values())


def _too_long(profile: Profile, stages: list[str], roles: dict[str, list[str]]) -> Iterator[str]:
    for role, reply in {"teacher": profile.teacher.max_new_tokens, "judge": profile.judge.max_tokens}.items():
        context, prompt = getattr(profile.plan, role).context, getattr(profile.plan, role).prompt_tokens
        if _calls(roles, role) and context and prompt + reply > context:
            yield f"plan.{role}.context: {context} tokens do not hold a prompt of {prompt} and a reply of {reply}"
    lengths = {"30_sft": "sft", "40_hh_sft": "hh_sft", "50_dpo": "dpo", "60_benchmarks": "benchmarks", "75_filter": "filter_test"}
    lengths |= {"81_reward": "reward"}
    base = local_models(profile).get("base_model")
    limit = (facts(base).context if base else profile.plan.base and profile.plan.base.context) or float("inf")
    for stage, section in lengths.items():
        if stage in stages and (length := getattr(profile, section).max_length) > limit:
            yield f"{section}.max_length: {length} is more than the base model's context of {limit} tokens"


def _wrong_template(profile: Profile, roles: dict[str, list[str]]) -> Iterator[str]:
    teacher, bare = profile.teacher, profile.teacher.wrapper.strip() == "{prompt}"
    if _calls(roles, "teacher") and teacher.mode == "chat" and not bare:
        yield f"teacher.wrapper: {teacher.wrapper!r} is not used in mode chat: write '{{prompt}}', the server has a template"
    if _calls(roles, "teacher") and teacher.mode == "raw" and bare:
        yield "teacher.wrapper: a bare '{prompt}' in mode raw asks the teacher without its template: write that, or mode: chat"
    if profile.lamini.magpie_calls and _calls(roles, "teacher") and teacher.endpoint:
        yield "lamini.magpie_calls: an endpoint opens the user's turn itself; this needs a teacher of local weights"
    for place, path in local_models(profile).items():
        role = profile.model_roles().get(place)
        if role and role.mode == "chat" and not facts(path).chat_template:
            yield f"{place}: {path.name} has no chat template: write mode: raw, and in wrapper the form it was trained on"
    evaluated = {"60_benchmarks", "61_mt_bench"} & set(profile.chapters())
    for name, checkpoint in list(profile.checkpoints.items())[1:] if evaluated else ():
        if checkpoint.model.split("/")[0] not in STAGES and (ROOT / checkpoint.model).is_dir():
            try:
                require_template(ROOT / checkpoint.model)
            except ValueError as error:
                yield f"checkpoints.{name}: {error}"
