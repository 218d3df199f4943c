import re

import pytest
import yaml

from bezoar_utils.profile import PROFILES, STAGES, Profile, ProfileError, check_parameters, load_profile, stage_parameters

SHIPPED = sorted(p.stem for p in PROFILES.glob("*.yaml"))


def write(folder, name, text):
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "mini", (PROFILES / "mini.yaml").read_text())
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_load_and_every_stage_finds_its_parameters(name):
    profile = load_profile(name)
    for stage in STAGES:
        check_parameters(stage, stage_parameters(profile, stage))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("dpo: {bta: 0.2}", ["dpo.bta", "0.2", "beta"]),
        ("colour: red", ["colour", "'red'", "miniature"]),
        ("dpo: {beta: fast}", ["dpo.beta", "'fast'", "number"]),
        ("dpo: {beta: -1}", ["dpo.beta", "-1", "greater than 0"]),
        ("sft: {loss_on: everything}", ["sft.loss_on", "'everything'", "'full' or 'completion'"]),
        ("sft: {order: [lamini, lamini]}", ["sft", "order", "at most once"]),
        ("sft: {warmup_steps: 5000}", ["sft", "warmup_steps=5000", "must be below steps="]),
        ("sft: {steps: '300'}", ["sft.steps", "'300'", "integer"]),
        ("teacher: {wrapper: hello}", ["teacher", "{prompt}"]),
        ("judge: {base_url: 'http://x'}", ["judge", "exactly one of base_url and local_server"]),
        ("judge: {api_key_env: sk-123}", ["judge", "NAME of an environment variable"]),
        ("miniature: {hidden: 100}", ["miniature.hidden", "100", "64"]),
        ("seed: -1", ["seed", "-1", "greater than or equal to 0"]),
    ],
)
def test_a_wrong_value_is_one_line_naming_key_value_and_what_is_allowed(folder, change, words):
    write(folder, "mine", f"extends: mini\n{change}\n")
    with pytest.raises(ProfileError) as error:
        load_profile("mine", folder)
    message = str(error.value)
    assert "\n" not in message and message.startswith("mine: ")
    for word in words:
        assert word in message


def test_a_missing_key_is_named(folder):
    data = yaml.safe_load((PROFILES / "mini.yaml").read_text())
    del data["dpo"]["beta"]
    write(folder, "mine", yaml.safe_dump(data))
    with pytest.raises(ProfileError, match=r"mine: dpo\.beta is missing"):
        load_profile("mine", folder)


def test_extends_changes_only_what_it_names(folder):
    write(folder, "mine", "extends: mini\ndpo: {beta: 0.25}\n")
    mine, mini = load_profile("mine", folder).model_dump(), load_profile("mini", folder).model_dump()
    assert mine["dpo"].pop("beta") == 0.25
    del mini["dpo"]["beta"]
    assert mine == mini


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: mine", "extends itself"),
        ("extends: nowhere", "no profile 'nowhere'.*known: mine, mini"),
        ("a: [", "is no YAML"),
        ("- a", "must be a mapping"),
    ],
)
def test_a_profile_that_cannot_be_read_says_why(folder, text, message):
    write(folder, "mine", text)
    with pytest.raises(ProfileError, match=message):
        load_profile("mine", folder)


def test_every_key_of_mini_has_a_comment():
    keys = [line for line in (PROFILES / "mini.yaml").read_text().splitlines() if re.match(r"^ *\w+:", line)]
    sections = [name for name, field in Profile.model_fields.items() if hasattr(field.annotation, "model_fields")]
    bare = [line for line in keys if "#" not in line and line.rstrip(": ") not in sections]
    assert len(keys) > 100 and not bare


def test_a_dpo_value_is_no_parameter_of_an_earlier_stage():
    profile = load_profile("mini")
    holders = [s for s in STAGES if "beta" in stage_parameters(profile, s)]
    assert holders == ["50_dpo"]
