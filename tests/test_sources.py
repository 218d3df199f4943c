import csv
import gzip
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bezoar_utils.calls import local_server
from bezoar_utils.data import sources
from bezoar_utils.data.sources import SourceError, full_revision, locate, read, read_rows, sample, sample_parquet
from bezoar_utils.rehearsal.hub import HubHandler
from bezoar_utils.study import files

ROWS = [
    {"instruction": 'Say "hi",\nthen\tstop.', "context": "", "response": "hi", "number": 1},
    {"instruction": "Größe\u2028?", "context": "c", "response": "7", "number": 2},
]
TEXTS = ("instruction", "context", "response")
SHA = "0123456789abcdef0123456789abcdef01234567"
HUB = "some/data"


class Recorder:
    """Stands for a stage."""

    def __init__(self):
        self.noted = {}

    def note_input(self, name, sha256):
        self.noted[name] = sha256


def jsonl(path, rows):
    path.write_bytes(files.to_jsonl(rows))
    return path


def parquet(path, rows, row_group_size=None, **types):
    schema = pa.Table.from_pylist(rows).schema
    schema = pa.schema([(f.name, types.get(f.name, f.type)) for f in schema])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)
    return path


def written(folder, name):
    """ROWS in the format that the name says."""
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(files.to_jsonl(ROWS)))
    elif path.suffix == ".jsonl":
        jsonl(path, ROWS)
    elif path.suffix == ".json":
        files.write_json(path, ROWS)
    elif path.suffix == ".parquet":
        parquet(path, ROWS)
    else:
        with open(path, "w", newline="") as file:
            table = csv.DictWriter(file, ROWS[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(ROWS)
    return path


def fault(path, columns=TEXTS):
    with pytest.raises(SourceError) as caught:
        read_rows(path, columns)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message.removeprefix(str(path)).strip()


# --- whole files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.tsv", "a.csv"])
def test_every_format_gives_the_same_rows_with_numbers_where_numbers_are_asked(tmp_path, name):
    assert read_rows(written(tmp_path, name), {**dict.fromkeys(TEXTS, str), "number": int}) == ROWS


def test_a_column_nobody_asked_for_is_kept_as_it_is(tmp_path):
    assert read_rows(written(tmp_path, "a.jsonl"), ("response",)) == ROWS
    assert read_rows(written(tmp_path, "a.tsv"), ("response",))[1]["number"] == "2"


def test_a_text_longer_than_the_csv_default_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert len(read_rows(tmp_path / "a.csv", ("text",))[0]["text"]) == 200_000


def test_a_last_line_without_newline_but_whole_is_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\n{"a": "y"}')
    assert [row["a"] for row in read_rows(tmp_path / "a.jsonl", ("a",))] == ["x", "y"]


def test_a_torn_last_line_is_named_and_nothing_is_returned(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    assert fault(path) == "line 2 is torn: the file ends inside a row"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": "x"}\n{"a": \n{"a": "y"}\n', "line 2 is no JSON"),
        (b'{"a": "x"}\n\n{"a": "\xff"}\n', "line 3 is no UTF-8 text"),
        (b'{"a": "x"}\n["y"]\n', "line 2 is no mapping"),
        (b'{"a": "x"}\n{"b": "y", "c": 1}\n', "line 2 lacks a; it has b, c"),
        (b'{"a": "x"}\n{"a": null}\n', "line 2: a must be text, got None"),
        (b'{"a": 5}\n', "line 1: a must be text, got 5"),
        (b'{"a": NaN}\n', "line 1: a must be text, got nan"),
        (b'{"a": "\\ud83d"}\n', "line 1: a must be text"),
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
    ],
)
def test_a_fault_in_a_line_is_named(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert said in ": " + fault(tmp_path / "a.jsonl", ("a",))


@pytest.mark.parametrize(
    ("kind", "value"), [(int, "true"), (int, "1.5"), (float, "NaN"), (float, '"1"'), (list, '"ab"'), (int, "null")]
)
def test_a_value_of_another_type_is_named(tmp_path, kind, value):
    (tmp_path / "a.jsonl").write_text(f'{{"a": {value}}}\n')
    assert fault(tmp_path / "a.jsonl", {"a": kind}).startswith("line 1: a must be a ")


def test_a_whole_number_is_a_number(tmp_path):
    assert read_rows(jsonl(tmp_path / "a.jsonl", [{"a": 3}]), {"a": float}) == [{"a": 3}]


def test_a_truncated_gz_file_is_no_data(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(files.to_jsonl(ROWS * 100))[:-20])
    assert "cannot be read" in fault(path)
    path.write_bytes(b'{"a": 1}')
    assert "Not a gzipped file" in fault(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": "x"}, {"a": 1}]', "row 2: a must be text, got 1"),
        (b'[{"a": "x"}, {"a"', "cannot be read: Expecting"),
        (b'[{"a": "x"},\n{"a": "\xff"}]', "line 2 is no UTF-8 text"),
        (b'{"a": "x"}', "must hold a list of rows, got dict"),
        (b"[]", "holds no rows"),
    ],
)
def test_a_fault_in_a_json_list_is_named(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    assert said in fault(tmp_path / "a.json", ("a",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\tb\nx\ty\nx\n", "line 3 has 1 cells, its header 2"),
        (b"a\tb\nx\ty\tz\n", "line 2 has 3 cells, its header 2"),
        (b"b\tc\nx\ty\n", "line 2 lacks a; it has b, c"),
        (b"a\tb\nx\t\xff\n", "line 2 is no UTF-8 text"),
        (b'a\tb\nx\t"y\n', "cannot be read: unexpected end of data"),
        (b"a\tb\n", "holds no rows"),
        (b"", "holds no rows"),
    ],
)
def test_a_fault_in_a_table_is_named(tmp_path, content, said):
    (tmp_path / "a.tsv").write_bytes(content)
    assert said in fault(tmp_path / "a.tsv", ("a",))


def test_a_cell_that_is_no_number_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\nmany\n")
    assert fault(tmp_path / "a.csv", {"a": int}) == "line 3: a must be a whole number, got 'many'"


def test_faults_in_parquet_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 cut")
    assert "cannot be read" in fault(path)
    assert fault(parquet(path, [{"b": "x"}]), ("a",)) == "row 1 lacks a; it has b"
    assert fault(parquet(path, [{"a": "x"}, {"a": None}]), ("a",)) == "row 2: a must be text, got None"
    assert fault(parquet(path, [{"a": float("nan")}]), ("a",)) == "row 1: a must be text, got nan"
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), path)
    assert fault(path, ("a",)) == "holds no rows"
    pq.write_table(pa.Table.from_pylist(flan(1)).slice(0, 0), path)
    with pytest.raises(SourceError, match="holds no rows"):
        sample_parquet([path], choose_some, ("inputs",))


