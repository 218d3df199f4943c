"""One training as a job: in this process, or in several through accelerate, where each reads it from disk.

`sft.train` and `dpo.train` are the doors. With `launch.config_file` it is accelerate's own configuration (FSDP, DeepSpeed, several
machines) that decides how the processes work together; nothing here knows of them.
"""

import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..study import files
from .loop import SPEED, TrainingError
from .models import prepare_torch, with_adapter
from .precision import current
from .tokens import load_tokenizer
from .weights import facts

POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """What is trained on what. `kind` is sft or dpo; `recipe` are a training chapter's parameters, with lora, quantisation, seed,
    threads and launch; `carried` is the folder of an adapter to go on with, `responses` are what the guards of SFT look for."""

    kind: str
    base: Path
    training: list[dict]
    validation: list[dict]
    recipe: dict
    folder: Path
    carried: Path | None = None
    responses: list[str] | None = None


def run_job(job: Job, tokenizer, progress) -> tuple[object, list[dict]]:
    """(trained model, log), in this process or in as many as `launch` asks for. Raises TrainingError for a base with less context
    than `max_length`."""
    if (context := facts(job.base).context or job.recipe["max_length"]) < job.recipe["max_length"]:
        raise TrainingError(
            f"max_length={job.recipe['max_length']} is more than the base model's context of {context} tokens: lower it"
        )
    launch, quantisation = job.recipe["launch"], job.recipe["quantisation"]
    if launch["processes"] == 1 and not launch["config_file"]:
        return trainer_of(job)(with_adapter(job.base, job.carried, quantisation), tokenizer, job, progress)
    adapter, log = train_apart(job, progress)
    return with_adapter(job.base, adapter, quantisation), log


def trainer_of(job: Job):
    from . import dpo, sft

    return {"sft": sft, "dpo": dpo}[job.kind].train_model


def train_apart(job: Job, progress) -> tuple[Path, list[dict]]:
    """(folder of the trained adapter, log) of a training in several processes, with its job and result on disk.

    Raises TrainingError with what a failed process said last.
    """
    folder, launch, steps = job.folder, job.recipe["launch"], job.recipe["steps"]
    paths = {name: str(path) for name, path in asdict(job).items() if isinstance(path, Path)}
    files.write_json(folder / "job.json", {"precision": current().dtype, "job": asdict(job) | paths})
    with open(folder / "launch.log", "wb") as output:
        running = subprocess.Popen([*command(launch), str(folder / "job.json")], stdout=output, stderr=subprocess.STDOUT)
        while running.poll() is None:
            time.sleep(POLL_S)
            if done := files.read_jsonl(folder / SPEED):
                progress(done[-1]["step"], steps or done[-1]["step"])
    if running.returncode:
        lines = (folder / "launch.log").read_text(errors="replace").strip().splitlines()
        # the launcher's own error comes last and says nothing
        errors = [line for line in lines if re.match(r"(\[\w+\]: *)?[\w.]+Error: ", line) and "ChildFailedError" not in line]
        message = (errors or lines or ["it wrote nothing"])[0]
        raise TrainingError(f"training in {launch['processes']} processes failed: {message} (see {folder / 'launch.log'})")
    return folder / "result", files.read_json(folder / "log.json")


def command(launch: dict) -> list[str]:
    """accelerate's launcher, with a given configuration file or so many processes on this machine.

    Without a GPU that launcher starts a single process, whatever it is told; torch's own starts all, and accelerate finds them.
    """
    import torch

    line = [sys.executable, "-m", "accelerate.commands.launch"]
    if launch["config_file"]:
        line += ["--config_file", launch["config_file"]]
    elif torch.cuda.is_available():
        line += ["--multi_gpu", "--num_processes", str(launch["processes"]), "--mixed_precision", "no", "--dynamo_backend", "no"]
    else:
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(launch["processes"])]
    return [*line, "-m", "bezoar_utils.training.launch"]


def main() -> None:
    from accelerate import PartialState

    written = files.read_json(Path(sys.argv[1]))
    values = {
        name: Path(value) if name in ("base", "folder", "carried") and value else value for name, value in written["job"].items()
    }
    job = Job(**values)
    prepare_torch(job.recipe["threads"], job.recipe["seed"], written["precision"])
    model = with_adapter(job.base, job.carried, job.recipe["quantisation"])
    model, log = trainer_of(job)(model, load_tokenizer(job.base), job, progress=lambda *_: None)
    if PartialState().is_main_process:
        model.save_pretrained(job.folder / "result")
        files.write_json(job.folder / "log.json", log)


if __name__ == "__main__":
    main()
