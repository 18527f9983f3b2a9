"""Tests of `trl-real label`: every judge, the price before labeling, no question asked twice."""

import argparse
import inspect
import json
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset, load_from_disk

from support.judge_server import MODEL, JudgeServer, probability
from trl_real.cli.judges import add_judge_flags
from trl_real.cli.main import main
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.judges import JUDGES, JudgeSpec, load_class
from trl_real.labeling.people.queue import VoteQueue
from trl_real.runtime.journal import Journal


def selected(n: int = 12) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [f"p{i}" for i in range(n)],
            "responses": [[f"one {i}", f"two {i}"] for i in range(n)],
            "scores": [[float(i % 3), 1.0] for i in range(n)],
            "pair": [[0, 1]] * (n - 1) + [[-1, -1]],
            "response_a": [f"one {i}" for i in range(n)],
            "response_b": [f"two {i}" for i in range(n)],
            "similarity": [0.5] * n,
            "skipped": [""] * (n - 1) + ["identical responses"],
        }
    )


@pytest.fixture
def chosen(tmp_path):
    path = tmp_path / "chosen.parquet"
    selected().to_parquet(str(path))
    return path


def run(capsys, *argv) -> tuple[dict, str]:
    assert main(["label", *map(str, argv), "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_nothing_labelled_is_no_success(chosen, tmp_path, capsys):
    with JudgeServer(log_probs="ignored", says="well") as server:
        judge = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", str(tmp_path / "c.sqlite")]
        flags = [*judge, "--dataset", str(chosen), "--output_dir", str(tmp_path / "labels"), "--max_failure_rate", "1"]
        assert main(["label", *flags]) == 2
    out, err = capsys.readouterr()
    assert "No pair was labelled" in err and "such as 'well'" in err and "Next:" not in err and not out
    assert not (tmp_path / "labels").exists()


def test_options_reach_the_server_from_flags_settings_and_panels(chosen, tmp_path, capsys):
    with JudgeServer() as server:
        judge = {"model": MODEL, "base_url": server.url, "cache": str(tmp_path / "c.sqlite")}
        flags = [part for name, value in judge.items() for part in (f"--{name}", value)]
        given = [
            "--option",
            "reasoning_effort=low",
            "seed=null",
            "--option",
            'chat_template_kwargs={"thinking": false}',
        ]
        run(capsys, "--judge", "chat", *flags, *given, "--dataset", chosen, "--output_dir", tmp_path / "one")
        options = {"reasoning_effort": "low", "seed": None, "chat_template_kwargs": {"thinking": False}}
        (tmp_path / "panel.yaml").write_text(json.dumps([{"judge": "chat", **judge, "options": options}] * 2))
        panel = ["--judge", "panel", "--panel", tmp_path / "panel.yaml"]
        run(capsys, *panel, "--dataset", chosen, "--output_dir", tmp_path / "two")
        assert len(server.bodies) == 22  # the panel's questions are the same, and answered
        (tmp_path / "settings.yaml").write_text(
            json.dumps({"judge": "chat", **judge, "options": {**options, "top_p": 0.5}})
        )
        run(capsys, "--config", tmp_path / "settings.yaml", "--dataset", chosen, "--output_dir", tmp_path / "three")
        for number, body in enumerate(server.bodies):
            assert (body["reasoning_effort"], body["chat_template_kwargs"]) == ("low", {"thinking": False})
            assert "seed" not in body and body.get("top_p") == (0.5 if number >= 22 else None)
    assert main(["label", "--judge", "chat", "--option", "low"]) == 2
    assert "'low' is not key=value" in capsys.readouterr().err


def test_chat_judge_reports_its_price_and_is_never_asked_twice(chosen, tmp_path, capsys):
    with JudgeServer(bias=0.1) as server:
        judge = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        judge += ["--price", 1, 2, "--gold", "scores"]
        plan, err = run(capsys, "--dataset", chosen, *judge, "--plan")
        assert plan["n_asked"] == 22 and not server.bodies and "22 questions to ask, 0 answered before" in err
        found, err = run(capsys, "--dataset", chosen, *judge, "--output_dir", tmp_path / "labels")
        assert found["labeled"] == 11 and found["n_without_pair"] == 1 and len(server.bodies) == 22
        assert found["verdicts"]["position_bias"] == pytest.approx(0.1, abs=0.03)
        assert found["verdicts"]["cost"] == pytest.approx(22 * 102 / 1e6)
        assert found["gold"]["n"] + found["gold"]["n_undecided"] == 7
        again, _ = run(capsys, "--dataset", chosen, *judge, "--output_dir", tmp_path / "labels")
        assert again["n_resumed"] == 11 and len(server.bodies) == 22
    labels = load_from_disk(str(tmp_path / "labels"))
    assert set(labels["label_source"]) == {found["judge"]} and min(labels["label_confidence"]) >= 0.5
    assert json.loads((tmp_path / "labels" / "labels.json").read_text())["labeled"] == 11


def test_a_panel_is_described_in_a_file(chosen, tmp_path, capsys):
    with JudgeServer() as one, JudgeServer(bias=0.2) as other:
        lines = [
            f"- judge: chat\n  model: {MODEL}\n  base_url: {s.url}\n  cache: {tmp_path}/c.sqlite" for s in (one, other)
        ]
        (tmp_path / "panel.yaml").write_text("\n".join([*lines, "- judge: score"]))
        flags = ["--judge", "panel", "--panel", tmp_path / "panel.yaml", "--output_dir", tmp_path / "labels"]
        found, _ = run(capsys, "--dataset", chosen, *flags)
    assert found["panel"]["n_judges"] == 3 and found["panel"]["n_pairs"] == 11 and found["judge"].startswith("panel(")


def test_a_judge_is_checked_on_labelled_pairs_first(chosen, tmp_path, capsys):
    rows = {"prompt": ["p"] * 30, "chosen": [f"c{i}" for i in range(30)], "rejected": [f"r{i}" for i in range(30)]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "gold.parquet"))
    with JudgeServer() as server:
        judge = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        found, _ = run(capsys, *judge, "--check", tmp_path / "gold.parquet")
    assert found["n"] + found["n_undecided"] == 30 and 0 <= found["accuracy"] <= 1 and found["calibration"] > 0


def test_a_check_with_votes_says_whether_the_judge_may_replace_the_annotators(tmp_path, capsys):
    rows = [{"prompt": f"p{i}", "response_a": f"a{i}", "response_b": f"b{i}"} for i in range(40)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "pairs.parquet"))
    for who in ("ann", "ben", "cleo"):
        with Journal(tmp_path / "votes.jsonl") as journal:
            queue = VoteQueue(Dataset.from_list(rows), journal, who)
            while pair := queue.next():
                queue.vote("a" if probability(f"a{pair.row}", f"b{pair.row}") > 0.5 else "b", 1.0)
    with JudgeServer() as server:
        judge = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        flags = ["--check", tmp_path / "pairs.parquet", "--votes", tmp_path / "votes.jsonl", "--epsilon", 0.15]
        found, _ = run(capsys, *judge, *flags)
    assert found["accuracy"] == 1.0 and found["annotators"]["verdict"] == "may"
    assert found["annotators"]["epsilon"] == 0.15 and found["annotators"]["n_annotators"] == 3


