"""A model's tokenizer with its own habits: BOS or none, what ends a reply, what rows are padded with, its chat template.

Nothing of these is assumed. Whatever a text spells, special ids come from the tokenizer's own rule or from its template alone.
"""

from collections.abc import Sequence
from pathlib import Path

Shown = Sequence[tuple[str, str]]  # earlier turns of a chat: what was asked, and the reply
PADS = ("pad", "reserved", "unused", "extra_")  # in the names of special tokens that no text and no template uses
# Ends of a turn by family: Llama 3, ChatML (Qwen, SmolLM), Gemma, Phi-3; a tuned model may say one of them instead of its EOS.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
USER_DEFINED = 4  # the kind of a piece in a sentencepiece file
PROBES = ("### System:\nBe  brief.\n\n### Response:", "x\t y   z", "1 22,333.4", "été 漢字 🙂", "a\n\n\nb ", "<s>old</s>")


class TokenError(ValueError):
    """A tokenizer that no prompt and no label can be made with. The message is one line."""


def load_tokenizer(folder: Path, stage=None):
    """The tokenizer of a model's folder, with `stop_ids` and a token to pad with; what was chosen is noted in `stage`.

    Raises TokenError when there is none, or when it cannot be used as it is (see `check_tokenizer`).
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
            tokenizer = _as_sentencepiece(tokenizer, folder / "tokenizer.model")
        if not tokenizer("a text")["input_ids"]:  # without files transformers makes an empty one, and says nothing
            raise ValueError("no files of its own")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:160]
        raise TokenError(
            f"{folder.name} has no tokenizer that can be read ({why}): put the model's own beside its weights"
        ) from None
    tokenizer.split_special_tokens = True  # text that spells a token is text
    rows = getattr(config.get_text_config(), "vocab_size", None) or len(tokenizer)
    tokenizer.stop_ids = _stop_ids(tokenizer, folder, config)
    check_tokenizer(tokenizer, rows)
    tokenizer.pad_token_id, why = _padding(tokenizer, config, rows)
    if stage is not None:
        ends = tokenizer.convert_ids_to_tokens(tokenizer.stop_ids)
        padding = f"{tokenizer.pad_token} ({why})"
        stage.note("tokenizer", {"begins with": begin(tokenizer), "reply ends with": ends, "padding": padding})
    return tokenizer


def _as_sentencepiece(read, path: Path):
    """The tokenizer of a sentencepiece file with the merges in that file's own order, held against sentencepiece itself.

    transformers 5.23 takes the order of the ids instead, and of some families leaves out the space that such a text begins with: of
    Mistral's own file, without a tokenizer.json beside it, "a  b" and every first word came out as other tokens, silently.
    Raises ValueError for a file that is not byte-pair encoding, or whose texts still come out otherwise.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import SentencePieceExtractor
    from transformers.tokenization_utils_base import generate_merges

    own, proto = SentencePieceProcessor(model_file=str(path)), SentencePieceExtractor(str(path)).proto
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = generate_merges(vocabulary, {piece.piece: piece.score for piece in proto.pieces})
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=read.unk_token, fuse_unk=True, byte_fallback=True))
    symbols = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    if symbols:  # the space is put before the first of them only
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        backend.add_tokens(symbols)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    if begin(read):
        single = processors.TemplateProcessing(single=f"{read.bos_token} $A", special_tokens=[(read.bos_token, read.bos_token_id)])
        backend.post_processor = single
    named = {f"{name}_token": getattr(read, f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **named, clean_up_tokenization_spaces=False)
    fast.chat_template, fast.split_special_tokens = read.chat_template, True
    for text in PROBES:
        ids = fast(text, add_special_tokens=False)["input_ids"]
        if ids != own.encode(text):
            raise ValueError(f"{text!r} becomes other tokens than by sentencepiece: take a revision with a tokenizer.json")
    return fast


def _stop_ids(tokenizer, folder: Path, config) -> list[int]:
    """What ends a reply: the tokenizer's EOS, which is what the study trains, first; then what the model's files name."""
    from transformers import GenerationConfig

    named = [tokenizer.eos_token_id, config.get_text_config().eos_token_id]
    if (folder / "generation_config.json").exists():
        named.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    named += [tokenizer.convert_tokens_to_ids(token) for token in TURN_ENDS if token in tokenizer.all_special_tokens]
    ids = [i for value in named for i in (value if isinstance(value, list) else [value])]
    stops = list(dict.fromkeys(i for i in ids if i is not None and 0 <= i < len(tokenizer)))
    if tokenizer.eos_token_id is None and stops:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
    return stops


def _padding(tokenizer, config, rows: int) -> tuple[int, str]:
    """(token id, why that one). Padding is masked by its position, so that any token will do, and no row is added for it.

    OpenLLaMA's tokenizer names none; the authors took the id that the model's configuration names [A]."""
    spare = [i for token, i in _special(tokenizer).items() if any(part in token.lower() for part in PADS)]
    candidates = [
        (tokenizer.pad_token_id, "the tokenizer's own"),
        (config.get_text_config().pad_token_id, "named by the model's configuration"),
        *((i, "a reserved token") for i in spare),
        (tokenizer.unk_token_id, "the unknown token: the tokenizer names no padding"),
        (tokenizer.eos_token_id, "EOS: the tokenizer has no other, and padding is masked by position"),
    ]
    return next((i, why) for i, why in candidates if i is not None and 0 <= i < min(rows, len(tokenizer)))


def _special(tokenizer) -> dict[str, int]:
    """token -> id of every special token, those without a role of their own too."""
    added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids)) | added


