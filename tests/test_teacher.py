import shutil

import pytest
from fake_endpoint import FakeEndpoint
from stub_stage import JUDGE, TEACHER, StubStage, remote

from bezoar_utils.calls import attempts, engine
from bezoar_utils.calls.judge import Judge
from bezoar_utils.calls.replies import CUT_SHORT
from bezoar_utils.calls.teacher import Teacher
from bezoar_utils.study import files
from bezoar_utils.training.generation import continue_batch, row_seeds, texts_of
from bezoar_utils.training.models import load_model
from bezoar_utils.training.tokens import TokenError

PROMPTS = ["Where does one live?", "Name it.", "a", "What is the opposite of big?", "Add 2 plus 3."]
SETTINGS = TEACHER | {"temperature": 0.8, "max_new_tokens": 8, "batch_size": 2}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_S", 0.01)
    monkeypatch.setenv("TEST_KEY", "key")


@pytest.fixture
def stage(tmp_path):
    return StubStage(tmp_path)


@pytest.fixture
def local(model_folder):
    return SETTINGS | {"model": str(model_folder)}


def behind(fake: FakeEndpoint, **changes) -> dict:
    return SETTINGS | {"model": "m", "endpoint": remote(fake.url)} | changes


def no_model(*_):
    raise AssertionError("a model was loaded")


# ----------------------------------------------------------------------------------------------------------- both engines


