"""How tokenizers and models of each family behave: what a stand-in takes over, so that a rehearsal fails where the real one would.

Read from the families' published tokenizer_config.json, generation_config.json and config.json, in the state of 2026.
"""

from dataclasses import dataclass, field

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Habits:
    """`kind` is transformers' model type. `begins`: whether the tokenizer puts BOS before a text. `ends` are the tokens that
    generation_config.json names beside EOS. `config` is what matters of config.json."""

    kind: str
    sentencepiece: bool = False
    bos: str | None = None
    begins: bool = False
    eos: str = "<|endoftext|>"
    pad: str | None = None
    unk: str | None = None
    ends: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    template: str = ""
    tied: bool = False
    config: dict = field(default_factory=dict)

    def special(self) -> list[str]:
        """Every special token once, EOS first as in byte-level vocabularies."""
        named = (self.eos, self.unk, self.bos, self.pad, *self.ends, *self.others)
        return list(dict.fromkeys(token for token in named if token))


OLD_LLAMA = {"sentencepiece": True, "bos": "<s>", "begins": True, "eos": "</s>", "unk": "<unk>"}
QWEN = {"eos": "<|im_end|>", "pad": "<|endoftext|>", "ends": ("<|endoftext|>",), "others": ("<|im_start|>",), "template": CHATML}
GROUPED = {"num_key_value_heads": 2}
# part of a lower-case id -> its family's habits; the first that fits
FAMILIES = {
    "open_llama": Habits("llama", **OLD_LLAMA, config={"pad_token_id": 0}),  # in the configuration, not in the tokenizer
    "openbezoar": Habits("llama", **OLD_LLAMA, config={"pad_token_id": 0}),
    "llama-3": Habits(
        "llama",
        bos="<|begin_of_text|>",
        begins=True,
        eos="<|eot_id|>",
        ends=("<|end_of_text|>",),
        others=("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_0|>"),
        template=LLAMA_3,
        config=GROUPED,
    ),
    "llama": Habits("llama", **OLD_LLAMA),
    "falcon": Habits("falcon", others=(">>TITLE<<",), config={"multi_query": True, "new_decoder_architecture": False}),
    "smollm3": Habits("smollm3", **QWEN, tied=True, config=GROUPED),
    "smollm2": Habits(
        "llama",
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        template=CHATML,
        tied=True,
        config=GROUPED,
    ),
    "olmo-2": Habits("olmo2", bos="<|endoftext|>", pad="<|pad|>", unk="<|endoftext|>", template=CHATML),
    "olmo-3": Habits(
        "olmo3",
        bos="<|endoftext|>",
        pad="<|pad|>",
        unk="<|endoftext|>",
        ends=("<|im_end|>",),
        others=("<|im_start|>",),
        template=CHATML,
        config={"sliding_window": 64},
    ),
    "qwen3-30b-a3b": Habits("qwen3_moe", **QWEN, config=GROUPED),
    "qwen3": Habits("qwen3", **QWEN, tied=True, config=GROUPED),
    "qwen2": Habits("qwen2", **QWEN, tied=True, config=GROUPED),
    "prometheus": Habits("mistral", **OLD_LLAMA, template=INST, config=GROUPED | {"sliding_window": 64}),
    "mistral": Habits("mistral", **OLD_LLAMA, template=INST, config=GROUPED | {"sliding_window": 64}),
    "gemma": Habits(
        "gemma",
        bos="<bos>",
        begins=True,
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        ends=("<end_of_turn>",),
        others=("<start_of_turn>",),
        template=GEMMA,
        tied=True,
        config={"num_key_value_heads": 1},
    ),
    "pythia": Habits("gpt_neox", bos="<|endoftext|>", unk="<|endoftext|>"),
    "phi-3": Habits(
        "phi3",
        bos="<s>",
        pad="<|endoftext|>",
        unk="<unk>",
        ends=("<|end|>", "<|assistant|>"),
        others=("<|user|>", "<|system|>"),
        template=PHI_3,
        config={"sliding_window": 64},
    ),
    "gpt2": Habits("gpt2", bos="<|endoftext|>", unk="<|endoftext|>", tied=True),
}


def habits_of(name: str) -> Habits | None:
    """Those of the family that a model's id names, or None for a family that is not known here."""
    return next((habits for part, habits in FAMILIES.items() if part in name.lower()), None)
