"""Training in several processes through accelerate: the job stands on disk, each process reads it, the first writes the result.

Chapters train in their own process unless the profile asks for more. With `config_file` it is accelerate's own configuration
(FSDP, DeepSpeed, several machines) that decides how; nothing here knows of them.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from ..study import files
from .dpo import train_dpo
from .loop import SPEED, TrainingError, split
from .models import load_tokenizer, prepare_torch, with_adapter
from .precision import current
from .sft import sft_examples, train_sft

POLL_S = 1.0
TRAINERS = {"sft": train_sft, "dpo": train_dpo}


def adapt(
    kind: str,
    base: Path,
    carried: Path | None,
    tokenizer,
    training: list,
    validation: list,
    recipe: dict,
    *,
    launch: dict,
    **settings,
) -> tuple[object, list[dict]]:
    """(model with its adapter, log) of `kind`, "sft" or "dpo", on a base from disk with a fresh or a carried adapter.

    `settings` are those of `sft.train_sft` or `dpo.train_dpo`, and quantisation and threads. In this process, or in as many
    as `launch` asks for.
    """
    if launch["processes"] == 1 and not launch["config_file"]:
        model = with_adapter(base, carried, settings.pop("quantisation"))
        del settings["threads"]
        return TRAINERS[kind](model, tokenizer, training, validation, recipe, **settings)
    adapter, log = train_apart(kind, base, carried, training, validation, launch, recipe=recipe, **settings)
    return with_adapter(base, adapter, settings["quantisation"]), log


def fit(
    base: Path, tokenizer, rows: list[dict], recipe: dict, carried: Path | None = None, **settings
) -> tuple[object, list[dict], dict[str, int]]:
    """Split, tokenise and adapt a fresh or a carried adapter to rows of `prompt` and `response`: (model, log, counts of rows)."""
    parts = [sft_examples(tokenizer, part, recipe) for part in split(rows, recipe)]
    (training, long_training), (validation, long_validation) = parts
    responses = {row["response"].strip() for row in rows}
    model, log = adapt("sft", base, carried, tokenizer, training, validation, recipe, responses=responses, **settings)
    return model, log, {"training": len(training), "validation": len(validation), "too long": long_training + long_validation}


def train_apart(kind: str, base: Path, carried: Path | None, training: list, validation: list, launch: dict, folder: Path, **job):
    """(folder of the trained adapter, log) of a training in `launch["processes"]` processes, with its job and result on disk.

    Raises TrainingError with what a failed process said last.
    """
    progress = job.pop("progress")
    for name, rows in (("training", training), ("validation", validation)):
        files.write_bytes(folder / f"{name}.jsonl", files.to_jsonl(rows))
    carried = str(carried) if carried else None
    job |= {"responses": sorted(job["responses"])} if "responses" in job else {}
    job |= {"kind": kind, "base": str(base), "carried": carried, "folder": str(folder), "precision": current().dtype}
    files.write_json(folder / "job.json", job)
    with open(folder / "launch.log", "wb") as said:
        running = subprocess.Popen([*command(launch), str(folder / "job.json")], stdout=said, stderr=subprocess.STDOUT)
        while running.poll() is None:
            time.sleep(POLL_S)
            if steps := files.read_jsonl(folder / SPEED):
                progress(steps[-1]["step"], job["recipe"]["steps"] or steps[-1]["step"])
    if running.returncode:
        lines = (folder / "launch.log").read_text(errors="replace").strip().splitlines()
        # the launcher's own error comes last and says nothing
        said = [line for line in lines if re.match(r"(\[\w+\]: *)?[\w.]+Error: ", line) and "ChildFailedError" not in line]
        raise TrainingError(f"training in {launch['processes']} processes failed: {(said or lines or ['it said nothing'])[0]}")
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

    job = files.read_json(Path(sys.argv[1]))
    folder, kind = Path(job.pop("folder")), job.pop("kind")
    prepare_torch(job.pop("threads"), job["seed"], job.pop("precision"))
    base, carried = Path(job.pop("base")), job.pop("carried")
    tokenizer = load_tokenizer(base)
    model = with_adapter(base, Path(carried) if carried else None, job.pop("quantisation"))
    rows = [files.read_jsonl(folder / f"{name}.jsonl") for name in ("training", "validation")]
    model, log = TRAINERS[kind](model, tokenizer, *rows, folder=folder, progress=lambda *_: None, **job)
    if PartialState().is_main_process:
        model.save_pretrained(folder / "result")
        files.write_json(folder / "log.json", log)


if __name__ == "__main__":
    main()
