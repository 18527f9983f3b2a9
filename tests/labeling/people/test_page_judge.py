"""Tests of people as a judge that a run waits for."""

import os
import re
import subprocess
import sys

import pytest
from datasets import Dataset

from support.browser import arrive, rows
from support.project import ROOT
from support.rounds import pool
from support.tiny import save_tiny
from trl_real.labeling.people.page_judge import PageJudge
from trl_real.labeling.people.queue import VoteQueue
from trl_real.runtime.journal import Journal


def batch(n: int) -> dict[str, list]:
    return {name: [row[name] for row in rows(n)] for name in ("prompt", "response_a", "response_b")}


def test_existing_votes_are_not_asked_again(tmp_path):
    with Journal(tmp_path / "votes.jsonl") as journal:
        queue = VoteQueue(Dataset.from_list(rows(3)), journal, "ann")
        for verdict in ("a", "tie", "skip"):
            assert queue.vote(verdict, 1.0)
        said = {pair.key: pair for pair in queue._done.values()}
    assert len(said) == 3
    judge = PageJudge(tmp_path / "votes.jsonl", on_ready=lambda url: pytest.fail("served a page for nothing"))
    verdicts = judge.verdicts(batch(3))
    assert sorted(verdict.outcome for verdict in verdicts) == ["a", "failed", "tie"]


@pytest.mark.slow
def test_run_in_rounds_waits_for_people_and_continues(tmp_path, browser):
    model = save_tiny(tmp_path / "model")
    pool(6, 2).to_parquet(str(tmp_path / "pool.parquet"))
    flags = ["--bf16", "False", "--max_steps", "1", "--report_to", "none", "--selectors", "random", "--budget", "2"]
    argv = ["active", "--dataset", tmp_path / "pool.parquet", "--model", model, "--output_dir", tmp_path / "out",
            "--human", "--rounds", "2", *flags]  # fmt: skip
    command = [sys.executable, "-m", "trl_real.cli.main", *map(str, argv)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)
    try:
        for _ in range(2):
            address = next(found[1] for line in run.stderr if (found := re.search(r"Label at (http\S+);", line)))
            arrive(browser, address)
            while browser.shown():
                browser.vote("1")
        assert run.wait(timeout=120) == 0
    finally:
        run.kill()
    votes = [line for line in Journal(tmp_path / "out" / "votes.jsonl").read() if "verdict" in line]
    assert len(votes) == 4 and len({vote["key"] for vote in votes}) == 4
