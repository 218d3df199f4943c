import re

import pytest
import yaml

from bezoar_utils.study.profile import PROFILES, STAGES, Profile, ProfileError, check_parameters, load_profile, stage_parameters

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
        ("judge: {endpoint: {base_url: 'http://x'}}", ["judge.endpoint", "exactly one of base_url and local_server"]),
        ("judge: {endpoint: {base_url: [], local_server: null}}", ["judge.endpoint.base_url", "at least 1 item"]),
        ("judge: {endpoint: {base_url: [x, x], local_server: null}}", ["judge.endpoint", "base_url names an address twice: x, x"]),
        ("judge: {endpoint: {local_server: null}}", ["judge.endpoint", "exactly one of base_url and local_server"]),
        ("judge: {endpoint: {api_key_env: sk-123}}", ["judge.endpoint", "NAME of an environment variable"]),
        ("judge: {endpoint: {concurrency: 0}}", ["judge.endpoint.concurrency", "0", "greater than or equal to 1"]),
        ("judge: {endpoint: {timeout_s: 0.0}}", ["judge.endpoint.timeout_s", "0.0", "greater than 0"]),
        ("judge: {endpoint: {atempts: 3}}", ["judge.endpoint.atempts", "3", "attempts"]),
        ("judge: {base_url: 'http://x'}", ["judge.base_url", "'http://x'", "endpoint"]),
        ("judge_filter: {second_judge: {endpoint: {url: x}}}", ["judge_filter.second_judge.endpoint.url", "base_url"]),
        ("mt_bench: {pairs: [[base, base]]}", ["mt_bench", "pairs sets base against itself"]),
        ("mt_bench: {pairs: [[base, gpt-4]]}", ["mt_bench.pairs.0 names gpt-4", "OpenBezoar-SFT"]),
        ("mt_bench: {pairs: [[base]]}", ["mt_bench.pairs.0", "at least 2 items"]),
        (
            "teacher: {endpoint: {concurrency: 4}}",
            ["teacher.endpoint", "exactly one of base_url and local_server"],
        ),
        ("teacher: {mode: verse}", ["teacher.mode", "'verse'", "'raw' or 'chat'"]),
        ("money: {budget_usd: -1.0}", ["money.budget_usd", "-1.0", "greater than or equal to 0"]),
        ("money: {prices: {m: [1.0]}}", ["money.prices.m", "at least 2 items"]),
        ("money: {prices: {m: [1.0, 2.0, 3.0]}}", ["money.prices.m", "at most 2 items"]),
        ("money: {prices: {m: [1.0, -2.0]}}", ["money.prices.m.1", "-2.0", "greater than or equal to 0"]),
        ("stages: [10_lamini, 11_orka]", ["stages", "11_orka", "known: 00_miniature"]),
        ("lamini: {near_duplicate: 0}", ["lamini.near_duplicate", "0", "greater than 0"]),
        ("orca: {per_collection: {cots: 3}}", ["orca.per_collection.cots", "'cot', 'niv2', 't0' or 'flan2021'"]),
        ("evol: {draw_per: epoch}", ["evol.draw_per", "'epoch'", "'category' or 'row'"]),
        ("miniature: {hidden: 100}", ["miniature.hidden", "100", "64"]),
        ("seed: -1", ["seed", "-1", "greater than or equal to 0"]),
    ],
)
def test_a_wrong_value_is_one_line_naming_key_value_and_what_is_allowed(folder, change, words):
    write(folder, "mine", f"extends: mini\n{change}\n")
    with pytest.raises(ProfileError) as error:
        load_profile("mine", folder)
    message = str(error.value)
    assert "\n" not in message and message.startswith("mine.yaml line 2: ")
    for word in words:
        assert word in message


def remote_judge(address: str) -> str:
    return f"{{model: big, endpoint: {{base_url: {address}, local_server: null}}}}"


