"""Text of a message for judges and people: content, parts that are no text, calls of tools, thoughts and names."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trl_real.errors import TrlRealError


# Fields of a message, besides its content, that are part of what it says.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
TOOL_ROLES = ("tool", "function")
LONGEST_ADDRESS = 200  # characters of an address that a placeholder shows


def is_message(value: Any) -> bool:
    """Return whether `value` is a message: a mapping with a content or a role."""
    return isinstance(value, Mapping) and ("content" in value or isinstance(value.get("role"), str))


def is_plain(message: Mapping[str, Any]) -> bool:
    """Return whether the text of a message is its content alone, and its content is text."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [{"text": content}]
    fields = any(message.get(name) for name in (*THOUGHTS, *CALLS, "name"))
    return not fields and message.get("role") not in TOOL_ROLES and all(map(_is_text, parts))


def message_text(message: Mapping[str, Any], role: bool = True) -> str:
    """
    Return everything that a message says as text: its content if it is plain text, else also the parts, calls,
    thoughts and name, in brackets. Ids of calls and unknown fields are left out.

    Args:
        message: Message, with absent fields missing or None.
        role: Whether to mark the answer of a tool as such; other roles are never marked.
    """
    thoughts = [f"[{name}] {message[name]}" for name in THOUGHTS if message.get(name)]
    calls = [call for name in CALLS for call in _as_list(message.get(name))]
    blocks = [*thoughts, _content(message.get("content")), *map(_call, calls)]
    text = "\n".join(block for block in blocks if block)
    marks = [mark for mark in (role and message.get("role") in TOOL_ROLES and "tool", message.get("name")) if mark]
    return f"[{' '.join(marks)}] {text}" if marks else text


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise TrlRealError(
            f"A message has a content of type {type(content).__name__}. Give a text, or a list of parts: "
            '{"role": "user", "content": "…"}'
        )
    return "".join(part["text"] or "" if _is_text(part) else _placeholder(part) for part in map(_as_part, content))


def _as_part(part: Any) -> Mapping[str, Any]:
    return part if isinstance(part, Mapping) else {"type": "text", "text": part if isinstance(part, str) else ""}


def _is_text(part: Any) -> bool:
    return not isinstance(part, Mapping) or "text" in part and part.get("type") in (None, "text", "output_text")


def _placeholder(part: Mapping[str, Any]) -> str:
    """Return what stands for a part that is no text, such as `[image https://…]`; bytes are told by a digest."""
    kind = part.get("type") or next((name for name, value in part.items() if value is not None), "part")
    found = [value for name, value in part.items() if name != "type" and value is not None]
    value = next(iter(found), None)
    if isinstance(value, Mapping):
        value = value.get("url") or value.get("bytes") or value.get("path") or value
    if isinstance(value, Mapping | list):
        return f"[{kind} {_json(value)}]"
    if isinstance(value, str) and not value.startswith("data:"):
        if kind in THOUGHTS or len(value) <= LONGEST_ADDRESS:
            return f"[{kind} {value}]"
    return f"[{kind}]" if value is None else f"[{kind} {hashlib.sha256(_bytes(value)).hexdigest()[:12]}]"


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.tobytes() if hasattr(value, "tobytes") else str(value).encode("utf-8", "surrogatepass")


def _call(call: Any) -> str:
    """Return a call as `[call] name(arguments)`, with the arguments as JSON in a fixed order."""
    if not isinstance(call, Mapping):
        return f"[call] {call}"
    function = call.get("function") or call
    if not isinstance(function, Mapping) or "name" not in function:
        return f"[call] {_json(call)}"
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return f"[call] {function['name']}({arguments})"
    return f"[call] {function['name']}({'' if arguments is None else _json(arguments)})"


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _json(value: Any) -> str:
    """Return JSON without the fields that Arrow fills with None."""
    return json.dumps(_without_none(value), sort_keys=True, ensure_ascii=False, default=str)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
