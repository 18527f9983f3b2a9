"""`trl-real win-rate --people`: the judge judges all, people some, and nothing that either said is lost."""

import json
import os
import random
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from support.judge_server import MODEL, JudgeServer, strength
from trl_real.cli.main import main
from trl_real.labeling.people.queue import VoteQueue
from trl_real.labeling.people.votes import VoteBook
from trl_real.runtime.journal import Journal


N = 120


@pytest.fixture
def answers(tmp_path):
    rows = {"prompt": [f"p{i}" for i in range(N)], "source": ["forum"] * 80 + ["exam"] * 40}
    rows |= {"response": [f"ours {i}" for i in range(N)], "baseline_response": [f"theirs {i}" for i in range(N)]}
    rows["baseline_response"][:5] = rows["response"][:5]
    path = tmp_path / "answers.parquet"
    Dataset.from_dict(rows).to_parquet(str(path))
    return path


def person(row) -> str:
    """A person who mostly sees the judge's strengths, and never looks at the order."""
    margin = strength(row["response_a"]) - strength(row["response_b"])
    return "a" if margin + strength(row["prompt"]) / 2 - 0.25 > 0 else "b"


def drawn(folder) -> Dataset:
    return Dataset(pq.read_table(folder / "people_pairs.parquet"))


def vote(folder, n: int | None = None) -> int:
    """Vote on the pairs for people that have no vote yet; return how many votes were given."""
    pairs, given = drawn(folder), 0
    with Journal(folder / "votes.jsonl") as journal:
        queue = VoteQueue(pairs, journal, "ann")
        while (pair := queue.next()) and given != n:
            given += queue.vote(person(pairs[pair.row]), 1.0)
    return given


def command(answers, server, folder, n: int, *flags) -> list[str]:
    judge = ["--judge", "chat", "--judge_model", MODEL, "--base_url", server.url, "--cache", folder / "c.sqlite"]
    argv = ["win-rate", "--dataset", answers, *judge, "--people", n, "--output_dir", folder, "--json", *flags]
    return list(map(str, argv))


def run(capsys, argv) -> tuple[dict, str]:
    assert main(argv) == 0
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_more_people_later_ask_nobody_twice_and_make_the_interval_narrower(answers, tmp_path, capsys):
    folder, widths, keys = tmp_path / "compared", [], []
    with JudgeServer(bias=0.1) as server:
        first, said = run(capsys, command(answers, server, folder, 30, "--no_page"))
        assert first["win_rate"] is None and 0 < first["judge_win_rate"] < 1
        assert first["n_open"] == 30 and "30 pairs wait for people" in said and "--push --dataset" in said
        for n in (30, 60):
            if n == 60:
                open_now, _ = run(capsys, command(answers, server, folder, n, "--no_page"))
                assert (open_now["n_asked"], open_now["n_open"]) == (60, 30)
            assert vote(folder) == 30
            found, said = run(capsys, command(answers, server, folder, n))  # all have votes: no page opens
            assert (found["n_asked"], found["n_open"], found["n_total"]) == (n, 0, n + 5)
            widths.append(found["ci_high"] - found["ci_low"])
            keys.append(
                set(load_dataset("parquet", data_files=str(folder / "people_pairs.parquet"))["train"]["prompt"])
            )
        assert len(server.bodies) == 2 * (N - 5)
    assert widths[1] < widths[0] and keys[0] < keys[1]
    assert found["ci_low"] < found["win_rate"] < found["ci_high"] and found["effective_people"] > 60
    assert 0.5 < found["judge_accuracy"] <= 1 and found["people"] == "people"
    assert "people alone" in said and "names the same winner in both orders" in said
    page = (folder / "report.html").read_text()
    assert "What people say" in page and (folder / "people_1.png").exists()
    rows = load_dataset("parquet", data_files=str(folder / "verdicts.parquet"), split="train")
    assert np.isfinite(rows["people"]).sum() == 65 and set(rows["inclusion_probability"][:5]) == {1.0}