@pytest.mark.parametrize("address", ["'https://x/v1'", "['https://x/v1', 'https://y/v1']"])
@pytest.mark.parametrize("who", ["judge: {}", "judge_filter: {{second_judge: {}}}", "mt_bench: {{second_judge: {}}}"])
def test_a_remote_endpoint_needs_a_price_if_only_none(folder, who, address):
    asked = who.format(remote_judge(address))
    write(folder, "mine", f"extends: mini\n{asked}\n")
    with pytest.raises(ProfileError, match=r"^mine.yaml line 2: .*money\.prices lacks 'big'.*\[0, 0\] when it is yours"):
        load_profile("mine", folder)
    for price in ("[0, 0]", "[2.5, 10.0]"):
        write(folder, "mine", f"extends: mini\n{asked}\nmoney: {{prices: {{big: {price}}}}}\n")
        load_profile("mine", folder)


def test_a_remote_teacher_needs_a_price_too(folder):
    endpoint = "{base_url: 'https://x', local_server: null, api_key_env: KEY, concurrency: 1, timeout_s: 1.0, attempts: 1}"
    write(folder, "mine", f"extends: mini\nteacher: {{model: big, endpoint: {endpoint}}}\n")
    with pytest.raises(ProfileError, match=r"money\.prices lacks 'big'"):
        load_profile("mine", folder)


# ----------------------------------------------------------------------------------------------------------- sources

REVISION = "0123456789abcdef" * 2 + "01234567"


def source(**changes) -> str:
    whole = {"hub": "some/set", "revision": REVISION, "files": ["a.parquet"], "licence": "MIT"} | changes
    return yaml.safe_dump({k: v for k, v in whole.items() if v is not None}, default_flow_style=True).strip()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"artifact": "00_miniature/seeds.parquet"}, ["exactly one of artifact, file, hub"]),
        ({"file": "seeds.jsonl"}, ["exactly one of artifact, file, hub"]),
        ({"hub": None, "file": "a", "artifact": "b"}, ["exactly one of artifact, file, hub"]),
        ({"revision": None}, ["some/set", "give its revision, or expect_prefix"]),
        ({"expect_prefix": "0123456"}, ["some/set", "give its revision, or expect_prefix"]),
        ({"revision": "0123456"}, ["full commit hash of 40 hex digits", "'0123456'"]),
        ({"revision": "main"}, ["full commit hash of 40 hex digits", "'main'"]),
        ({"revision": REVISION.upper()}, ["full commit hash of 40 hex digits"]),
        ({"revision": None, "expect_prefix": "012345"}, ["expect_prefix must be 7 to 39 hex digits", "'012345'"]),
        ({"revision": None, "expect_prefix": "main567"}, ["expect_prefix must be 7 to 39 hex digits", "'main567'"]),
        ({"revision": None, "expect_prefix": REVISION}, ["expect_prefix must be 7 to 39 hex digits"]),
        ({"files": None}, ["some/set", "name its files"]),
        ({"files": []}, ["some/set", "name its files"]),
        ({"hub": "MBZUAI/LaMini-instruction"}, ["MBZUAI/LaMini-instruction", "CC BY-NC 4.0"]),
        ({"hub": "WizardLM/WizardLM_evol_instruct_70k"}, ["WizardLM/WizardLM_evol_instruct_70k", "CC BY-NC 4.0"]),
        ({"hub": "somebody/wizardlm_evol_instruct_v2_196k"}, ["CC BY-NC 4.0"]),
        ({"licence": None}, ["licence is missing"]),
        ({"branch": "x"}, ["branch", "'x'", "allowed here: artifact, file, hub, revision"]),
    ],
)
@pytest.mark.parametrize("key", ["lamini: {seeds: %s}", "orca: {collections: {cot: %s}}", "preference_rows: %s"])
def test_a_wrong_source_is_one_line_that_says_what_is_allowed(folder, key, wrong, words):
    write(folder, "mine", f"extends: mini\n{key % source(**wrong)}\n")
    with pytest.raises(ProfileError) as error:
        load_profile("mine", folder)
    message, place = str(error.value), ".".join(re.findall(r"(\w+): ", key))
    assert "\n" not in message and message.startswith("mine.yaml line 2: ") and place in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "pin", [{}, {"revision": None, "expect_prefix": REVISION[:7]}, {"revision": None, "expect_prefix": REVISION[:39]}]
)
def test_a_pinned_source_is_fine(folder, pin):
    write(folder, "mine", f"extends: mini\nlamini: {{seeds: {source(**pin)}}}\n")
    assert load_profile("mine", folder).lamini.seeds.hub == "some/set"


