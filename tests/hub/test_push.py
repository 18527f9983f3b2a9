"""Pushing to a local Hub over real HTTP: what arrives, what a failure leaves, what stays private."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.hub_server import TOKEN, HubServer
from trl_real.hub.facts import CardFacts


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


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


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


def test_pushed_dataset_loads_unchanged(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
out["url"] = push(rows(8), "user/subset")
out["second"] = push(rows(10, 50), "subset", record=record(10, strategy="random").to_dict())
out["easy"], out["random"] = loaded("user/subset", "easy-0.25"), loaded("user/subset", "random-0.25")
out["local"] = [rows(8).to_list(), rows(10, 50).to_list()]
out["streamed"] = len(list(load_dataset("user/subset", "easy-0.25", split="train", streaming=True)))
""",
    )
    assert out["url"] == out["second"] == f"{hub.url}/datasets/user/subset"
    assert [out["easy"]["rows"], out["random"]["rows"]] == out["local"]
    assert out["easy"]["same_types"] and out["random"]["same_types"] and out["streamed"] == 8
    files = hub.repo("user/subset").files()
    stored = json.loads(files["selection_records/easy-0.25.json"])
    assert stored["n_kept"] == 8 and stored["model"] == "encoder"
    text = card(hub, "user/subset")
    assert text.count("trl-real:begin easy-0.25") == text.count("trl-real:begin random-0.25") == 1
    assert "- trl-real" in text and "text-generation" in text
    assert not any(TOKEN.encode() in data or b"/home/me" in data for data in files.values())


def test_a_second_push_keeps_the_users_text_and_replaces_the_section_once(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
from huggingface_hub import DatasetCard
push(rows(8), "user/subset")
card = DatasetCard.load("user/subset")
card.text = "# My own title\\n\\nBefore | é\\n" + card.text + "\\n## After\\nTrailing words  "
card.data["license"] = "mit"
card.data["tags"].remove("preference")
card.push_to_hub("user/subset")
out["url"] = push(rows(6, 20), "user/subset", record=record(6, seed=7))
out["rows"] = loaded("user/subset", "easy-0.25")["rows"] == rows(6, 20).to_list()
""",
    )
    assert out == {"url": f"{hub.url}/datasets/user/subset", "rows": True}
    text = card(hub, "user/subset")
    assert "---\n# My own title\n\nBefore | é\n" in text and text.endswith("\n## After\nTrailing words  ")
    assert "license: mit" in text and "- preference" not in text
    assert text.count("trl-real:begin") == 1 and "| seed | 7 |" in text and "| seed | 42 |" not in text
    assert "| in this repository, split train | 6 |" in text


def test_a_second_push_with_other_columns_loads_or_is_refused_before_the_upload(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
chosen, labels = rows(8), rows(8).remove_columns(["responses"]).add_column("label_source", ["people"] * 8)
for dataset in (chosen, labels):
    push(dataset, "user/subset")
    out[str(len(out))] = [
        load_dataset("user/subset", "easy-0.25", split="train").column_names == dataset.column_names,
        list(load_dataset("user/subset", "easy-0.25", split="train", streaming=True)) == dataset.to_list(),
    ]
push(DatasetDict(train=chosen, test=chosen), "user/subset")
out["refused"] = push(labels, "user/subset")
out["rows"] = load_dataset("user/subset", "easy-0.25", split="test").column_names == chosen.column_names
""",
    )
    assert out.pop("refused").startswith("error: Config 'easy-0.25' of user/subset has another split with columns")
    assert out == {"0": [True, True], "1": [True, True], "rows": True}


