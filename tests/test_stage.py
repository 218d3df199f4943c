import errno
import json
import os
from types import SimpleNamespace

import pytest

from bezoar_utils import run
from bezoar_utils.study import files, stage
from bezoar_utils.study.profile import ProfileError, load_profile, stage_parameters
from bezoar_utils.study.stage import StageError, open_stage, stale_reason, verify


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    monkeypatch.delenv("BEZOAR_READS", raising=False)
    return tmp_path / "runs"


def namespace(name, **changes):
    return {"profile": "tiny", **stage_parameters(load_profile("tiny"), name), **changes}


def finish(name, monkeypatch, reads="", content=b"data", inputs=(), noted=(), **changes):
    """One stage as the runner would have it finished, without a kernel."""
    monkeypatch.setenv("BEZOAR_READS", reads)
    opened = open_stage(name, namespace(name, **changes))
    for reference in inputs:
        opened.input(reference)
    for reference, digest in noted:
        opened.note_input(reference, digest)
    files.write_bytes(opened.output("made.bin"), content)
    opened.finish()
    (opened.folder / "chapter.partial.ipynb").write_text("{}")
    run.complete(name, opened.folder, 1.0)
    stage._locks.clear()
    return opened.folder


def reason(name, **changes):
    return stale_reason(name, "tiny", stage_parameters(load_profile("tiny"), name) | changes)


def test_a_finished_stage_is_fresh_and_an_unfinished_one_is_not(home, monkeypatch):
    assert reason("00_miniature") == "not run yet"
    finish("00_miniature", monkeypatch)
    assert reason("00_miniature") is None


def test_a_changed_parameter_is_named(home, monkeypatch):
    finish("00_miniature", monkeypatch)
    assert reason("00_miniature", people=9) == "parameter people: 8 -> 9"


def test_a_changed_input_makes_its_reader_stale_and_a_rerun_with_the_same_result_does_not(home, monkeypatch):
    finish("00_miniature", monkeypatch)
    finish("10_lamini", monkeypatch, reads="00_miniature", inputs=["00_miniature/made.bin"])
    finish("00_miniature", monkeypatch)
    assert reason("10_lamini") is None
    finish("00_miniature", monkeypatch, content=b"other data")
    assert reason("10_lamini") == "its input 00_miniature/made.bin changed"