def test_another_source_in_a_child_replaces_the_parents_whole(folder):
    write(folder, "mine", f"extends: mini\nlamini: {{seeds: {source()}}}\norca: {{collections: {{cot: {source()}}}}}\n")
    write(folder, "child", "extends: mine\nlamini: {seeds: {file: my.jsonl, licence: mine}}\n")
    mine, child = load_profile("mine", folder), load_profile("child", folder)
    assert mine.lamini.seeds.artifact is None and mine.lamini.seeds.revision == REVISION
    nothing = {"artifact": None, "hub": None, "revision": None, "expect_prefix": None, "files": [], "rename": {}}
    assert child.lamini.seeds.model_dump() == nothing | {"file": "my.jsonl", "licence": "mine"}
    assert child.orca.collections == mine.orca.collections  # the other three are still mini's
    assert set(mine.orca.collections) == {"cot", "niv2", "t0", "flan2021"} and mine.orca.collections["niv2"].artifact


def test_a_child_that_names_no_other_origin_changes_only_what_it_names(folder):
    write(folder, "mine", f"extends: mini\nlamini: {{seeds: {source()}}}\n")
    write(folder, "child", "extends: mine\nlamini: {seeds: {licence: checked}}\n")
    assert load_profile("child", folder).lamini.seeds.licence == "checked"
    assert load_profile("child", folder).lamini.seeds.revision == REVISION


def test_a_missing_key_is_named(folder):
    data = yaml.safe_load((PROFILES / "mini.yaml").read_text())
    del data["dpo"]["beta"]
    write(folder, "mine", yaml.safe_dump(data))
    with pytest.raises(ProfileError, match=r"mine.yaml line \d+: dpo\.beta is missing"):
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
        ("a: [", "YAML"),
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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"extends: mini\ndpo: {beta: 0.5}\nsft: {steps: 8}\ndpo: {steps: 6}\n", ["line 4", "dpo", "line 2"]),
        (b"extends: mini\nsft: {steps: 8, steps: 9}\n", ["steps"]),
        ("extends: mini\nteacher: {licence: f\u00fcr alle}\n".encode("latin-1"), ["UTF-8"]),
        (b"extends: mini\nsft: {learning_rate: 1e-4}\n", ["sft.learning_rate", "1.0e-4"]),
        (b"extends: mini\nsft: {learning_rat: 0.1}\n", ["did you mean learning_rate"]),
        (b"extends: mini\nteacher: {wrapper: 'User: {{prompt}}'}\n", ["wrapper", "once"]),
        (b"extends: mini\nteacher: {wrapper: '{json} {prompt}'}\n", ["wrapper", "double"]),
    ],
    ids=["a section twice", "a key twice", "latin-1", "a number as text", "a near miss", "doubled braces", "other braces"],
)
def test_what_people_write_into_profiles_is_one_line_that_says_what_is_wrong(folder, data, words):
    (folder / "mine.yaml").write_bytes(data)
    with pytest.raises(ProfileError) as error:
        load_profile("mine", folder)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


