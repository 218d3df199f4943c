import gzip
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bezoar_utils.calls import local_server
from bezoar_utils.data import sources
from bezoar_utils.data.sources import SourceError, full_revision, hub_files, locate, read, read_rows, sample, sample_parquet
from bezoar_utils.rehearsal import rows as stand_ins
from bezoar_utils.rehearsal.hub import Repositories, handler_for
from bezoar_utils.study import files

ROWS = [
    {"instruction": 'Say "hi",\nthen\tstop.', "context": "", "response": "hi"},
    {"instruction": "Größe\u2028?", "context": "c", "response": "7"},
]
TEXTS = tuple(ROWS[0])
SHA = "0123456789abcdef0123456789abcdef01234567"
HUB = "some/data"


class Recorder:
    """What a source needs of a stage that records its inputs."""

    def __init__(self):
        self.inputs = {}

    def note_input(self, name, sha256):
        self.inputs[name] = sha256


def jsonl(path, rows):
    path.write_bytes(files.to_jsonl(rows))
    return path


def parquet(path, rows, row_group_size=None):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def fault(path, columns=TEXTS):
    """The error of reading a file, one line that names it."""
    with pytest.raises(SourceError) as caught:
        read_rows(path, columns)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message.removeprefix(str(path)).strip()


def names_all(message, words):
    return all(word in message for word in words)


# --- whole files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.tsv", "a.csv"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    stand_ins.write(tmp_path / name, ROWS)
    assert read_rows(tmp_path / name, TEXTS) == read_rows(tmp_path / name, ("response",)) == ROWS


def test_a_column_that_the_first_row_lacks_is_read_all_the_same(tmp_path):
    rows = [{"a": "x"}, {"a": "y", "gpt4_status": "Accept"}]
    assert read_rows(jsonl(tmp_path / "a.jsonl", rows), ("a",))[1]["gpt4_status"] == "Accept"


def test_a_text_longer_than_the_csv_default_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert len(read_rows(tmp_path / "a.csv", ("text",))[0]["text"]) == 200_000


def test_a_last_line_without_newline_but_whole_is_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\n{"a": "y"}')
    assert [row["a"] for row in read_rows(tmp_path / "a.jsonl", ("a",))] == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": "x"}\n{"a": "y"', ["line 2", "torn"]),
        ("a.jsonl", b'{"a": "x"}\n{"a": \n{"a": "y"}\n', ["line 2", "JSON"]),
        ("a.jsonl", b'{"a": "x"}\n\n{"a": "\xff"}\n', ["line 3", "UTF-8"]),
        ("a.jsonl", b'{"a": "x"}\n["y"]\n', ["line 2", "mapping"]),
        ("a.jsonl", b'{"a": "x"}\n{"b": "y", "c": 1}\n', ["line 2", "lacks a", "b, c"]),
        ("a.jsonl", b'{"a": "x"}\n{"a": null}\n', ["line 2: a", "text", "None"]),
        ("a.jsonl", b'{"a": 5}\n', ["line 1: a", "text", "5"]),
        ("a.jsonl", b'{"a": NaN}\n', ["line 1: a", "text", "nan"]),
        ("a.jsonl", b'{"a": "\\ud83d"}\n', ["line 1: a", "text"]),
        ("a.jsonl", b'{"a": "x", "note": "\\ud83d"}\n', ["line 1: note", "text"]),
        ("a.jsonl", b"", ["no rows"]),
        ("a.jsonl", b"\n\n", ["no rows"]),
        ("a.jsonl.gz", gzip.compress(b'{"a": "x"}\n' * 100, mtime=0)[:-20], ["cannot be read"]),
        ("a.jsonl.gz", b'{"a": "x"}', ["cannot be read"]),
        ("a.json", b'[{"a": "x"}, {"a": 1}]', ["row 2: a", "text", "1"]),
        ("a.json", b'[{"a": "x"}, {"a"', ["cannot be read"]),
        ("a.json", b'[{"a": "x"},\n{"a": "\xff"}]', ["cannot be read", "utf-8"]),
        ("a.json", b'{"a": "x"}', ["row 1", "mapping"]),
        ("a.json", b"3", ["cannot be read"]),
        ("a.json", b"[]", ["no rows"]),
        ("a.tsv", b"a\tb\nx\ty\nx\n", ["line 3", "cell", "header"]),
        ("a.tsv", b"a\tb\nx\ty\tz\n", ["line 2", "cell", "header"]),
        ("a.tsv", b"b\tc\nx\ty\n", ["line 2", "lacks a", "b, c"]),
        ("a.tsv", b"a\tb\nx\t\xff\n", ["line 2: b", "text"]),
        ("a.tsv", b'a\tb\nx\t"y\n', ["cannot be read"]),
        ("a.csv", b"a,b\n", ["no rows"]),
        ("a.csv", b"", ["no rows"]),
        ("a.parquet", b"PAR1 cut", ["cannot be read"]),
        ("a.xlsx", b"", ["unknown format", ".jsonl, .jsonl.gz, .json, .parquet, .tsv, .csv"]),
    ],
)
def test_a_faulty_file_is_one_line_that_names_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert names_all(": " + fault(tmp_path / name, ("a",)), words)


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in fault(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("kind", "value"), [(int, "true"), (int, "1.5"), (float, "NaN"), (float, '"1"'), (list, '"ab"'), (int, "null")]
)
def test_a_value_of_another_type_is_named(tmp_path, kind, value):
    (tmp_path / "a.jsonl").write_text(f'{{"a": {value}}}\n')
    assert fault(tmp_path / "a.jsonl", {"a": kind}).startswith("line 1: a must be a ")


