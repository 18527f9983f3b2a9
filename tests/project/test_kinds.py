"""Every cell of the table in docs/data.md: which kind of data works in which step."""

import json
import re
import subprocess
import sys

import pytest
from datasets import Dataset

from support.hub_server import HubServer
from support.judge_server import MODEL, JudgeServer
from support.project import ROOT
from support.tiny import TOOL_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer
from support.training import as_messages, config, pairs
from support.vision import save_vlm, tiny_processor, tiny_vlm, with_pictures
from trl_real import (
    ChatJudge,
    EmbeddingPairSelector,
    REALDPOTrainer,
    ScoreJudge,
    annotate,
    from_traces,
    split_turns,
)
from trl_real.errors import TrlRealError
from trl_real.labeling.people.page_html import pair_html
from trl_real.labeling.people.queue import VoteQueue
from trl_real.runtime.journal import Journal


pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = ("select", "label", "page", "judge", "train", "push")
LABELLED = "no: these rows have labels"
TABLE = {
    "texts": ("yes",) * 6,
    "messages": ("yes",) * 6,
    "messages of parts": ("yes",) * 6,
    "calls of tools": ("yes",) * 6,
    "images": ("yes", "yes", "yes", "yes: a server; models in this process read texts and refuse", "yes", "yes"),
    "traces of agents": ("yes",) * 6,
    "ready pairs": ("yes",) * 6,
    "labelled pairs": ("yes", LABELLED, LABELLED, "yes: check", "yes", "yes"),
    "several turns": ("yes", LABELLED, LABELLED, "yes: check", "yes", "yes"),
}
N = 4


def words(i: int, k: int) -> str:
    return f"{('tea', 'rain', 'a poem', 'Paris')[(i + k) % 4]} number {i * 7 + k}"


def user(i: int) -> list[dict]:
    return [{"role": "user", "content": f"Question {i}?"}]


def said(text: str, **fields) -> list[dict]:
    return [{"role": "assistant", "content": text, **fields}]


def parts(messages: list[dict]) -> list[dict]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def pool(prompt, response, **more) -> Dataset:
    rows = [
        {"prompt": prompt(i), "responses": [response(i, k) for k in range(3)], "scores": [0.0, 1.0, 2.0], **more}
        for i in range(N)
    ]
    return Dataset.from_list(rows)


def call(i: int, k: int) -> list[dict]:
    function = {"name": "search", "arguments": json.dumps({"words": words(i, k)})}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


def traces() -> Dataset:
    result = {"role": "tool", "content": "found", "name": "search"}
    runs = [
        {"messages": [*user(i), *call(i, k), result, *said(words(i, k))], "score": float(k)}
        for i in range(N)
        for k in range(2)
    ]
    return from_traces(Dataset.from_list(runs))


def dialogues() -> Dataset:
    rows = []
    for i in range(N):
        sides = [[*user(i), *said(words(i, k)), *user(i + 9), *said(words(i, k + 2))] for k in range(2)]
        rows.append({"chosen": sides[0], "rejected": sides[1]})
    return split_turns(Dataset.from_list(rows))


TOOLS = json.dumps([{"type": "function", "function": {"name": "search", "parameters": {}}}])
KINDS = {
    "texts": lambda: pool(lambda i: f"Question {i}?", words),
    "messages": lambda: pool(user, lambda i, k: said(words(i, k))),
    "messages of parts": lambda: pool(lambda i: parts(user(i)), lambda i, k: parts(said(words(i, k)))),
    "calls of tools": lambda: pool(user, call, tools=TOOLS),
    "images": lambda: with_pictures(pool(user, lambda i, k: said(words(i, k))).to_list()),
    "traces of agents": traces,
    "ready pairs": lambda: Dataset.from_list(
        [{"prompt": f"{i}?", "response_a": words(i, 0), "response_b": words(i, 1), "scores": [1.0, 0.0]}
         for i in range(N)]
    ),
    "labelled pairs": lambda: Dataset.from_list([as_messages(row) for row in pairs(N)]),
    "several turns": dialogues,
}  # fmt: skip