REMOTE = "  endpoint: {base_url: 'http://127.0.0.1:1/v1', local_server: null}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("sft:\n  steps: 4\n  learning_rat: 0.1", 4, ["sft.learning_rat", "did you mean learning_rate"]),
        ("sft:\n  steps: 4\n  learning_rate: 1e-4", 4, ["sft.learning_rate", "1.0e-4"]),
        ("sft:\n  steps: '300'", 3, ["sft.steps", "text", "no quotes"]),
        ("recipe:\n  batch_sise: 4", 3, ["recipe", "did you mean batch_size"]),
        ("recipe:\n  schedule: liner", 3, ["recipe", "did you mean linear"]),
        ("recipe:\nseed: 1", 2, ["recipe", "keys below"]),
        ("dpo:\nseed: 1", 2, ["dpo", "nothing stands there"]),
        ("sft:\n  warmup_steps: 3000", 3, ["warmup_steps=3000", "must be below"]),
        ("stages:\n  - 10_lamini\n  - 11_orka", 4, ["11_orka", "did you mean 11_orca"]),
        ("stages: []", 2, ["stages", "at least 1"]),
        ("mt_bench:\n  pairs:\n    - [base, OpenBezoar-SFT]\n    - [base, OpenBezoar-STF]", 5, ["did you mean OpenBezoar-SFT"]),
        ("orca:\n  per_collection: {cots: 3}", 3, ["cots", "did you mean cot"]),
        ("orca:\n  collections:\n    niv: {file: x, licence: y}", 4, ["niv", "did you mean niv2"]),
        ("dpo:\n  method: ipoo", 3, ["dpo.method", "did you mean ipo"]),
        ("ablations:\n  methods:\n    simpo: {bta: 2.0}", 4, ["bta", "did you mean beta"]),
        ("reward:\n  model: {model: x, licence: y, wieghts: [1.0]}", 3, ["wieghts", "did you mean weights"]),
        ("benchmarks:\n  fewshot:\n    mini_answer: 5", 4, ["mini_answer", "did you mean mini_answers"]),
        ("teacher:\n  wrapper: {prompt}", 3, ["teacher.wrapper", "quote"]),
        ("teacher:\n  wrapper: {{prompt}}", 3, ["teacher.wrapper", "quotes"]),
        ("teacher:\n  wrapper: 'x {prompt.y}'", 3, ["teacher.wrapper", "double"]),
        ("judge:\n  licence: no", 3, ["judge.licence", "YAML reads", "quote"]),
        ("offline: 'yes'", 2, ["offline", "true or false"]),
        ("yes: 1", 2, ["'yes'", "quotes"]),
        ("dpo:\n  beta: .inf", 3, ["dpo.beta", "finite"]),
        (f"judge:\n  model: gpt-4o\n{REMOTE}money: {{prices: {{gpt4o: [1, 2]}}}}", 3, ["money.prices", "did you mean gpt4o"]),
        ("judge:\n  endpoint:\n    parameters: {max_token: x}", 4, ["max_token", "did you mean max_tokens"]),
        ("judge:\n  endpoint:\n    extra: {temperature: 1.0}", 4, ["extra", "temperature", "parameters"]),
        ("extends: tinny", 2, ["duplicate key extends"]),
        ("sft:\n\tsteps: 4", 3, ["not valid YAML"]),
        ("sft: *steps", 2, ["not valid YAML", "steps"]),
        ('teacher:\n  licence: "a\x07"', 3, ["not valid YAML", "U+0007"]),
        ('teacher:\n  wrapper: "{prompt}\n', 5, ["not valid YAML", "line 3"]),
    ],
)
def test_an_error_names_the_file_and_the_line_of_its_key_and_what_may_have_been_meant(folder, text, line, words):
    write(folder, "mine", f"extends: mini\n{text}\n")
    with pytest.raises(ProfileError) as error:
        load_profile("mine", folder)
    message = str(error.value)
    assert message.startswith(f"mine.yaml line {line}") and "\n" not in message and "mine.yaml" not in message[1:]
    for word in words:
        assert word in message