def test_labelled_rows_lose_what_repeats_and_the_card_says_who_labelled(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
labels = rows(4)
for name, values in {"rejected": labels["chosen"][:], "response_a": ["a"] * 4, "response_b": ["b"] * 4,
                     "skipped": [""] * 4, "label_source": ["people"] * 3 + ["chat:x|y"],
                     "label_confidence": [1.0, 0.8, 0.9, 0.6]}.items():
    labels = labels.add_column(name, values)
push(labels, "user/subset")
out["columns"] = load_dataset("user/subset", "easy-0.25", split="train").column_names
out["local"] = labels.column_names[-3]
""",
    )
    assert not {"response_a", "response_b", "skipped"} & set(out["columns"])
    assert {"chosen", "rejected", "label_source"} <= set(out["columns"]) and out["local"] == "skipped"
    text = card(hub, "user/subset")
    assert "| people | 3 | 0.900 |" in text and "| chat:x&#124;y | 1 | 0.600 |" in text


def test_the_card_says_who_wrote_who_labelled_what_it_cost_and_what_people_state(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
from trl_real import ScoreJudge, annotate
from trl_real.labeling.annotate import LabelReport

names = [["small", "large", "other"], ["large", "small", "other"], [None, "small", "x|y"]]
pool = Dataset.from_dict({"prompt": ["p", "q", "r"], "responses": [["a", "b", "c"]] * 3, "models": names,
                          "scores": [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], "pair": [[0, 1]] * 3,
                          "response_a": ["a"] * 3, "response_b": ["b"] * 3, "similarity": [0.5] * 3,
                          "skipped": [""] * 3})
report = LabelReport()
labels = annotate(pool, ScoreJudge(), gold=ScoreJudge(), report=report)
report.verdicts.cost, report.verdicts.input_tokens = 0.0123, 456
stated = {"title": "Pairs of | mine", "license": "cc-by-4.0", "language": ["en", "de"], "currency": "USD"}
push(labels, "user/subset", record=record(3), labels=report, **stated)
push(pool, "user/pool", record=record(3))
push(labels, "user/subset", record=record(3), labels=report.to_dict())
back = load_dataset("user/subset", "easy-0.25", split="train")
out["rows"] = [back["chosen_model"][:], back["rejected_model"][:]]
out["streams"] = len(list(load_dataset("user/subset", "easy-0.25", split="train", streaming=True)))
""",
    )
    assert out["rows"] == [["large", "small", None], ["small", "large", "small"]] and out["streams"] == 3
    text = card(hub, "user/subset")
    assert "# Pairs of &#124; mine\n" in text and "pretty_name: Pairs of | mine" in text
    assert "license: cc-by-4.0" in text and "language:\n- en\n- de" in text  # the second push stated nothing
    assert "| agreement with gold labels | 1.00 \\[0.44, 1.00\\], n = 3 |" in text
    assert "| pairs with a label | 3 |" in text and "| tokens of the judge | 456 read, 0 generated |" in text
    assert "| cost of the labels | 0.0123 in the currency of the judge's prices, which was not stated |" in text
    assert "| model | chosen | rejected |" in text and "| small | 1 | 2 |" in text and "| not known | 1 | 0 |" in text
    whole = card(hub, "user/pool")
    assert "# pool\n" in whole and "| model | responses |" in whole and "| other | 2 |" in whole
    assert "license" not in whole and "cost" not in whole


def test_the_currency_stands_beside_the_cost():
    report = {"judge": "chat:m", "verdicts": {"cost": 1.5, "position_bias": 0.04}, "panel": {"alpha": None}}
    ((title, _, rows),) = CardFacts(currency="EUR", labels=report).label_table()
    assert title == "Labelling" and ("cost of the labels", "1.5 EUR") in rows
    assert ("bias for the response shown first", "+0.040") in rows
    assert not any("agreement" in row[0] for row in rows)  # nobody measured one
    votes = {"alpha": 0.5, "alpha_low": 0.25, "alpha_high": 0.75, "n_shared": 8}
    ((_, _, rows),) = CardFacts(labels={"votes": votes}).label_table()
    assert ("agreement of the people", "Krippendorff's alpha 0.50 [0.25, 0.75], n = 8") in rows


