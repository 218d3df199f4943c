"""Rows from anywhere: an earlier stage's artifact, a local file, or a data set of the hub at a pinned revision.

A source is a mapping with exactly one of `artifact` ("<stage>/<file>"), `file` (a path) and `hub` ("owner/name"); a hub
source also has `files`, in order, and `revision` (40 hex) or `expect_prefix`, when only the beginning of it is known.
Reading is strict: a file gives all its rows or one line that names file, row and column. Nothing is repaired or skipped.
"""

import bisect
import csv
import gzip
import json
import math
import os
import re
import zlib
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ..study import files
from ..study.profile import ROOT

# a rehearsal keeps one of its own, for its revisions are made up
LOCK = Path(
    os.environ.get("BEZOAR_HUB_LOCK", ROOT / "profiles" / "hub.lock.json")
)  # {"owner/name": revision}, for those of which a profile knows only the beginning
LABELS = ("task_name", "template_type")  # what FLAN rows are sampled by
KINDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a mapping", bool: "true or false"}
REVISION = re.compile("[0-9a-f]{40}")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can spell one, no file can hold it


class SourceError(ValueError):
    """Data that cannot be had or is not what it should be. The message is one line."""


def read(source: dict, columns: dict[str, type] | tuple[str, ...], stage) -> list[dict]:
    """All rows of all files of a source, in order, under the study's column names (`rename` maps the source's to them).

    Raises SourceError as `locate` and `read_rows` do.
    """
    ours = source.get("rename") or {}
    theirs = {name: theirs for theirs, name in ours.items()}
    wanted = {theirs.get(name, name): kind for name, kind in _kinds(columns).items()}
    rows = [row for path in locate(source, stage) for row in read_rows(path, wanted)]
    return [{ours.get(name, name): value for name, value in row.items()} for row in rows] if ours else rows


def sample(source: dict, choose, columns: dict[str, type] | tuple[str, ...], stage) -> list[dict]:
    """The rows that `choose` picks, in its order, each with `original_index`: its number over all files, from 0
    (a column of that name is replaced).

    `choose(task_names, template_types)` gets one text a row and returns row numbers. Parquet files are only read where
    chosen rows lie; of a hub source nothing else is transferred. Raises SourceError as `read` does.
    """
    if all(str(name).endswith(".parquet") for name in _names(source)):
        return sample_parquet(open_parquet(source, stage), choose, columns)
    rows = read(source, _kinds(LABELS) | _kinds(columns), stage)
    chosen = choose(*([row[label] for row in rows] for label in LABELS))
    return [rows[number] | {"original_index": number} for number in chosen]


def _names(source: dict) -> list[str]:
    return source["files"] if source.get("hub") else [source.get("artifact") or source["file"]]


# --- where the files are


def locate(source: dict, stage) -> list[Path]:
    """Local paths of a source's files; hub files are downloaded into the hub's cache, once. What was read is recorded.

    `stage` has `input(reference)`, and `note_input(name, sha256)` if it records contents.
    Raises SourceError when a file is missing, the hub does not give it, or what came differs from what the hub announced.
    """
    if source.get("artifact"):
        return [stage.input(source["artifact"])]
    if source.get("file"):
        path = ROOT / source["file"]
        if not path.is_file():
            raise SourceError(f"there is no file {path}")
        _note(stage, f"file:{source['file']}", files.sha256_file(path))
        return [path]
    revision = full_revision(source)
    return [_download(source["hub"], revision, name, stage) for name in hub_files(source, revision)]


def full_revision(source: dict, lock: Path = LOCK) -> str:
    """The 40 hex digits a hub source is pinned to.

    Where only `expect_prefix` is known, the rest comes from `lock`, or once from the hub, which then writes `lock`.
    Raises SourceError when the hub cannot be asked, or a revision does not begin with the prefix.
    """
    if source.get("revision"):
        return source["revision"]
    hub, prefix = source["hub"], source["expect_prefix"]
    with _named(str(lock)):
        known = files.read_json(lock) if lock.exists() else {}
    if hub not in known:
        revision = _newest_revision(hub, prefix, lock)
        _require_prefix(hub, revision, prefix, "the hub")
        files.write_json(lock, known | {hub: revision})
        return revision
    _require_prefix(hub, known[hub], prefix, lock.name)
    return known[hub]


def hub_files(source: dict, revision: str, lock: Path = LOCK) -> list[str]:
    """The files a source names, patterns (`*.parquet`) filled in from the repository at its pin, sorted; kept in `lock`.

    Raises SourceError when the hub cannot be asked or nothing matches.
    """
    if not any("*" in name for name in source["files"]):
        return source["files"]
    key = f"{source['hub']}@{revision}"
    with _named(str(lock)):
        known = files.read_json(lock) if lock.exists() else {}
    if key not in known:
        known |= {key: sorted(_listing(source["hub"], revision))}
        files.write_json(lock, known)
    found = [name for pattern in source["files"] for name in known[key] if fnmatch(name, pattern)]
    if not found:
        raise SourceError(f"{key} has no file like {', '.join(source['files'])}; it has {', '.join(known[key][:8])}")
    return found


