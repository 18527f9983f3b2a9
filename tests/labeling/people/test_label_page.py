"""The page for the person who pays: what it says about labels, people, the judge and money."""

import json
import math
import re

import pytest
from datasets import Dataset, load_from_disk

from support.judge_server import MODEL, JudgeServer, probability
from support.project import ROOT
from trl_real.cli.main import main
from trl_real.labeling.agreement import ALPHA_WORDS, alpha_words
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.people.label_page import hours_left, label_cost, n_open, write_label_page
from trl_real.labeling.people.queue import VoteQueue
from trl_real.labeling.people.report import vote_report
from trl_real.labeling.verdicts import VerdictSummary
from trl_real.runtime.journal import Journal


N = 20


def pairs(n: int = N) -> Dataset:
    rows = {"prompt": [f"p{i}" for i in range(n)], "response_a": [f"a{i}" for i in range(n)]}
    return Dataset.from_dict(rows | {"response_b": [f"b{i}" for i in range(n)]})


def vote(path, who: str, verdict, n: int = N, seconds: float = 6.0) -> None:
    """Vote on the first pairs by `verdict(row)`."""
    with Journal(path) as journal:
        queue = VoteQueue(pairs().select(range(n)), journal, who)
        while pair := queue.next():
            queue.vote(verdict(pair.row), seconds)


@pytest.fixture
def team(tmp_path):
    """Two people: they agree on half of the pairs and contradict each other on the other half; five pairs wait."""
    path = tmp_path / "votes.jsonl"
    vote(path, "ann", lambda row: "a" if row % 2 else "b", 15)
    vote(path, "<b>ben</b>", lambda row: "a" if row % 4 < 2 else "b", 15, seconds=18.0)
    pairs().to_parquet(str(tmp_path / "chosen.parquet"))
    return path


def text_of(page) -> str:
    return " ".join(
        re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL).split()
    )


def label(tmp_path, *flags) -> str:
    argv = ["label", "--dataset", tmp_path / "chosen.parquet", "--output_dir", tmp_path / "labels", *flags]
    assert main([*map(str, argv)]) == 0
    return text_of(tmp_path / "labels" / "report.html")


