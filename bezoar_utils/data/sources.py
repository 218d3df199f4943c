"""Rows from anywhere: an earlier stage's artifact, a local file, or a data set of the hub at a pinned revision.

A source is a mapping with exactly one of `artifact` ("<stage>/<file>"), `file` (a path) and `hub` ("owner/name"); a hub
source also has `files`, in order, and `revision` (40 hex digits) or `expect_prefix`, when only its beginning is known.
Reading is strict: a file gives all its rows or one line that names file, row and column. Nothing is repaired or skipped.
"""

import csv
import gzip
import json
import math
import os
import re
import sys
import zlib
from bisect import bisect_left
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ..study import files
from ..study.profile import ROOT

# {"owner/name": revision} for revisions of which a profile knows only the beginning, {"owner/name@revision": files} for
# patterns. A rehearsal has a lock of its own, because its revisions are made up.
LOCK = Path(os.environ.get("BEZOAR_HUB_LOCK", ROOT / "profiles" / "hub.lock.json"))
LABELS: dict[str, type] = {"task_name": str, "template_type": str}  # what FLAN rows are sampled by
KINDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a mapping", bool: "true or false"}
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can spell one, but no UTF-8 file can hold it


class SourceError(files.OneLineError):
    """Data that cannot be read or is not what it should be."""


def read(source: dict, columns: dict[str, type] | tuple[str, ...], stage) -> list[dict]:
    """All rows of all files of a source, in order, under the study's column names (`rename` maps the source's to them).

    Raises SourceError as `locate` and `read_rows` do.
    """
    ours = source.get("rename") or {}
    theirs = {ours_name: theirs_name for theirs_name, ours_name in ours.items()}
    kinds = {theirs.get(name, name): kind for name, kind in _kinds(columns).items()}
    rows = [row for path in locate(source, stage) for row in read_rows(path, kinds)]
    return [{ours.get(name, name): value for name, value in row.items()} for row in rows] if ours else rows


def sample(source: dict, choose, columns: dict[str, type] | tuple[str, ...], stage) -> list[dict]:
    """The rows that `choose` picks, in its order, each with `original_index`: its number over all files, from 0
    (a column of that name is replaced).

    `choose(task_names, template_types)` gets one text per row and returns row numbers. Of parquet files only the row groups
    of chosen rows are read, and nothing else of a hub source is transferred. Raises SourceError as `read` does.
    """
    names = source["files"] if source.get("hub") else [source.get("artifact") or source["file"]]
    if all(str(name).endswith(".parquet") for name in names):
        return sample_parquet(locate(source, stage, cached_or_remote), choose, columns)
    rows = read(source, LABELS | _kinds(columns), stage)
    return [rows[number] | {"original_index": number} for number in choose(*([row[label] for row in rows] for label in LABELS))]


# --- where the files are


def locate(source: dict, stage, hub_file=None) -> list:
    """Local paths of a source's files, downloaded once into the hub's cache; or what `hub_file` returns for each hub file.

    `stage` has `input(reference)`, and `note_input(name, sha256)` if it records what was read.
    Raises SourceError when a file is missing, the hub does not give it, or its content differs from what the hub announced.
    """
    if source.get("artifact"):
        return [stage.input(source["artifact"])]
    if source.get("file"):
        path = ROOT / source["file"]
        if not path.is_file():
            raise SourceError(f"the source's file {path} does not exist; check `file` in the profile")
        _note(stage, f"file:{source['file']}", files.sha256_file(path))
        return [path]
    revision = full_revision(source)
    return [(hub_file or download)(source["hub"], revision, name, stage) for name in hub_files(source, revision)]


def full_revision(source: dict, lock: Path = LOCK) -> str:
    """The 40 hex digits a hub source is pinned to. Where only `expect_prefix` is known, the rest comes from `lock`, or once
    from the hub, and is then written to `lock`.

    Raises SourceError when the hub does not answer, or the revision does not begin with the prefix.
    """
    if source.get("revision"):
        return source["revision"]
    hub, prefix, known = source["hub"], source["expect_prefix"], _read_lock(lock)
    problem = f"only the beginning {prefix} of its revision is known"
    revision = known.get(hub) or _ask_hub(hub, problem, lambda api: api.dataset_info(hub, revision="main").sha)
    # a hash made up from a known beginning looks like a pin and pins nothing, hence both checks
    if not re.fullmatch("[0-9a-f]{40}", str(revision)) or not revision.startswith(prefix):
        origin = lock.name if hub in known else "the hub"
        raise SourceError(f"{hub}: {origin} says revision {revision}, the profile expects 40 hex digits beginning {prefix}")
    if hub not in known:
        files.write_json(lock, known | {hub: revision})
    return revision


