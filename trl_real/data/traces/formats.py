"""Sessions of agents in the formats of the programs that write them: one JSON object a line, one file a session."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


NOT_JSON = "a line is not JSON"
UNKNOWN = "unknown format"
# What harnesses put into the user's mouth: the surroundings, not the task.
SURROUNDINGS = (
    "<environment_context>",
    "<user_instructions>",
    "# AGENTS.md instructions",
    "<permissions instructions>",
)


@dataclass
class Session:
    """
    Session of an agent.

    Args:
        id: Name of the session.
        harness: Program that wrote it, such as `"claude_code"`.
        model: Model that answered last; empty if unknown.
        messages: Conversation in OpenAI's format, with calls of tools and their results.
    """

    id: str = ""
    harness: str = ""
    model: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)


def read_session(file: Path, skipped: Counter) -> Session | None:
    """Read the file of a session; count why it cannot be read, and return None."""
    events: list[dict[str, Any]] = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            event = json.loads(line) if line.strip() else None
        except ValueError:
            if number == len(lines) - 1 and events:  # cut off by the end of its program
                break
            skipped[NOT_JSON] += 1
            return None
        if isinstance(event, dict):
            events.append(event)
    reader = next((read for knows, read in FORMATS if any(map(knows, events))), None)
    if reader is None:
        skipped[UNKNOWN] += 1
        return None
    session = reader(events)
    session.id = session.id or file.stem
    return session


def _claude_code(events: list[dict[str, Any]]) -> Session:
    """Lines of type user and assistant with Anthropic's blocks; those of one answer share its id."""
    session, last = Session(harness="claude_code"), None
    for event in events:
        message = event.get("message")
        if event.get("type") not in ("user", "assistant") or not isinstance(message, dict):
            continue
        if event.get("isSidechain") or event.get("isMeta"):
            continue
        session.id = event.get("sessionId") or session.id
        session.model = message.get("model") or session.model
        joins = message.get("id") is not None and message.get("id") == last
        _add_blocks(session.messages, str(message.get("role")), message.get("content"), joins)
        last = message.get("id")
    return session


def _codex(events: list[dict[str, Any]]) -> Session:
    """Items of OpenAI's Responses API in `response_item`; other events repeat them, or count tokens."""
    session = Session(harness="codex")
    for event in events:
        payload = event.get("payload")
        if not isinstance(payload, dict):
            continue
        if event.get("type") == "session_meta":
            session.id = session.id or str(payload.get("id") or payload.get("session_id") or "")
        elif event.get("type") == "turn_context":
            session.model = payload.get("model") or session.model
        elif event.get("type") == "response_item":
            _add_item(session.messages, payload)
    return session


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any]) -> None:
    kind, call = item.get("type"), item.get("call_id")
    if kind == "message" and item.get("role") in ("user", "assistant", "system"):
        _add(messages, {"role": item["role"], "content": _text(item.get("content"))})
    elif kind == "reasoning":
        _add(messages, {"role": "assistant", "reasoning_content": _text(item.get("summary"))}, True)
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments", item.get("input"))
        _add(messages, {"role": "assistant", "tool_calls": [_call(call, item.get("name"), arguments)]}, True)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = item.get("output")
        content = output.get("content", output) if isinstance(output, dict) else output
        _add(messages, {"role": "tool", "tool_call_id": call, "content": _text(content)})


def _pi(events: list[dict[str, Any]]) -> Session:
    """Messages in a tree by `parentId`, of which the branch of the last one counts; the header says who wrote them."""
    header = next((event for event in events if event.get("type") == "session"), {})
    session = Session(str(header.get("id") or ""), header.get("harness") or "pi")
    for event in _branch([event for event in events if event.get("type") != "session"]):
        message = event.get("message")
        if event.get("type") != "message" or not isinstance(message, dict):
            continue
        session.model = message.get("model") or session.model
        if message.get("role") in ("toolResult", "tool"):
            call = message.get("toolCallId") or message.get("tool_call_id")
            _add(session.messages, {"role": "tool", "tool_call_id": call, "content": _text(message.get("content"))})
        elif message.get("tool_calls") or message.get("reasoning_content"):  # the Hub's own format has OpenAI's fields
            _add(session.messages, plain_message(message))
        elif message.get("role") in ("user", "assistant", "system"):
            _add_blocks(session.messages, message["role"], message.get("content"))
    return session