def test_invalid_text_inside_parquet_is_named_by_its_row(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"x\xffy")]
    )
    pq.write_table(pa.table({"a": broken}), path)
    assert fault(path, ("a",)) == "row 2 is no UTF-8 text"


def test_an_unknown_format_or_a_missing_file_is_named(tmp_path):
    assert "is of no known format; known: .jsonl, .jsonl.gz, .json, .parquet, .tsv, .csv" in fault(tmp_path / "a.xlsx")
    assert "No such file" in fault(tmp_path / "a.jsonl")


# --- where the files are


def test_a_local_file_is_recorded_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    path, stage = written(tmp_path, "a.jsonl"), Recorder()
    assert read({"file": "a.jsonl"}, TEXTS, stage) == ROWS
    assert stage.noted == {"file:a.jsonl": files.sha256_file(path)}
    assert locate({"file": str(path)}, object()) == [path]
    with pytest.raises(SourceError, match=r"there is no file .*b\.jsonl"):
        locate({"file": "b.jsonl"}, stage)


def test_an_artifact_is_asked_of_the_stage(tmp_path):
    class Earlier:
        def input(self, reference):
            return tmp_path / reference

    assert locate({"artifact": "00_miniature/seeds.parquet"}, Earlier()) == [tmp_path / "00_miniature" / "seeds.parquet"]


# --- only what is sampled


def flan(n):
    return [
        {"inputs": f"question {i}", "targets": f"t{i}", "task_name": f"task{i % 3}", "template_type": "zs_opt", "size": i}
        for i in range(n)
    ]


def choose_some(names, types):
    assert set(types) == {"zs_opt"}
    return [*[i for i in reversed(range(len(names))) if names[i] == "task1"][:3], 0]


