"""Pushes to a Hub in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

from support.hub_server import TOKEN, HubServer


PRELUDE = '''
import json
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from trl_real import SelectionRecord, TrlRealError, push_subset

FEATURES = Features({"prompt": Value("string"), "responses": List(Value("string")), "pair": List(Value("int32")),
                     "similarity": Value("float32"),
                     "chosen": List({"role": Value("string"), "content": Value("string")})})

def rows(n, start=0):
    numbers = range(start, start + n)
    values = {"prompt": [f"question {i} é" for i in numbers], "responses": [["yes", f"no {i}"] for i in numbers],
              "pair": [[0, 1] for _ in numbers], "similarity": [0.5 - i / 100 for i in numbers],
              "chosen": [[{"role": "user", "content": f"{i}"}] for i in numbers]}
    return Dataset.from_dict(values, features=FEATURES)

def record(n_kept, **changes):
    return SelectionRecord(**{"strategy": "easy", "budget": 0.25, "seed": 42, "model": "/home/me/secret/encoder",
                              "n_rows": 40, "n_kept": n_kept, "n_not_chosen": 40 - n_kept, **changes})

def push(dataset, repo_id, **arguments):
    """The URL, or the one line that the user sees."""
    try:
        return push_subset(dataset, repo_id, **{"record": record(8), **arguments})
    except TrlRealError as error:
        return f"error: {error}"

def loaded(repo_id, config, split="train", **arguments):
    """Rows and types as another machine gets them."""
    got = load_dataset(repo_id, config, split=split, **arguments)
    return {"rows": got.to_list(), "same_types": got.features == FEATURES}

out = {}
'''


def run(hub: HubServer, home: Path, code: str, **changes) -> dict:
    """Run `code` after `PRELUDE` in a separate process that knows only this Hub; return its `out`."""
    script = f"{PRELUDE}\n{code}\nprint(json.dumps(out))"
    environment = {**hub.environment(home), **changes}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def card(hub: HubServer, name: str, branch: str = "main") -> str:
    return hub.repo(name).files(branch)["README.md"].decode()


def assert_one_line(message: str, *words: str):
    assert message.startswith("error: ") and "\n" not in message
    assert [word for word in words if word not in message] == []
