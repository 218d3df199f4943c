"""Profiles: the one place where a study's choices stand, read from `profiles/<name>.yaml` and checked before any stage runs.

`load_profile` merges a profile over the one it `extends:`. `stage_parameters` is what one stage may know: its own section, flat,
and the shared sections it uses.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError, create_model

from . import files
from .parts import ORIGINS, Section
from .schema import Profile, Recipe
from .stages import CODE, STAGES

# where notebooks/, profiles/, runs/ and reports/ lie: the checkout, unless a caller (a test, say) works elsewhere
ROOT = Path(os.environ.get("BEZOAR_HOME", CODE))
PROFILES = ROOT / "profiles"
REHEARSAL = "rehearse-"  # begins the name of a rehearsal's profile, whose numbers are not results

EVERY_STAGE = ("seed", "threads", "precision")
TRAININGS = [name for name, field in Profile.model_fields.items() if Recipe in getattr(field.annotation, "__mro__", ())]


class ProfileError(files.OneLineError):
    """A profile that cannot work. The message is one line: file, key, value, what is allowed."""


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    """The profile, checked. Its `recipe` holds what all training sections share; each section says what it does differently."""
    data = _merged(name, folder, ())
    for section in ("recipe", "ablations"):
        if not isinstance(data.get(section, {}), dict):
            raise ProfileError(f"{name}: {section} must be a mapping of keys, got {data[section]!r}")
    recipe = data.pop("recipe", {})
    data |= {section: _over(recipe, data[section]) for section in TRAININGS if isinstance(data.get(section), dict)}
    if seeds := os.environ.get("BEZOAR_SEEDS"):  # make ablations SEEDS=3
        data["ablations"] = data.get("ablations", {}) | {"seeds": int(seeds) if seeds.isdigit() else seeds}
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError("; ".join(_one_line(name, e) for e in error.errors())) from None


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
        raise ProfileError("; ".join(_one_line(f"the parameters of {stage}", e) for e in error.errors())) from None
    return {name: checked[name] for name in EVERY_STAGE} | checked[own] | {name: checked[name] for name in STAGES[stage].shared}


def _merged(name: str, folder: Path, seen: tuple[str, ...]) -> dict:
    if name.startswith(REHEARSAL) and not seen:
        return _rehearsed(name)
    if name in seen:
        raise ProfileError(f"{name}: extends itself through {' -> '.join(seen)}")
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ProfileError(f"there is no profile {name!r} ({path.name}); known: {known}")
    try:
        text = files.read_text(path)
    except ValueError as error:
        raise ProfileError(str(error)) from None
    try:
        data = yaml.load(text, UniqueKeys) or {}  # noqa: S506 it is a SafeLoader
    except Exception as error:  # a date or a tag that cannot be raises whatever Python does
        raise ProfileError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ProfileError(f"{path.name} must be a mapping of keys, got {type(data).__name__}")
    parent = data.pop("extends", None)
    if not isinstance(parent, str | None):
        raise ProfileError(f"{path.name}: extends must be the name of a profile, got {parent!r}")
    return _over(_merged(parent, folder, (*seen, name)), data) if parent else data


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once: of two, YAML's own reader takes the last, and a whole section is lost without a word."""

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key, _ in node.value:
            if str(key.value) in lines:  # a list or a mapping as a key is refused below
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: duplicate key {key.value}, first in line {lines[key.value]}")
            lines[str(key.value)] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _rehearsed(name: str) -> dict:
    """What `make rehearse` wrote into the run itself, because it is made again each time."""
    path = ROOT / "runs" / name / "profile.yaml"
    if not path.exists():
        raise ProfileError(f"there is no rehearsal {name!r}: run `make rehearse PROFILE={name.removeprefix(REHEARSAL)}`")
    return yaml.safe_load(files.read_text(path))


def _over(base: dict, changes: dict) -> dict:
    """Section by section, key by key; a source of rows is replaced whole, for half of another origin would be nonsense."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and not any(origin in value for origin in ORIGINS)
        merged[key] = _over(base[key], value) if both else value
    return merged


def _one_line(where: str, error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the profile"
    if error["type"] == "extra_forbidden":
        siblings = _siblings(error["loc"])
        close = difflib.get_close_matches(str(error["loc"][-1]), siblings, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{where}: unknown key {key} = {error['input']!r}{hint}; allowed here: {', '.join(siblings)}"
    if error["type"] == "missing":
        return f"{where}: {key} is missing"
    given = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    hint = " (YAML reads it as text: write the number with a point, as in 1.0e-4)" if _number_as_text(error["input"]) else ""
    return f"{where}: {key}{given}: {error['msg'].removeprefix('Value error, ')}{hint}"


def _number_as_text(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+([eE][-+]?\d+)", value) is not None


def _siblings(location: tuple) -> list[str]:
    section = Profile
    for part in location[:-1]:
        section = _section_of(section.model_fields[part].annotation) if part in section.model_fields else section
    return list(section.model_fields)


def _section_of(annotation):
    """The section behind `Section`, `Section | None` or `dict[str, Section]`."""
    return next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
