"""Agents' traces become pools: a task a row, attempts as responses, results as scores, nothing lost uncounted."""

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from trl_real import EmbeddingPairSelector, ScoreJudge, annotate, from_traces
from trl_real.data.traces.formats import FORMATS, NOT_JSON, UNKNOWN
from trl_real.data.traces.pool import LONE, NO_ANSWER, NO_REQUEST, SEVERAL
from trl_real.errors import MissingColumnError, TrlRealError


def claude_code(session: str, task: str, answer: str) -> list[dict]:
    """As in `~/.claude/projects`: the blocks of one answer on lines of their own, and work of a side agent."""
    head = {"sessionId": session, "isSidechain": False, "cwd": "/w", "version": "2.1.0", "timestamp": "2026-05-01"}

    def user(content, **more):
        return {**head, "type": "user", "message": {"role": "user", "content": content}, **more}

    def said(number, *blocks):
        message = {"role": "assistant", "model": "claude-x", "id": number, "type": "message", "content": list(blocks)}
        return {**head, "type": "assistant", "message": message}

    return [
        {"type": "file-history-snapshot", "messageId": "m", "snapshot": {}},
        user("Caveat: the messages below", isMeta=True),
        user(task),
        said("m1", {"type": "thinking", "thinking": "look first", "signature": "s"}),
        said("m1", {"type": "tool_use", "id": "c1", "name": "Bash", "input": {"command": "ls"}}),
        {**said("s1", {"type": "text", "text": "side"}), "isSidechain": True},
        user([{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "a.py"}]}]),
        said("m2", {"type": "text", "text": answer}),
        {"type": "summary", "summary": "Done", "leafUuid": "u"},
    ]


def codex(session: str, task: str, answer: str) -> list[dict]:
    """As in `~/.codex/sessions`: surroundings in the user's name, items, and events that repeat them."""

    def item(**payload):
        return {"timestamp": "2026-05-01T00:00:00Z", "type": "response_item", "payload": payload}

    def text(role, kind, words):
        return item(type="message", role=role, content=[{"type": kind, "text": words}])

    return [
        {"type": "session_meta", "payload": {"id": session, "cwd": "/w", "model_provider": "openai"}},
        text("developer", "input_text", "<permissions instructions>"),
        text("user", "input_text", "<environment_context>\n<cwd>/w</cwd>"),
        {"type": "turn_context", "payload": {"model": "codex-x", "cwd": "/w"}},
        text("user", "input_text", task),
        {"type": "event_msg", "payload": {"type": "user_message", "message": task}},
        item(type="reasoning", summary=[{"type": "summary_text", "text": "look first"}], encrypted_content="x"),
        item(type="function_call", name="Bash", arguments='{"command": "ls"}', call_id="c1"),
        item(type="function_call_output", call_id="c1", output="a.py"),
        {"type": "event_msg", "payload": {"type": "token_count", "info": {}}},
        text("assistant", "output_text", answer),
        {"type": "event_msg", "payload": {"type": "agent_message", "message": answer}},
    ]


def pi(session: str, task: str, answer: str) -> list[dict]:
    """As in `~/.pi/agent/sessions`: a tree, with a branch that was left."""

    def entry(number, parent, **message):
        return {"type": "message", "id": number, "parentId": parent, "timestamp": "2026-05-01", "message": message}

    blocks = [
        {"type": "thinking", "thinking": "look first"},
        {"type": "toolCall", "id": "c1", "name": "Bash", "arguments": {"command": "ls"}},
    ]
    return [
        {"type": "session", "version": 3, "id": session, "timestamp": "2026-05-01", "cwd": "/w"},
        {"type": "model_change", "id": "z", "parentId": None, "provider": "p", "modelId": "pi-x"},
        entry("a", "z", role="user", content=[{"type": "text", "text": task}]),
        entry("left", "a", role="assistant", content=[{"type": "text", "text": "a branch that was left"}]),
        entry("b", "a", role="assistant", content=blocks, model="pi-x", stopReason="toolUse"),
        entry(
            "c", "b", role="toolResult", toolCallId="c1", toolName="Bash", content=[{"type": "text", "text": "a.py"}]
        ),
        entry("d", "c", role="assistant", content=[{"type": "text", "text": answer}], model="pi-x"),
    ]


def sts(session: str, task: str, answer: str) -> list[dict]:
    """The Hub's own format, with messages of OpenAI's."""
    call = {"id": "c1", "type": "function", "function": {"name": "Bash", "arguments": '{"command": "ls"}'}}
    messages = [
        {"role": "user", "content": task},
        {"role": "assistant", "content": "", "reasoning_content": "look first", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
        {"role": "assistant", "content": answer},
    ]
    header = {"type": "session", "harness": "my-agent", "id": session, "name": "n"}
    return [header, *({"type": "message", "message": message} for message in messages)]


HARNESSES = {"claude_code": claude_code, "codex": codex, "pi": pi, "my-agent": sts}
CALL = {"id": "c1", "type": "function", "function": {"name": "Bash", "arguments": '{"command": "ls"}'}}


def write(folder: Path, name: str, events: list) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in events), encoding="utf-8")
    return path