def test_an_error_in_the_profile_that_is_extended_names_that_file(folder):
    write(folder, "parent", "extends: mini\n\nsft:\n  stps: 3\n")
    write(folder, "mine", "extends: parent\nsft: {steps: 300}\n")
    with pytest.raises(ProfileError, match=r"^parent\.yaml line 4: .*sft\.stps.*did you mean steps"):
        load_profile("mine", folder)


@pytest.mark.parametrize("parent", ["minni", "mini.yaml", "true", "[mini]"])
def test_extending_what_is_no_profile_names_the_line_and_the_profiles_there_are(folder, parent):
    write(folder, "mine", f"seed: 1\nextends: {parent}\n")
    with pytest.raises(ProfileError, match=r"^mine\.yaml line 2: there is no profile .*known: .*mini"):
        load_profile("mine", folder)


@pytest.mark.parametrize("text", ["", "# nothing\n", "seed: 1\n"])
def test_a_profile_that_extends_nothing_is_told_once_what_to_begin_with(folder, text):
    write(folder, "mine", text)
    with pytest.raises(ProfileError, match="extends: mini") as error:
        load_profile("mine", folder)
    assert str(error.value).count("mine.yaml") == 1


def test_a_key_put_into_a_profile_is_not_shown(folder):
    write(folder, "mine", "extends: mini\njudge:\n  endpoint:\n    api_key: sk-canary\n")
    with pytest.raises(ProfileError, match="did you mean api_key_env") as error:
        load_profile("mine", folder)
    assert "canary" not in str(error.value)


def test_anchors_and_merges_of_yaml_may_be_used(folder):
    steps = "sft: &a {steps: 200, warmup_steps: 1}\nhh_sft: &b {<<: *a, steps: 90}\nfilter_test: {<<: *b, steps: 50}\n"
    write(folder, "mine", f"extends: mini\n{steps}")
    mine = load_profile("mine", folder)
    assert (mine.sft.steps, mine.hh_sft.steps, mine.filter_test.steps, mine.filter_test.warmup_steps) == (200, 90, 50, 1)


@pytest.mark.parametrize(
    ("tasks", "name", "refused"),
    [("[mmlu]", "mmlu_anatomy", False), ("[arc_challenge]", "arc_chalenge", True), ("[mmlu]", "mmlu", False)],
)
def test_examples_for_what_may_be_a_task_within_a_group_are_left_to_the_plan(folder, tasks, name, refused):
    text = f"extends: mini\nevaluation: {{tasks: {tasks}, tasks_from: null}}\nbenchmarks: {{fewshot: {{{name}: 5}}}}\n"
    write(folder, "mine", text)
    if refused:
        with pytest.raises(ProfileError, match=r"^mine\.yaml line 3: .*did you mean arc_challenge"):
            load_profile("mine", folder)
    else:
        assert load_profile("mine", folder).benchmarks.fewshot == {name: 5}


def test_a_profile_in_utf_16_as_windows_saves_it_is_read(folder):
    (folder / "mine.yaml").write_bytes((PROFILES / "mini.yaml").read_text(encoding="utf-8").encode("utf-16"))
    assert load_profile("mine", folder) == load_profile("mini")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("reward: {round_steps: 5}", "reward.round_steps=5 must be above dpo.warmup_steps=5"),
        ("merge: {steps: 10}", "merge.steps=10 must be above sft.warmup_steps=10"),
    ],
)
def test_a_comparison_that_its_warmup_would_outlast_is_refused_where_its_chapter_runs(folder, change, said):
    write(folder, "mine", f"extends: mini\n{change}\n")
    with pytest.raises(ProfileError, match=re.escape(said)):
        load_profile("mine", folder)
    write(folder, "mine", f"extends: mini\nstages: [00_miniature]\n{change}\n")
    load_profile("mine", folder)