def hub_files(source: dict, revision: str, lock: Path = LOCK) -> list[str]:
    """The names of a source's files; patterns (`*.parquet`) become the repository's files at its pin, sorted, as kept in `lock`.

    Raises SourceError when the hub does not answer or nothing matches.
    """
    if not any("*" in name for name in source["files"]):
        return source["files"]
    hub, key, known = source["hub"], f"{source['hub']}@{revision}", _read_lock(lock)
    if key not in known:
        problem = f"its files at {revision} are not known"
        listing = _ask_hub(hub, problem, lambda api: api.list_repo_files(hub, repo_type="dataset", revision=revision))
        known |= {key: sorted(listing)}
        files.write_json(lock, known)
    names = [name for pattern in source["files"] for name in known[key] if fnmatch(name, pattern)]
    if not names:
        raise SourceError(f"{key} has no file like {', '.join(source['files'])}; it has {', '.join(known[key][:8])}")
    return names


def _read_lock(lock: Path) -> dict:
    with _named(lock):
        return files.read_json(lock) if lock.exists() else {}


def _ask_hub(hub: str, problem: str, question):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return question(HfApi())
    except (OSError, HTTPError) as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{hub}: {problem}, and the hub did not answer ({why}); run once online, which keeps it") from None


def download(hub: str, revision: str, name: str, stage) -> Path:
    """The local path of one file of a data set of the hub. Raises SourceError as `locate` does."""
    from huggingface_hub import hf_hub_download

    place = f"hub:{hub}@{revision}/{name}"
    with _named(place):
        path = Path(hf_hub_download(hub, name, repo_type="dataset", revision=revision))
        digest = files.sha256_file(path)
    # the cache names a large file by the SHA256 the hub announced; the library itself checks only its size
    announced = Path(os.readlink(path)).name if path.is_symlink() else ""
    if len(announced) == 64 and announced != digest:
        raise SourceError(f"{place} arrived damaged: SHA256 {digest}, announced {announced}; delete {path.resolve()}")
    _note(stage, place, digest)
    return path


def cached_or_remote(hub: str, revision: str, name: str, stage):
    """As `download` if the file is in the local cache; otherwise an open remote file, of which only the parts read are sent.

    Remote reading does not check the content; what is recorded is the SHA256 that the hub announces.
    """
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub, name, repo_type="dataset", revision=revision), str):
        return download(hub, revision, name, stage)
    place = f"hub:{hub}@{revision}/{name}"
    with _named(place):
        # no read-ahead: sampled bytes lie far apart, and parquet itself says which ranges it needs
        file = HfFileSystem().open(f"datasets/{hub}@{revision}/{name}", cache_type="none")
    _note(stage, place, (file.details["lfs"] or {}).get("sha256", ""))
    return file


def _note(stage, name: str, digest: str) -> None:
    if hasattr(stage, "note_input"):
        stage.note_input(name, digest)


# --- whole files


def read_rows(path: Path, columns: dict[str, type] | tuple[str, ...]) -> list[dict]:
    """All rows of a .jsonl, .jsonl.gz, .json (a list), .parquet, .tsv or .csv file, with extra columns, values as they are.

    `columns` must be in every row, of their type; a tuple means text, which all cells of .tsv and .csv are.
    Raises SourceError naming file, line or row (from 1) and column; no part of a faulty file is returned.
    """
    reader = next((reader for ending, reader in READERS.items() if path.name.endswith(ending)), None)
    if reader is None:
        raise SourceError(f"{path} has an unknown format; known formats: {', '.join(READERS)}")
    kinds = _kinds(columns)
    with _named(path):
        rows = [_checked(row, kinds, f"{path} {place}") for place, row in reader(path)]
    if not rows:
        raise SourceError(f"{path} has no rows")
    return rows


def _kinds(columns) -> dict[str, type]:
    return columns if isinstance(columns, dict) else dict.fromkeys(columns, str)


def _checked(row, kinds: dict[str, type], place: str) -> dict:
    if not isinstance(row, dict):
        raise SourceError(f"{place} is not a mapping of columns to values")
    _require_columns(row, kinds, place)
    for column, value in row.items():
        if column in kinds and not _fits(value, kinds[column]):
            raise SourceError(f"{place}: {column} must be {KINDS[kinds[column]]}, got {value!r:.40}")
        if HALF_CHARACTER.search(json.dumps([column, value], ensure_ascii=False, default=str)):
            raise SourceError(f"{place}: {column} must be text of whole characters, got {value!r:.60}")
    return row