def test_the_least_certain_pairs_go_to_people_or_to_another_judge(chosen, tmp_path, capsys):
    with JudgeServer() as server, JudgeServer(bias=0.3) as larger:
        judge = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        lines = f"- judge: chat\n  model: {MODEL}\n  base_url: {larger.url}\n  cache: {tmp_path}/d.sqlite\n"
        (tmp_path / "dear.yaml").write_text(lines)
        argv = ["--dataset", chosen, *judge, "--output_dir", tmp_path / "labels", "--budget", 4]
        found, _ = run(capsys, *argv, "--then", tmp_path / "dear.yaml")
        assert found["routing"]["n_asked"] == 4 and len(server.bodies) == 22 and len(larger.bodies) == 8
        with Journal(tmp_path / "votes.jsonl") as journal:
            queue = VoteQueue(selected(), journal, "ann")
            while queue.next():
                queue.vote("a", 1.0)
        votes = ["--votes", tmp_path / "votes.jsonl"]
        found, _ = run(capsys, *argv, "--then", "votes", *votes)
        assert len(server.bodies) == 22 and found["routing"]["n_answered"] == 4
        sources = load_from_disk(str(tmp_path / "labels"))["label_source"]
        assert sources.count("votes:majority") == 4 and len(sources) == found["labeled"]
        again, _ = run(capsys, *argv, "--then", "people", *votes)  # all have votes: no page opens
        assert again["routing"]["n_answered"] == 4
        for flags, message in ((["--then", "votes"], "--then votes needs"), (["--then", "no.yaml"], "not a list of")):
            assert main(["label", *map(str, [*argv, *flags])]) == 2
            assert message in capsys.readouterr().err
        assert main(["label", *map(str, [*argv[:-2], "--then", "people"])]) == 2
        assert "--budget is missing" in capsys.readouterr().err


