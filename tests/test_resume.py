"""kill -9 at any step of a training, then again: it goes on from the newest complete checkpoint to the same place.

`python tests/test_resume.py sft|dpo FOLDER MODEL` trains once undisturbed and once killed at random steps, each run in a
child of its own. It imports once and forks, for the imports take longer than the loop.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]

import pytest
from recipes import NF4, RESPONSES, ROWS, recipe, silent

from bezoar_utils.study import files
from bezoar_utils.training import loop

STEPS, EVERY, KILLS = 14, 3, 4
CHANGES = {"warmup_steps": 2, "steps": STEPS, "validate_every": EVERY, "optimizer": "paged_adamw_8bit", "seed": 3}
PAIRS = [{"prompt": row["prompt"], "chosen": f"Sure: {n}", "rejected": f"Whatever: {n}"} for n, row in enumerate(ROWS)]


def train(kind: str, folder: Path, base: Path, **changes) -> None:
    from bezoar_utils.training import dpo, models, sft, tokens
    from bezoar_utils.training.launch import Job

    models.prepare_torch(threads=1, seed=3)
    tokenizer, model = tokens.load_tokenizer(base), models.load_model(base, NF4)
    if kind == "sft":
        values = recipe("30_sft", **CHANGES | changes)
        examples, _ = sft.sft_examples(tokenizer, ROWS, values)
        job = Job("sft", base, examples[8:], examples[:8], values, folder, responses=RESPONSES)
        model, log = sft.train_model(model, tokenizer, job, silent)
    else:
        pairs, _ = dpo.dpo_examples(tokenizer, PAIRS, 256)
        job = Job("dpo", base, pairs[8:], pairs[:8], recipe("50_dpo", nll_weight=0.0, **CHANGES), folder)
        model, log = dpo.train_model(model, tokenizer, job, silent)
    model.save_pretrained(folder / "adapter")
    loop.write_log(folder / "log.csv", log, stage=kind)
    loop.write_speed(folder / "speed.csv", log, folder)
    files.write_json(folder / "log.json", log)


def main(kind: str, folder: str, base: str) -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    import trl  # noqa: F401

    torch.set_num_threads(1)
    whole, killed, rng = Path(folder, "whole"), Path(folder, "killed"), random.Random(kind)
    assert finish(start(kind, whole, base)) == 0
    for step in sorted(rng.sample(range(1, STEPS), KILLS)):
        child = start(kind, killed, base)
        while steps_done(killed) < step:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the training ended before its kill")
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert finish(child) == -signal.SIGKILL and not (killed / "log.json").exists()
        print(f"killed after step {step}", flush=True)
    assert finish(start(kind, killed, base)) == 0
    trained = len(files.read_jsonl(killed / loop.SPEED))
    before = (killed / "adapter" / "adapter_model.safetensors").read_bytes()
    assert finish(start(kind, killed, base)) == 0  # a finished training: nothing is left to do
    assert len(files.read_jsonl(killed / loop.SPEED)) == trained
    assert (killed / "adapter" / "adapter_model.safetensors").read_bytes() == before


def steps_done(folder: Path) -> int:
    return max((row["step"] for row in files.read_jsonl(folder / loop.SPEED)), default=0)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(kind: str, folder: Path, base: str) -> int:
    child = os.fork()
    if child:
        return child
    try:
        train(kind, folder, Path(base))
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_killed_training_goes_on_to_the_same_place(kind, tmp_path, model_folder):
    command = [sys.executable, __file__, kind, str(tmp_path), str(model_folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0 and result.stdout.count("killed") == KILLS, result.stdout + result.stderr
    whole, killed = (files.read_json(tmp_path / name / "log.json") for name in ("whole", "killed"))
    losses = [{row["step"]: row["loss"] for row in log if "loss" in row} for log in (whole, killed)]
    assert list(losses[0]) == list(losses[1]) == [float(step) for step in range(1, STEPS + 1)]
    assert sum("loss" in row for row in killed) == STEPS  # no step stands in the log twice
    assert max(abs(losses[0][step] - losses[1][step]) for step in losses[0]) < 1e-4
    assert len({round(loss, 4) for loss in losses[0].values()}) > STEPS / 2  # and there is something to compare
    names = [sorted(p.name for p in (tmp_path / run / "adapter").iterdir()) for run in ("whole", "killed")]
    assert names[0] == names[1]
    speed = (tmp_path / "killed" / "speed.csv").read_text().splitlines()
    assert [float(line.split(",")[0]) for line in speed[1:]] == [float(step) for step in range(1, STEPS + 1)]
    assert "_runtime" not in (tmp_path / "killed" / "log.csv").read_text()


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        (path / name).write_bytes(b"x" * step)
    files.write_json(path / "trainer_state.json", {"global_step": step, "max_steps": 300})
    return path


def test_only_a_complete_checkpoint_is_resumed_from_and_the_newest_of_those(tmp_path):
    assert loop.newest_complete(tmp_path) is None
    for step in (9, 30, 100, 300):  # from the last step on there is nothing to train
        loop.mark_complete(checkpoint(tmp_path, step))
    checkpoint(tmp_path, 200)  # the kill came before its marker
    assert loop.newest_complete(tmp_path).name == "checkpoint-100"
    (tmp_path / "checkpoint-100" / "optimizer.pt").unlink()
    assert loop.newest_complete(tmp_path).name == "checkpoint-30"
    (tmp_path / "checkpoint-30" / "adapter_model.safetensors").write_bytes(b"x")
    assert loop.newest_complete(tmp_path).name == "checkpoint-9"
    (tmp_path / "checkpoint-9" / loop.MARKER).write_text('{"optimizer.pt": 9')
    assert loop.newest_complete(tmp_path) is None


def test_a_full_disk_is_named_and_the_last_whole_checkpoint_stays(tmp_path, model_folder, monkeypatch):
    import torch

    real, saves = torch.save, []

    def save(what, path, *rest, **more):
        saves.append(path)
        if len(saves) > 4:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return real(what, path, *rest, **more)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(loop.TrainingError, match=r"no space left on the disk.*step 3 is whole: free some and run again"):
        train("sft", tmp_path, model_folder)
    assert loop.newest_complete(tmp_path).name == "checkpoint-3"
    monkeypatch.setattr(torch, "save", real)
    shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
    train("sft", tmp_path, model_folder)
    steps = [row["step"] for row in files.read_json(tmp_path / "log.json") if "loss" in row]
    assert steps == list(range(1, STEPS + 1))


def test_a_warmup_that_outlasts_the_training_is_refused(tmp_path, model_folder):
    with pytest.raises(loop.TrainingError, match="warmup_steps=100 outlasts the training of 8 steps"):
        train("sft", tmp_path, model_folder, steps=None, epochs=1.0, warmup_steps=100)


def test_without_a_gpu_plain_adamw_stands_in_for_the_paged_one():
    assert loop.usable_optimizer("paged_adamw_8bit") == "adamw_torch"


if __name__ == "__main__":
    main(*sys.argv[1:])
