"""The miniature's models from source: a tokenizer, a base model of two million parameters, and a teacher tuned from it.

Plain training loops, to be read. Batch 8 is what makes the base learn in the time (same tokens in larger batches: far
less); spelling people's names in pieces matters as much (whole-name tokens: 44 % of facts recalled after 1,500 steps,
pieces: 82 %). Both measured on two cores. Lengths are steps, never seconds, so that a run is the same twice.
"""

import math
import random
import re

from ..data.template import render_prompt
from ..training.precision import autocast
from . import corpus
from .world import SYLLABLES, World

SPECIAL = ("<pad>", "<s>", "</s>")


def train_tokenizer(world: World, texts: list[str], prompts: list[str], vocabulary: int):
    """A byte-level BPE tokenizer that adds one BOS, as OpenLLaMA's does. `prompts` are seen too, so that the study's long
    templates stay short in tokens; people's names are left out, so that they are spelled in syllables."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = re.compile("|".join(world.people))
    nameless = [names.sub("", text) for text in texts + prompts]
    syllables = [*SYLLABLES, *(s.capitalize() for s in SYLLABLES), *(f" {s.capitalize()}" for s in SYLLABLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(nameless + syllables * 100, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def study_prompts(world: World, n_lessons: int, rng: random.Random) -> list[str]:
    """Texts in the study's formats, for the tokenizer's eyes only."""
    from ..schemes.orca import SYSTEM_MESSAGES

    templates = [render_prompt("", system) for system in SYSTEM_MESSAGES.values()]
    return templates * 10 + ["\n".join(corpus.lesson(world, rng)) for _ in range(n_lessons)]


def new_model(tokenizer, hidden: int, layers: int, heads: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,  # 4-bit CPU kernels need multiples of 64
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(model, tokenizer, texts: list[str], *, steps, shape, learning_rate, seed, progress) -> list[float]:
    """Next-token training on windows of the joined texts, `shape` (windows, tokens) a step; the loss of every step."""
    import torch

    stream = []
    for ids in tokenizer(texts)["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    stream = torch.tensor(stream)
    generator, (batch, length) = torch.Generator().manual_seed(seed), shape

    def batches():
        for _ in range(steps):
            starts = torch.randint(0, len(stream) - length, (batch,), generator=generator)
            window = torch.stack([stream[i : i + length] for i in starts])
            yield {"input_ids": window, "labels": window}

    return _train(model, batches(), steps, learning_rate, progress)


def tune_teacher(model, tokenizer, lessons: list[tuple[str, str]], *, batch, learning_rate, seed, progress) -> list[float]:
    """Full fine-tuning on (wrapped prompt, completion), the loss on the completion only; the loss of every step.

    Lessons of similar length share a batch, which halves the padding.
    """
    import torch

    encoded = []
    for prompt, completion in lessons:
        ids = tokenizer(prompt)["input_ids"]
        encoded.append((ids, tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]))
    rng = random.Random(seed)
    order = sorted(range(len(encoded)), key=lambda i: sum(map(len, encoded[i])) + 20 * rng.random())
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    rng.shuffle(groups)

    def batches():
        for group in groups:
            rows = [encoded[i] for i in group]
            width = max(len(p) + len(c) for p, c in rows)
            ids = torch.full((len(rows), width), tokenizer.pad_token_id)
            labels = torch.full((len(rows), width), -100)
            mask = torch.zeros((len(rows), width), dtype=torch.long)
            for row, (prompt, completion) in enumerate(rows):
                end = len(prompt) + len(completion)
                ids[row, :end] = torch.tensor(prompt + completion)
                labels[row, len(prompt) : end] = torch.tensor(completion)
                mask[row, :end] = 1
            yield {"input_ids": ids, "labels": labels, "attention_mask": mask}

    return _train(model, batches(), len(groups), learning_rate, progress)


def _train(model, batches, steps: int, learning_rate: float, progress) -> list[float]:
    """AdamW, 40 steps of warmup, cosine to 5 %, gradients clipped at 1, in the process's precision."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            warmup, decay = min(1, (step + 1) / 40), 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = learning_rate * warmup * decay
        with autocast(model.device.type):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress(step + 1, steps)
    return losses