def test_a_teacher_without_prompts_needs_no_weights_no_server_and_no_key(stage, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    for endpoint in (None, remote("http://127.0.0.1:9/v1")):
        assert Teacher(stage, SETTINGS | {"model": "nowhere", "endpoint": endpoint}, 1).generate([], "nothing") == []
    assert not list(stage.folder.iterdir())


# ----------------------------------------------------------------------------------------------------------- local weights


def test_local_completions_come_in_the_order_of_the_prompts_whatever_the_batches(stage, local, tmp_path):
    texts = Teacher(stage, local, 7).generate(PROMPTS, "answers")
    assert len(set(texts)) > 1 and all(text == text.strip() for text in texts)
    for number, size in enumerate((1, 3, 64)):
        other = StubStage(tmp_path / f"{number}")
        assert Teacher(other, local | {"batch_size": size}, 7).generate(PROMPTS, "answers") == texts
        assert other.reported[-1] == ("answers", 5, 5)
        assert other.counts["calls"] == 5 and other.counts["tokens"] == stage.counts["tokens"] > 0


def test_a_second_local_teacher_on_the_same_ledger_loads_no_model(stage, local, monkeypatch):
    first = Teacher(stage, local, 7).generate(PROMPTS, "answers")
    spent = dict(stage.counts)
    monkeypatch.setattr(engine, "load_model", no_model)
    again = StubStage(stage.folder)
    assert Teacher(again, local, 7).generate(PROMPTS, "answers") == first
    assert again.counts == spent and len(files.read_jsonl(stage.output("calls.jsonl"))) == 5


@pytest.mark.parametrize(
    ("changes", "seed", "what"),
    [
        ({}, 8, "answers"),
        ({}, 7, "other answers"),
        ({"temperature": 0.7}, 7, "answers"),
        ({"top_p": 0.9}, 7, "answers"),
        ({"max_new_tokens": 9}, 7, "answers"),
        ({"wrapper": "Q: {prompt}\nA:"}, 7, "answers"),
    ],
)
def test_another_seed_use_or_setting_is_generated_again(stage, local, changes, seed, what):
    Teacher(stage, local, 7).generate(PROMPTS[:2], "answers")
    Teacher(stage, local | changes, seed).generate(PROMPTS[:2], what)
    keys = [row["key"] for row in files.read_jsonl(stage.output("calls.jsonl"))]
    assert len(keys) == len(set(keys)) == 4


def test_another_models_weights_under_the_same_name_are_another_model(stage, local, model_folder, tmp_path, monkeypatch):
    moved = tmp_path / "weights"
    shutil.copytree(model_folder, moved)
    first = Teacher(stage, local, 7).generate(PROMPTS[:2], "answers")
    monkeypatch.setattr(engine, "load_model", no_model)
    assert Teacher(stage, local | {"model": str(moved)}, 7).generate(PROMPTS[:2], "answers") == first
    config = files.read_json(moved / "config.json")
    files.write_json(moved / "config.json", config | {"rms_norm_eps": 0.5})
    with pytest.raises(AssertionError, match="a model was loaded"):
        Teacher(stage, local | {"model": str(moved)}, 7).generate(PROMPTS[:2], "answers")


def test_a_prompt_too_long_for_the_model_is_none_and_the_others_are_answered(stage, local):
    long = "word " * 600
    texts = Teacher(stage, local, 7).generate([PROMPTS[0], long, PROMPTS[1]], "answers")
    assert texts[1] is None and None not in (texts[0], texts[2])
    assert stage.notes["unanswered"] == {"too long": 1} and stage.reported[-1] == ("answers", 3, 3)
    assert Teacher(stage, local, 7).generate([long], "answers") == [None]


def test_a_prompt_fits_when_prompt_and_answer_fill_the_context_exactly(stage, local, model_folder, tokenizer):
    limit = files.read_json(model_folder / "config.json")["max_position_embeddings"]
    tokens = lambda prompt: len(tokenizer(SETTINGS["wrapper"].format(prompt=prompt))["input_ids"])  # noqa: E731
    room = {tokens("word " * n) + SETTINGS["max_new_tokens"]: "word " * n for n in range(limit - 100, limit)}
    fits, too_long = room[limit], room[limit + 1]
    assert [text is None for text in Teacher(stage, local, 7).generate([fits, too_long], "answers")] == [False, True]


@pytest.fixture
def chatty(model_folder, tmp_path):
    """The small model's folder, its tokenizer with a chat template."""
    folder = shutil.copytree(model_folder, tmp_path / "chatty")
    template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant>"
    files.write_bytes(folder / "chat_template.jinja", template.encode())
    return folder


@pytest.fixture
def seen(monkeypatch):
    """What local weights are given, as text."""
    prompts, plain = [], engine.continue_batch

    def spy(model, tokenizer, ids, seeds, **sampling):
        prompts.extend(tokenizer.batch_decode(ids))
        return plain(model, tokenizer, ids, seeds, **sampling)

    monkeypatch.setattr(engine, "continue_batch", spy)
    return prompts


def test_a_local_teacher_is_asked_in_its_wrapper_or_by_its_own_chat_template(stage, local, chatty, seen):
    Teacher(stage, local, 7).generate(["Q"], "answers", systems=["Be kind."])
    Teacher(stage, local | {"model": str(chatty), "mode": "chat"}, 7).generate(["Q", "R"], "answers", systems=["", "Be kind."])
    assert seen[0] == "<s><human>: Be kind.\n\nQ\n<bot>:"
    assert sorted(seen[1:]) == ["<s><system> Be kind.\n<user> R\n<assistant>", "<s><user> Q\n<assistant>"]


def test_earlier_turns_come_before_the_prompt_in_either_form(stage, local, chatty, seen):
    turns = [(("A", "B"), ("C", "D"))]
    Teacher(stage, local, 7).generate(["Q"], "answers", shown=turns)
    Teacher(stage, local | {"model": str(chatty), "mode": "chat"}, 7).generate(["Q"], "answers", shown=turns)
    assert seen[0] == "<s><human>: A\n<bot>: B\n<human>: C\n<bot>: D\n<human>: Q\n<bot>:"
    assert seen[1] == "<s><user> A\n<assistant> B\n<user> C\n<assistant> D\n<user> Q\n<assistant>"


def test_a_chat_teacher_can_go_on_with_a_text_or_write_the_users_own_turn(stage, local, chatty, seen):
    teacher = Teacher(stage, local | {"model": str(chatty), "mode": "chat"}, 7)
    texts = teacher.generate(["A list:\n1."], "lists", form="continued")
    turns = teacher.generate(["", ""], "user turns", form="user_turn")
    assert seen == ["<s>A list:\n1.", "<s><user> ", "<s><user> "]
    assert len(texts) == 1 and len(turns) == 2 and turns[0] != turns[1], "each has a seed of its own"


def test_a_local_teacher_without_a_chat_template_is_not_asked_in_chat_mode(stage, local):
    with pytest.raises(TokenError, match="no chat template"):
        Teacher(stage, local | {"mode": "chat"}, 7).generate(["Q"], "answers")


def test_a_judge_may_be_local_weights_in_either_mode(stage, chatty, seen):
    for mode in ("chat", "raw"):
        judge = Judge(
            stage, JUDGE | {"model": str(chatty), "endpoint": None, "mode": mode, "wrapper": "J: {prompt}", "max_tokens": 8}
        )
        replies = judge.reply(["Is it so?"], "verdicts")
        assert replies == judge.reply(["Is it so?"], "verdicts") and replies[0].text
        assert judge.reply(["Is it so?"], "verdicts", repeat=1)[0].tokens_in == replies[0].tokens_in
    assert seen == ["<s><user> Is it so?\n<assistant>"] * 2 + ["<s>J: Is it so?"] * 2
    assert replies[0].note == CUT_SHORT, "a reply that did not end gives no verdict"


def test_local_texts_are_those_of_the_rows_own_seeds(stage, local, model_folder, tokenizer):
    model = load_model(model_folder)
    sampling = {k: SETTINGS[k] for k in ("max_new_tokens", "temperature", "top_p")}
    rows = zip((SETTINGS["wrapper"].format(prompt=p) for p in PROMPTS), row_seeds(7, "answers", 5))
    alone = [texts_of(tokenizer, continue_batch(model, tokenizer, [p], [seed], **sampling))[0].strip() for p, seed in rows]
    assert Teacher(stage, local, 7).generate(PROMPTS, "answers") == alone


# ----------------------------------------------------------------------------------------------------------- an endpoint


def test_an_endpoints_completions_come_in_order_and_are_never_sent_twice(stage):
    with FakeEndpoint(lambda prompt: f"  {prompt.upper()}\n") as fake:
        texts = Teacher(stage, behind(fake, mode="chat"), 7).generate(PROMPTS, "answers")
        again = StubStage(stage.folder)
        assert Teacher(again, behind(fake, mode="chat"), 7).generate(PROMPTS, "answers") == texts
    assert texts == [prompt.upper() for prompt in PROMPTS]
    assert fake.received == dict.fromkeys(PROMPTS, 1)
    assert stage.counts == again.counts == {"tokens": 75, "calls": 5, "cost_usd": 0.0}
    assert stage.reported[-1] == ("answers", 5, 5)


def test_what_is_sent_is_the_prompt_its_own_seed_and_the_profiles_sampling(stage):
    with FakeEndpoint() as fake:
        Teacher(stage, behind(fake), 7).generate(["Q"], "answers")
        Teacher(stage, behind(fake, mode="chat"), 7).generate(["Q"], "answers")
    sampling = {"model": "m", "max_tokens": 8, "temperature": 0.8, "top_p": 0.95, "seed": row_seeds(7, "answers", 1)[0]}
    assert fake.bodies == [
        {"prompt": "<human>: Q\n<bot>:", **sampling},
        {"messages": [{"role": "user", "content": "Q"}], **sampling},
    ]


def test_a_completion_ends_before_the_first_stop_mark_with_either_engine(stage, local, tmp_path):
    stop = {"stop": ["<human>:", "\nQ:"], "mode": "chat"}
    with FakeEndpoint(lambda prompt: " Yes.\nQ: And then? <human>: Q") as fake:
        assert Teacher(stage, behind(fake, **stop), 7).generate(["Q"], "answers") == ["Yes."]
    assert fake.bodies[0]["stop"] == stop["stop"]
    text = Teacher(stage, local, 7).generate(["Q"], "answers")[0]
    mark = text[3:5]
    again = Teacher(StubStage(tmp_path / "again"), local | {"stop": [mark]}, 7).generate(["Q"], "answers")
    assert again == [text.split(mark)[0].strip()] != [text]


def test_equal_prompts_are_sampled_with_seeds_of_their_own(stage):
    with FakeEndpoint() as fake:
        Teacher(stage, behind(fake, mode="chat"), 7).generate(["Q"] * 3, "answers")
    assert len({body["seed"] for body in fake.bodies}) == 3


@pytest.mark.parametrize(
    ("changes", "seed"),
    [({}, 8), ({"temperature": 0.7}, 7), ({"max_new_tokens": 9}, 7), ({"model": "n"}, 7), ({"mode": "chat"}, 7)],
)
def test_another_seed_setting_or_model_is_another_call(stage, changes, seed):
    with FakeEndpoint() as fake:
        Teacher(stage, behind(fake), 7).generate(["Q"], "answers")
        Teacher(stage, behind(fake, **changes), seed).generate(["Q"], "answers")
    assert len(fake.bodies) == 2


def test_a_prompt_the_endpoint_fails_on_is_none_and_the_others_are_answered(stage):
    faults = {"bad": "400", "busy": "500"}
    with FakeEndpoint(faults=lambda prompt, attempt: faults.get(prompt)) as fake:
        texts = Teacher(stage, behind(fake, mode="chat"), 7).generate(["a", "bad", "busy", "b"], "answers")
    assert texts == ["A", None, None, "B"]


def test_an_endpoint_of_ones_own_needs_no_key(stage, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with FakeEndpoint() as fake:
        keyless = behind(fake, mode="chat", endpoint=remote(fake.url, api_key_env=None))
        assert Teacher(stage, keyless, 7).generate(["q"], "answers") == ["Q"]
