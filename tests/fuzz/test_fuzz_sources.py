"""Files of rows as the world writes them: the rows that were written, or one line that says what is wrong and where."""

import csv
import gzip
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bezoar_utils.data import sources
from bezoar_utils.data.sources import SourceError

ANY_TEXT = st.text(st.characters(codec=None), max_size=30)
NAME = st.one_of(st.sampled_from(["instruction", "output", "n", "", " n", "a\nb", "\ufeffn", "ä"]), ANY_TEXT)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), ANY_TEXT)
VALUE = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3), max_leaves=5)
ROWS = st.lists(st.dictionaries(NAME, VALUE, max_size=4), max_size=4)
COLUMNS = st.dictionaries(st.sampled_from(["instruction", "n"]), st.sampled_from(list(sources.KINDS)), max_size=2)
ENCODING = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"])


def read(folder, name: str, data: bytes, columns) -> list[dict] | None:
    """The rows of a file with this content, each with its columns; None for the one line of a SourceError."""
    path = folder / name
    path.write_bytes(data)
    try:
        rows = sources.read_rows(path, columns)
    except SourceError as error:
        assert str(path) in str(error) and str(error).isprintable()
        return None
    assert rows and all(column in row for row in rows for column in columns)
    json.dumps(rows, ensure_ascii=False, default=str).encode()  # no half character, wherever it lies
    return rows


def same(value) -> str:
    return json.dumps(value, default=str)


@given(ROWS, COLUMNS, ENCODING, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
@example([{"n": ["\ud83d"]}], {}, "utf-8", False, "\n")
@example([{"\ud83d": 1}], {}, "utf-8", False, "\n")
@example([{"a\nb": 1}], {"n": str}, "utf-8", False, "\n")
@example([{"n": 1}], {"n": int}, "utf-8-sig", False, "\n")
@example([{"n": 1}], {"n": int}, "utf-16", False, "\n")
def test_lines_of_json_are_their_rows_or_one_line(tmp_path, rows, columns, encoding, packed, newline):
    data = newline.join(json.dumps(row) for row in rows).encode(encoding)
    got = read(tmp_path, "a.jsonl.gz" if packed else "a.jsonl", gzip.compress(data) if packed else data, columns)
    assert got is None or same(got) == same(rows)
    sound = {"n": 1, "instruction": "Ä"}
    if encoding in ("utf-8", "utf-8-sig"):
        again = read(tmp_path, "b.jsonl", json.dumps(sound, ensure_ascii=False).encode(encoding), {"n": int})
        assert again == [sound], "a byte order mark is not part of the data"


@given(st.one_of(ROWS, VALUE), COLUMNS, ENCODING)
def test_a_list_in_json_is_its_rows_or_one_line(tmp_path, value, columns, encoding):
    got = read(tmp_path, "a.json", json.dumps(value).encode(encoding), columns)
    assert got is None or same(got) == same(value)


@given(st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv", "a.parquet"]), st.binary(max_size=200), COLUMNS)
@example("a.jsonl", b"[" * 100_000, {})
@example("a.json", b"[" * 100_000, {})
@example("a.jsonl.gz", gzip.compress(b"{}" * 9)[:-4], {})
@example("a.csv", b'a\n"' + b"x" * 200_000, {})
@example("a.csv", b"\xff\xfea\x00\n", {"n": str})
def test_any_bytes_are_rows_or_one_line(tmp_path, name, data, columns):
    read(tmp_path, name, data, columns)


CELLS = st.lists(
    st.lists(st.one_of(ANY_TEXT, st.sampled_from(['"', "a,b", "a\tb", "\r", "\n", "=1"])), min_size=3, max_size=3), max_size=4
)


@given(st.lists(NAME, min_size=3, max_size=3), CELLS, st.sampled_from([",", "\t"]), ENCODING)
@example(["n", "n", "ä"], [["1", "2", "3"]], ",", "utf-8")
@example(["n", "b", "c"], [["1", "2", "3"]], ",", "utf-8-sig")
@example(["\ufeffb", "n", "c"], [["1", "2", "3"]], ",", "utf-8-sig")
def test_cells_are_their_rows_or_one_line(tmp_path, header, cells, delimiter, encoding):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *cells])
    try:
        data = text.getvalue().encode(encoding)
    except UnicodeEncodeError:
        assume(False)
    got = read(tmp_path, "a.tsv" if delimiter == "\t" else "a.csv", data, {"n": str})
    if got is not None and encoding.startswith("utf-8"):
        mark = "\ufeff" if encoding == "utf-8" else ""
        header = [header[0].removeprefix(mark), *header[1:]]
        assert len(set(header)) == 3, "of two columns of one name none can be meant"
        assert [list(row.values()) for row in got] == cells and {*map(tuple, got)} == {tuple(header)}