def test_a_whole_number_is_a_number(tmp_path):
    assert read_rows(jsonl(tmp_path / "a.jsonl", [{"a": 3}]), {"a": float}) == [{"a": 3}]


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"x\xffy")])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"b": ["x"]}, ["row 1", "lacks a", "b"]),
        ({"a": ["x", None]}, ["row 2: a", "text", "None"]),
        ({"a": [float("nan")]}, ["row 1: a", "text", "nan"]),
        ({"a": pa.array([], pa.string())}, ["no rows"]),
        ({"a": NOT_UTF8}, ["row 2", "UTF-8"]),
    ],
)
def test_faults_in_parquet_are_named(tmp_path, table, words):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert names_all(fault(tmp_path / "a.parquet", ("a",)), words)


# --- where the files are


def test_a_local_file_is_recorded_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    path, stage = jsonl(tmp_path / "a.jsonl", ROWS), Recorder()
    assert read({"file": "a.jsonl"}, TEXTS, stage) == ROWS
    assert stage.inputs == {"file:a.jsonl": files.sha256_file(path)}
    assert locate({"file": str(path)}, object()) == [path]
    with pytest.raises(SourceError, match=r"b\.jsonl"):
        locate({"file": "b.jsonl"}, stage)


def test_columns_of_other_names_are_renamed_to_the_studys(tmp_path):
    source = {"file": str(jsonl(tmp_path / "a.jsonl", [{"question": "x", "extra": 1}])), "rename": {"question": "instruction"}}
    assert read(source, ("instruction",), object()) == [{"instruction": "x", "extra": 1}]
    with pytest.raises(SourceError, match="lacks answer"):
        read(source | {"rename": {"answer": "instruction"}}, ("instruction",), object())


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


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist(flan(1)).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet .*no rows"):
        sample_parquet([tmp_path / "a.parquet"], choose_some, ("inputs",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("template_type"), "lacks template_type; it has inputs, targets, task_name, size"),
        (lambda row: row.pop("inputs"), "lacks inputs; it has targets, task_name, template_type, size"),
        (lambda row: row.update(task_name=5), "task_name must be text, got 5"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_sample_needs_its_columns_in_every_format(tmp_path, name, change, words):
    rows = flan(3)
    for row in rows:
        change(row)
    path = (parquet if name.endswith("parquet") else jsonl)(tmp_path / name, rows)
    with pytest.raises(SourceError) as caught:
        sample({"file": str(path)}, choose_some, ("inputs",), Recorder())
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_value_in_a_chosen_row_or_a_label_is_named_by_its_row(tmp_path):
    rows = flan(9)
    rows[7]["inputs"] = rows[8]["task_name"] = None
    path = parquet(tmp_path / "a.parquet", rows[:8], row_group_size=3)
    with pytest.raises(SourceError, match=r"a\.parquet row 8: inputs must be text, got None"):
        sample_parquet([path], lambda names, types: [7], ("inputs",))
    path = parquet(tmp_path / "b.parquet", rows, row_group_size=3)
    with pytest.raises(SourceError, match=r"b\.parquet row 9: task_name must be text, got None"):
        sample_parquet([path], lambda names, types: [], ("inputs",))


# --- the hub, played by the rehearsal's


@pytest.fixture
def hub(tmp_path, monkeypatch, use_hub):
    """The library, online, with an own cache, talking to a hub on this machine: `hub.folder` has its files, `hub.sent` the
    numbers of bytes of file content it sent, `hub.damage` what becomes of that content on its way."""
    from huggingface_hub import HfFileSystem, constants

    repositories = Repositories(tmp_path / "hub")

    class Hub(handler_for(repositories)):
        folder, sent, damage = repositories.add("datasets", HUB, SHA), [], staticmethod(lambda data: data)

        def tell(self, status, body=b"", headers=None):
            content = "ETag" in (headers or {}) and self.command == "GET"
            self.sent.append(len(body) if content else 0)
            super().tell(status, self.damage(body) if content else body, headers)

    with local_server.serving(Hub) as address:
        use_hub(address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        Hub.go_offline = lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        HfFileSystem.clear_instance_cache()
        yield Hub
        HfFileSystem.clear_instance_cache()


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "hub.lock.json"


def hub_source(*names, **pin):
    return {"hub": HUB, "files": list(names), "revision": SHA, **pin}


def prefix_source(prefix):
    return hub_source(revision=None, expect_prefix=prefix)


def test_hub_files_are_read_in_order_at_the_pinned_revision_recorded_and_kept(hub):
    (hub.folder / "b").mkdir()
    contents = {"b/train.jsonl": files.to_jsonl(ROWS[1:]), "a.jsonl.gz": gzip.compress(files.to_jsonl(ROWS[:1]))}
    for name, content in contents.items():
        (hub.folder / name).write_bytes(content)
    source, stage = hub_source("b/train.jsonl", "a.jsonl.gz"), Recorder()
    assert read(source, TEXTS, stage) == ROWS[::-1]
    assert stage.inputs == {f"hub:{HUB}@{SHA}/{name}": files.sha256_bytes(data) for name, data in contents.items()}
    hub.go_offline()
    assert read(source, TEXTS, Recorder()) == ROWS[::-1]


def test_a_file_the_hub_lacks_and_a_hub_out_of_reach_are_one_line(hub):
    with pytest.raises(SourceError, match=rf"hub:{HUB}@{SHA}/a\.jsonl cannot be read: .*404"):
        locate(hub_source("a.jsonl"), Recorder())
    hub.go_offline()
    with pytest.raises(SourceError, match=rf"hub:{HUB}@{SHA}/a\.jsonl cannot be read: .*connection") as caught:
        locate(hub_source("a.jsonl"), Recorder())
    assert "\n" not in str(caught.value)


def test_a_download_that_differs_from_what_the_hub_announced_is_refused(hub):
    jsonl(hub.folder / "a.jsonl", ROWS)
    hub.damage = staticmethod(lambda data: data.replace(b"hi", b"ho"))
    with pytest.raises(SourceError, match="damaged"):
        locate(hub_source("a.jsonl"), Recorder())


def test_a_revision_of_which_the_beginning_is_known_is_asked_once_and_locked(hub, lock):
    files.write_json(lock, {"other/data": "f" * 40})
    assert full_revision(prefix_source("0123456"), lock) == SHA
    assert files.read_json(lock) == {"other/data": "f" * 40, HUB: SHA}
    hub.go_offline()
    assert full_revision(prefix_source("0123456"), lock) == SHA


def test_a_revision_that_begins_otherwise_is_refused_and_not_locked(hub, lock):
    with pytest.raises(SourceError, match=rf"hub .*{SHA}.* bdfbd29"):
        full_revision(prefix_source("bdfbd29"), lock)
    assert not lock.exists()
    for locked in (SHA, "bdfbd29"):
        files.write_json(lock, {HUB: locked})
        with pytest.raises(SourceError, match=rf"hub\.lock\.json .*{locked}.* bdfbd29"):
            full_revision(prefix_source("bdfbd29"), lock)


def test_a_pattern_is_filled_in_from_the_hub_once_and_locked(hub, lock):
    for name in ("b.jsonl", "a.jsonl", "a.txt"):
        jsonl(hub.folder / name, ROWS)
    assert hub_files(hub_source("*.jsonl"), SHA, lock) == ["a.jsonl", "b.jsonl"]
    hub.go_offline()
    assert hub_files(hub_source("*.txt"), SHA, lock) == ["a.txt"]
    with pytest.raises(SourceError, match=rf"{HUB}@{SHA} .*\.parquet.*a\.jsonl"):
        hub_files(hub_source("*.parquet"), SHA, lock)


def test_offline_without_a_lock_the_message_says_what_to_do(lock):
    with pytest.raises(SourceError, match=f"{HUB}: .*bdfbd29.*run once online"):
        full_revision(prefix_source("bdfbd29"), lock)
    with pytest.raises(SourceError, match=f"{HUB}: .*{SHA}.*run once online"):
        hub_files(hub_source("*"), SHA, lock)


def test_a_damaged_lock_is_named(lock):
    lock.write_text('{"a')
    with pytest.raises(SourceError, match=r"hub\.lock\.json"):
        full_revision(prefix_source("0"), lock)


def test_of_a_remote_parquet_file_only_what_is_sampled_is_transferred(hub):
    noise = random.Random(0)
    rows = [row | {"inputs": noise.randbytes(4000).hex()} for row in flan(200)]
    path, stage = parquet(hub.folder / "a.parquet", rows, row_group_size=10), Recorder()
    remote = sample(hub_source("a.parquet"), choose_some, ("inputs", "targets"), stage)
    assert remote == sample({"file": str(path)}, choose_some, ("inputs", "targets"), Recorder())
    assert stage.inputs == {f"hub:{HUB}@{SHA}/a.parquet": files.sha256_file(path)}
    assert 0 < sum(hub.sent) < path.stat().st_size / 4


def test_a_parquet_file_that_is_already_here_is_sampled_without_the_hub(hub):
    parquet(hub.folder / "a.parquet", flan(20))
    locate(hub_source("a.parquet"), Recorder())
    hub.go_offline()
    assert len(sample(hub_source("a.parquet"), choose_some, ("inputs",), Recorder())) == 4
    with pytest.raises(SourceError, match=r"b\.parquet cannot be read"):
        sample(hub_source("b.parquet"), choose_some, ("inputs",), Recorder())
