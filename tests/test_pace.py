import os
import subprocess
import sys
import time

import papermill
import pytest

from bezoar_utils import run
from bezoar_utils.planning import doctor
from bezoar_utils.study import files, pace
from bezoar_utils.study.profile import CODE, load_profile
from bezoar_utils.training import precision


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(pace, "REPORTS", tmp_path / "reports")
    files.write_json(tmp_path / "reports" / "reference" / "timings.json", {"00_miniature": 100.0, "30_sft": 60.0, "50_dpo": 30.0})
    return tmp_path / "runs"


def test_a_first_run_is_expected_to_take_as_long_as_the_profiles_committed_one(runs):
    files.write_json(runs.parent / "reports" / "smol-reference" / "timings.json", {"30_sft": 90.0})
    assert pace.expected_seconds("mini", "30_sft") == 60.0 and pace.expected_seconds("smol", "30_sft") == 90.0
    assert pace.expected_seconds("mine", "30_sft") is None, "no run of it is committed"


def test_what_is_to_come_is_scaled_by_how_this_machine_compares_so_far(runs):
    pace.remember_time("mini", "00_miniature", 300.0)
    assert pace.expected_seconds("mini", "30_sft") == pytest.approx(180.0)
    assert pace.expected_seconds("mini", "00_miniature") == 300.0, "as it was timed here"


def test_a_slow_machines_own_pace_overrules_what_was_expected(tmp_path):
    beat = run.Heartbeat("[1/13] 00_miniature", tmp_path, expected=154.0)
    beat.started = time.monotonic() - 30
    files.write_json(tmp_path / ".progress.json", {"done": 10, "total": 1600, "what": "base step"})
    beat.line()
    beat.counted = ("base step", 10, time.monotonic() - 30)
    files.write_json(tmp_path / ".progress.json", {"done": 20, "total": 1600, "what": "base step"})
    minutes = int(beat.line().split("about ")[1].split(":")[0])
    assert minutes == 79  # 1,580 steps of three seconds


def test_a_stages_threads_wait_without_spinning_and_its_kernels_are_those_of_every_x86_64_machine(monkeypatch, tmp_path):
    """A setting that the user made is respected."""
    seen = {}
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: seen.update(os.environ))
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx2", "avx512_bf16"}))
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], "MKL_CBWR": "AVX512"})
    run.execute("10_lamini", "mini", load_profile("mini"), [], tmp_path)
    assert seen["GOMP_SPINCOUNT"] == "0" and seen["MKL_CBWR"] == "AVX512"
    assert (seen["ATEN_CPU_CAPABILITY"], seen["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")


def test_doctor_says_what_this_machine_is_and_how_long_the_run_takes(capsys):
    doctor.main("mini")
    said = capsys.readouterr().out
    assert f"{len(os.sched_getaffinity(0))} cores" in said and "GiB memory" in said
    assert "arithmetic: float32 (" in said and "bfloat16 is" in said
    assert "minutes of work" in said


def test_a_cpu_cannot_be_told_to_compute_in_float16(capsys):
    assert doctor.arithmetic(load_profile("mini").model_copy(update={"precision": "float16"}))[0] == doctor.MISSING


def test_a_python_outside_the_range_is_one_line_that_says_what_to_install(tmp_path):
    old = tmp_path / "python"
    old.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexec {sys.executable} -c "import sys; sys.exit(1)"\n'
    )
    old.chmod(0o755)
    result = subprocess.run([CODE / "requirements" / "setup.sh", ".nowhere", str(old)], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and not (CODE / ".nowhere").exists()
    assert result.stderr.count("\n") == 1
    assert "Python 3.9.1" in result.stderr and "make PYTHON=" in result.stderr
