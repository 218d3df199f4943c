"""Reading and writing: every file appears whole or not at all (temporary file, fsync, rename)."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class OneLineError(ValueError):
    """An error about what people wrote. Each message is one line, whatever signs it quotes."""

    def __init__(self, *messages: str):
        lines = ("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message) for message in messages)
        super().__init__("\nerror: ".join(lines))


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # some mounts refuse it, and nobody needs it there
            os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def lock(handle, patient: bool = True) -> None:
    """Lock an open file until it is closed, or the process ends. Raises BlockingIOError when another has it, unless `patient`.

    Where the file system has no locks, that is said once, and the work goes on.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if patient else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _note_no_locks(Path(handle.name).parent)


@cache
def _note_no_locks(folder: Path) -> None:
    print(f"note: the file system of {folder} has no locks; do not run two processes there", file=sys.stderr)


def write_json(path: Path, value) -> None:
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())


def read_json(path: Path):
    """Raises ValueError naming the file when it is truncated or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from None


def read_text(path: Path) -> str:
    """A text file as people save them: UTF-8 with or without a byte order mark, or UTF-16 with one. Raises ValueError otherwise."""
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start}): save it with the encoding UTF-8") from None


def kept_json(folder: Path, key, make):
    """What `make()` gave when it was first asked for under this key in this folder; both are plain values."""
    path = folder / f"{sha256_json(key)}.json"
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def append_jsonl(path: Path, *rows: dict) -> None:
    """Finished rows, on disk before this returns. A torn last line of an earlier kill is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell() and not _ends_in_newline(file):
            file.write(b"\n")
        file.write(to_jsonl(list(rows)))
        file.flush()
        os.fsync(file.fileno())


def _ends_in_newline(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_jsonl(path: Path) -> list[dict]:
    """The whole rows of an append log; a torn last line, which a kill can leave, is skipped.

    Line by line as bytes: a kill can cut a character in two, and a text can hold signs that str.splitlines() splits at.
    """
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def strict_json(text: str | bytes):
    """A JSON value. Raises ValueError also when a key stands twice, for neither value can be meant, and for endless nesting."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _each_once(fields: list[tuple[str, object]]) -> dict:
    if len(dict(fields)) < len(fields):
        raise ValueError(f"a key stands twice: {', '.join(key for key, _ in fields)}")
    return dict(fields)


def to_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_table(path: Path, rows: list[dict], columns: list[str] | None = None) -> None:
    """Rows as parquet, in order. `columns` names them for an empty table too. A column that parquet has no type for is text."""
    import io

    import pandas as pd
    from pyarrow.lib import ArrowException

    frame, buffer = pd.DataFrame(rows, columns=columns), io.BytesIO()
    for name in frame.select_dtypes(object):
        try:
            frame[[name]].to_parquet(io.BytesIO())
        except ArrowException:  # "8" and 8, or {} everywhere
            frame[name] = [v if isinstance(v, str) or v is None else json.dumps(v, ensure_ascii=False) for v in frame[name]]
    frame.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def read_table(path: Path, columns: tuple[str, ...] = ()) -> list[dict]:
    """Rows of a parquet file. Raises ValueError naming the file when it is unreadable or lacks one of `columns`."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(frame.columns)}")
    return frame.to_dict("records")


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())
