"""Traces of agents, as the Hub stores them: one JSON line an event, one file a session."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from trl_real.data.convert import from_rows, iterate, report, require_columns
from trl_real.data.message import is_message
from trl_real.data.traces.formats import Session, plain_message, read_session
from trl_real.errors import TrlRealError


NO_REQUEST = "no request of a user"
NO_ANSWER = "no answer of the agent"
SEVERAL = "the user spoke again"
LONE = "the only attempt at its task"

TEXT = Value("string")
CALL = {"id": TEXT, "type": TEXT, "function": {"name": TEXT, "arguments": TEXT}}
MESSAGE = {
    "role": TEXT, "content": TEXT, "reasoning_content": TEXT, "tool_calls": List(CALL), "tool_call_id": TEXT,
    "name": TEXT,
}  # fmt: skip
POOL = {
    "prompt": List(MESSAGE), "responses": List(List(MESSAGE)), "scores": List(Value("float64")),
    "models": List(TEXT), "sessions": List(TEXT), "harnesses": List(TEXT),
}  # fmt: skip


def from_traces(
    traces: str | Path | Sequence[str | Path] | Dataset,
    *,
    results: Mapping[str, float | bool] | None = None,
    counts: Counter | None = None,
) -> Dataset:
    """
    Convert traces of agents to a pool: the attempts at one task are the responses to one prompt.

    Sessions of Claude Code, Codex, Pi, and the Hub's own session format are read as those programs write them
    (https://huggingface.co/docs/hub/agent-traces). The prompt is all that stands before the agent's first message,
    without what a harness says of its surroundings; the response is all after it. Attempts belong together if their
    prompts are the same, or their rows name the same `task`.

    Args:
        traces: JSONL files, a folder of them (read with its subfolders), or a dataset with one attempt a row:
            `messages`, and optionally `task`, `score` (the result of a verifier), `model` and `session`.
        results: Result of each verified session, by its id or the name of its file: a score, or whether it passed.
        counts: Counter that receives the number of sessions that were skipped, per reason.

    Returns:
        Pool with `prompt`, `responses` (messages), and per response `scores` (None without a result), `models`,
        `sessions` and `harnesses`. Arguments of calls are JSON texts.

    Raises:
        TrlRealError: If there is no file, or `results` names a session that is not there.
        MissingColumnError: If a dataset has no `messages`.
    """
    skipped: Counter = Counter()
    if not isinstance(traces, str | Path | list | tuple):
        require_columns(traces, "from_traces", ("messages",))
        assert isinstance(traces, Dataset)
        found = [(_of_row(row, i), row.get("task"), row.get("score")) for i, row in enumerate(iterate(traces))]
        n_sessions = len(found)
    else:
        files = _files(traces)
        n_sessions = len(files)
        read = ((file.stem, read_session(file, skipped)) for file in files)
        found = [(session, None, _result(session, stem, results)) for stem, session in read if session is not None]
    _check_results(results, found)
    tasks: dict[str, list[tuple[Session, list, list, float | None]]] = {}
    for session, task, score in found:
        prompt, response, reason = _attempt(session.messages)
        if reason:
            skipped[reason] += 1
        else:
            name = json.dumps(prompt if task is None else task, sort_keys=True, default=str)
            tasks.setdefault(name, []).append((session, prompt, response, score))
    skipped[LONE] += sum(len(attempts) == 1 for attempts in tasks.values())
    rows = [_pool_row(attempts) for attempts in tasks.values() if len(attempts) > 1]
    pool = from_rows(rows, Features(POOL))
    return report("from_traces", n_sessions, pool, skipped, counts)


def _files(traces: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [traces] if isinstance(traces, str | Path) else list(traces)
    files: list[Path] = []
    for path in map(Path, given):
        files += sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise TrlRealError(f"No trace {(missing or [str(p) for p in given])[0]!r}: give JSONL files, or their folder.")
    return files


def _result(session: Session, stem: str, results: Mapping[str, float | bool] | None) -> float | None:
    value = (results or {}).get(session.id, (results or {}).get(stem))
    if value is not None and session.id not in (results or {}):
        session.id = stem  # the name that the results know
    return None if value is None else float(value)


def _check_results(results: Mapping[str, Any] | None, found: list[tuple[Session, Any, Any]]) -> None:
    known = {session.id for session, _, _ in found}
    missing = [name for name in results or () if name not in known]
    if missing:
        raise TrlRealError(
            f"results has {len(missing)} sessions that were not read, first {missing[0]!r}; there are "
            f"{sorted(known)[:3]}. Give the ids of the sessions, or the names of their files without .jsonl."
        )


def _of_row(row: Mapping[str, Any], number: int) -> Session:
    messages = [plain_message(message) for message in row["messages"] or [] if is_message(message)]
    name = row.get("session")
    return Session(str(number if name is None else name), row.get("harness") or "", row.get("model") or "", messages)


def _attempt(messages: list[dict[str, Any]]) -> tuple[list, list, str]:
    """Return the prompt of a conversation and the agent's messages after it, or why it is no attempt."""
    start = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    prompt, response = messages[:start], messages[start:]
    while response and response[-1]["role"] == "tool":  # nobody has read the last result
        response = response[:-1]
    reasons = {
        NO_REQUEST: all(message["role"] != "user" for message in prompt),
        NO_ANSWER: not response,
        SEVERAL: any(message["role"] == "user" for message in response),
    }
    return prompt, response, next((reason for reason, holds in reasons.items() if holds), "")


def _pool_row(attempts: list[tuple[Session, list, list, float | None]]) -> dict[str, Any]:
    """Return attempts at one task as a row, ordered so that no result shows."""
    sessions = sorted(attempts, key=lambda attempt: attempt[0].id)
    return {
        "prompt": sessions[0][1],
        "responses": [response for _, _, response, _ in sessions],
        "scores": [score for *_, score in sessions],
        "models": [session.model for session, *_ in sessions],
        "sessions": [session.id for session, *_ in sessions],
        "harnesses": [session.harness for session, *_ in sessions],
    }
