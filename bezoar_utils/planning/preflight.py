"""Why a profile cannot work, found before anything runs, from the profile and the folders here alone: the network is not asked."""

import re
from collections.abc import Iterator

from ..study.profile import ROOT, STAGES, Profile, ProfileError
from ..training.models import require_template
from . import plan
from .memory import too_large

REVISION = re.compile("[0-9a-f]{40}")
# h2ogpt is a Falcon, so a name counts only where a word begins; Prometheus 2 is a Mistral
FAMILIES = re.compile("(?<![a-z])(qwen|olmo|llama|mistral|mixtral|prometheus|falcon|gpt|gemma|claude|phi|deepseek)")
SAME_AS = {"prometheus": "mistral", "mixtral": "mistral"}


def impossible(profile: Profile) -> list[str]:
    """One line a reason why this profile cannot work as it stands; money apart, see `unpaid`."""
    mine, asked = profile.stages or list(STAGES), plan.asked(profile)
    found = [*_missing(profile, mine), *_too_long(profile, mine, asked), *_wrong_template(profile, asked)]
    if not profile.plan.same_family:
        found += [f"{line}: take another, or say so with plan.same_family: true" for line in _relatives(profile, ("judge",))]
    return [*found, *too_large(profile, asked)]


def require_possible(profile: Profile) -> None:
    """Raises ProfileError with every reason of `impossible`."""
    if reasons := impossible(profile):
        raise ProfileError("\nerror: ".join(reasons))


def notes(profile: Profile) -> list[str]:
    """What does not stop a run and should be known: judges beside the first that are of the teacher's family."""
    return _relatives(profile, ("equality judge", "second judge"))


def _relatives(profile: Profile, whos: tuple[str, ...]) -> list[str]:
    rows, teacher = plan.expected_calls(profile), profile.teacher.model
    if not any(row["who"] == "teacher" for row in rows):
        return []
    models = {row["model"]: row["who"] for row in rows if row["who"] in whos}
    related = {model: who for model, who in models.items() if model == teacher or families(model) & families(teacher)}
    return [f"the {who} {model} is of the teacher's family ({teacher}), which it may favour" for model, who in related.items()]


def unpaid(profile_name: str, profile: Profile) -> list[str]:
    """A reason when calls cost money and there is none to spend. It stops no rehearsal, which pays nothing."""
    rows = plan.expected_calls(profile)
    costly = sorted({row["model"] for row in rows if row["worst_usd"]})
    if profile.money.budget_usd or not costly:
        return []
    return [
        f"money.budget_usd is 0 and {', '.join(costly)} costs money: write a profile of your own with `extends: {profile_name}` "
        "and `money: {budget_usd: …}`, and give that as PROFILE"
    ]


def families(model: str) -> set[str]:
    """Model families that a name tells of."""
    return {SAME_AS.get(name, name) for name in FAMILIES.findall(model.lower())}


# ------------------------------------------------------------------------------------------------------- models and data


def _missing(profile: Profile, mine: list[str]) -> Iterator[str]:
    for key, model, revision in models_of(profile):
        maker = model.split("/")[0]
        if maker in STAGES:
            if maker not in mine:
                yield f"{key}: {model} is made by {maker}, which this profile does not run"
        elif not (ROOT / model).is_dir() and not REVISION.fullmatch(revision or ""):
            yield f"{key}: {model} is no folder here, and as a hub id it needs its full commit hash as revision, not {revision!r}"
    for key, source in sources_of(profile, mine):
        if source.file and not (ROOT / source.file).is_file():
            yield f"{key}: there is no file {source.file}"
        if source.artifact and (maker := source.artifact.split("/")[0]) not in mine:
            yield f"{key}: {source.artifact} is made by {maker}, which this profile does not run"