def test_splits_branches_and_other_files(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
from huggingface_hub import upload_file, create_repo
create_repo("user/subset", repo_type="dataset")
upload_file(path_or_fileobj=b"mine", path_in_repo="notes/mine.txt", repo_id="user/subset", repo_type="dataset")
both = DatasetDict({"train": rows(8), "test": rows(3, 90)})
push(both, "user/subset", config_name="mine")
out["test"] = loaded("user/subset", "mine", "test")["rows"] == rows(3, 90).to_list()
push(rows(5), "user/subset", config_name="mine")
out["kept"] = loaded("user/subset", "mine", "test")["rows"] == rows(3, 90).to_list()
out["replaced"] = len(loaded("user/subset", "mine")["rows"])
out["branch"] = push(rows(4), "user/subset", revision="v2")
out["on_branch"] = len(loaded("user/subset", "easy-0.25", revision="v2")["rows"])
""",
    )
    assert out["test"] and out["kept"] and out["replaced"] == 5 and out["on_branch"] == 4
    assert out["branch"].endswith("/datasets/user/subset/tree/v2")
    files = hub.repo("user/subset").files()
    assert files["notes/mine.txt"] == b"mine" and not any("easy-0.25" in path for path in files)
    text = card(hub, "user/subset")
    assert "| in this repository, split test | 3 |" in text and "| in this repository, split train | 5 |" in text
    assert 'revision="v2"' in card(hub, "user/subset", "v2")


def test_private_is_sent_only_on_request(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
push(rows(8), "user/plain")
push(rows(8), "user/closed", private=True)
out["again"] = push(rows(8), "user/closed", private=True)
out["leak"] = push(rows(8, 50), "user/plain", private=True)
out["loads"] = len(loaded("user/closed", "easy-0.25")["rows"])
""",
    )
    plain, closed = [json.loads(body) for line, body in hub.requests if line == "POST /api/repos/create"]
    assert "visibility" not in plain and closed["visibility"] == "private"
    assert out["again"].startswith("http") and out["loads"] == 8
    assert_one_line(out["leak"], "user/plain exists and is public", "hf repos settings user/plain")
    assert len(hub.repo("user/plain").commits) == 3


def test_failed_push_can_be_repeated(hub, tmp_path):
    hub.fail(r"POST .*/user/rows/commit/")
    hub.fail(r"POST .*/user/card/commit/", nth=2)
    hub.fail(r"POST .*/user/old/commit/", nth=3)
    hub.fail(r"POST .*/user/old/commit/", nth=5)
    out = run(
        hub,
        tmp_path,
        """
subset = rows(8)
out["unbroken"] = push(subset, "user/unbroken")
for name in ("rows", "card"):
    out[name] = [push(subset, f"user/{name}"), push(subset, f"user/{name}")]
push(rows(3), "user/old", record=record(3, seed=1))
out["old"] = [push(subset, "user/old")]
out["old rows"] = len(loaded("user/old", "easy-0.25")["rows"])
out["old"] += [push(subset, "user/old")]
out["new rows"] = len(loaded("user/old", "easy-0.25")["rows"])
out["old"] += [push(subset, "user/old")]
out["local"] = subset.to_list() == rows(8).to_list()
""",
    )
    assert_one_line(out["rows"][0], "user/rows", "507", "push again")
    assert_one_line(out["card"][0], "user/card", "507", "The rows are pushed", "push again")
    assert_one_line(out["old"][0], "507")
    assert_one_line(out["old"][1], "507", "The rows are pushed")
    assert out["old rows"] == 3 and out["new rows"] == 8 and out["local"]
    for name in ("rows", "card", "old"):
        assert out[name][-1] == f"{hub.url}/datasets/user/{name}"
        unbroken = dict(hub.repo("user/unbroken").files())
        unbroken["README.md"] = unbroken["README.md"].replace(b"unbroken", name.encode())
        assert hub.repo(f"user/{name}").files() == unbroken


def test_refused_upload_lost_response_and_concurrent_commit(hub, tmp_path):
    hub.fail(r"PUT /lfs/")
    hub.fail(r"POST .*/user/lost/commit/", drop=True)
    hub.fail(r"POST .*/user/rival/commit/", status=412)
    hub.fail(r"POST .*/user/rival/commit/", nth=3, status=412)
    out = run(
        hub,
        tmp_path,
        """
out["upload"] = [push(rows(8), "user/upload"), push(rows(8), "user/upload")]
out["lost"] = [push(rows(8), "user/lost"), push(rows(8), "user/lost")]
out["rival"] = push(rows(8), "user/rival")
""",
    )
    assert_one_line(out["upload"][0], "507")
    assert "s3cret" not in out["upload"][0]
    assert_one_line(out["lost"][0], "cannot be reached")
    assert out["rival"].startswith("http")
    for name in ("upload", "lost"):
        assert out[name][1].startswith("http")
        assert hub.repo(f"user/{name}").files().keys() == hub.repo("user/rival").files().keys()