def _listing(hub: str, revision: str) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().list_repo_files(hub, repo_type="dataset", revision=revision)
    except (OSError, HTTPError) as error:
        raise SourceError(f"{hub}: its files at {revision} cannot be listed ({_one_line(error)}); run once online") from None


def _newest_revision(hub: str, prefix: str, lock: Path) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().dataset_info(hub, revision="main").sha
    except (OSError, HTTPError) as error:
        raise SourceError(
            f"{hub}: only the beginning {prefix} of its revision is known, and the hub gave no answer "
            f"({_one_line(error)}); run once online, which completes it in {lock.name}"
        ) from None


def _require_prefix(hub: str, revision, prefix: str, where: str) -> None:
    # A hash made up from a known beginning looks like a pin and pins nothing, hence both checks.
    if not REVISION.fullmatch(str(revision)) or not revision.startswith(prefix):
        raise SourceError(f"{hub}: {where} says revision {revision}, the profile expects 40 hex digits beginning {prefix}")


def _download(hub: str, revision: str, name: str, stage) -> Path:
    from huggingface_hub import hf_hub_download

    place = f"hub:{hub}@{revision}/{name}"
    with _named(place):
        path = Path(hf_hub_download(hub, name, repo_type="dataset", revision=revision))
        digest = files.sha256_file(path)
    # The cache names a large file by the SHA256 the hub announced; the library itself checks only its size.
    announced = Path(os.readlink(path)).name if path.is_symlink() else ""
    if len(announced) == 64 and announced != digest:
        raise SourceError(f"{place} arrived damaged: SHA256 {digest}, announced {announced}; delete {path.resolve()}")
    _note(stage, place, digest)
    return path


def _note(stage, name: str, digest: str) -> None:
    if hasattr(stage, "note_input"):
        stage.note_input(name, digest)


# --- whole files


def read_rows(path: Path, columns: dict[str, type] | tuple[str, ...]) -> list[dict]:
    """All rows of a .jsonl, .jsonl.gz, .json (a list), .parquet, .tsv or .csv file, with extra columns, values as they are.

    `columns` must be there in every row, of their type; a tuple means text. Cells of .tsv and .csv become numbers where
    `columns` says so. Raises SourceError naming file, line or row (from 1) and column; no part of a faulty file is returned.
    """
    reader = next((reader for ending, reader in READERS.items() if path.name.endswith(ending)), None)
    if reader is None:
        raise SourceError(f"{path} is of no known format; known: {', '.join(READERS)}")
    kinds, rows = _kinds(columns), []
    with _named(str(path)):
        for place, row in reader(path, kinds):
            rows.append(_checked(row, kinds, f"{path} {place}"))
    if not rows:
        raise SourceError(f"{path} holds no rows")
    return rows


def _kinds(columns) -> dict[str, type]:
    return columns if isinstance(columns, dict) else dict.fromkeys(columns, str)


def _checked(row, kinds: dict[str, type], place: str) -> dict:
    if not isinstance(row, dict):
        raise SourceError(f"{place} is no mapping of columns to values")
    _require_columns(row, kinds, place)
    for column, kind in kinds.items():
        if not _fits(row[column], kind):
            raise SourceError(f"{place}: {column} must be {KINDS[kind]}, got {row[column]!r:.40}")
    return row


def _require_columns(there, kinds: dict[str, type], place) -> None:
    missing = [column for column in kinds if column not in there]
    if missing:
        raise SourceError(f"{place} lacks {', '.join(missing)}; it has {', '.join(there) or 'nothing'}")


