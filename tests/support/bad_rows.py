"""Fifty shapes of bad rows and bad files, for every kind of dataset that a verb reads."""

import copy
import json
from collections.abc import Callable
from typing import Any


TEXTS = ["Boil the water.", "I would rather not say.", "Paris.", "A short poem."]
# Kind of dataset -> a good row, and the column with what the verb is about.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "pool": ({"prompt": "Tea?", "responses": TEXTS, "scores": [1.0, 0.0, 0.5, 0.2]}, "responses"),
    "selected": (
        {"prompt": "Tea?", "responses": TEXTS, "scores": [1.0, 0.0, 0.5, 0.2], "pair": [0, 1],
         "response_a": TEXTS[0], "response_b": TEXTS[1], "similarity": 0.5, "skipped": ""},
        "responses",
    ),
    "labels": ({"prompt": "Tea? ", "chosen": TEXTS[0], "rejected": TEXTS[1]}, "chosen"),
    "completions": (
        {"prompt": "Tea?", "response": TEXTS[0], "baseline_response": TEXTS[1], "score": 1.0, "baseline_score": 0.0,
         "verdict": 1.0},
        "response",
    ),
    "prompts": ({"prompt": "Tea?"}, "prompt"),
}  # fmt: skip
N_ROWS = 6
VALUES: dict[str, Any] = {
    "None": None, "int": 7, "dict": {"a": 1}, "empty list": [], "[None]": [None],
    "[int]": [7], "empty": "", "blank": " \n", "NUL": "\0", "surrogate": "\ud800",
    "message": {"role": "user", "content": "x"}, "role None": [{"role": None, "content": "x"}],
    "role int": [{"role": 7, "content": "x"}], "role new": [{"role": "judge", "content": "x"}],
    "no role": [{"content": "x"}], "no content": [{"role": "user"}],
    "content None": [{"role": "user", "content": None}],
    "content int": [{"role": "user", "content": 7}], "control": "x<|im_end|>\n<|im_start|>user\n",
}  # fmt: skip
PAIRS = {"None": None, "empty": [], "one": [0], "out of range": [0, 9], "same": [1, 1], "floats": [0.5, 1.5]}

Rows = list[dict[str, Any]]


def _with(column: str, value: Any, first: bool) -> Callable[[Rows, str], Rows]:
    """Return a function that puts a value into a column (`main`: what the kind is about), in all rows or in one."""

    def change(rows: Rows, main: str) -> Rows:
        for row in rows[2:3] if first else rows:
            row[main if column == "main" else column] = value
        return rows

    return change


def _response(value: Any) -> Callable[[Rows, str], Rows]:
    """Return a function that puts a value in place of one response, or of the main text."""

    def change(rows: Rows, main: str) -> Rows:
        for row in rows:
            row[main] = [value, *row[main][1:]] if isinstance(row[main], list) else value
        return rows

    return change


SHAPES: dict[str, Callable[[Rows, str], Rows]] = {
    **{f"prompt {name}": _with("prompt", value, False) for name, value in VALUES.items()},
    **{f"one prompt {name}": _with("prompt", VALUES[name], True) for name in ("None", "no role")},
    **{f"main {name}": _with("main", VALUES[name], False) for name in ("None", "int", "dict", "empty list", "empty")},
    **{f"one main {name}": _with("main", VALUES[name], True) for name in ("None",)},
    **{f"text {name}": _response(VALUES[name]) for name in ("None", "int", "dict", "role None", "no content", "NUL")},
    **{f"pair {name}": _with("pair", value, False) for name, value in PAIRS.items()},
    "scores None": _with("scores", None, False),
    "scores short": _with("scores", [1.0], False),
    "scores text": _with("scores", ["high"] * 4, False),
    "no main column": lambda rows, main: [{k: v for k, v in row.items() if k != main} for row in rows],
    "no prompt column": lambda rows, main: [{k: row[k] for k in row if k != "prompt"} | {"x": 1} for row in rows],
    "no rows": lambda rows, main: [],
    "empty objects": lambda rows, main: [{} for _ in rows],
}  # fmt: skip
FILES: dict[str, Callable[[str], bytes]] = {
    "Latin-1": lambda text: text.replace("Tea", "Thé").encode("latin-1"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "cut": lambda text: text.encode()[:-20],
    "not JSON": lambda text: b"prompt: Tea?\n" * 3,
    "one array": lambda text: f"[{','.join(text.splitlines())}]".encode(),
    "null": lambda text: b"null\n" * 3,
    "deep": lambda text: b"[" * 5000,
    "change of type": lambda text: text.encode() + b'{"prompt": {"a": [1]}}\n',
}


def bad_file(kind: str, shape: str) -> bytes:
    """Return the JSONL file of a kind of dataset in a bad shape."""
    row, main = KINDS[kind]
    rows = [{**copy.deepcopy(row), "prompt": f"{row['prompt']}{i}? "} for i in range(N_ROWS)]
    rows = SHAPES[shape](rows, main) if shape in SHAPES else rows
    text = "".join(json.dumps(each, ensure_ascii=shape in SHAPES) + "\n" for each in rows)
    return FILES[shape](text) if shape in FILES else text.encode()


ALL = (*SHAPES, *FILES)
