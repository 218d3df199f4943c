"""A stage that is nothing but a folder: what a teacher or a judge needs of one, without a notebook or a runner."""

import contextlib
from pathlib import Path

from bezoar_utils.study.profile import load_profile, stage_parameters

TEACHER = stage_parameters(load_profile("tiny"), "10_lamini")["teacher"]  # local weights
JUDGE = stage_parameters(load_profile("tiny"), "20_judge_filter")["judge"]


class StubStage:
    profile = "tiny"

    def __init__(self, folder: Path):
        self.folder, self.inputs, self.notes = Path(folder), {}, {}
        self.counts = {"tokens": 0, "calls": 0, "cost_usd": 0.0}
        self.reported: list[tuple[str, int, int]] = []
        self.open = contextlib.ExitStack()

    def input(self, reference: str) -> Path:
        assert reference in self.inputs, f"{reference} is not an input of this stage"
        return self.inputs[reference]

    def output(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def note(self, name, value) -> None:
        self.notes[name] = value

    def enter(self, context):
        return self.open.enter_context(context)

    def spend(self, tokens: int = 0, calls: int = 0, cost_usd: float = 0.0) -> None:
        for key, amount in (("tokens", tokens), ("calls", calls), ("cost_usd", cost_usd)):
            self.counts[key] += amount

    def reporter(self, what: str):
        return lambda done, total, more="": self.reported.append((what + more, done, total))


def remote(url: str, **changes) -> dict:
    """A profile's endpoint section for a server at `url`, whose key is in TEST_KEY."""
    endpoint = {"base_url": url, "local_server": None, "api_key_env": "TEST_KEY"}
    return endpoint | {"concurrency": 4, "timeout_s": 5.0, "attempts": 3, "lose_at_most": 1.0, "parameters": {}} | changes