def begin(tokenizer) -> str:
    """The BOS that this tokenizer puts before each text, or ""."""
    return tokenizer.bos_token if tokenizer.bos_token and tokenizer("a text")["input_ids"][0] == tokenizer.bos_token_id else ""


def stop_ids(tokenizer) -> list[int]:
    """The tokens at which a reply ends; EOS alone where a tokenizer was not read by `load_tokenizer`."""
    return getattr(tokenizer, "stop_ids", None) or [tokenizer.eos_token_id]


def check_tokenizer(tokenizer, rows: int | None = None) -> None:
    """Raises TokenError without EOS, when a token that a text or the study may use has none of the embedding's `rows`, when a text
    gets two BOS or an EOS."""
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None:
        raise TokenError("the tokenizer names no EOS: say in its tokenizer_config.json (eos_token) which token ends a text")
    if outside := [i for i in (eos, bos) if i is not None and rows and i >= rows]:
        raise TokenError(
            f"token {outside[0]} has no row in the model's embedding of {rows}: tokenizer and weights are not of one model"
        )
    special = {*_special(tokenizer).values()}
    if beyond := [token for token, i in tokenizer.get_vocab().items() if rows and i >= rows and i not in special]:
        some = ", ".join(map(repr, sorted(beyond)[:3]))
        raise TokenError(f"{len(beyond)} tokens ({some}) have no row in the model's embedding of {rows}: they are not of one model")
    ids = tokenizer("a text")["input_ids"]
    if ids[-1] == eos:
        raise TokenError(
            "the tokenizer ends every text with EOS, prompts too: set add_eos_token to false in its tokenizer_config.json"
        )
    if bos is not None and ids.count(bos) > 1:
        raise TokenError(f"the tokenizer begins a text with {ids.count(bos)} BOS, where none or one is expected")


# ------------------------------------------------------------------------------------------------------------------ chat


def chat_turns(prompt: str, system: str = "", shown: Shown = ()) -> list[dict]:
    """The messages of a chat: a system message if there is one, what is `shown` as earlier turns, and the prompt."""
    earlier = [turn for asked, reply in shown for turn in (("user", asked), ("assistant", reply))]
    turns = [("system", system)] * bool(system) + earlier + [("user", prompt)]
    return [{"role": role, "content": text} for role, text in turns]


def chat_ids(tokenizer, prompt: str, system: str = "", shown: Shown = ()) -> list[int]:
    """`chat_turns` as the tokenizer's own chat template asks for the assistant's reply.

    Special ids come from the template alone. A template that refuses a system message gets it at the head of the prompt.
    Raises TokenError without a template.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise TokenError(
            "the tokenizer has no chat template: write `mode: raw` and, in `wrapper`, the form the model was trained on"
        )
    turns = chat_turns(prompt, system, shown)
    at_head = [turns[1] | {"content": f"{system}\n\n{turns[1]['content']}"}, *turns[2:]] if system else turns
    for messages in (turns, at_head):
        try:
            return _rendered_ids(tokenizer, messages)
        except TemplateError:
            continue
    raise TokenError("the tokenizer's chat template cannot render a prompt: write `mode: raw`")


def user_turn_ids(tokenizer) -> list[int]:
    """What the chat template writes before a user's first word, so that the model goes on as the user (Magpie, arXiv 2406.08464).

    Raises TokenError without a template.
    """
    if not tokenizer.chat_template:
        raise TokenError("the tokenizer has no chat template, so there is no user's turn to go on with: set `magpie_calls: 0`")
    mark = "\ue000user\ue001"
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
    return tokenizer(text.partition(mark)[0], add_special_tokens=False, split_special_tokens=False)["input_ids"]


def _rendered_ids(tokenizer, turns: list[dict]) -> list[int]:
    def rendered(contents: list[str]) -> str:
        messages = [turn | {"content": content} for turn, content in zip(turns, contents)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def ids(text: str, as_text: bool) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"] if text else []

    contents = [turn["content"] for turn in turns]
    special = {t.content for t in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    if not any(token in content for content in contents for token in special):
        return ids(rendered(contents), as_text=False)
    # a text that spells a token: template and texts apart, which may cost a token at their seams
    marks = [f"\ue000{number}\ue001" for number in range(len(contents))]
    rest, whole = rendered(marks), []
    for mark, content in zip(marks, contents):
        before, _, rest = rest.partition(mark)
        whole += ids(before, as_text=False) + ids(content, as_text=True)
    return whole + ids(rest, as_text=False)