def _branch(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events from the root to the last message; all of them if they have no parents."""
    by_id = {event["id"]: event for event in events if event.get("id")}
    leaf = next((event for event in reversed(events) if event.get("type") == "message"), None)
    if leaf is None or "parentId" not in leaf:
        return events
    path = []
    while leaf is not None and leaf not in path:
        path.append(leaf)
        leaf = by_id.get(leaf.get("parentId"))
    return path[::-1]


FORMATS: tuple[tuple[Callable[[dict], bool], Callable[[list], Session]], ...] = (
    (lambda event: event.get("type") in ("session_meta", "response_item"), _codex),
    (lambda event: event.get("type") in ("session", "message"), _pi),
    (lambda event: event.get("type") in ("user", "assistant") and "message" in event, _claude_code),
)


def _add_blocks(messages: list[dict[str, Any]], role: str, content: Any, joins: bool = False) -> None:
    """Add a message whose content is a text or blocks; results of tools become messages of their own."""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    said: dict[str, Any] = {"role": role}
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind == "tool_result":
            result = {"tool_call_id": block.get("tool_use_id"), "content": _text(block.get("content"))}
            _add(messages, {"role": "tool", **result})
        elif kind == "thinking":
            said["reasoning_content"] = said.get("reasoning_content", "") + (block.get("thinking") or "")
        elif kind in ("tool_use", "toolCall"):
            arguments = block.get("input", block.get("arguments"))
            said.setdefault("tool_calls", []).append(_call(block.get("id"), block.get("name"), arguments))
        else:
            said["content"] = "\n".join(filter(None, [said.get("content"), _text([block])]))
    _add(messages, said, joins)


def _add(messages: list[dict[str, Any]], message: dict[str, Any], joins: bool = False) -> None:
    """Add a message unless it is empty; one that `joins` continues the assistant's message before it."""
    message = {name: value for name, value in message.items() if value}
    if message["role"] == "user" and str(message.get("content") or "").lstrip().startswith(SURROUNDINGS):
        return
    if len(message) == 1 or message.keys() == {"role", "tool_call_id"}:
        message["content"] = ""
        if message["role"] != "tool":
            return
    if joins and messages and messages[-1]["role"] == message["role"] == "assistant":
        before = messages[-1]
        before["tool_calls"] = [*before.get("tool_calls", []), *message.get("tool_calls", [])]
        for name in ("content", "reasoning_content"):
            before[name] = "\n".join(filter(None, [before.get(name), message.get(name)]))
        messages[-1] = {"role": "assistant", **{n: v for n, v in before.items() if v and n != "role"}}
    else:
        messages.append(message)


def _call(number: Any, name: Any, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {"id": number, "type": "function", "function": {"name": name, "arguments": text}}


def _text(content: Any) -> str:
    """Return the text of a content; a part that is no text, such as an image, is named."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = (part if isinstance(part, str) else part.get("text", f"[{part.get('type')}]") for part in parts)
    return "\n".join(filter(None, texts))


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in the pool's fields."""
    found: dict[str, Any] = {"role": str(message.get("role")), "content": _text(message.get("content"))}
    calls = [call for call in message.get("tool_calls") or [] if isinstance(call, Mapping)]
    functions = [call.get("function") or call for call in calls]
    found["tool_calls"] = [
        _call(call.get("id"), function.get("name"), function.get("arguments"))
        for call, function in zip(calls, functions, strict=True)
    ]
    found |= {name: message.get(name) for name in ("reasoning_content", "tool_call_id", "name")}
    return {name: value for name, value in found.items() if value or name == "content"}