def test_a_changed_or_missing_local_file_makes_its_reader_stale(home, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", home)
    rows = home / "data" / "rows.jsonl"
    files.write_bytes(rows, b"one")
    finish("00_miniature", monkeypatch, noted=[("file:data/rows.jsonl", files.sha256_file(rows))])
    assert reason("00_miniature") is None
    files.write_bytes(rows, b"two")
    assert reason("00_miniature") == "its input file:data/rows.jsonl changed"
    rows.unlink()
    assert reason("00_miniature") == "its input file:data/rows.jsonl changed"
    files.write_bytes(rows, b"one")
    assert reason("00_miniature") is None


def test_a_file_that_was_missing_makes_the_stage_stale_once_it_is_there(home, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", home)
    finish("00_miniature", monkeypatch, noted=[("file:80_ablations/choices.json", None)])
    assert reason("00_miniature") is None
    files.write_json(home / "80_ablations" / "choices.json", [])
    assert reason("00_miniature") == "its input file:80_ablations/choices.json changed"


def test_a_hub_file_at_its_commit_never_makes_a_stage_stale(home, monkeypatch):
    finish("00_miniature", monkeypatch, noted=[(f"hub:some/set@{'0' * 40}/a.parquet", "1" * 64)])
    assert reason("00_miniature") is None


def test_a_missing_or_cut_output_makes_the_stage_stale(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    (folder / "made.bin").write_bytes(b"da")
    assert "made.bin is missing or cut short" in reason("00_miniature")
    (folder / "made.bin").unlink()
    assert "made.bin is missing or cut short" in reason("00_miniature")


def test_a_damaged_proof_is_no_proof(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    (folder / "stage.json").write_text('{"stage": ')
    assert reason("00_miniature") == "its stage.json is damaged"


def test_changed_helper_code_and_notebook_are_named(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    record = json.loads((folder / "stage.json").read_text())
    files.write_json(folder / "stage.json", record | {"code": {"bezoar_utils/schemes/lamini.py": "0" * 64}})
    assert reason("00_miniature") == "bezoar_utils/schemes/lamini.py changed"
    files.write_json(folder / "stage.json", record | {"notebook": "0" * 64})
    assert reason("00_miniature") == "its notebook changed"


def test_the_record_names_the_helper_code_that_was_loaded(home, monkeypatch):
    import bezoar_utils.schemes.lamini  # noqa: F401

    record = json.loads((finish("00_miniature", monkeypatch) / "stage.json").read_text())
    assert "bezoar_utils/schemes/lamini.py" in record["code"]
    assert "bezoar_utils/study/stage.py" not in record["code"]
    assert {"parameters", "inputs", "outputs", "versions", "git_commit", "seed", "wall_seconds", "counts"} <= set(record)


def test_opening_a_stage_takes_its_proof_away_first(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    open_stage("00_miniature", namespace("00_miniature"))
    assert not (folder / "stage.json").exists() and not (folder / "made.bin").exists()


def test_finished_judge_calls_survive_a_rerun(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    files.append_jsonl(folder / "calls.jsonl", {"key": "k"})
    open_stage("00_miniature", namespace("00_miniature"))
    assert files.read_jsonl(folder / "calls.jsonl") == [{"key": "k"}]


def test_reading_an_undeclared_or_unfinished_stage_is_an_error(home, monkeypatch):
    monkeypatch.setenv("BEZOAR_READS", "00_miniature")
    opened = open_stage("10_lamini", namespace("10_lamini"))
    with pytest.raises(StageError, match="not finished"):
        opened.input("00_miniature/made.bin")
    with pytest.raises(StageError, match="does not list 20_judge_filter"):
        opened.input("20_judge_filter/accepted.parquet")


def test_asking_for_an_artifact_that_was_not_made_names_what_was(home, monkeypatch):
    finish("00_miniature", monkeypatch)
    monkeypatch.setenv("BEZOAR_READS", "00_miniature")
    with pytest.raises(StageError, match=r"made no 'other.bin'; it made made.bin"):
        open_stage("10_lamini", namespace("10_lamini")).input("00_miniature/other.bin")


def test_a_value_edited_by_hand_is_checked_by_the_same_schema(home):
    with pytest.raises(ProfileError, match="people"):
        open_stage("00_miniature", namespace("00_miniature", people=-3))


def test_exploring_never_touches_a_finished_run(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    monkeypatch.delenv("BEZOAR_READS")
    explored = open_stage("00_miniature", namespace("00_miniature"))
    assert explored.folder == home / "tiny" / "explore" / "00_miniature"
    assert (folder / "stage.json").exists()


def test_verify_names_every_artifact_that_differs(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    assert verify("tiny", ["00_miniature"]) == [], "the ablations and other stages need not be there"
    (folder / "made.bin").write_bytes(b"atad")
    (folder / "extra.bin").write_bytes(b"")
    assert verify("tiny", ["00_miniature", "10_lamini"]) == [
        "00_miniature/made.bin: content differs from stage.json",
        "00_miniature/extra.bin: not in stage.json",
        "10_lamini: no stage.json, so not finished",
    ]


def test_clean_keeps_paid_calls_and_nothing_else(home, monkeypatch):
    folder = finish("00_miniature", monkeypatch)
    files.append_jsonl(home / "tiny" / "20_judge_filter" / "calls.jsonl", {"key": "k", "cost_usd": 0.01})
    files.append_jsonl(folder / "calls.jsonl", {"key": "k", "cost_usd": 0.0})
    run.clean("tiny", paid=False)
    left = [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()]
    assert left == ["tiny/20_judge_filter/calls.jsonl"]


def test_clean_paid_asks_first(home, monkeypatch):
    ledger = home / "tiny" / "20_judge_filter" / "calls.jsonl"
    files.append_jsonl(ledger, {"key": "k", "cost_usd": 0.01})
    monkeypatch.setattr("builtins.input", lambda _: "no")
    run.clean("tiny", paid=True)
    assert ledger.exists()
    monkeypatch.setattr("builtins.input", lambda _: "delete")
    run.clean("tiny", paid=True)
    assert not ledger.exists()


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def full_disk(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        files.read_table(tmp_path / "a.parquet")
    files.write_table(tmp_path / "b.parquet", [{"x": 1}])
    with pytest.raises(ValueError, match="lacks the columns y; it has x"):
        files.read_table(tmp_path / "b.parquet", ("x", "y"))


def test_rows_of_a_log_may_hold_any_sign(tmp_path):
    rows = [{"text": f"one{sign}two"} for sign in "\u2028\u2029\x85\x0b\x0c\x1c\r\n"]
    files.append_jsonl(tmp_path / "log", *rows)
    assert files.read_jsonl(tmp_path / "log") == rows


def test_a_log_torn_anywhere_gives_its_whole_rows_and_takes_more(tmp_path):
    whole = files.to_jsonl([{"n": 0, "text": "€\u2028"}, {"n": 1, "text": "déjà €"}])
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):  # in the middle of a character too
        path = tmp_path / f"{end}"
        path.write_bytes(whole[:end])
        n = 2 if end >= len(whole) - 1 else 1 if end >= first - 1 else 0
        assert [row["n"] for row in files.read_jsonl(path)] == list(range(n))
        files.append_jsonl(path, {"n": "more"})
        assert [row["n"] for row in files.read_jsonl(path)] == [*range(n), "more"]


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert files.read_jsonl(tmp_path / "log") == []


def test_without_git_and_on_a_file_system_without_locks_or_chmod_a_stage_is_finished_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setenv("PATH", str(tmp_path))
    assert run._git("rev-parse", "HEAD") is None
    monkeypatch.setattr(files.os, "chmod", refused)
    files.write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(files.fcntl, "flock", refused)
    stage._lock(tmp_path)
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


def test_a_column_that_only_later_rows_have_is_saved(tmp_path):
    opened = stage.Stage("10_lamini", "tiny", {}, tmp_path, ())
    opened.save_rows("a.parquet", [{"x": 1}, {"x": 2, "gpt4_status": "Accept"}], ["x"])
    assert files.read_table(tmp_path / "a.parquet")[1]["gpt4_status"] == "Accept"


def test_a_column_nobody_asked_for_is_kept_as_text_where_parquet_has_no_type_for_it(tmp_path):
    rows = [{"a": "x", "rating": "8", "meta": {}, "tags": ["é"]}, {"a": "y", "rating": 8, "meta": {}, "tags": []}, {"a": "z"}]
    files.write_table(tmp_path / "a.parquet", rows)
    first, second, third = files.read_table(tmp_path / "a.parquet")
    assert (first["rating"], second["rating"], first["meta"], list(first["tags"])) == ("8", "8", "{}", ["é"])
    assert third["a"] == "z"


def test_code_is_known_by_its_content_and_a_date_in_the_future_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "bezoar_utils" / "schemes" / "mine.py"
    files.write_bytes(path, b"a = 1\n")
    monkeypatch.setattr(stage, "CODE", tmp_path)
    monkeypatch.setattr(stage, "AT_FIRST", {"bezoar_utils/schemes/mine.py": files.sha256_file(path)})
    monkeypatch.setattr(stage.sys, "modules", {"bezoar_utils.schemes.mine": SimpleNamespace(__file__=str(path))})
    os.utime(path, (2**33, 2**33))
    assert stage._helper_hashes() == {"bezoar_utils/schemes/mine.py": files.sha256_file(path)}
    files.write_bytes(path, b"a = 2\n")
    os.utime(path, (0, 0))
    assert files.sha256_file(path) not in stage._helper_hashes().values(), "edited while the stage ran: it matches nothing"


def test_a_clock_that_jumps_back_costs_no_progress_and_no_negative_time(home, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: next(clock))
    monkeypatch.setenv("BEZOAR_READS", "")
    opened = open_stage("00_miniature", namespace("00_miniature"))
    opened.progress(1, 2, "step")
    assert files.read_json(opened.folder / ".progress.json")["done"] == 1
    opened.finish()
    assert files.read_json(opened.folder / stage.DRAFT)["work_seconds"] >= 0
