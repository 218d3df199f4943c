"""The stand-ins on disk: repositories for every hub id of a profile, and the first rows of its local files."""

from pathlib import Path

from ..planning.preflight import hub_models, models_of, reward_models
from ..study.profile import ROOT, Profile
from ..training.weights import in_repository, not_a_model
from . import models, rows, shrink
from .hub import Repositories


def harness_tasks(profile: Profile) -> list[str]:
    """Those of the profile's harness tasks whose data sets have a stand-in."""
    return [] if profile.evaluation.tasks_from else [name for name in profile.evaluation.tasks if name in rows.TASKS]


def build(profile: Profile, folder: Path, own_data: Path | None = None, own_models: Path | None = None) -> Repositories:
    """Every repository a profile names. `own_data`/<set>/<file>, where it exists, gives the rows instead of made-up ones, and
    `own_models`/<owner>/<name> the tokenizer of a stand-in (a folder with weights is used itself: `own_weights`).

    Raises SourceError for a file there that cannot be read.
    """
    repositories, numbers = Repositories(folder), {name: len(weights) or 1 for name, weights in reward_models(profile).values()}
    for name, revision in hub_models(profile).items():
        teaches = profile.teacher.endpoint is None and name == profile.teacher.model
        name, _ = in_repository(name)  # a stand-in is never one GGUF file: see shrink.rehearsed
        own, target = own_models and own_models / name, repositories.add("models", name, revision)
        if own and own.is_dir():
            models.write_around(name, own, target)
        else:
            models.write_model(name, target, teaches, numbers.get(name, 0))
    for place, source in shrink.sources(profile.model_dump(mode="json")).items():
        if source["hub"]:
            revision = source["revision"] or source["expect_prefix"].ljust(40, "0")
            target = repositories.add("datasets", source["hub"], revision)
            for pattern, name in zip(source["files"], file_names(source)):
                own = sorted((own_data / source["hub"]).glob(pattern)) if own_data else []
                rows.write(target / name, rows.first_rows(own[0]) if own else rows.made(place, source))
    rows.write_tasks(harness_tasks(profile), lambda data_set: repositories.add("datasets", data_set, "0" * 40))
    return repositories


def own_weights(profile: Profile, own_models: Path | None) -> dict[str, Path]:
    """key -> folder with real weights, of the models that lie in `own_models`/<owner>/<name>."""
    hub = [(key, in_repository(model)[0]) for key, model, revision in models_of(profile) if revision]
    named = {key: own_models / repository for key, repository in hub} if own_models else {}
    return {key: folder.resolve() for key, folder in named.items() if folder.is_dir() and not not_a_model(folder)}


def file_names(source: dict) -> list[str]:
    """A source's files, a made-up name for each pattern."""
    return [name.replace("*", "part-0") for name in source["files"]]


def cut_local_files(values: dict, folder: Path) -> None:
    """Let every source that is a local file be its first rows. Raises SourceError for a file that cannot be read."""
    for place, source in shrink.sources(values).items():
        if source["file"] and (ROOT / source["file"]).is_file():
            short = folder / f"{place}{''.join(Path(source['file']).suffixes[-2:])}"
            rows.write(short, rows.first_rows(ROOT / source["file"]))
            shrink.put(values, f"{place}.file", str(short.relative_to(ROOT)))
