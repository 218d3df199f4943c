"""The Makefile's behaviour, on two stand-in chapters in a folder of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bezoar_utils.study.profile import CODE, load_profile, stage_parameters

FIRST, SECOND = "10_lamini", "20_judge_filter"
GOOD = "stage.output('made.txt').write_text(f'{stage.name} made this')"
READS = f"stage.input('{FIRST}/made.txt'); " + GOOD


def chapter(stage, work, extra_parameter=""):
    parameters = {"profile": "tiny", **stage_parameters(load_profile("tiny"), stage)}
    sources = [
        "".join(f"{name} = {value!r}\n" for name, value in parameters.items()) + extra_parameter,
        "from bezoar_utils.study.stage import open_stage\nstage = open_stage(" + repr(stage) + ", globals())",
        work,
        "stage.finish()",
    ]
    cells = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {"tags": ["parameters"]} if i == 0 else {},
            "source": s,
            "outputs": [],
            "execution_count": None,
        }
        for i, s in enumerate(sources)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def study(tmp_path):
    """Two chapters in a folder whose name no format string and no ASCII would like, and a function that runs make there."""
    tmp_path = tmp_path / "stüdy-{x}"
    tmp_path.mkdir()
    shutil.copytree(CODE / "profiles", tmp_path / "profiles")
    (tmp_path / "notebooks").mkdir()
    for stage, work in ((FIRST, GOOD), (SECOND, READS)):
        (tmp_path / "notebooks" / f"{stage}.ipynb").write_text(chapter(stage, work))

    def command_of(*arguments):
        command = ["make", "-f", str(CODE / "Makefile"), "--no-print-directory", "PROFILE=tiny", f"PY={sys.executable}"]
        command += [f"RECIPE={FIRST}: {SECOND}:{FIRST}", "APART=", *(arguments or ["stages"])]
        return command

    environment = {k: v for k, v in os.environ.items() if k not in ("BEZOAR_HOME", "BEZOAR_READS", "MAKEFLAGS", "MAKELEVEL")}

    def make(*arguments):
        return subprocess.run(command_of(*arguments), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    def start(*arguments):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command_of(*arguments), cwd=tmp_path, env=environment, start_new_session=True, **streams)

    make.start, make.environment = start, environment
    make.folder = tmp_path
    make.proof = lambda stage: tmp_path / "runs" / "tiny" / stage / "stage.json"
    return make


def started(result):
    return [line.split()[1].rstrip(":") for line in result.stdout.splitlines() if ": start" in line]


def test_make_runs_what_content_calls_for_and_nothing_else(study):
    first = study()
    assert first.returncode == 0, first.stderr
    assert started(first) == [FIRST, SECOND]

    before = time.time()
    again = study()
    assert again.returncode == 0 and started(again) == []
    assert time.time() - before < 2, "a no-op must take under two seconds"

    for path in (study.folder / "notebooks" / f"{FIRST}.ipynb", study.folder / "profiles" / "mini.yaml", study.proof(FIRST)):
        path.touch()
    assert started(study()) == [], "a new time stamp is not new content"

    profile = study.folder / "profiles" / "tiny.yaml"
    text = profile.read_text()
    profile.write_text(text.replace("judge_filter: {repeat_rows: 20}", "judge_filter: {repeat_rows: 20, ngram: 9}"))
    plan = study("plan")
    assert f"{FIRST:18} fresh" in plan.stdout and "parameter ngram: 8 -> 9" in plan.stdout
    assert started(study()) == [SECOND]

    (study.folder / "notebooks" / f"{FIRST}.ipynb").write_text(chapter(FIRST, GOOD + "  # a comment"))
    assert started(study()) == [FIRST], "the first chapter made the same artifact again, so its reader is fresh"
    assert started(study()) == []

    verified = study("verify")
    assert verified.returncode == 0 and "every artifact matches" in verified.stdout, "only stages the Makefile lists are asked for"
    study.proof(SECOND).unlink()
    verified = study("verify")
    assert verified.returncode != 0 and verified.stdout.strip() == f"{SECOND}: no stage.json, so not finished"


def test_a_chapter_that_the_profile_leaves_out_keeps_nobody_waiting(study):
    recipe = f"RECIPE={FIRST}: 35_pairs:{FIRST} {SECOND}:{FIRST},35_pairs"
    assert started(study("stages", recipe)) == [FIRST, SECOND]
    before = study.proof(SECOND).stat().st_mtime_ns
    again = study("stages", recipe)
    assert again.returncode == 0 and again.stdout.strip() in ("", "make: Nothing to be done for 'stages'.")
    assert study.proof(SECOND).stat().st_mtime_ns == before, "a report that is up to date is not written again"


def test_a_failing_cell_stops_make_and_leaves_no_proof(study):
    (study.folder / "notebooks" / f"{SECOND}.ipynb").write_text(chapter(SECOND, "stage.output('half.txt').write_text('x'); 1 / 0"))
    result = study()
    assert result.returncode != 0
    assert "20_judge_filter failed in cell" in result.stderr and "ZeroDivisionError: division by zero" in result.stderr
    assert study.proof(FIRST).exists() and not study.proof(SECOND).exists()
    assert study().returncode != 0, "it is not taken for done the next time"
    (study.folder / "notebooks" / f"{SECOND}.ipynb").write_text(chapter(SECOND, READS))
    repaired = study()
    assert repaired.returncode == 0 and started(repaired) == [SECOND]
    assert not (study.proof(SECOND).parent / "half.txt").exists()


def test_an_early_exit_is_no_success(study):
    (study.folder / "notebooks" / f"{FIRST}.ipynb").write_text(chapter(FIRST, "import sys; sys.exit(0)"))
    result = study()
    assert result.returncode != 0 and "without reaching its last cell" in result.stderr
    assert not study.proof(FIRST).exists()


def test_a_killed_kernel_is_no_success(study):
    (study.folder / "notebooks" / f"{FIRST}.ipynb").write_text(chapter(FIRST, "import os; os.kill(os.getpid(), 9)"))
    result = study()
    assert result.returncode != 0 and "10_lamini failed" in result.stderr
    assert not study.proof(FIRST).exists()


def test_kill_the_whole_process_group_in_mid_stage_then_run_again(study):
    work = "import pathlib, time\nstage.output('half.txt').write_text('x')\n"
    work += "pathlib.Path(stage.folder / '..' / 'started').touch()\n"
    work += f"time.sleep(0 if pathlib.Path({str(study.folder / 'second-time')!r}).exists() else 60)\n{READS}"
    (study.folder / "notebooks" / f"{SECOND}.ipynb").write_text(chapter(SECOND, work))
    running = study.start()
    wait_for(study.folder / "runs" / "tiny" / "started")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert study.proof(FIRST).exists() and not study.proof(SECOND).exists()
    (study.folder / "second-time").touch()
    result = study()
    assert result.returncode == 0, result.stderr
    assert started(result) == [SECOND]
    assert "made.txt" in json.loads(study.proof(SECOND).read_text())["outputs"]


def wait_for(path, patience_s=60):
    deadline = time.time() + patience_s
    while not path.exists():
        assert time.time() < deadline, f"{path} did not appear"
        time.sleep(0.1)


def test_a_missing_input_is_an_error_that_names_it(study):
    (study.folder / "notebooks" / f"{SECOND}.ipynb").write_text(chapter(SECOND, f"stage.input('{FIRST}/other.txt')"))
    result = study()
    assert result.returncode != 0 and "made no 'other.txt'; it made made.txt" in result.stderr


def test_reading_what_the_makefile_does_not_declare_is_an_error(study):
    (study.folder / "notebooks" / f"{SECOND}.ipynb").write_text(chapter(SECOND, "stage.input('30_sft/log.csv')"))
    result = study()
    assert result.returncode != 0 and "does not list 30_sft" in result.stderr


def test_an_unknown_notebook_parameter_is_an_error_before_anything_runs(study):
    (study.folder / "notebooks" / f"{FIRST}.ipynb").write_text(chapter(FIRST, GOOD, extra_parameter="tempreature = 1\n"))
    result = study()
    assert result.returncode != 0 and "only in the cell: ['tempreature']" in result.stderr
    assert started(result) == []


def test_a_typing_error_in_the_profile_is_one_line_before_anything_runs(study):
    profile = study.folder / "profiles" / "tiny.yaml"
    profile.write_text(profile.read_text() + "dop: {beta: 1.0}\n")
    result = study()
    assert result.returncode != 0 and started(result) == []
    assert "unknown key dop" in result.stderr


def test_a_branched_run_runs_what_its_change_touches_and_nothing_before_it(study):
    study()
    (study.folder / "profiles" / "mine.yaml").write_text("extends: tiny\njudge_filter: {ngram: 9}\n")
    shutil.copytree(study.proof(FIRST).parent, study.folder / "runs" / "mine" / FIRST)  # as explore.ipynb does
    kept = study.proof(SECOND).read_bytes()
    result = study(f"runs/mine/{SECOND}/stage.json", "PROFILE=mine")
    assert result.returncode == 0 and started(result) == [SECOND], result.stderr
    assert study.proof(SECOND).read_bytes() == kept
    record = json.loads((study.folder / "runs" / "mine" / SECOND / "stage.json").read_text())
    assert record["profile"] == "mine" and record["parameters"]["ngram"] == 9


def test_a_run_depends_on_no_settings_of_the_users(study, tmp_path):
    theirs = tmp_path / "theirs"
    for name in ("lib/datasets.py", "lib/yaml.py", "lib/bezoar_utils/__init__.py", "home/.ipython/profile_default/startup/00.py"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text("raise RuntimeError('of the user')\nstage = 1\n")
    (theirs / "started.py").write_text("of_the_user = 1\n")
    for kernels in ("home/.local/share/jupyter/kernels", "jupyter/kernels"):
        (theirs / kernels / "python3").mkdir(parents=True)
        (theirs / kernels / "python3" / "kernel.json").write_text('{"argv": ["false"], "display_name": "x", "language": "python"}')
    study.environment |= {"HOME": str(theirs / "home"), "PYTHONPATH": str(theirs / "lib"), "JUPYTER_PATH": str(theirs / "jupyter")}
    study.environment |= {
        "PYTHONSTARTUP": str(theirs / "started.py"),
        "MPLBACKEND": "none",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
    }
    study.environment |= {
        "SSL_CERT_FILE": "/nowhere",
        "ALL_PROXY": "socks://x:1",
        "JOBS": "many",
        "SEEDS": "x",
        "JUPYTER_PREFER_ENV_PATH": "0",
    }
    work = "import datasets\nassert 'of_the_user' not in globals()\nprint('€')\nimport matplotlib.pyplot as plt\n"
    work += "plt.plot([1])\nplt.title('ä')\nplt.savefig(stage.output('figure.png'))\nopen(stage.output('made.txt'), 'w').write('€')"
    (study.folder / "notebooks" / f"{FIRST}.ipynb").write_text(chapter(FIRST, work), encoding="utf-8")
    result = study()
    assert result.returncode == 0 and started(result) == [FIRST, SECOND], result.stderr
    assert (study.proof(FIRST).parent / "made.txt").read_text(encoding="utf-8") == "€"


def test_options_come_from_the_command_line_and_not_from_other_tools_variables(study):
    names = (
        "PROFILE",
        "JOBS",
        "SEEDS",
        "RUNS",
        "DATA",
        "PYTHON",
        "EXTRA",
        "REPO",
        "CHECKPOINT",
        "TORCH_INDEX",
        "CONFIRM",
        "VENV",
        "QUANT",
        "FORMAT",
    )
    study.environment |= dict.fromkeys(names, "yes")
    for target in ("publish", "compare", "rehearse", "reproduce", "export"):
        assert "yes" not in study("-n", target).stdout, target
    assert "--confirm" in study("-n", "publish", "CONFIRM=yes").stdout


def test_a_folder_whose_name_a_shell_would_change_is_refused_in_one_line(tmp_path):
    for name in ("my study", "my$study"):
        (tmp_path / name).mkdir()
        command = ["make", "-f", str(CODE / "Makefile"), "help"]
        result = subprocess.run(command, cwd=tmp_path / name, capture_output=True, text=True, check=False)
        assert result.returncode != 0 and "move the study" in result.stderr and result.stderr.count("\n") == 1


def test_make_alone_prints_every_target(study):
    result = study("help")
    for target in (
        "reproduce",
        "test",
        "lab",
        "report",
        "compare",
        "verify",
        "plan",
        "doctor",
        "rehearse",
        "clean",
        "clean-paid",
        "ablations",
        "neighbours",
        "export",
        "check-reference",
    ):
        assert f"\n  {target} " in result.stdout
    assert "mini" in result.stdout and "no money" in result.stdout
