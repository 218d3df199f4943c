"""Pin the environment anew: `make lock`. Needs uv, and a way for it to see torch's CPU build, or the lock would pin CUDA
packages: UV_FIND_LINKS=<folder with that wheel> or UV_TORCH_BACKEND=cpu.

Writes lock.txt (hashed, without torch, for Linux and Python 3.11) and constraints.txt (the same pins, unhashed, for conda
and for one-command installs). Neither holds an address of any index.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# 3.11 alone would mean 3.11.0, which hides packages that need 3.11.5
PYTHON = "3.11.7"
FORBIDDEN = re.compile(r"^(nvidia-|cuda-|triton==)|https?://|file:", re.MULTILINE)


def compile_pins(*options: str) -> str:
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-strip-extras", "--python-version", PYTHON]
    command += ["--no-emit-package", "torch", *options, "torch.txt", "base.in"]
    return subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout


def main() -> int:
    lock = compile_pins("--generate-hashes")
    if found := FORBIDDEN.search(lock):
        print(f"not written: {found[0]!r} in the lock; let uv see torch's CPU build (see {Path(__file__).name})", file=sys.stderr)
        return 1
    pins = re.findall(r"^[A-Za-z0-9_.-]+(?:\[[^\]]+\])?==\S+", lock, re.MULTILINE)
    (HERE / "lock.txt").write_text(lock)
    (HERE / "constraints.txt").write_text("".join(re.sub(r"\[[^\]]+\]", "", pin) + "\n" for pin in pins))
    print(f"{len(pins)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