def test_votes_of_people_with_price_pace_and_low_agreement(team, tmp_path, capsys):
    text = label(tmp_path, "--judge", "votes", "--votes", team, "--price_per_vote", 0.5, "--currency", "EUR")
    report = vote_report(team)
    n = json.loads((tmp_path / "labels" / "labels.json").read_text())["labeled"]
    assert f"{n} of 20 pairs have a label" in text and "5 pairs are left" in text
    assert f"Agreement is hardly above chance: alpha {report.alpha:.2f} [" in text and "rewrite the guidelines" in text
    assert "600" in text and "200" in text  # pairs per hour
    assert (
        "15.00 EUR" in text and f"{15 / n:.2f} EUR per label" in text and "5.00 EUR" in text
    )  # 30 votes; 10 are left
    assert "People gave these labels" in text and "tokens" not in text and "changes with the order" not in text
    page = (tmp_path / "labels" / "report.html").read_text()
    assert (
        "<b>ben</b>" not in page and "&lt;b&gt;ben&lt;/b&gt;" in page and "http:" not in page and "https:" not in page
    )
    capsys.readouterr()
    assert main(["report", "--dataset", str(tmp_path / "labels"), "--votes", str(team)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "labels" / "report.html")
    assert "give --price_per_vote" in text_of(tmp_path / "labels" / "report.html")
    assert len(load_from_disk(str(tmp_path / "labels"))) == n  # the page lies in the folder of the labels


def test_verdicts_of_people_are_not_told_as_those_of_a_chat_judge(team, tmp_path, caplog):
    label(tmp_path, "--judge", "votes", "--votes", team)
    said = caplog.text
    assert "people chose the response shown first in" in said
    assert (
        "hardly above chance" in said
        and "tokens" not in said
        and "change with the order" not in said
        and "cache" not in said
    )


def test_a_judge_is_compared_with_people_once_there_are_votes(tmp_path, capsys):
    pairs().to_parquet(str(tmp_path / "chosen.parquet"))
    with JudgeServer() as server:
        flags = ["--judge", "chat", "--model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        text = label(tmp_path, *flags, "--price", 1, 2, "--currency", "CHF")
    assert "Not measured Nobody knows yet whether people agree with this judge" in text and "CHF" in text
    assert "Position bias of the judge" in text and "People and their pace" not in text
    vote(tmp_path / "votes.jsonl", "ann", lambda i: "a" if (probability(f"a{i}", f"b{i}") > 0.5) != (i < 2) else "b")
    assert main(["report", "--dataset", str(tmp_path / "labels"), "--votes", str(tmp_path / "votes.jsonl")]) == 0
    n = len(load_from_disk(str(tmp_path / "labels")))
    found = text_of(tmp_path / "labels" / "report.html")
    assert f"of {n} pairs that both decided" in found and f"in {(n - 2) / n:.2f} [" in found
    assert "No pair has votes of two people" in found


@pytest.mark.parametrize(
    ("alpha", "words"),
    [(-0.1, "less than chance"), (0.0, "hardly above chance"), (0.14, "hardly above chance"), (0.2, "low"),
     (0.5, "moderate"), (0.7, "good"), (1.0, "high"), (math.nan, "")],
)  # fmt: skip
def test_every_alpha_has_its_words(alpha, words):
    assert alpha_words(alpha)[0] == words


def test_the_page_for_teams_has_the_same_words():
    text = (ROOT / "docs" / "labelling_team.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:below|above|0)[^|]* \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert [(words, advice.replace("`", "")) for words, advice in rows] == [row[1:] for row in ALPHA_WORDS]


def test_what_is_left_is_what_nobody_decided_or_skipped(team):
    verdicts = VerdictSummary(n=10, n_a=4, n_failed=6, failures={"not labelled": 5, "skipped": 1}, cost=2.0)
    labels = LabelReport(verdicts=verdicts).to_dict()
    report = vote_report(team)
    assert n_open(labels) == 5
    found = label_cost(labels, report, 0.1)  # 30 votes and the judge, on five pairs; five are left
    assert (found.votes, found.judge, found.total) == (pytest.approx(3.0), 2.0, pytest.approx(5.0))
    assert (found.per_label, found.left) == (pytest.approx(1.25), pytest.approx(5.0))
    assert hours_left(labels, report) == pytest.approx(5 * 2 * 12 / 3600)  # two votes a pair, 12 s each
    assert math.isnan(label_cost(labels, None, 0.1).votes) and math.isnan(hours_left(labels, None))


@pytest.mark.parametrize(
    ("by_people", "n", "votes"), [(False, 20, True), (True, 20, True), (False, 0, True), (False, 20, False)]
)
def test_a_judge_is_compared_with_people_only_where_both_gave_labels(by_people, n, votes, team, tmp_path):
    labels = LabelReport(verdicts=VerdictSummary(n=20, n_a=20, by_people=by_people)).to_dict()
    given = pairs().select(range(n)).rename_columns({"response_a": "chosen", "response_b": "rejected"})
    text = text_of(write_label_page(tmp_path / "page", labels, votes=team if votes else None, preferences=given))
    assert ("that both decided" in text) == (votes and n > 0 and not by_people)


def test_labels_of_an_older_version_still_have_a_page(tmp_path):
    verdicts = {"n": 2, "n_failed": 0, "failures": {}, "cost": 0.0}
    page = write_label_page(tmp_path, {"judge": "old", "labeled": 2, "ties": 0, "verdicts": verdicts})
    assert "2 of 2 pairs have a label" in text_of(page) and "Nothing is left to do" in text_of(page)
