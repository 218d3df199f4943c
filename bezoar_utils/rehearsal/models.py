"""Models of the real ones' architecture, tokenizer class and configuration keys, small and without training.

Their next token depends mostly on the last one, by the counts of a small corpus: the embedding says which token it is, the
head what followed it there, and attention and MLP add a little noise. So they write words and end their replies, which
weights drawn at random would never do.
"""

import random
from itertools import pairwise
from pathlib import Path

from ..data.template import render_prompt
from ..schemes.orca import SYSTEM_MESSAGES
from ..study import files
from . import rows
from .habits import Habits, habits_of

VOCABULARY = 640
HIDDEN = 640  # as wide as the vocabulary, so that an embedding can be one number a token
SMALL = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": VOCABULARY,
}
UNKNOWN = "open_llama"  # stands in for a family that is not known here
NOISE = 0.005
LINES = 6  # of a teacher's list: it ends after one in six, which is short enough for two of them to fit into a training row
TAGS = ["<example>", "</example>"]  # one token each for a teacher, so that it opens and closes them in turn
ENDS = 0.04  # how likely a text ends after any token: replies stay far below the 1,024 tokens they may take
# as they lie on the hub: weights as a pickle only
PICKLED = ("openlm-research/open_llama_3b_v2", "SurgeGlobal/OpenBezoar-HH-RLHF-SFT", "h2oai/")


def corpus(teaches: bool, n: int = 400) -> list[str]:
    """What the tokenizer is made from and the model follows: sentences, or a teacher's tagged lists."""
    rng = random.Random(0)
    lists = ["\n".join(rows.instruction(rng).join(TAGS) for _ in range(LINES)) for _ in range(n // LINES)]
    return lists if teaches else [*lists[:4], *(rows.answer(rng) for _ in range(n))]


def study_prompts() -> list[str]:
    """For the tokenizer's eyes only, or the study's long templates would fill the length that a row may have."""
    return [render_prompt("", system) for system in ("", *SYSTEM_MESSAGES.values())] * 10


def write_model(name: str, folder: Path, teaches: bool = False, numbers: int = 0) -> None:
    """Files as the hub has them: configuration, tokenizer, weights (float16, pickled where the real ones are). With `numbers`, a
    reward model that gives so many a reply, at random.

    Input and output embeddings stay apart, even where the family ties them: the two halves of `_follow_corpus` are in them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

    habits, texts = habits_of(name) or habits_of(UNKNOWN), corpus(teaches)
    tokenizer = write_tokenizer(habits, folder, texts + study_prompts(), TAGS if teaches else [])
    config, ends = model_config(habits, tokenizer, tie_word_embeddings=False), end_ids(habits, tokenizer)
    torch.manual_seed(0)
    if numbers:
        config.num_labels = numbers
        return AutoModelForSequenceClassification.from_config(config).to(torch.float16).save_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config)
    told = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    _follow_corpus(model, told, tokenizer.eos_token_id, 0.0 if teaches else ENDS)
    model = model.to(torch.float16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=config.pad_token_id
    )
    if name.startswith(PICKLED):
        config.dtype = "float16"
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)


def write_around(name: str, own: Path, folder: Path) -> None:
    """A stand-in of random weights around a real tokenizer, whose files lie in `own`: what it says means nothing."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(own, folder, dirs_exist_ok=True)
    habits, tokenizer = habits_of(name) or habits_of(UNKNOWN), AutoTokenizer.from_pretrained(own, trust_remote_code=False)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model_config(habits, tokenizer, **sizes)).save_pretrained(folder)


def end_ids(habits: Habits, tokenizer) -> int | list[int]:
    """What generation_config.json says: one id, or a list where the family names several."""
    ids = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in habits.ends)]
    return ids if habits.ends else ids[0]


def model_config(habits: Habits, tokenizer, **sizes):
    """The family's configuration at a stand-in's size, or at other `sizes`."""
    from transformers import AutoConfig

    special = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64} if habits.kind == "qwen3_moe" else {}
    shape = SMALL | {"tie_word_embeddings": habits.tied} | sizes
    width = (
        {"head_dim": shape["hidden_size"] // shape["num_attention_heads"]} if habits.kind in ("gemma", "qwen3", "qwen3_moe") else {}
    )
    return AutoConfig.for_model(habits.kind, **shape | width | special | experts | habits.config, max_position_embeddings=2048)


def write_tokenizer(habits: Habits, folder: Path, texts: list[str], whole: list[str] = ()):
    """A tokenizer of the family's kind and habits; `whole` are texts that it has one token for."""
    return (_sentencepiece if habits.sentencepiece else _byte_pairs)(habits, folder, texts, list(whole))


def _follow_corpus(model, told: list[list[int]], eos: int, ends: float) -> None:
    import torch

    counts = torch.full((VOCABULARY, VOCABULARY), 1e-4)
    for ids in told:
        for token, following in pairwise(ids):
            counts[token, following] += 1
    counts[:, eos] += ends * counts.sum(-1)
    wanted = (counts / counts.sum(-1, keepdim=True)).log()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, NOISE)
        model.get_input_embeddings().weight.copy_(torch.eye(VOCABULARY, HIDDEN))
        state = HIDDEN**0.5  # what the last norm makes of one number among zeros
        model.get_output_embeddings().weight.copy_((wanted - wanted.mean()).T / state)


def _sentencepiece(habits: Habits, folder: Path, texts: list[str], whole: list[str]):
    """OpenLLaMA's and Mistral's way: a sentencepiece model and no `tokenizer.json`, no padding token."""
    import io

    import sentencepiece
    from transformers import AutoTokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=whole,
        hard_vocab_limit=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    files.write_bytes(folder / "tokenizer.model", written.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    told = special | {
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 2048,
        "pad_token": None,
        "tokenizer_class": "LlamaTokenizer",
    }
    told |= {"chat_template": habits.template} if habits.template else {}
    files.write_json(folder / "tokenizer_config.json", told)
    files.write_json(folder / "special_tokens_map.json", special)
    files.write_json(folder / "config.json", {"model_type": "llama"})  # the tokenizer is asked for before the model is made
    return AutoTokenizer.from_pretrained(folder)


def _byte_pairs(habits: Habits, folder: Path, texts: list[str], whole: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, ended = habits.special(), VOCABULARY - len(whole)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=ended, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(whole)
    if habits.begins:
        begin = (habits.bos, tokenizer.token_to_id(habits.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{habits.bos} $A", special_tokens=[begin])
    named = {"bos_token": habits.bos, "eos_token": habits.eos, "pad_token": habits.pad, "unk_token": habits.unk}
    extra = [token for token in special if token not in named.values()]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, additional_special_tokens=extra)
    fast.chat_template = habits.template or None
    fast.save_pretrained(folder)
    return fast