@pytest.mark.parametrize("flags", [("--people_by", "uniform"), ("--strata", "source", "--people_by", "uniform")])
def test_other_draws_and_their_mistakes(flags, answers, tmp_path, capsys):
    folder = tmp_path / "compared"
    with JudgeServer() as server:
        run(capsys, command(answers, server, folder, 12, "--no_page", *flags))
        vote(folder)
        found, _ = run(capsys, command(answers, server, folder, 12, "--no_page", *flags))
        assert found["n_asked"] == 12 and any("fewer than 30" in doubt["words"] for doubt in found["doubts"])
        if "--strata" in flags:
            pairs = drawn(folder)
            assert sum(int(prompt[1:]) < 80 for prompt in pairs["prompt"]) == 8  # of 75 and 40 pairs
        other = command(answers, server, folder, 12, "--no_page", "--people_by", "uncertainty")
        assert main(other) == 2 and "keeps a draw with by='uniform'" in capsys.readouterr().err
        wrong = command(answers, server, tmp_path / "other", 12, "--no_page", "--strata", "topic")
        assert main(wrong) == 2 and "No column 'topic'" in capsys.readouterr().err


def test_columns_of_verdicts_and_people_are_enough(tmp_path, capsys):
    rng = np.random.default_rng(0)
    judge = rng.random(100)
    people = [float(p > 0.5) if i % 4 == 0 else None for i, p in enumerate(judge)]
    rows = {
        "verdict": judge.tolist(),
        "people": people,
        "chance": [0.25] * 100,
        "prompt": [f"p{i // 2}" for i in range(100)],
    }
    path = tmp_path / "rows.parquet"
    Dataset.from_dict(rows).to_parquet(str(path))
    flags = ["--preferences", "verdict", "--people_verdicts", "people", "--inclusion_probabilities", "chance"]
    found, _ = run(capsys, ["win-rate", "--dataset", str(path), *flags, "--clusters", "prompt", "--json"])
    assert found["n_total"] == 25 and found["n_rows"] == 100 and found["ci_low"] < found["win_rate"] < found["ci_high"]
    assert main(["win-rate", "--dataset", str(path), "--preferences", "verdict", "--people", "3"]) == 2
    assert "--people draws pairs of --model and --baseline" in capsys.readouterr().err


def in_child(action, seconds: float | None) -> bool:
    """Run in a forked process; kill it after some time. Return whether it ended by itself, without an error."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            os._exit(0 if action() else 1)
        except BaseException:
            os._exit(2)
    end = time.monotonic() + (seconds if seconds is not None else 60)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def test_ten_kills_at_random_moments_lose_no_vote_and_no_answer(answers, tmp_path, capsys):
    folder, moments, kills = tmp_path / "compared", random.Random(5), 0
    acknowledged = tmp_path / "acknowledged"

    def vote_slowly() -> bool:
        pairs = drawn(folder)
        with Journal(folder / "votes.jsonl") as journal, open(acknowledged, "ab", buffering=0) as told:
            queue = VoteQueue(pairs, journal, "ann")
            while pair := queue.next():
                queue.vote(person(pairs[pair.row]), 1.0)
                told.write(f"{pair.key}\n".encode())
                time.sleep(0.02)
        return True

    with JudgeServer(delay=0.01) as server:
        argv = command(answers, server, folder, 40, "--no_page", "--concurrency", "2")
        steps = [lambda: main(argv) == 0, vote_slowly, lambda: main(argv) == 0]
        for step in steps:
            while not in_child(step, moments.uniform(0.05, 0.4) if kills < 10 else None):
                kills += 1
        found, _ = run(capsys, argv)
        # A question that was on its way when the process died is asked again, and no other.
        assert sum(server.answered.values()) <= 2 * (N - 5) + 2 * kills
    assert kills >= 5  # fewer on a machine that is done before
    votes = VoteBook.read(folder / "votes.jsonl").votes("ann")
    assert set(acknowledged.read_text().split()) <= {one.key for one in votes}
    assert len(votes) == found["n_asked"] == 40 and found["n_open"] == 0