def tokenizer_with_tools():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The paths of a text model whose template writes tools, and of a vision-language model."""
    text = save_tiny(tmp_path_factory.mktemp("text"))
    tokenizer_with_tools().save_pretrained(text)
    return {"text": text, "images": save_vlm(tmp_path_factory.mktemp("vlm"))}


def selected(kind: str) -> Dataset:
    model = (tiny_vlm(), tiny_processor()) if kind == "images" else (tiny_model(), tokenizer_with_tools())
    return EmbeddingPairSelector(model[0], tokenizer=model[1]).select(KINDS[kind](), 3)


def labelled(kind: str) -> Dataset:
    rows = selected(kind)
    return rows if "chosen" in rows.column_names else annotate(rows, ScoreJudge())


def select(kind, *_):
    rows = selected(kind)
    assert len(rows) == 3 and all(value == value for value in rows["similarity"])


def label(kind, *_):
    assert len(annotate(selected(kind), ScoreJudge())) == 3


def page(kind, models, folder):
    queue = VoteQueue(selected(kind), Journal(folder / "votes.jsonl"), "ann")
    shown = pair_html(queue.next(), queue.progress, "ann", 1)
    assert "number" in shown and ("data:image/png" in shown) == (kind == "images")


def judge(kind, models, folder):
    with JudgeServer() as server:
        asked = ChatJudge(MODEL, base_url=server.url, api_key="k", cache=folder / "answers.sqlite")
        rows = selected(kind)
        if "chosen" in rows.column_names:
            assert asked.check(rows).accuracy is not None
        else:
            assert len(annotate(rows, asked)) == 3
        body = json.dumps(server.bodies[0]["messages"])
    assert "number" in body or "chosen" in rows.column_names
    assert ("image_url" in body) == (kind == "images")
    assert ("[call] search" in body) == (kind in ("calls of tools", "traces of agents"))


def train(kind, models, folder):
    processing = tiny_processor() if kind == "images" else tokenizer_with_tools()
    trainer = REALDPOTrainer(
        models["images" if kind == "images" else "text"],
        args=config(folder / "out", max_steps=1, selection_strategy="easy", selection_budget=2),
        train_dataset=labelled(kind),
        processing_class=processing,
    )
    trainer.train()
    assert len(trainer.train_dataset) == 2 and trainer.state.global_step == 1


PUSH = """
import json, sys
from datasets import load_dataset, load_from_disk
from trl_real import SelectionRecord, push_subset
rows = load_from_disk(sys.argv[1])
counts = {"n_rows": 4, "n_kept": len(rows), "n_not_chosen": 4 - len(rows)}
record = SelectionRecord(strategy="easy", budget=3, seed=42, model="m", **counts)
push_subset(rows, "user/kind", record=record, config_name="kind")
found = load_dataset("user/kind", "kind", split="train")
print(json.dumps([len(found), {name: found.features[name] == rows.features[name] for name in found.features}]))
"""


def push(kind, models, folder):
    rows = labelled(kind)
    rows.save_to_disk(folder / "labels")
    with HubServer() as hub:
        environment = hub.environment(folder)
        command = [sys.executable, "-c", PUSH, str(folder / "labels")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    n_rows, same = json.loads(done.stdout.splitlines()[-1])
    assert n_rows == len(rows) and all(same.values()) and {"prompt", "chosen", "rejected"} <= set(same)
    assert kind != "images" or "images" in same


RUN = {"select": select, "label": label, "page": page, "judge": judge, "train": train, "push": push}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", TABLE)
def test_cell(kind, step, models, tmp_path):
    if TABLE[kind][STEPS.index(step)].startswith("yes"):
        RUN[step](kind, models, tmp_path)
    else:
        with pytest.raises(TrlRealError):
            RUN[step](kind, models, tmp_path)


def test_the_page_has_the_same_table():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    head = f"| kind of data | {' | '.join(STEPS)} |"
    lines = text[text.index(head) :].splitlines()[2 : 2 + len(TABLE)]
    shown = {
        cells[0]: tuple(cells[1:]) for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)
    }
    assert {re.sub(r" \(.*\)$", "", kind): cells for kind, cells in shown.items()} == TABLE
    assert set(KINDS) == set(TABLE) and tuple(RUN) == STEPS
