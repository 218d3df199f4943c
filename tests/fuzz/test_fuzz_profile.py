"""Profiles as people type them: a profile that works, or one line that says which file and key is wrong."""

import copy

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from bezoar_utils.study import profile as profiles
from bezoar_utils.study.profile import ProfileError, flat, load_profile
from bezoar_utils.study.schema import Profile

MINI = (profiles.PROFILES / "mini.yaml").read_text()
WHOLE = yaml.safe_load(MINI)
KEYS = sorted(flat(WHOLE))
VALUE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["hub", "x/y", "1e-4", "2024-01-01", "auto", 10**30, "\ud83d", "a\nb", "http://h/v1"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(["hub", "file", "licence"])), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "mini.yaml").write_text(MINI)
    return folder


def load(folder, data: bytes) -> Profile | None:
    (folder / "mine.yaml").write_bytes(data)
    try:
        return load_profile("mine", folder)
    except ProfileError as error:
        assert "mine" in str(error) and str(error).isprintable()
        return None


def changed(key: str, value, levels: int) -> dict:
    """The mini profile with another value at a key, or so many levels above it."""
    data = copy.deepcopy(WHOLE)
    *above, last = key.split(".")[: max(1, len(key.split(".")) - levels)]
    section = data
    for part in above:
        section = section[part]
    section[last] = value
    return data


@given(st.sampled_from(KEYS), VALUE, st.integers(0, 2), st.booleans())
@example("dpo.nll_weight", float("inf"), 0, False)
@example("recipe.learning_rate", 5, 1, False)
@example("recipe.learning_rate", None, 1, False)
@example("money.budget_usd", {"\ud83d": 1}, 0, False)
@example("money.budget_usd", {"a\nb": 1}, 1, False)
def test_any_value_at_any_key_is_a_profile_or_one_line(folder, key, value, levels, unknown):
    try:
        data = yaml.dump(changed(f"{key}x" if unknown else key, value, levels)).encode(errors="surrogatepass")
    except KeyError:  # an unknown key inside a list
        return
    profile = load(folder, data)
    if profile is not None:
        numbers = [number for number in flat(profile.model_dump()).values() if isinstance(number, float)]
        assert all(abs(number) < float("inf") for number in numbers), "no number of a study is endless"


LINES = st.sampled_from(
    [
        "extends: mini",
        "extends: mine",
        "extends: 5",
        "extends: [mini]",
        "seed: 3",
        "seed: 3.5",
        "dpo: {beta: 0.5}",
        "dpo: 5",
        "dpo:",
        "  beta: 0.2",
        "recipe: 5",
        "recipe: {steps: 4}",
        "sft: {steps: 8, epochs: 1.0}",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "<<: 5",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "b: *a",
        "2024-13-45: 1",
        "x: 2024-13-45",
        "1: 2",
        "null: 3",
        "~: 1",
        "!!python/object:os.system x: 1",
        "x: !!binary '\u00e4'",
        "x: 0x_",
        "x: 1:99:99",
        "x: !!int abc",
        "x: !!float x",
        "x: !!timestamp x",
        "x: !!set {a, b}",
        "- 1",
        "%YAML 9.9",
        "---",
        "...",
        "\t",
        "{",
        "]",
        "'",
        "\ufeff",
        'x: "\\ud83d"',
        "stages: [10_lamini]",
        "mt_bench: {pairs: [[a, b]]}",
        "teacher: {endpoint: {base_url: 5}}",
        "=: 1",
        "y: =",
    ]
)


@given(st.lists(st.one_of(LINES, st.text(max_size=12)), max_size=5))
@example(["extends: mini", "? [a]\n: b"])
@example(["extends: mini", "x: 2024-13-45"])
@example(["extends: 5"])
@example(["extends: mini", "recipe: 5"])
@example(["extends: mini", "a: &a {b: *a}"])
@example(["extends: mini", "dpo: &a {b: *a}"])
def test_any_lines_are_a_profile_or_one_line(folder, lines):
    load(folder, "\n".join(lines).encode(errors="surrogatepass"))


@given(st.binary(max_size=60))
@example(b"[" * 20_000)
@example(b"extends: mini\nseed: " + b"9" * 5000)
@example(MINI.encode("utf-16"))
@example(MINI.encode("latin-1", errors="replace"))
def test_any_bytes_are_a_profile_or_one_line(folder, data):
    load(folder, data)