def test_two_concurrent_pushes_both_arrive(hub, tmp_path):
    script = (
        PRELUDE
        + """
import sys
name = sys.argv[1]
for start in range(3):
    said = push(rows(8, start), "user/subset", config_name=name, record=record(8, seed=start))
    assert said.startswith("http"), said
"""
    )
    names = ["first", "second"]
    running = [
        subprocess.Popen([sys.executable, "-c", script, name], env=hub.environment(tmp_path / name)) for name in names
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    text, files = card(hub, "user/subset"), hub.repo("user/subset").files()
    for name in names:
        assert text.count(f"trl-real:begin {name} ") == text.count(f"config_name: {name}\n") - 1 == 1
        assert json.loads(files[f"selection_records/{name}.json"])["seed"] == 2


def test_hub_refusal_gets_a_one_line_error_with_a_fix(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
from huggingface_hub import create_repo, upload_file
out["theirs"] = push(rows(2), "other/subset")
out["bad token"] = push(rows(2), "user/subset", token="hf_wrongwrongwrong")
out["revision"] = push(rows(2), "user/subset2", revision="refs/pr/9")
broken = {"path_or_fileobj": b"---\\ntags: [\\n---\\nmine", "path_in_repo": "README.md"}
create_repo("user/broken", repo_type="dataset")
upload_file(**broken, repo_id="user/broken", repo_type="dataset")
out["broken card"] = push(rows(2), "user/broken")
push(DatasetDict({"train": rows(2), "test": rows(2)}), "user/mixed")
out["features"] = push(rows(2).remove_columns("pair"), "user/mixed")
""",
    )
    assert_one_line(out["theirs"], "other/subset", "403", "hf auth login")
    assert_one_line(out["bad token"], "401", "hf auth login")
    assert "wrongwrong" not in out["bad token"]
    assert_one_line(out["revision"], "refs/pr/9")
    assert_one_line(out["broken card"], "user/broken")
    assert hub.repo("user/broken").files()["README.md"] == b"---\ntags: [\n---\nmine"
    assert_one_line(out["features"], "easy-0.25", "DatasetDict")


def test_without_network_or_account(hub, tmp_path):
    code = 'out["said"] = push(rows(2), "user/subset")'
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert_one_line(run(hub, tmp_path, code, **unreachable)["said"], "cannot be reached", "HF_ENDPOINT")
    assert_one_line(run(hub, tmp_path, code, HF_HUB_OFFLINE="1")["said"], "unset HF_HUB_OFFLINE")
    anonymous = run(hub, tmp_path, code + '\nout["bare"] = push(rows(2), "subset")', HF_TOKEN="")
    assert_one_line(anonymous["said"], "hf auth login")
    assert_one_line(anonymous["bare"], "hf auth login")


def test_local_mistakes_are_reported_before_anything_is_sent(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
for name in ("data", "selection_records", "a/b", "", "-x", "a b", "x -->", ".", "x" * 97):
    out[f"config {name}"] = push(rows(2), "user/subset", config_name=name)
out["bad id"] = push(rows(2), "user/a/b")
out["split"] = push(rows(2), "user/subset", split="a-b")
out["no record"] = push(rows(2), "user/subset", record=None)
out["half a record"] = push(rows(2), "user/subset", record={"strategy": "easy"})
out["lost rows"] = push(rows(2), "user/subset", record=record(8, n_rows=41))
out["no rows"] = push(rows(0), "user/subset")
out["a list"] = push([{"prompt": "x"}], "user/subset")
""",
    )
    for message in out.values():
        assert_one_line(message)
    assert "user/a/b" in out["bad id"] and "a-b" in out["split"]
    assert "record=selector.record" in out["no record"] and "does not add up" in out["lost rows"]
    assert "0 rows" in out["no rows"] and "found list" in out["a list"] and "budget" in out["half a record"]
    assert hub.requests == []


def test_hf_upload_of_a_local_folder(hub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"prompt": "p", "responses": ["a", "b"]}\n')
    (folder / "weights.bin").write_bytes(b"\x00" * 4096)
    command = [Path(sys.executable).with_name("hf"), "upload", "user/folder", folder, "--repo-type", "dataset"]
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sent = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sent.items() <= hub.repo("user/folder").files().items()