def present(messages: list[dict]) -> list[dict]:
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


@pytest.mark.parametrize("harness", HARNESSES)
def test_sessions_of_a_harness_become_one_row_a_task(harness, tmp_path):
    for name, answer in (("s1", "It is a.py."), ("s2", "No idea.")):
        write(tmp_path, f"rollout-{name}", HARNESSES[harness](name, "Which file?", answer))
    (row,) = from_traces(tmp_path, results={"s1": True, "s2": False})
    assert present(row["prompt"]) == [{"role": "user", "content": "Which file?"}]
    assert present(row["responses"][0]) == [
        {"role": "assistant", "reasoning_content": "look first", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
        {"role": "assistant", "content": "It is a.py."},
    ]
    assert row["scores"] == [1.0, 0.0] and row["sessions"] == ["s1", "s2"] and row["harnesses"] == [harness] * 2
    model = {"claude_code": "claude-x", "codex": "codex-x", "pi": "pi-x", "my-agent": ""}[harness]
    assert row["models"] == [model] * 2


def test_every_format_has_a_session_here():
    assert {read for _, read in FORMATS} == {
        next(read for knows, read in FORMATS if any(map(knows, make("s", "t", "a")))) for make in HARNESSES.values()
    }


def test_attempts_of_different_harnesses_at_one_task_are_one_row(tmp_path):
    for harness, make in HARNESSES.items():
        write(tmp_path, harness, make(f"{harness}-1", "Which file?", f"By {harness}."))
    (row,) = from_traces(tmp_path)
    assert sorted(row["harnesses"]) == sorted(HARNESSES) and row["scores"] == [None] * 4


def test_sessions_in_are_sessions_out_plus_counted(tmp_path):
    good = [claude_code(f"s{i}", "Which file?", f"a {i}") for i in range(2)]
    again = [*good[0], *claude_code("s0", "And now?", "b")]
    cut = [*map(json.dumps, good[1]), '{"type": "user", "mess']
    sessions = {
        "g0": good[0], "cut at its end": cut, "again": again, "broken": ["{", *map(json.dumps, good[0])],
        "other": [{"kind": "log"}], "lone": codex("l", "Another task", "a"),
        "no answer": sts("n", "Which?", "x")[:2],
        "no request": [e for e in sts("r", "W", "x") if "user" not in str(e)],
    }  # fmt: skip
    for name, events in sessions.items():
        write(tmp_path, name, events)
    counts: Counter = Counter()
    pool = from_traces(tmp_path, counts=counts)
    assert counts == {SEVERAL: 1, NOT_JSON: 1, UNKNOWN: 1, LONE: 1, NO_ANSWER: 1, NO_REQUEST: 1}
    assert sum(map(len, pool["responses"])) + counts.total() == len(sessions)


def test_verified_runs_in_a_dataset_are_grouped_by_task(tmp_path):
    def run(task, answer, score, model):
        messages = [{"role": "user", "content": f"{task}, seed {score}"}, {"role": "assistant", "content": answer}]
        return {"task": task, "messages": messages, "score": score, "model": model}

    runs = [run("t1", "a", 0.0, "m"), run("t2", "b", 1.0, "m"), run("t1", "c", 1.0, "n"), run("t3", "d", 1.0, "m")]
    counts: Counter = Counter()
    pool = from_traces(Dataset.from_list(runs), counts=counts)
    assert len(pool) == 1 and pool[0]["scores"] == [0.0, 1.0] and pool[0]["models"] == ["m", "n"]
    assert counts == {LONE: 2}


def test_the_pool_is_selected_and_labelled_by_its_results(tmp_path):
    for name, answer in (("s1", "It is a.py."), ("s2", "No idea.")):
        write(tmp_path, name, claude_code(name, "Which file?", answer))
    pool = from_traces(tmp_path, results={"s1": 1.0, "s2": 0.0})
    (label,) = annotate(EmbeddingPairSelector(strategy="random").select(pool), ScoreJudge())
    assert label["chosen"][-1]["content"] == "It is a.py." and label["sessions"] == ["s1", "s2"]


def test_mistakes_are_told(tmp_path):
    write(tmp_path, "s1", claude_code("s1", "Which?", "a"))
    with pytest.raises(TrlRealError, match="results has 1 sessions that were not read, first 's9'"):
        from_traces(tmp_path, results={"s9": 1.0})
    with pytest.raises(TrlRealError, match="No trace .*nowhere"):
        from_traces(tmp_path / "nowhere")
    with pytest.raises(MissingColumnError, match="from_traces needs it"):
        from_traces(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(TrlRealError, match=r"Type: from_traces\(dataset\['train'\]\)"):
        from_traces(DatasetDict(train=Dataset.from_dict({"messages": ["a"]})))
