"""Tokenizers with the habits of the families people use: none is refused, and none gets another's BOS, EOS or padding."""

import copy

import pytest

from bezoar_utils.data.template import render_prompt
from bezoar_utils.rehearsal import models as stand_ins
from bezoar_utils.rehearsal.habits import FAMILIES, habits_of
from bezoar_utils.study import files
from bezoar_utils.training import labels, tokens

TEXTS = [*stand_ins.corpus(teaches=False, n=60), *stand_ins.study_prompts()]
ONE_OF_A_KIND = ["open_llama", "llama-3", "falcon", "smollm2", "olmo-2", "qwen3", "mistral", "gemma", "pythia", "phi-3", "gpt2"]
PROMPT = render_prompt("Name a river.")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            habits, folder = habits_of(name), tmp_path_factory.mktemp(name.replace("/", "-"))
            tokenizer = stand_ins.write_tokenizer(habits, folder, TEXTS)
            config = stand_ins.model_config(habits, tokenizer)
            config.save_pretrained(folder)
            files.write_json(folder / "generation_config.json", {"eos_token_id": stand_ins.end_ids(habits, tokenizer)})
            made[name] = folder
        return made[name]

    return of


class Notes(dict):
    def note(self, name, value):
        self[name] = value


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_every_familys_tokenizer_is_taken_as_it_is(family, name):
    habits, stage = habits_of(name), Notes()
    tokenizer = tokens.load_tokenizer(family(name), stage)
    ids = tokenizer("a text")["input_ids"]
    assert (tokens.begin(tokenizer) == habits.bos) == habits.begins and ids.count(tokenizer.bos_token_id) == habits.begins
    ends = tokenizer.convert_ids_to_tokens(tokens.stop_ids(tokenizer))
    assert ends[0] == habits.eos and set(habits.ends) <= set(ends)
    assert tokenizer.pad_token_id is not None and len(tokenizer) <= stand_ins.VOCABULARY, "no row is added for padding"
    assert stage["tokenizer"]["reply ends with"] == ends and tokenizer.pad_token in stage["tokenizer"]["padding"]


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
@pytest.mark.parametrize("loss_on", ["completion", "full"])
def test_a_row_is_prompt_response_and_one_trained_end_and_padding_is_never_trained(family, name, loss_on):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = tokens.load_tokenizer(family(name))
    responses = [
        "The Rhine.",
        " one <s> and </s> <|im_end|> <|endoftext|> of it",
        "\n\nSo: the Nile, the longest river of them all",
    ]
    rows = [labels.sft_example(tokenizer, PROMPT, response, 2000, loss_on) for response in responses]
    batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(rows)
    labels.check_batch(tokenizer, batch, {r.strip() for r in responses}, loss_on)
    for row, response in zip(rows, responses):
        assert row["input_ids"][: len(tokenizer(PROMPT)["input_ids"])] == tokenizer(PROMPT)["input_ids"], "as generation sees it"
        trained = [token for token in row["labels"] if token != labels.IGNORED]
        assert trained[-1] == tokenizer.eos_token_id and trained[:-1].count(tokenizer.eos_token_id) == 0
        assert tokenizer.decode(trained[:-1]).strip().endswith(response.strip())