def models_of(profile: Profile) -> list[tuple]:
    """(key, model, revision) of each model this profile loads itself."""
    base, mine, asked = profile.base_model, profile.stages or list(STAGES), plan.asked(profile)
    found = [("base_model", base.model, base.revision)] if {"30_sft", "75_filter"} & set(mine) else []
    if not profile.teacher.endpoint and any("teacher" in whos for whos in asked.values()):
        found.append(("teacher", profile.teacher.model, profile.teacher.revision))
    if {"60_benchmarks", "61_mt_bench"} & set(mine):
        found += [(f"checkpoints.{name}", c.model, c.revision) for name, c in profile.checkpoints.items()]
    return found


def hub_models(profile: Profile) -> dict[str, str]:
    """Model id -> revision, of those that come from the hub: no stage makes them, and no folder here has the name."""
    found = {model: revision for _, model, revision in models_of(profile)}
    return {model: revision for model, revision in found.items() if not (model.split("/")[0] in STAGES or (ROOT / model).is_dir())}


def sources_of(profile: Profile, mine: list[str]) -> list[tuple]:
    """(key, source) of the rows that this profile's stages read."""
    lamini, evol, orca, tests = profile.lamini, profile.evol, profile.orca, profile.evaluation
    found = [("lamini", "10_lamini", lamini.released or lamini.seeds), ("evol", "12_evol_instruct", evol.released or evol.seeds)]
    drawn = {"released": orca.released} if orca.released else {c: orca.collections[c] for c, n in orca.per_collection.items() if n}
    found += [(f"orca.{name}", "11_orca", source) for name, source in drawn.items()]
    found += [("preference_rows", stage, profile.preference_rows) for stage in ("40_hh_sft", "50_dpo")]
    found += [("evaluation.questions", stage, tests.questions) for stage in ("20_judge_filter", "61_mt_bench")]
    found += [
        ("dpo.questions", "50_dpo", profile.dpo.questions),
        ("mt_bench.references", "61_mt_bench", profile.mt_bench.references),
    ]
    return list({key: (key, source) for key, stage, source in found if source and stage in mine}.values())


# ---------------------------------------------------------------------------------------------------- contexts, templates


def _too_long(profile: Profile, mine: list[str], asked: dict[str, list[str]]) -> Iterator[str]:
    speakers = {"teacher": profile.teacher.max_new_tokens, "judge": profile.judge.max_tokens}
    for who, reply in speakers.items():
        reckoned, heard = getattr(profile.plan, who), any(who in whos for whos in asked.values())
        if heard and reckoned.context and reckoned.prompt_tokens + reply > reckoned.context:
            prompt = reckoned.prompt_tokens
            yield f"plan.{who}.context: {reckoned.context} tokens do not hold a prompt of {prompt} and a reply of {reply}"
    lengths = {"30_sft": "sft", "40_hh_sft": "hh_sft", "50_dpo": "dpo", "60_benchmarks": "benchmarks", "75_filter": "filter_test"}
    for stage, section in lengths.items():
        length = getattr(profile, section).max_length
        if profile.plan.base and stage in mine and length > profile.plan.base.context:
            yield f"{section}.max_length: {length} is more than the base model's context of {profile.plan.base.context} tokens"


def _wrong_template(profile: Profile, asked: dict[str, list[str]]) -> Iterator[str]:
    teacher, mine = profile.teacher, set(profile.stages or STAGES)
    bare = teacher.wrapper.strip() == "{prompt}"
    if any("teacher" in whos for whos in asked.values()):
        if teacher.mode == "chat" and not bare:
            yield f"teacher.wrapper: {teacher.wrapper!r} is not used in mode chat: write '{{prompt}}', the server has a template"
        if teacher.mode == "raw" and bare:
            yield "teacher.wrapper: a bare '{prompt}' in mode raw asks the teacher without its template: write that, or mode: chat"
    if {"60_benchmarks", "61_mt_bench"} & mine:
        for name, checkpoint in list(profile.checkpoints.items())[1:]:
            if checkpoint.model.split("/")[0] not in STAGES and (ROOT / checkpoint.model).is_dir():
                try:
                    require_template(ROOT / checkpoint.model)
                except ValueError as error:
                    yield f"checkpoints.{name}: {error}"
