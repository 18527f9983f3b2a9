"""What a votes file holds: keys that every version finds again, times in UTC, and what an annotator is told."""

import json
import re
from datetime import UTC, datetime

import pytest
from datasets import Dataset

from trl_real.labeling.people.desk import Desk
from trl_real.labeling.people.votes import pair_key


USER, REPLY = {"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Boil it."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
TOOL = {"role": "tool", "content": "7"}
# Votes files of older versions hold these keys: another one means that people vote again.
KEYS = {
    "texts": (("Tea?", "Boil it.", "No."), "d5036a42628e6a935d4ce8d7ddd3dd01"),
    "messages": (([USER], [REPLY], [REPLY, USER, REPLY]), "8f3bd5a60f09e94c943943fcf1815952"),
    "a tool": (([USER, CALL, TOOL], [REPLY], "No."), "431f189014222261068ff0ba1000a592"),
    "other letters": (("Tee für \ud800?", "…", "🍵"), "3f1370d7a13a0eeb11ee5ee94178630a"),
    "nothing": (("", "", ""), "39623ca591e0c65aedf53f332da7505a"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_of_a_pair_never_changes(name):
    pair, key = KEYS[name]
    assert pair_key(*pair) == key


def key_of(view: str) -> str:
    return re.search(r'data-key="([^"]*)"', view)[1]


def test_an_annotator_is_told_of_another_window_only_where_a_vote_was_not_taken(tmp_path):
    rows = {"prompt": ["p"] * 3, "pair": [[0, 1]] * 3, "response_a": ["a", "b", "c"], "response_b": ["d", "e", "f"]}
    desk = Desk(Dataset.from_dict(rows), tmp_path / "votes.jsonl")
    views = [desk.show("ann")]

    def act(action, key, told=False):
        views.append(desk.act(action, {"annotator": "ann", "key": key, "seconds": 1.0}))
        assert ("Another window moved on" in views[-1]) == told

    first = key_of(views[0])
    act("left", None)  # a button that was pressed too early
    act("left", first)
    act("left", first, told=True)
    second = key_of(views[-1])
    assert second != first
    act("undo", first, told=True)
    act("undo", second)
    assert key_of(views[-1]) == first
    act("undo", first)  # nothing is left to undo, and this is where they are
    desk.close()
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if "time" in line]
    assert len(times) == 2, "a vote and its undo"
    for time in times:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", time)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()) < 60
