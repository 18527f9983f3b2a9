"""A push to a Hub over real HTTP: what arrives, and what a second push keeps."""

import json
import subprocess
import sys
from pathlib import Path

from support.hub_server import TOKEN
from support.pushes import assert_one_line, card, run
from trl_real.hub.facts import CardFacts


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
    said = [f"Push {name} with trl-real" for name in ("easy-0.25", "random-0.25")]
    messages = [message for message in hub.repo("user/subset").messages if "Push" in message]
    assert messages == [line for text in said for line in (text, f"{text}: card and record")]
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
