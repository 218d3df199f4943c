"""Why a profile cannot work, before anything runs, from the profile and the folders here alone. The network is not used."""

import re
from collections.abc import Iterator

from ..study.profile import ROOT, STAGES, Profile, ProfileError
from ..training.models import require_template
from . import plan
from .memory import too_large

REVISION = re.compile("[0-9a-f]{40}")


def impossible(profile: Profile) -> list[str]:
    """One line for each reason why this profile cannot work as it is; for money see `unpaid`."""
    stages, roles = profile.chapters(), plan.roles_by_stage(profile)
    reasons = [*_missing(profile, stages), *_too_long(profile, stages, roles), *_wrong_template(profile, roles)]
    if not profile.plan.same_family:
        own = _judges_of_their_own(profile, ("judge",))
        reasons += [f"{line}: take another, or allow it with plan.same_family: true" for line in own]
    return [*reasons, *too_large(profile, roles)]


def require_possible(profile: Profile) -> None:
    """Raises ProfileError with every reason of `impossible`."""
    if reasons := impossible(profile):
        raise ProfileError(*reasons)


def notes(profile: Profile) -> list[str]:
    """What does not stop a run and should be known: judges beside the first that are the teacher's model."""
    return _judges_of_their_own(profile, ("equality judge", "second judge"))


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
        elif not (ROOT / model).is_dir() and not REVISION.fullmatch(revision or ""):
            yield f"{key}: {model} is not a folder here; a hub id needs its full commit hash as revision, not {revision!r}"
    for key, source in sources_of(profile, stages):
        if source.file and not (ROOT / source.file).is_file():
            yield f"{key}: the file {source.file} does not exist"
        if source.artifact and (maker := source.artifact.split("/")[0]) not in stages:
            yield f"{key}: {source.artifact} is made by {maker}, which this profile does not run"


def models_of(profile: Profile) -> list[tuple]:
    """(key, model, revision) of each model this profile loads itself."""
    base, teacher, stages = profile.base_model, profile.teacher, profile.chapters()
    models = [("base_model", base.model, base.revision)] if {"30_sft", "75_filter"} & set(stages) else []
    if not teacher.endpoint and _calls(plan.roles_by_stage(profile), "teacher"):
        models.append(("teacher", teacher.model, teacher.revision))
    if {"60_benchmarks", "61_mt_bench"} & set(stages):
        models += [(f"checkpoints.{name}", c.model, c.revision) for name, c in profile.checkpoints.items()]
    return models


def hub_models(profile: Profile) -> dict[str, str]:
    """Model id -> revision, of those that come from the hub: not made by a stage, not a folder here."""
    models = {model: revision for _, model, revision in models_of(profile)}
    return {model: revision for model, revision in models.items() if not (model.split("/")[0] in STAGES or (ROOT / model).is_dir())}


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


# ---------------------------------------------------------------------------------------------------- contexts, templates


def _calls(roles: dict[str, list[str]], role: str) -> bool:
    return any(role in called for called in roles.values())


def _too_long(profile: Profile, stages: list[str], roles: dict[str, list[str]]) -> Iterator[str]:
    for role, reply in {"teacher": profile.teacher.max_new_tokens, "judge": profile.judge.max_tokens}.items():
        context, prompt = getattr(profile.plan, role).context, getattr(profile.plan, role).prompt_tokens
        if _calls(roles, role) and context and prompt + reply > context:
            yield f"plan.{role}.context: {context} tokens do not hold a prompt of {prompt} and a reply of {reply}"
    lengths = {"30_sft": "sft", "40_hh_sft": "hh_sft", "50_dpo": "dpo", "60_benchmarks": "benchmarks", "75_filter": "filter_test"}
    for stage, section in lengths.items():
        length = getattr(profile, section).max_length
        if profile.plan.base and stage in stages and length > profile.plan.base.context:
            yield f"{section}.max_length: {length} is more than the base model's context of {profile.plan.base.context} tokens"


def _wrong_template(profile: Profile, roles: dict[str, list[str]]) -> Iterator[str]:
    teacher, bare = profile.teacher, profile.teacher.wrapper.strip() == "{prompt}"
    if _calls(roles, "teacher") and teacher.mode == "chat" and not bare:
        yield f"teacher.wrapper: {teacher.wrapper!r} is not used in mode chat: write '{{prompt}}', the server has a template"
    if _calls(roles, "teacher") and teacher.mode == "raw" and bare:
        yield "teacher.wrapper: a bare '{prompt}' in mode raw asks the teacher without its template: write that, or mode: chat"
    evaluated = {"60_benchmarks", "61_mt_bench"} & set(profile.chapters())
    for name, checkpoint in list(profile.checkpoints.items())[1:] if evaluated else ():
        if checkpoint.model.split("/")[0] not in STAGES and (ROOT / checkpoint.model).is_dir():
            try:
                require_template(ROOT / checkpoint.model)
            except ValueError as error:
                yield f"checkpoints.{name}: {error}"
