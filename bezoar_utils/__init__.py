"""Helpers of the OpenBezoar study: the paper's ideas as pure functions, and the contract every stage keeps."""

import os
import sys
from pathlib import Path

# A run depends on no settings of the user's. Modules of their PYTHONPATH come after the environment's (a `datasets.py`, say),
# and so do their kernels and their templates of nbconvert.
_theirs = [
    p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(p).resolve() != Path(__file__).resolve().parents[1]
]
sys.path.sort(key=lambda path: path in _theirs)  # stable; "" is the working folder, which is theirs only when they named it
os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": ""}
