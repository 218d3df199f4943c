"""Profiles: the one place where a study's choices stand, read from `profiles/<name>.yaml` and checked before any stage runs.

`load_profile` merges a profile over the one it `extends:`. `stage_parameters` is what one stage may know: its own section, flat,
and the shared sections it uses.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, create_model

from . import files
from .parts import ORIGINS, Section, near, near_or_all
from .places import Places, read_yaml
from .schema import Profile, Recipe
from .stages import CODE, STAGES

# where notebooks/, profiles/, runs/ and reports/ lie: the checkout, unless a caller (a test, say) works elsewhere
ROOT = Path(os.environ.get("BEZOAR_HOME", CODE))
PROFILES = ROOT / "profiles"
REPLICATE = re.compile(r"(.+)-seed-([0-9]+)")  # the name of a profile that is another one with this seed (make replicates)
REHEARSAL = "rehearse-"  # begins the name of a rehearsal's profile, whose numbers are not results

EVERY_STAGE = ("seed", "threads", "precision")
SECRET = re.compile("key$|token$|secret|password", re.IGNORECASE)  # in the name of a key whose value is not shown
TRAININGS = [name for name, field in Profile.model_fields.items() if Recipe in getattr(field.annotation, "__mro__", ())]


class ProfileError(files.OneLineError):
    """A profile that cannot work. The message is one line: file, key, value, what is allowed."""


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    """The profile, checked. Its `recipe` holds what all training sections share; each section says what it does differently."""
    try:
        data, places = _merged(name, folder)
    except ValueError as error:
        raise ProfileError(str(error)) from None
    recipe = data.pop("recipe", {})
    if not isinstance(recipe, dict):
        raise ProfileError(f"{places['recipe',]}: recipe = {recipe!r}: a section has keys below it")
    for section in TRAININGS:
        if isinstance(data.get(section), dict):
            data[section] = _over(recipe, data[section])
            places = {(section, *key[1:]): f"{place} (recipe)" for key, place in places.items() if key[0] == "recipe"} | places
    seeds = os.environ.get("BEZOAR_SEEDS", "")  # make ablations SEEDS=3
    for section in ("ablations", "reward", "merge", "smaller") if seeds else ():
        if isinstance(data.get(section), dict):
            data[section] = data[section] | {"seeds": int(seeds) if seeds.isdigit() else seeds}
            places[section, "seeds"] = "SEEDS"
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError(_one_line(error, f"{name}.yaml", places)) from None


def stage_parameters(profile: Profile, stage: str, short: bool = False) -> dict:
    """Plain literals of one stage: its own section flat, shared sections under their names.

    `short`, as papermill injects them, leaves out nested values that are the schema's defaults; `check_parameters` fills them in.
    """
    if stage not in STAGES:
        raise ProfileError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
    row, full = STAGES[stage], profile.model_dump(mode="json")
    values = profile.model_dump(mode="json", exclude_defaults=True) if short else full
    own = full[row.section] | values.get(row.section, {})
    return {name: full[name] for name in EVERY_STAGE} | own | {name: values.get(name) or full[name] for name in row.shared}


def flat(values: dict, above: str = "") -> dict:
    """Nested sections as one mapping, keys joined by dots; an empty section stays a value."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        joined |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return joined


def check_parameters(stage: str, values: dict) -> dict:
    """The same schema for the parameters of a notebook: the values, with defaults for what was left out. Raises ProfileError."""
    own, shared = STAGES[stage].section, (*EVERY_STAGE, *STAGES[stage].shared)
    fields: dict[str, Any] = {name: (Profile.model_fields[name].annotation, Profile.model_fields[name]) for name in (own, *shared)}
    section = _section_of(Profile.model_fields[own].annotation).model_fields
    sections = {own: {name: values[name] for name in section}} | {name: values[name] for name in shared}
    try:
        checked = create_model(stage, __base__=Section, **fields).model_validate(sections).model_dump(mode="json")
    except ValidationError as error:
        raise ProfileError(_one_line(error, f"the parameters of {stage}", {})) from None
    return {name: checked[name] for name in EVERY_STAGE} | checked[own] | {name: checked[name] for name in STAGES[stage].shared}