@pytest.fixture
def groups_read(monkeypatch):
    seen, original = [], pq.ParquetFile.read_row_group

    def counted(self, group, *arguments, **options):
        seen.append(group)
        return original(self, group, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    return seen


def test_a_parquet_sample_equals_the_sample_of_the_same_rows_as_text_and_reads_only_their_row_groups(tmp_path, groups_read):
    source = {"file": str(parquet(tmp_path / "a.parquet", flan(100), row_group_size=10))}
    text = {"file": str(jsonl(tmp_path / "a.jsonl", flan(100)))}
    rows = sample(source, choose_some, ("inputs", "targets"), Recorder())
    assert [row["original_index"] for row in rows] == [97, 94, 91, 0]
    assert rows == sample(text, choose_some, ("inputs", "targets"), Recorder())
    assert groups_read == [0, 9]


def test_row_numbers_run_over_all_files(tmp_path, groups_read):
    first, second = flan(25)[:15], flan(25)[15:]
    paths = [parquet(tmp_path / "a.parquet", first, row_group_size=4), parquet(tmp_path / "b.parquet", second, row_group_size=4)]
    rows = sample_parquet(paths, lambda names, types: [24, 15, 14, 15], ("inputs",))
    assert [row["inputs"] for row in rows] == ["question 24", "question 15", "question 14", "question 15"]
    assert groups_read == [3, 0, 2]


def test_labels_of_millions_of_rows_are_shared_strings(tmp_path):
    path = parquet(tmp_path / "a.parquet", flan(100), row_group_size=50)
    seen = []
    assert sample_parquet([path], lambda names, types: seen.extend(names) or [], ("inputs",)) == []
    assert seen == [row["task_name"] for row in flan(100)] and len({id(name) for name in seen}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("template_type"), "lacks template_type; it has inputs, targets, task_name, size"),
        (lambda row: row.pop("inputs"), "lacks inputs; it has targets, task_name, template_type, size"),
        (lambda row: row.update(task_name=5), "task_name must be text, got 5"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_sample_needs_its_columns_in_every_format(tmp_path, name, change, said):
    rows = flan(3)
    for row in rows:
        change(row)
    path = (parquet if name.endswith("parquet") else jsonl)(tmp_path / name, rows)
    with pytest.raises(SourceError) as caught:
        sample({"file": str(path)}, choose_some, ("inputs",), Recorder())
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_value_in_a_chosen_row_or_a_label_is_named_by_its_row(tmp_path):
    rows = flan(9)
    rows[7]["inputs"] = rows[8]["task_name"] = None
    path = parquet(tmp_path / "a.parquet", rows[:8], row_group_size=3)
    with pytest.raises(SourceError, match=r"a\.parquet row 8: inputs must be text, got None"):
        sample_parquet([path], lambda names, types: [7], ("inputs",))
    path = parquet(tmp_path / "b.parquet", rows, row_group_size=3)
    with pytest.raises(SourceError, match=r"b\.parquet row 9: task_name must be text, got None"):
        sample_parquet([path], lambda names, types: [], ("inputs",))


# --- the hub, played by a small server


class FakeHub(HubHandler):
    content: dict[str, bytes] = {}  # noqa: RUF012
    served: list[tuple[str, int]] = []  # noqa: RUF012
    sent = staticmethod(lambda data: data)

    def do_GET(self):
        kind, _, rest = self.path.split("?")[0].removeprefix("/api").partition(HUB)
        part = rest.strip("/").split("/", 2)
        if kind != "/datasets/" or part[1] not in (SHA, "main"):
            self.tell(404)
        elif part[0] == "revision":
            self.tell(200, {"id": HUB, "sha": SHA, "siblings": []})
        elif part[0] == "tree":
            self.tell(200, [self.entry(name, data) for name, data in self.content.items()])
        elif part[2] in self.content:
            self.send_data(self.content[part[2]], SHA)
        else:
            self.tell(404, headers={"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def entry(self, name, data):
        lfs = {"oid": files.sha256_bytes(data), "size": len(data), "pointerSize": 1}
        return {"type": "file", "path": name, "oid": "0" * 40, "size": len(data), "lfs": lfs}

    def tell(self, status, body=b"", headers=None):
        body = self.sent(body) if isinstance(body, bytes) else body
        if self.command == "GET":
            self.served.append((self.path, len(body)))
        super().tell(status, body, headers)


@pytest.fixture
def hub(tmp_path, monkeypatch, use_hub):
    """The library, online, with an own cache, talking to a fake hub; `hub.content` is what that has."""
    from huggingface_hub import HfFileSystem, constants

    handler = type("Hub", (FakeHub,), {"content": {}, "served": []})
    with local_server.serving(handler) as address:
        use_hub(address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        HfFileSystem.clear_instance_cache()
        yield handler
        HfFileSystem.clear_instance_cache()


def hub_source(*names, **pin):
    return {"hub": HUB, "files": list(names), "revision": SHA, **pin}


def test_hub_files_are_read_in_order_at_the_pinned_revision_recorded_and_kept(hub, monkeypatch):
    from huggingface_hub import constants

    hub.content |= {"b/train.jsonl": files.to_jsonl(ROWS[1:]), "a.jsonl.gz": gzip.compress(files.to_jsonl(ROWS[:1]))}
    source, stage = hub_source("b/train.jsonl", "a.jsonl.gz"), Recorder()
    assert read(source, TEXTS, stage) == ROWS[::-1]
    assert stage.noted == {f"hub:{HUB}@{SHA}/{name}": files.sha256_bytes(data) for name, data in hub.content.items()}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read(source, TEXTS, Recorder()) == ROWS[::-1]


def test_a_file_the_hub_lacks_and_a_hub_out_of_reach_are_one_line(hub, monkeypatch):
    from huggingface_hub import constants

    with pytest.raises(SourceError, match=rf"hub:{HUB}@{SHA}/a\.jsonl cannot be read: .*404"):
        locate(hub_source("a.jsonl"), Recorder())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=rf"hub:{HUB}@{SHA}/a\.jsonl cannot be read: .*check your connection") as caught:
        locate(hub_source("a.jsonl"), Recorder())
    assert "\n" not in str(caught.value)


def test_a_download_that_differs_from_what_the_hub_announced_is_refused(hub):
    hub.content["a.jsonl"] = files.to_jsonl(ROWS)
    hub.sent = staticmethod(lambda data: data.replace(b"hi", b"ho"))
    with pytest.raises(SourceError, match="arrived damaged"):
        locate(hub_source("a.jsonl"), Recorder())


def test_a_revision_of_which_the_beginning_is_known_is_asked_once_and_locked(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    source, lock = hub_source(revision=None, expect_prefix="0123456"), tmp_path / "hub.lock.json"
    files.write_json(lock, {"other/data": "f" * 40})
    assert full_revision(source, lock) == SHA
    assert files.read_json(lock) == {"other/data": "f" * 40, HUB: SHA}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert full_revision(source, lock) == SHA


def test_a_revision_that_begins_otherwise_is_refused_and_not_locked(hub, tmp_path):
    source, lock = hub_source(revision=None, expect_prefix="bdfbd29"), tmp_path / "hub.lock.json"
    with pytest.raises(SourceError, match=rf"the hub says revision {SHA}, the profile expects .* beginning bdfbd29"):
        full_revision(source, lock)
    assert not lock.exists()
    for locked in (SHA, "bdfbd29"):
        files.write_json(lock, {HUB: locked})
        with pytest.raises(SourceError, match=rf"hub\.lock\.json says revision {locked}, the profile expects .* bdfbd29"):
            full_revision(source, lock)


def test_offline_without_a_lock_the_message_says_what_to_do(tmp_path):
    source = hub_source(revision=None, expect_prefix="bdfbd29")
    with pytest.raises(SourceError, match=r"the beginning bdfbd29.*; run once online, which completes it in hub\.lock\.json"):
        full_revision(source, tmp_path / "hub.lock.json")


def test_a_damaged_lock_is_named(tmp_path):
    (tmp_path / "hub.lock.json").write_text('{"a')
    with pytest.raises(SourceError, match=r"hub\.lock\.json is damaged"):
        full_revision(hub_source(revision=None, expect_prefix="0"), tmp_path / "hub.lock.json")


def test_a_pinned_revision_asks_nobody(tmp_path):
    assert full_revision(hub_source(), tmp_path / "hub.lock.json") == SHA


def test_of_a_remote_parquet_file_only_what_is_sampled_is_transferred(hub, tmp_path):
    noise = random.Random(0)
    rows = [row | {"inputs": noise.randbytes(4000).hex()} for row in flan(200)]
    hub.content["data/a.parquet"] = parquet(tmp_path / "a.parquet", rows, row_group_size=10).read_bytes()
    stage = Recorder()
    remote = sample(hub_source("data/a.parquet"), choose_some, ("inputs", "targets"), stage)
    assert remote == sample({"file": str(tmp_path / "a.parquet")}, choose_some, ("inputs", "targets"), Recorder())
    assert stage.noted == {f"hub:{HUB}@{SHA}/data/a.parquet": files.sha256_file(tmp_path / "a.parquet")}
    transferred = sum(size for path, size in hub.served if "resolve" in path)
    assert 0 < transferred < len(hub.content["data/a.parquet"]) / 4


def test_a_parquet_file_that_is_already_here_is_sampled_without_the_hub(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub.content["a.parquet"] = parquet(tmp_path / "a.parquet", flan(20)).read_bytes()
    locate(hub_source("a.parquet"), Recorder())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(sample(hub_source("a.parquet"), choose_some, ("inputs",), Recorder())) == 4
    with pytest.raises(SourceError, match=r"b\.parquet cannot be read"):
        sample(hub_source("b.parquet"), choose_some, ("inputs",), Recorder())
