"""Every verb tells bad rows at its door in one line; no traceback."""

import json

import pytest
from datasets import Dataset

from support.command_line import fails
from support.tiny import save_tiny
from trl_real import TrlRealError
from trl_real.data.row_check import check_pool, check_texts


GOOD = {"prompt": "Tea?", "chosen": "Boil water.", "rejected": "No."}
ROLELESS = [{"content": "Boil water."}]
BAD = {
    "chosen None": {"chosen": None},
    "chosen a number": {"chosen": 7},
    "chosen an object": {"chosen": {"a": 1}},
    "chosen empty list": {"chosen": []},
    "chosen numbers": {"chosen": [1, 2]},
    "chosen without role": {"chosen": ROLELESS, "rejected": ROLELESS, "prompt": ROLELESS},
    "role None": {name: [{"role": None, "content": "x"}] for name in GOOD},
    "content None": {name: [{"role": "user", "content": None}] for name in GOOD},
    "prompt None": {"prompt": None},
    "prompt a number": {"prompt": 7},
    "prompt an object": {"prompt": {"a": "b"}},
}
TRAIN = ["--report_to", "none", "--max_steps", "1"]
VERBS = {
    "train": ["train", *TRAIN, "--model", "MODEL", "--dataset"],
    "sft": ["sft", *TRAIN, "--model", "MODEL", "--dataset"],
    "eval": ["train", *TRAIN, "--model", "MODEL", "--dataset", "GOOD", "--eval_dataset"],
}


POOLS = {
    "one of the 'responses' is a int": {"prompt": ["a", "b"], "responses": [[1, 2], [3]]},
    "'responses' holds a str": {"prompt": ["a", "b"], "responses": ["x", "y"]},
    "'prompt' holds nothing": {"prompt": ["a", None], "responses": [["x"], None]},
}


@pytest.mark.parametrize("reason", POOLS)
def test_a_pool_is_checked_as_a_whole(reason):
    with pytest.raises(TrlRealError, match=reason):
        check_pool(Dataset.from_dict(POOLS[reason]), "responses")
    check_pool(Dataset.from_dict({"prompt": ["a", "b"], "responses": [["x", None], None]}), "responses")


def test_a_row_is_all_texts_or_all_messages():
    messages = [[{"role": "user", "content": "x"}]]
    mixed = Dataset.from_dict({"prompt": messages, "chosen": ["a"], "rejected": ["b"]})
    check_texts(mixed, ("prompt", "chosen"))
    with pytest.raises(TrlRealError, match="'prompt' holds messages, and another column a text"):
        check_texts(mixed, ("prompt", "chosen"), alike=True)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    save_tiny(folder / "MODEL")
    (folder / "GOOD.jsonl").write_text(json.dumps(GOOD) + "\n")
    return {"MODEL": folder / "MODEL", "GOOD": folder / "GOOD.jsonl"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_rows_are_one_line(verb, bad, given, tmp_path, capsys):
    row = {**GOOD, **BAD[bad]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    said = fails(capsys, *(given.get(part, part) for part in VERBS[verb]), tmp_path / "rows.jsonl",
                 "--output_dir", tmp_path / "out")  # fmt: skip
    assert "2 of 2 rows cannot be used" in said and "(first: row 0)" in said