def _require_columns(names, kinds: dict[str, type], place) -> None:
    if missing := [column for column in kinds if column not in names]:
        raise SourceError(f"{place} lacks {', '.join(missing)}; it has {', '.join(names) or 'nothing'}")
    if len(set(names)) < len(names):
        raise SourceError(f"{place} has two columns of one name: {', '.join(names)}")


def _fits(value, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) and math.isfinite(value) if kind is float else isinstance(value, kind)


def _jsonl(path: Path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _json_line(line, f"{path} line {number}")


def _json_line(line: bytes, place: str):
    try:
        return files.strict_json(line.decode("utf-8-sig"))
    except ValueError as error:
        if not line.endswith(b"\n"):
            raise SourceError(f"{place} is torn: the file ends inside a row") from None
        fault = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"valid JSON ({error})"
        raise SourceError(f"{place} is not {fault}") from None


def _cells(path: Path):
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 kB
    # what is not UTF-8 becomes half characters here, which `_checked` refuses by line and column
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        _require_columns(lines.fieldnames or (), {}, path)
        for row in lines:
            if None in row or None in row.values():
                raise SourceError(f"{path} line {lines.line_num} does not have one cell per column of its header")
            yield f"line {lines.line_num}", row


def _parquet(path: Path):
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        yield from ((f"row {number}", row) for number, row in _numbered_rows(parquet, path))


def _numbered_rows(parquet, name, columns: list[str] | None = None):
    """(row number from 1, row) of a whole parquet file."""
    _require_columns(parquet.schema_arrow.names, {}, name)
    number = 1
    for batch in parquet.iter_batches(columns=columns):
        yield from enumerate(_python_rows(batch, name, number), number)
        number += batch.num_rows


def _python_rows(table, name, first: int) -> list[dict]:
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        if table.num_rows == 1:
            raise SourceError(f"{name} row {first} is not UTF-8 text") from None
        return [row for i in range(table.num_rows) for row in _python_rows(table.slice(i, 1), name, first + i)]


READERS = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".json": lambda path: ((f"row {n}", row) for n, row in enumerate(files.strict_json(path.read_bytes()), 1)),
    ".parquet": _parquet,
    ".tsv": _cells,
    ".csv": _cells,
}


# --- only what is sampled


def sample_parquet(opened: list, choose, columns: dict[str, type] | tuple[str, ...]) -> list[dict]:
    """`sample` for parquet files, given as paths or open binary files; reads the two label columns, then the chosen row groups.

    Raises SourceError naming the file, and the row from 1, when columns are missing or a label or chosen row is not text.
    """
    import pyarrow.parquet as pq

    kinds, parquets = LABELS | _kinds(columns), []
    labels: dict[str, list[str]] = {label: [] for label in LABELS}
    for file in opened:
        name, first = getattr(file, "path", file), len(labels["task_name"])
        with _named(name):
            parquet = pq.ParquetFile(file, pre_buffer=True)  # one request for neighbouring columns
            _require_columns(parquet.schema_arrow.names, kinds, name)
            if not parquet.metadata.num_rows:
                raise SourceError(f"{name} has no rows")
            for number, row in _numbered_rows(parquet, name, list(LABELS)):
                _checked(row, LABELS, f"{name} row {number}")
                for label, values in labels.items():
                    values.append(sys.intern(row[label]))  # millions of rows share a few thousand texts: 8 bytes a row
        parquets.append((first, name, parquet))
    chosen, rows = choose(*labels.values()), {}
    for first, name, parquet in parquets:
        numbers = sorted({n - first for n in chosen if first <= n < first + parquet.metadata.num_rows})
        for number, row in _rows_at(parquet, name, numbers):
            rows[first + number] = _checked(row, kinds, f"{name} row {number + 1}")
    return [rows[number] | {"original_index": number} for number in chosen]


def _rows_at(parquet, name, numbers: list[int]):
    """(number, row) for sorted row numbers of one file, from 0. Row groups without any of them are not read."""
    start = 0
    for group in range(parquet.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        inside = numbers[bisect_left(numbers, start) : bisect_left(numbers, end)]
        if inside:
            with _named(name):
                table = parquet.read_row_group(group)
            for number in inside:
                yield number, _python_rows(table.slice(number - start, 1), name, number + 1)[0]
        start = end


@contextmanager
def _named(place):
    """What libraries raise while reading, as one line that names the place."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except SourceError:
        raise
    except (OSError, EOFError, ValueError, TypeError, ArithmeticError, RuntimeError, zlib.error, csv.Error, HTTPError) as error:
        raise SourceError(f"{place} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
