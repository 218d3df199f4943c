"""What came back: the reply to a call, and what a server's HTTP 200 says of text, ending and tokens."""

import re
from dataclasses import dataclass

from .attempts import Unanswered

CUT_SHORT = "finish_reason length"
BROKEN_OFF = ("error", "abort", "insufficient_system_resource")  # finish reasons of a text that is not whole
THINKING = re.compile(r"(?:\s*<(think|thinking)>.*?(?:</\1>|\Z))+\s*", re.DOTALL | re.IGNORECASE)  # unclosed, it is all there is
END_OF_THINKING = re.compile(r"^</think>[ \t]*$\s*", re.MULTILINE)
MOST_TOKENS = 10_000_000  # more than any model reads or writes in one call
CHARACTERS_A_TOKEN = 30  # more than any text has: a prompt of which fewer tokens were read was cut


@dataclass(frozen=True)
class Reply:
    """What came back. `text` is None when the call failed, and `failure` says why in a word or two.

    `note` is CUT_SHORT when the reply reached its length limit, "refusal" for a refusal, else another finish reason or empty.
    """

    text: str | None
    failure: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    note: str = ""


def reply_of(row: dict) -> Reply:
    """The reply that a row of the ledger holds."""
    return Reply(**{"text": None} | {name: row[name] for name in Reply.__dataclass_fields__ if name in row})


def answer(choice, mode: str) -> tuple[str, str]:
    """(text, note). An empty reply and a refusal are answers like any other; the note tells them apart from a finished text.

    Raises Unanswered when something else stands in place of a text, such as thinking or a call of a tool; AttributeError,
    LookupError or TypeError when it is not a reply at all.
    """
    message, content = (choice.message, choice.message.content) if mode == "chat" else (choice, choice.text)
    said, refusal, reason = _text(content), getattr(message, "refusal", None), choice.finish_reason
    if reason in BROKEN_OFF:
        raise Unanswered("error body", f"the server broke the reply off (finish_reason {reason})")
    text = after_thinking(said or "") or refusal
    if not text:
        _require_empty(message, said, reason)
    note = "refusal" if refusal else "" if reason == "stop" else f"finish_reason {reason}"
    return (text or "").encode(errors="replace").decode(), note  # half a surrogate pair cannot be written to a file


def _text(content) -> str | None:
    """A message's text; some servers send a list of parts, of which the thinking is not the answer."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if isinstance(content, str | None):
        return content
    raise TypeError("the content is not text")


def after_thinking(text: str) -> str:
    """What follows the thinking that some servers leave in the text; its opening tag may stand in the prompt's template."""
    if opened := THINKING.match(text):
        return text[opened.end() :]
    return text if "<think" in text.partition("</think>")[0] else END_OF_THINKING.split(text, maxsplit=1)[-1]


def _require_empty(message, said: str | None, reason) -> None:
    """Raises Unanswered or TypeError unless the server really replied with an empty text."""
    if reason == "content_filter":
        raise Unanswered("flagged", "the server's content filter kept the reply back")
    if any(getattr(message, name, None) for name in ("tool_calls", "function_call")):
        raise Unanswered("tool call", "the reply is a call of a tool without a text: serve the model without tools")
    if said or reason == "length" or any(getattr(message, name, None) for name in ("reasoning_content", "reasoning")):
        raise Unanswered("only thinking", "the reply is reasoning without a text: allow more tokens, or switch the thinking off")
    if said is None:
        raise TypeError("there is no text")


def counted_tokens(completion, text: str) -> tuple[int, int] | None:
    """(prompt tokens, reply tokens) as the server counts them; None when it does not, or counts what cannot be."""
    usage = getattr(completion, "usage", None)
    read, written = (getattr(usage, f"{name}_tokens", -1) for name in ("prompt", "completion"))
    if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in (read, written)):
        return None
    return (read, written) if read and (written or not text) else None


def require_whole(prompt: str, tokens: tuple[int, int] | None) -> None:
    """Raises Unanswered when fewer tokens were read than the prompt can have: some servers cut it without a word (Ollama)."""
    if tokens and len(prompt) > CHARACTERS_A_TOKEN * tokens[0]:
        read = f"the server read {tokens[0]} tokens of a prompt of {len(prompt)} characters"
        raise Unanswered("prompt cut", f"{read}: give it more context (docs/serving.md)")