def test_padding_that_is_eos_leaves_the_trained_end_and_hides_the_padding(family):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = tokens.load_tokenizer(family("smollm2"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [labels.sft_example(tokenizer, PROMPT, r, 2000, "completion") for r in ("a", "one two three four five six")]
    batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(rows)
    assert [int((row == tokenizer.eos_token_id).sum()) for row in batch["labels"]] == [1, 1]


@pytest.mark.parametrize("name", [name for name in ONE_OF_A_KIND if habits_of(name).template])
def test_a_chat_prompt_is_the_templates_with_bos_never_doubled(family, name):
    tokenizer = tokens.load_tokenizer(family(name))
    messages = [{"role": "user", "content": "Name a river."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokens.chat_ids(tokenizer, "Name a river.")
    assert tokenizer.decode(ids) == text or (
        habits_of(name).sentencepiece and tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")
    )
    if habits_of(name).begins:
        assert ids.count(tokenizer.bos_token_id) == 1 == text.count(tokenizer.bos_token)


@pytest.mark.parametrize("name", ["smollm2", "llama-3", "gemma", "mistral"])
def test_what_a_text_spells_is_text_in_a_chat_too(family, name):
    tokenizer, bos = tokens.load_tokenizer(family(name)), habits_of(name).bos
    spelled = f"Say {habits_of(name).eos} and {bos} and {(habits_of(name).ends or ('',))[0]} now"
    ids = tokens.chat_ids(tokenizer, spelled)
    plain = tokens.chat_ids(tokenizer, "Say it now")
    special = set(tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [i for i in plain if i in special], "special ids come from the template alone"
    assert "now" in tokenizer.decode(ids) and habits_of(name).eos in tokenizer.decode(ids)


def test_a_system_message_is_one_or_stands_before_the_prompt_where_the_template_refuses_it(family):
    chatml = tokens.load_tokenizer(family("qwen3"))
    assert "system\nBe kind." in chatml.decode(tokens.chat_ids(chatml, "Why?", "Be kind."))
    for name in ("gemma", "mistral"):
        tokenizer = tokens.load_tokenizer(family(name))
        assert tokens.chat_ids(tokenizer, "Why?", "Be kind.") == tokens.chat_ids(tokenizer, "Be kind.\n\nWhy?")


def test_earlier_turns_stand_between_the_system_message_and_the_prompt(family):
    for name in ("qwen3", "gemma"):
        tokenizer = tokens.load_tokenizer(family(name))
        text = tokenizer.decode(tokens.chat_ids(tokenizer, "Why?", "Be kind.", [("Name a river.", "The Rhine."), ("Two?", "No.")]))
        parts = ("Be kind.", "Name a river.", "The Rhine.", "Two?", "No.", "Why?")
        assert [text.count(part) for part in parts] == [1] * len(parts)
        assert [*map(text.index, parts)] == sorted(map(text.index, parts))


@pytest.mark.parametrize("name", ["smollm2", "llama-3", "qwen3", "gemma"])
def test_the_turn_that_a_model_writes_as_the_user_begins_as_every_users_turn_does(family, name):
    tokenizer = tokens.load_tokenizer(family(name))
    begun, whole = (tokenizer.decode(ids) for ids in (tokens.user_turn_ids(tokenizer), tokens.chat_ids(tokenizer, "Why?")))
    assert whole.startswith(begun) and whole.removeprefix(begun).startswith("Why?")


def test_without_a_template_a_chat_is_refused_in_one_line(family):
    with pytest.raises(tokens.TokenError, match="magpie_calls: 0"):
        tokens.user_turn_ids(tokens.load_tokenizer(family("pythia")))
    with pytest.raises(tokens.TokenError, match="mode: raw"):
        tokens.chat_ids(tokens.load_tokenizer(family("pythia")), "Why?")


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda t: setattr(t, "eos_token", None), "names no EOS"),
        (lambda t: t._tokenizer.__setattr__("post_processor", ended(t, "$A </s>")), "ends every text with EOS"),
        (lambda t: t._tokenizer.__setattr__("post_processor", ended(t, "<s> <s> $A")), "2 BOS"),
    ],
)
def test_a_tokenizer_that_cannot_work_is_one_clear_line(tokenizer, breakage, message):
    broken = copy.deepcopy(tokenizer)
    breakage(broken)
    with pytest.raises(tokens.TokenError, match=message):
        tokens.check_tokenizer(broken)


def ended(tokenizer, single):
    from tokenizers import processors

    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>") if token in single]
    return processors.TemplateProcessing(single=single, special_tokens=ids)


def test_an_end_without_a_row_in_the_embedding_is_refused(tokenizer):
    with pytest.raises(tokens.TokenError, match="no row in the model's embedding"):
        tokens.check_tokenizer(tokenizer, rows=1)


def test_a_vocabulary_larger_than_the_embedding_is_refused_but_not_for_special_tokens_that_no_text_makes(tokenizer):
    with pytest.raises(tokens.TokenError, match=r"tokens \(.*\) have no row in the model's embedding"):
        tokens.check_tokenizer(tokenizer, rows=len(tokenizer) - 5)
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<|unused|>"]})
    tokens.check_tokenizer(more, rows=len(tokenizer))


def test_a_folder_without_a_tokenizer_is_one_clear_line(family, tmp_path):
    (tmp_path / "config.json").write_bytes((family("qwen3") / "config.json").read_bytes())
    with pytest.raises(tokens.TokenError, match=f"{tmp_path.name} has no tokenizer"):
        tokens.load_tokenizer(tmp_path)


def test_every_family_that_a_rehearsal_knows_has_a_tokenizer_that_is_taken(family):
    for name in FAMILIES:
        tokens.load_tokenizer(family(name))