def _fits(value, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and not HALF_CHARACTER.search(value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) and math.isfinite(value) if kind is float else isinstance(value, kind)


def _jsonl(path: Path, _):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _json_line(line, f"{path} line {number}")


def _json_line(line: bytes, place: str):
    try:
        return json.loads(line.decode())
    except ValueError as error:
        if not line.endswith(b"\n"):
            raise SourceError(f"{place} is torn: the file ends inside a row") from None
        fault = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"JSON ({error})"
        raise SourceError(f"{place} is no {fault}") from None


def _json(path: Path, _):
    rows = json.loads("".join(_text_lines(path)))
    if not isinstance(rows, list):
        raise SourceError(f"{path} must hold a list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _text_lines(path: Path):
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode()
            except UnicodeDecodeError:
                raise SourceError(f"{path} line {number} is no UTF-8 text") from None


def _cells(path: Path, kinds: dict[str, type]):
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 kB
    lines = csv.reader(_text_lines(path), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header = next(lines, [])
    for cells in lines:
        if cells and len(cells) != len(header):
            raise SourceError(f"{path} line {lines.line_num} has {len(cells)} cells, its header {len(header)}")
        if cells:
            yield f"line {lines.line_num}", {c: _number(value, kinds.get(c)) for c, value in zip(header, cells)}


def _number(cell: str, kind: type | None):
    try:
        return kind(cell) if kind in (int, float) else cell
    except ValueError:
        return cell


def _parquet(path: Path, _):
    import pyarrow.parquet as pq

    number = 1
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches():
            for row in _python_rows(batch, path, number):
                yield f"row {number}", row
                number += 1


def _python_rows(table, path, first: int) -> list[dict]:
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        if table.num_rows == 1:
            raise SourceError(f"{path} row {first} is no UTF-8 text") from None
        return [row for i in range(table.num_rows) for row in _python_rows(table.slice(i, 1), path, first + i)]


READERS = {".jsonl": _jsonl, ".jsonl.gz": _jsonl, ".json": _json, ".parquet": _parquet, ".tsv": _cells, ".csv": _cells}


# --- only what is sampled


def open_parquet(source: dict, stage) -> list:
    """The files of a source for `sample_parquet`: paths, or for hub files not in the local cache, open remote files.

    Remote reading checks no content; the SHA256 that the hub announces for the pinned revision is recorded.
    Raises SourceError as `locate` does.
    """
    if not source.get("hub"):
        return locate(source, stage)
    revision = full_revision(source)
    return [_cached_or_remote(source["hub"], revision, name, stage) for name in hub_files(source, revision)]


def _cached_or_remote(hub: str, revision: str, name: str, stage):
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub, name, repo_type="dataset", revision=revision), str):
        return _download(hub, revision, name, stage)
    place = f"hub:{hub}@{revision}/{name}"
    with _named(place):
        # No read-ahead: sampled bytes lie far apart, and parquet itself says which ranges it wants.
        file = HfFileSystem().open(f"datasets/{hub}@{revision}/{name}", cache_type="none")
    _note(stage, place, (file.details["lfs"] or {}).get("sha256", ""))
    return file


def sample_parquet(opened: list, choose, columns: dict[str, type] | tuple[str, ...]) -> list[dict]:
    """`sample` for parquet files, given as paths or open binary files; reads the two label columns, then the chosen row groups.

    Raises SourceError naming the file, and the row from 1, when columns are missing or a label or chosen row is no text.
    """
    import pyarrow.parquet as pq

    kinds, parquets, labels = _kinds(LABELS) | _kinds(columns), [], {label: [] for label in LABELS}
    for file in opened:
        name = getattr(file, "path", file)
        with _named(name):
            parquet = pq.ParquetFile(file, pre_buffer=True)  # one request for neighbouring columns
            _require_columns(parquet.schema_arrow.names, kinds, name)
            parquets.append((len(labels[LABELS[0]]), name, parquet))
            if not parquet.metadata.num_rows:
                raise SourceError(f"{name} holds no rows")
            _add_labels(labels, parquet, name)
    chosen = choose(*labels.values())
    found = {}
    for before, name, parquet in parquets:
        here = sorted({n - before for n in chosen if before <= n < before + parquet.metadata.num_rows})
        found |= {
            before + number: _checked(row, kinds, f"{name} row {number + 1}") for number, row in _rows_at(parquet, name, here)
        }
    return [found[number] | {"original_index": number} for number in chosen]


def _add_labels(labels: dict[str, list[str]], parquet, name) -> None:
    """Add one file's labels. Millions of rows share a few thousand texts, so a row takes 8 bytes."""
    shared, row = {}, 1
    for batch in parquet.iter_batches(columns=list(LABELS)):
        for label, values in labels.items():
            column = batch[label].dictionary_encode(null_encoding="encode")
            words = [shared.setdefault(word, word) for word in column.dictionary.to_pylist()]
            added = [words[i] for i in column.indices.to_numpy()]
            if not all(isinstance(word, str) for word in words):
                place = next(i for i, word in enumerate(added) if not isinstance(word, str))
                raise SourceError(f"{name} row {row + place}: {label} must be text, got {added[place]!r:.40}")
            values += added
        row += batch.num_rows


def _rows_at(parquet, name, numbers: list[int]):
    """(number, row) for sorted row numbers of one file, from 0. Row groups without any of them are not read."""
    start = 0
    for group in range(parquet.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        here = numbers[bisect.bisect_left(numbers, start) : bisect.bisect_left(numbers, end)]
        if here:
            with _named(name):
                table = parquet.read_row_group(group)
            for number in here:
                yield number, _python_rows(table.slice(number - start, 1), name, number + 1)[0]
        start = end


# --- faults


@contextmanager
def _named(place):
    """What libraries raise while reading, as one line that names the place."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except SourceError:
        raise
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error, csv.Error, HTTPError) as error:
        raise SourceError(f"{place} cannot be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
