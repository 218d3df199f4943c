#!/usr/bin/env bash
# Make the environment of `make setup`: setup.sh FOLDER PYTHON [INDEX], from the lock, by uv where it is on the PATH, else by pip.
# Torch comes first and alone: unpinned by hash, so that the CPU build can stand in, and present before anything asks for it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=$2 index=${3:-}
fits='import sys; sys.exit(not (3, 11, 5) <= sys.version_info[:3] < (3, 14))'
version='import sys; print("%d.%d" % sys.version_info[:2])'

if ! "$python" -c "$fits" 2>/dev/null; then
  echo "error: Python 3.11 (3.11.5 or later), 3.12 or 3.13 is needed, $python is $("$python" --version 2>&1 | head -n 1);" \
    "install one (Debian and Ubuntu: apt install python3-venv; macOS: brew install python@3.13) and name it: make PYTHON=python3.13" >&2
  exit 1
fi
# one of another Python is made anew, not half used
if [ "$("$venv/bin/python" -c "$version" 2>/dev/null)" != "$("$python" -c "$version")" ]; then
  echo "setting up $venv with Python $("$python" -c "$version"): about 2.3 GB (more where torch brings CUDA), one to five minutes"
  rm -rf "$venv"
fi
export VIRTUAL_ENV=$PWD/$venv PIP_DISABLE_PIP_VERSION_CHECK=1
if command -v uv >/dev/null; then
  [ -d "$venv" ] || uv venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" "$venv"
  pip=(uv pip)
else
  [ -d "$venv" ] || "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip)
fi
"${pip[@]}" install --quiet ${index:+--index-url "$index"} -r requirements/torch.txt
"${pip[@]}" install --quiet --require-hashes --no-deps -r requirements/lock.txt
"${pip[@]}" check
touch "$venv/ready"
