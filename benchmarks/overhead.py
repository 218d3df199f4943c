"""What the notebooks, the runner and make cost: wall time of a finished run over its stages' own work.

    make reproduce && .venv/bin/python benchmarks/overhead.py [profile]

`work` is what the chapters spent between opening their stage and finishing it, imports included. `as it was run` takes the
time from the first stage's start to the last one's end; stages that ran side by side can bring its ratio below 1.
`one after another` takes the sum of the stages' wall times: the cost of kernels and notebooks alone.
"""

import json
import sys
from datetime import datetime
from pathlib import Path


def main() -> None:
    profile = sys.argv[1] if len(sys.argv) > 1 else "mini"
    paths = sorted((Path(__file__).resolve().parent.parent / "runs" / profile).glob("*/stage.json"))
    records = [json.loads(path.read_text()) for path in paths]
    if not records:
        sys.exit(f"no finished stage in runs/{profile}: run `make reproduce PROFILE={profile}` first")
    ends = [datetime.fromisoformat(r["finished"]).timestamp() for r in records]
    wall = max(ends) - min(end - r["wall_seconds"] for end, r in zip(ends, records))
    work, serial = sum(r["work_seconds"] for r in records), sum(r["wall_seconds"] for r in records)
    for record in records:
        print(f"{record['stage']:18} wall {record['wall_seconds']:7.1f} s   work {record['work_seconds']:7.1f} s")
    print(f"{'one after another':18} wall {serial:7.1f} s   work {work:7.1f} s   ratio {serial / work:.3f}")
    print(f"{'as it was run':18} wall {wall:7.1f} s   work {work:7.1f} s   ratio {wall / work:.3f}")
    print(f"overhead: {wall / work:.3f}")


if __name__ == "__main__":
    main()