def _merged(name: str, folder: Path, seen: tuple[str, ...] = (), asked: str = "") -> tuple[dict, Places]:
    """Raises ValueError. `asked` is the place of the `extends:` that names it."""
    if str(name).startswith(REHEARSAL) and not seen:
        return _rehearsed(name)
    if name in seen:
        raise ValueError(f"{asked}{name} extends itself through {' -> '.join(seen)}")
    path = folder / f"{name}.yaml"
    if (replicate := REPLICATE.fullmatch(str(name))) and not path.is_file():
        data, places = _merged(replicate[1], folder, (*seen, name), asked)
        return data | {"seed": int(replicate[2])}, places | {("seed",): name}
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise ValueError(f"{asked}there is no profile {name!r} ({path.name}){near_or_all(name, known)}")
    data, places = read_yaml(path)
    if not (parent := data.pop("extends", None)):
        return data, places
    base, above = _merged(parent, folder, (*seen, name), f"{places['extends',]}: ")
    merged = _over(base, data)
    kept = _keys(merged, ())  # a source that is replaced whole takes its keys' places with it
    return merged, {key: place for key, place in (above | places).items() if key in kept}


def _keys(value, above: tuple[str, ...]) -> set[tuple[str, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {above}.union(*(_keys(below, (*above, str(key))) for key, below in inner))


def _rehearsed(name: str) -> tuple[dict, Places]:
    """What `make rehearse` wrote into the run itself, because it is made again each time."""
    path = ROOT / "runs" / name / "profile.yaml"
    if not path.exists():
        raise ValueError(f"there is no rehearsal {name!r}: run `make rehearse PROFILE={name.removeprefix(REHEARSAL)}`")
    return read_yaml(path)


def _over(base: dict, changes: dict) -> dict:
    """Section by section, key by key; a source of rows is replaced whole, for half of another origin would be nonsense."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and not any(origin in value for origin in ORIGINS)
        merged[key] = _over(base[key], value) if both else value
    return merged


def _one_line(error: ValidationError, whole: str, places: Places) -> str:
    """All errors in one line, each with the place of its key; `whole` is the place of what stands nowhere.

    A wrong key of `recipe` is wrong in each training section, and is said once.
    """
    lines: dict[tuple, str] = {}
    for wrong in error.errors():
        place = _place(wrong, whole, places)
        name = wrong["loc"][-1:] if place != whole else ()  # without an `extends:` every section is missing
        lines.setdefault((place, name, wrong["type"]), f"{place}: {_wrong(wrong)}")
    return "; ".join(lines.values())


def _place(wrong: Mapping[str, Any], whole: str, places: Places) -> str:
    """Where the wrong key stands. Of several that the message names, one that stands in this profile, not in one it extends."""
    keys = tuple(str(part) for part in wrong["loc"])
    words = [tuple(word.split(".")) for word in re.findall(r"[a-z_][\w.-]*\w", _message(wrong))]
    named = [places[keys + word] for word in words if keys + word in places]
    above = [places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places]
    return next((place for place in named if place.startswith(f"{whole} ")), [*named, *above, whole][0])


def _message(wrong: Mapping[str, Any]) -> str:
    return wrong["msg"].removeprefix("Value error, ")


def _wrong(wrong: Mapping[str, Any]) -> str:
    key, given = ".".join(str(part) for part in wrong["loc"] if part != "[key]"), wrong["input"]
    shown = "" if isinstance(given, dict) or SECRET.search(key) else f" = {given!r}"
    if wrong["type"] == "extra_forbidden":
        siblings = _siblings(wrong["loc"])
        return f"unknown key {key}{shown}{near(wrong['loc'][-1], siblings)}; allowed here: {', '.join(siblings)}"
    if wrong["type"] == "missing":
        return f"{key} is missing" + ("" if "." in key else " (begin the profile with `extends: mini`, which has every key)")
    return f"{key}{shown}: {_message(wrong)}{_hint(wrong)}" if key else _message(wrong)


def _hint(wrong: Mapping[str, Any]) -> str:
    """How to write what YAML reads otherwise than people do, or what may have been meant."""
    given, kind = wrong["input"], wrong["type"]
    if given is None:
        return " (nothing stands there)"
    if kind == "literal_error":
        return near(given, re.findall("'([^']+)'", wrong["ctx"]["expected"]))
    if kind == "string_type":
        return " (YAML reads yes, no, on and off as true and false: quote it)" if isinstance(given, bool) else " (quote it)"
    if kind == "bool_type":
        return " (write true or false, without quotes)"
    if kind == "model_type":
        return " (a section has keys below it)"
    if kind in ("int_type", "float_type") and isinstance(given, str):
        with contextlib.suppress(ValueError):
            float(given)
            return " (YAML reads it as text: no quotes, and a point before an exponent, as in 1.0e-4)"
    return ""


def _siblings(location: tuple) -> list[str]:
    section = Profile
    for part in location[:-1]:
        section = _section_of(section.model_fields[part].annotation) if part in section.model_fields else section
    return list(section.model_fields)


def _section_of(annotation):
    """The section behind `Section`, `Section | None` or `dict[str, Section]`."""
    return next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
