"""Pin the environment again: `make lock`. Needs uv; what it resolves for is in the pyproject.toml beside this.

Writes lock.txt (hashed, without torch, for Python 3.11 to 3.13 on Linux and macOS, with markers) and constraints.txt (the same
pins, unhashed, for conda and for one-command installs). Neither holds an address of any index. Pins that still fit stay as they
are; UPGRADE=yes takes the newest of each.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# 3.11 alone would mean 3.11.0, which hides packages that need 3.11.5
PYTHON = "3.11.7"
FORBIDDEN = re.compile(r"^(nvidia-|cuda-|triton==)|https?://|file:", re.MULTILINE)


# every pin would carry the Pythons and the two systems the lock is for
BOUND, SYSTEMS = r"python_full_version < '3\.14'", r"\(sys_platform == 'darwin' or sys_platform == 'linux'\)"
EVERYWHERE = re.compile(rf" ; {BOUND} and {SYSTEMS}|{BOUND} and | and {SYSTEMS}")


def compile_pins() -> str:
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--fork-strategy", "fewest", "--python-version", PYTHON]
    command += ["--no-header", "--no-annotate", "--no-strip-extras", "--generate-hashes", "--no-emit-package", "torch"]
    command += ["torch.txt", "base.in"]
    # without their markers: those would split the resolution into machines that torch has no wheel for
    kept = "" if os.environ.get("UPGRADE") == "yes" else re.sub(" ; .*", "", (HERE / "constraints.txt").read_text())
    command += ["--constraints", "-"]
    result = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True, input=kept)
    return EVERYWHERE.sub("", result.stdout)


def main() -> int:
    lock = compile_pins()
    if found := FORBIDDEN.search(lock):
        print(f"not written: {found[0]!r} in the lock; look at requirements/pyproject.toml", file=sys.stderr)
        return 1
    pins = [line.removesuffix(" \\") for line in lock.splitlines() if re.match("[a-z]", line)]
    (HERE / "lock.txt").write_text(lock)
    (HERE / "constraints.txt").write_text("".join(re.sub(r"\[[^\]]+\]", "", pin) + "\n" for pin in pins))
    print(f"{len(pins)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