def test_killed_run_resumes(chosen, tmp_path, capsys):
    selected(60).to_parquet(str(chosen))
    with JudgeServer(delay=0.05) as server:
        judge = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        argv = ["--dataset", chosen, *judge, "--concurrency", 2, "--output_dir", tmp_path / "labels"]
        command = [sys.executable, "-m", "trl_real.cli.main", "label", *map(str, argv)]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while sum(server.answered.values()) < 10:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "labels").exists()
        found, _ = run(capsys, *argv)
        assert found["labeled"] == 59 and sum(server.answered.values()) <= 118 + 2
        assert found["verdicts"]["n_cached"] >= 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge", "chat", "--output_dir", "x"], "The judge 'chat' needs --model"),
        (["--judge", "chat", "--model", "m", "--column", "votes"], "--column is not a setting of the judge 'chat'"),
        (["--judge", "score", "--price", "1", "2"], "--price is not a setting of the judge 'score'"),
        (["--judge", "chat", "--model", "m", "--base_url", "http://127.0.0.1:9/v1", "--dtype", "float32"],
         "--dtype is not a setting of the judge 'chat' with --base_url"),
        (["--human"], "--votes is missing"),
        ([], "--output_dir is missing"),
    ],
)  # fmt: skip
def test_mistakes_get_a_one_line_error(chosen, flags, message, capsys):
    assert main(["label", "--dataset", str(chosen), *flags]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


TEXTS = (
    "judge column model revision dtype device base_url template orders rule api_key api_key_file cache served_as "
    "votes aggregation reference panel pooling"
).split()
NUMBERS = {
    int: "batch_tokens max_length max_chars seed concurrency max_retries max_tokens quorum".split(),
    float: (
        "min_gap min_ratio scale tie_margin calibration max_failure_rate min_label_mass timeout deadline price "
        "max_cost beta"
    ).split(),
}
# Arguments that no text on a command line can hold.
IN_PYTHON_ONLY = {"tokenizer", "annotators", "settings"}


def flags(model: str = "model") -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    add_judge_flags(parser, model)
    return {action.option_strings[0].removeprefix("--"): action for action in parser._actions}


class TestFlagsOfJudges:
    def test_are_these(self):
        known = flags()
        kinds = {name: kind for kind, names in NUMBERS.items() for name in names} | dict.fromkeys(TEXTS, str)
        assert set(known) == {*kinds, "length_normalize", "option"}
        assert {name: action.type or str for name, action in known.items() if name in kinds} == kinds
        assert {name for name, action in known.items() if action.default is not None} == {"judge"}
        assert known["price"].nargs == 2 and known["length_normalize"].const is True

    def test_bear_the_prefix_where_the_verb_has_the_name(self):
        plain, prefixed = flags(), flags("judge_model")
        assert {name for name in prefixed if name not in plain} == {
            f"judge_{name}" for name in plain if name not in prefixed
        }
        assert [action.dest for action in plain.values()] == [action.dest for action in prefixed.values()]

    @pytest.mark.parametrize("judge", JUDGES)
    def test_hold_every_plain_argument_with_its_help(self, judge):
        spec = JUDGES[judge]
        for home in (spec.home, *spec.backends):
            first, *others = inspect.signature(load_class(home)).parameters
            for name in {spec.first or first, *others} - IN_PYTHON_ONLY:
                name = {"options": "option"}.get(name, name)
                assert f"{judge}" in flags()[name].help.split(":")[0] or f"; {judge}" in flags()[name].help
                assert not flags()[name].help.endswith(": ")

    def test_come_with_a_new_judge(self, monkeypatch):
        class LongerJudge(VerdictJudge):
            """
            Takes the longer response.

            Args:
                margin: Least difference, in characters: 10 % of a page.
                unit: Unit of length.
                weights: A list.
            """

            def __init__(self, margin: int = 3, unit: str | None = None, weights: list[float] | None = None):
                self.margin = margin

        monkeypatch.setattr("trl_real.labeling.judges.LongerJudge", LongerJudge, raising=False)
        monkeypatch.setitem(JUDGES, "longer", JudgeSpec("judges:LongerJudge", "the longer response"))
        found = flags()
        assert found["margin"].type is int and found["unit"].type is str and "weights" not in found
        assert found["margin"].help == "longer: Least difference, in characters: 10 %% of a page (default: 3)"
        assert JUDGES["longer"](margin=5).margin == 5


def test_help_loads_no_heavy_library():
    heavy = ("torch", "transformers", "datasets", "trl", "pandas", "scipy", "openai")
    code = (
        "import sys\nfrom trl_real.cli.main import main\n"
        "try: main(['label', '--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
