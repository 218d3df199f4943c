"""What came back: the reply to a call, and what a server's HTTP 200 says of text, ending and tokens."""

from dataclasses import dataclass

from .attempts import Unanswered

CUT_SHORT = "finish_reason length"
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

    Raises Unanswered when there is reasoning and no text: the thinking took all the tokens.
    """
    refusal, content = (choice.message.refusal, _text(choice.message.content)) if mode == "chat" else (None, choice.text)
    thinking = any(getattr(choice.message, name, None) for name in ("reasoning_content", "reasoning")) if mode == "chat" else False
    if thinking and not content and not refusal:
        raise Unanswered("only thinking", "the reply is reasoning without a text: allow more tokens, or switch the thinking off")
    reason = choice.finish_reason
    note = "refusal" if refusal else "" if reason == "stop" else f"finish_reason {reason}"
    return (content or refusal or "").encode(errors="replace").decode(), note  # half a surrogate pair cannot be written to a file


def _text(content) -> str | None:
    """A message's text; some servers send a list of parts, of which the thinking is not the answer."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def counted_tokens(completion) -> tuple[int, int] | None:
    """(prompt tokens, reply tokens) as the server counts them; None when it does not, or counts what cannot be."""
    try:
        tokens = int(completion.usage.prompt_tokens), int(completion.usage.completion_tokens)
    except (AttributeError, TypeError, ValueError):
        return None
    return tokens if tokens[0] > 0 and tokens[1] >= 0 else None


def require_whole(prompt: str, tokens: tuple[int, int] | None) -> None:
    """Raises Unanswered when fewer tokens were read than the prompt can have: some servers cut it without a word (Ollama)."""
    if tokens and len(prompt) > CHARACTERS_A_TOKEN * tokens[0]:
        read = f"the server read {tokens[0]} tokens of a prompt of {len(prompt)} characters"
        raise Unanswered("prompt cut", f"{read}: give it more context (docs/serving.md)")
