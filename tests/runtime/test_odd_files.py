"""What cannot be read in a file of a run counts as absent, or is one line that names the file; never a traceback."""

import json
import sqlite3

import pytest
from datasets import Dataset

from trl_real import TrlRealError, annotate
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.people.votes import VoteBook
from trl_real.models.generation.journal import Completion, GenerationCache
from trl_real.runtime.journal import Journal
from trl_real.runtime.run_folder import RoundFolder
from trl_real.selection.record import RECORD_FILE, SelectionRecord
from trl_real.study.grid import Cell, StudyFolder
from trl_real.training.noise_window import WINDOW_FILE, NoiseWindow


ODD = [
    b"", b"[]", b"null", b"7", b'"x"', b"{", b"\xff\xfe\x00", b"not json", b"[" * 100_000, b'{"a": 1}', b'{"a": []}',
    b'{"key": [], "verdict": {}, "annotator": 1, "shown_first": "a", "undo": []}',
]  # fmt: skip


def rounds(folder):
    RoundFolder(folder, {"seed": 1}).round(1)


def record(folder):
    SelectionRecord.load(folder)


def window(folder):
    NoiseWindow(100, 10).load(folder)


def cell(folder):
    StudyFolder(folder, {"seed": 1}).result(Cell("easy", 1, 0))


READERS = {
    "settings": ("rounds.json", rounds),
    "state": ("round-01/state.json", rounds),
    "record": (RECORD_FILE, record),
    "noise window": (WINDOW_FILE, window),
    "votes": ("votes.jsonl", lambda folder: VoteBook.read(folder / "votes.jsonl")),
    "texts": ("texts.jsonl", lambda folder: GenerationCache(folder / "texts.jsonl", dict)),
    "cell": ("cells/easy-1-0.npz", cell),
}


@pytest.mark.parametrize("content", ODD, ids=[repr(content[:12]) for content in ODD])
@pytest.mark.parametrize("reader", READERS)
def test_an_odd_file_is_named_or_counts_as_absent(reader, content, tmp_path):
    name, read = READERS[reader]
    if reader == "state":
        RoundFolder(tmp_path, {"seed": 1}).round(1)
    if reader == "cell":
        StudyFolder(tmp_path, {"seed": 1})
        (tmp_path / "cells/easy-1-0.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    try:
        read(tmp_path)
    except TrlRealError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)


def pairs(n=70):
    texts = {"prompt": [f"p{i}" for i in range(n)], "responses": [["a", "b"]] * n, "pair": [[0, 1]] * n}
    return Dataset.from_dict({**texts, "response_a": ["a"] * n, "response_b": ["b"] * n})


def first(batch):
    return [1.0] * len(batch["response_a"])


@pytest.mark.parametrize(
    "change",
    [{"probability": 7.0}, {"probability": "x"}, {"probability": None}, {"members": 3}, {"n_asked": "x"}, {"key": []}],
    ids=str,
)
def test_a_journal_line_without_a_verdict_is_asked_again(change, tmp_path):
    journal = tmp_path / "verdicts.jsonl"
    annotate(pairs(2), first, journal=journal)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text(
        "".join(json.dumps({**line, **change}) + "\n" for line in lines[:1]) + json.dumps(lines[1]) + "\n"
    )
    report = LabelReport()
    assert annotate(pairs(2), first, journal=journal, report=report)["chosen"][:] == ["a", "a"]
    assert report.n_resumed == 1


@pytest.mark.parametrize("content", ["", "[]", "null", "7", "{", "[" * 100_000])
def test_an_odd_answer_in_a_cache_is_absent(content, tmp_path):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put("good", {"text": "A"})
    cache._connection.execute("INSERT INTO answers VALUES ('odd', ?)", (content,))
    assert cache.get(["good", "odd"]) == {"good": {"text": "A"}}


def test_a_cache_of_another_kind_is_one_line(tmp_path):
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE answers (something)")
    with pytest.raises(TrlRealError, match="other.sqlite"):
        AnswerCache(tmp_path / "other.sqlite").get(["key"])


def test_files_that_hold_texts_are_for_their_owner_only(tmp_path):
    AnswerCache(tmp_path / "answers.sqlite").put("key", {"text": "A"})
    annotate(pairs(2), first, journal=tmp_path / "verdicts.jsonl")
    Journal(tmp_path / "votes.jsonl").append({"key": "k", "verdict": "a"})
    with GenerationCache(tmp_path / "texts.jsonl", dict) as texts:
        texts.add("Tea?", 1, 0, completions=[Completion("Yes.", "stop")])
    names = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir()}
    assert {"answers.sqlite", "verdicts.jsonl", "votes.jsonl", "texts.jsonl"} <= names.keys() and not any(
        names.values()
    )