TYPES = st.sampled_from(
    [
        pa.int64(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.bool_(),
        pa.null(),
        pa.binary(),
        pa.list_(pa.string()),
        pa.struct([("x", pa.string())]),
        pa.map_(pa.string(), pa.int64()),
        pa.timestamp("ns"),
        pa.timestamp("s"),
        pa.date32(),
        pa.duration("ns"),
        pa.time64("ns"),
        pa.decimal128(38, 5),
        pa.dictionary(pa.int32(), pa.string()),
    ]
)
COLUMN = st.tuples(
    TYPES,
    st.lists(
        st.one_of(st.none(), st.integers(-(2**62), 2**62), st.text(st.characters(codec="utf-8"), max_size=5)),
        min_size=2,
        max_size=2,
    ),
)


def array(kind: pa.DataType, values: list) -> pa.Array:
    """These values as that type, or nothing where they cannot be it."""
    try:
        if pa.types.is_temporal(kind):
            return pa.array(
                [v if isinstance(v, int) else None for v in values], pa.int32() if kind == pa.date32() else pa.int64()
            ).cast(kind)
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.nulls(len(values), kind)


@given(st.dictionaries(NAME.filter(lambda name: name.isprintable() and name.isascii()), COLUMN, max_size=4), COLUMNS)
@example({"n": (pa.timestamp("ms"), [2**60, 1])}, {})
@example({"n": (pa.duration("ns"), [1, 2])}, {})
def test_tables_are_their_rows_or_one_line(tmp_path, table, columns):
    data = io.BytesIO()
    try:
        pq.write_table(pa.table({name: array(*column) for name, column in table.items()}), data)
    except pa.ArrowInvalid:  # a time that parquet cannot hold
        assume(False)
    got = read(tmp_path, "a.parquet", data.getvalue(), columns)
    assert got is None or len(got) == 2


@given(st.lists(st.sampled_from(["a", "b", "n"]), min_size=1, max_size=3), st.sampled_from(["a.parquet", "a.jsonl", "a.csv"]))
def test_of_two_values_of_one_name_none_is_taken(tmp_path, names, file):
    data = io.BytesIO()
    if file == "a.parquet":
        pq.write_table(pa.Table.from_arrays([pa.array([str(n)]) for n in range(len(names))], names=names), data)
    elif file == "a.csv":
        data.write(f"{','.join(names)}\n{','.join(map(str, range(len(names))))}\n".encode())
    else:
        data.write(f"{{{', '.join(f'{json.dumps(name)}: {json.dumps(str(n))}' for n, name in enumerate(names))}}}".encode())
    got = read(tmp_path, file, data.getvalue(), {})
    assert (got is None) == (len(set(names)) < len(names))


def sound_parquet() -> bytes:
    data, n = io.BytesIO(), 40
    table = {"task_name": [f"t{i % 3}" for i in range(n)], "template_type": ["zs"] * n, "n": [math.sqrt(i) for i in range(n)]}
    pq.write_table(pa.table(table), data, row_group_size=10)
    return data.getvalue()


SOUND = sound_parquet()


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(SOUND)))
def test_a_damaged_table_is_one_line_or_rows_also_when_it_is_sampled(tmp_path, changes, end):
    data = bytearray(SOUND)
    for place, byte in changes:
        data[place] = byte
    for damaged in (bytes(data), SOUND[:end]):
        read(tmp_path, "a.parquet", damaged, {"n": float})
        try:
            rows = sources.sample_parquet([tmp_path / "a.parquet"], lambda tasks, _: range(0, len(tasks), 7), {"n": float})
            assert all(row["original_index"] % 7 == 0 for row in rows)
        except SourceError as error:
            assert str(error).isprintable()
