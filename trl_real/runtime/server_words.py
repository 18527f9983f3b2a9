"""What servers write into their answers: messages in many forms, and names of models."""

import json
import re
from typing import Any


WORDS = 300  # characters of a server's words in a message
MOST_TOKENS = 10**8  # of one answer: more is a mistake or a lie


def words_of(answer: str) -> str:
    """Return the words of a server's answer in one line: its message, or the start of what it sent."""
    found: Any = json_object(answer)
    for name in ("error", "message", "detail"):
        inner = found.get(name) if isinstance(found, dict) else None
        raw = (inner.get("metadata") or {}) if isinstance(inner, dict) else {}
        found = (raw.get("raw") if isinstance(raw, dict) else None) or inner or found
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False) if found else answer
    return printable(text, WORDS)


def printable(text: str, length: int = 200) -> str:
    """Return the words of a server, safe for a terminal: on one line, without control characters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:length]


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text holds; an empty one if it holds none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def reported_tokens(completion: dict[str, Any], name: str) -> int | None:
    """Return a number of tokens in the `usage` of an answer: 0 if it is not told, None if it cannot be right."""
    usage = completion.get("usage")
    found = usage.get(name) if isinstance(usage, dict) else None
    if found is None:
        return 0
    is_number = isinstance(found, int) and not isinstance(found, bool)
    return found if is_number and 0 <= found <= MOST_TOKENS else None


def text_and_thoughts(content: Any) -> tuple[str, str]:
    """Return the text and the thoughts of a message's content, which may be a text or a list of blocks."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, dict):
        is_thought = any(word in str(content.get("type", "")) for word in ("think", "reason"))
        inner = [
            content[name] for name in ("text", "thinking", "reasoning", "content", "summary") if content.get(name)
        ]
        parts = [text_and_thoughts(value) for value in inner]
        text, thoughts = ("".join(part[side] for part in parts) for side in (0, 1))
        return ("", text + thoughts) if is_thought else (text, thoughts)
    if isinstance(content, list):
        parts = [text_and_thoughts(block) for block in content]
        return "".join(part[0] for part in parts), "".join(part[1] for part in parts)
    return "", ""


# What may follow the name of the same model: dates, versions, sizes, formats and precisions.
_SAME = re.compile(
    r"(?:[-.:@](?:\d{4}-\d\d-\d\d|\d\d-\d\d|\d{3,8}|v\d+(?:[.:]\d+)*|latest|preview|exp|experimental|free|instruct|chat|it|hf"
    r"|gguf|mlx|awq|gptq|exl2|bnb|(?:fp|bf|f|int|mxfp|nvfp)\d+|w\d+a\d+|i?q\d[\w-]*|\d+bits?|\d+(?:\.\d+)?[bmk]|a\d+b"
    r"|[0-9a-f]{7,40}))*"
)


def same_model(found: str, asked: str) -> bool:
    """Return whether two names mean one model, as servers write them: paths, snapshots, dates, versions, files."""
    one, other = sorted((_model_name(found), _model_name(asked)), key=len)
    return not one or other.startswith(one) and bool(_SAME.fullmatch(other[len(one) :]))


def _model_name(name: str) -> str:
    """Return the last part of a path or id, of `models--x--y` in a cache, without `@revision`, in lower case."""
    parts = [part for part in name.replace("\\", "/").split("#")[0].split("/") if part]
    if "snapshots" in parts[1:]:
        parts = parts[: parts.index("snapshots")]
    last = parts[-1].rpartition("--")[2].partition("@")[0] if parts else ""
    name = last.lower().replace("_", "-").removesuffix(".gguf")
    return re.sub(r"^(?:[a-z]+\.)+(?=[a-z])", "", name)  # a vendor in front
