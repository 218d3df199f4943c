"""Whoever answers a stage's prompts, behind one `ask(requests, progress) -> replies`: an endpoint, or weights in this process.

Either way each finished reply is on disk at once, under a key of prompt, model, settings and seed: a rerun after a kill asks only
for what is missing, and the files come out the same.
"""

from ..schemes.orca import teacher_prompt
from ..study import files
from ..training.generation import by_length, continue_batch, texts_of, within_batch
from ..training.models import load_model
from ..training.precision import current
from ..training.tokens import Shown, chat_ids, load_tokenizer, stop_ids, user_turn_ids
from ..training.weights import locate_model
from .endpoint import Request, open_endpoint
from .ledger import Answers, Ledger
from .replies import CUT_SHORT, Reply, after_thinking, reply_of

FOUR_BIT = {"type": "nf4", "double": True, "compute_dtype": "auto"}


def open_engine(stage, role: dict):
    """The endpoint that a teacher or judge of a profile names, or its local weights."""
    return open_endpoint(stage, role) if role["endpoint"] else LocalWeights(stage, role)


def request(
    role: dict,
    prompt: str,
    settings: dict,
    scheme: str,
    repeat: int = 0,
    system: str = "",
    form: str | None = None,
    shown: Shown = (),
) -> Request:
    """A call to a teacher or judge in the form it wants: `mode: raw` completes the profile's wrapper around the prompt, where a
    system message stands at its head; `mode: chat` leaves both to the chat template. What is `shown` are earlier (prompt, reply).

    `form` is for what no mode does: `continued` goes on with the prompt as it is, `user_turn` with the chat template's empty turn
    of a user.
    """
    if form:
        return Request(prompt, settings, {"continued": "raw"}.get(form, form), scheme, repeat)
    if role["mode"] == "chat":
        return Request(prompt, settings, "chat", scheme, repeat, system, shown)
    earlier = "".join(f"{role['wrapper'].format(prompt=asked)} {reply}\n" for asked, reply in shown)
    return Request(earlier + role["wrapper"].format(prompt=teacher_prompt(system, prompt)), settings, "raw", scheme, repeat)


class LocalWeights:
    """A model in this process, loaded when first needed. A batch is written as a whole: resumed batches hold the same rows."""

    def __init__(self, stage, role: dict):
        self.role, self.ledger = role, Ledger(stage.output("calls.jsonl"))
        self.path, self.identity = locate_model(stage, role["model"], role["revision"])
        self.tokenizer, self.model = load_tokenizer(self.path, stage), None

    def ask(self, requests: list[Request], progress=None) -> list[Reply]:
        """A reply for each request, in their order. Equal requests are one; what the ledger holds is not generated again."""
        made_by = {"model": self.identity, "four_bit": self.role["four_bit"], "precision": current().dtype}
        keys = [files.sha256_json(made_by | request.told()) for request in requests]
        by_key = dict(zip(keys, requests))
        ids, answers = {key: self._ids(request) for key, request in by_key.items()}, Answers(keys, self.ledger.finished, progress)
        context = self._context()
        fits = {key: len(ids[key]) + request.settings["max_tokens"] <= context for key, request in by_key.items()}
        answers.add(*({"key": key, "failure": "too long"} for key in by_key if not fits[key]))
        fitting = [key for key in by_key if fits[key]]
        for batch in by_length([by_key[key].prompt for key in fitting], self.role["batch_size"]):
            batch_keys = [fitting[i] for i in batch]
            if any(key in answers.missing for key in batch_keys):
                within = within_batch(progress, answers.done, len(batch), len(keys))
                answers.add(*self._answer(batch_keys, by_key, ids, within))
        return [reply_of(row) for row in answers.in_order()]

    def _ids(self, request: Request) -> list[int]:
        if request.mode == "chat":
            return chat_ids(self.tokenizer, request.prompt, request.system, request.shown)
        if request.mode == "user_turn":
            return user_turn_ids(self.tokenizer)
        return self.tokenizer(request.prompt)["input_ids"]

    def _context(self) -> float:
        """Tokens of a prompt and its reply together."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.path, trust_remote_code=False).get_text_config()
        return getattr(config, "max_position_embeddings", None) or float("inf")

    def _answer(self, keys: list[str], requests: dict[str, Request], ids: dict[str, list[int]], progress) -> list[dict]:
        """The rows of one batch, which are on disk when this returns."""
        if self.model is None:
            self.model = load_model(self.path, FOUR_BIT if self.role["four_bit"] else None)
        settings = requests[keys[0]].settings
        sampling = {"max_new_tokens": settings["max_tokens"], "temperature": settings["temperature"]}
        sampling["top_p"] = settings.get("top_p", 1.0)
        seeds = [requests[key].settings.get("seed", requests[key].repeat) for key in keys]
        prompts = [ids[key] for key in keys]
        tokens = continue_batch(self.model, self.tokenizer, prompts, seeds, progress=progress, **sampling)
        counts = [{"tokens_in": len(ids[key]), "tokens_out": len(reply), "cost_usd": 0.0} for key, reply in zip(keys, tokens)]
        cut = [{} if reply[-1] in stop_ids(self.tokenizer) else {"note": CUT_SHORT} for reply in tokens]
        texts = [after_thinking(text) for text in texts_of(self.tokenizer, tokens)]
        rows: list[dict] = [{"key": key, "text": text, **count, **note} for key, text, count, note in zip(keys, texts, counts, cut)]
        self.ledger.append(*rows)
        return rows
