"""Verdicts in a journal: none is asked for twice, also after a kill."""

import pytest
from datasets import Dataset, concatenate_datasets

from support.chosen_pairs import Once, pool
from trl_real import ScoreJudge, TrlRealError, annotate
from trl_real.labeling.annotate import LabelReport, identity_of
from trl_real.labeling.base import ROWS_PER_SAVE, VerdictJudge
from trl_real.labeling.implicit_reward import ImplicitRewardJudge
from trl_real.labeling.panel import JudgePanel
from trl_real.labeling.people.votes import pair_key
from trl_real.labeling.reward_model import RewardModelJudge
from trl_real.labeling.routed import RoutedJudge
from trl_real.labeling.verdicts import Verdict
from trl_real.runtime.journal import Journal


def test_interrupted_run_resumes_without_asking_twice(tmp_path):
    judge, journal = Once(stop_after=2), tmp_path / "verdicts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        annotate(pool(), judge, batch_size=1, journal=journal)
    judge.stop_after, report = None, LabelReport()
    labeled = annotate(pool(), judge, batch_size=1, journal=journal, report=report)
    assert judge.seen == ["p0", "p1", "p2", "p3"] and report.n_resumed == 2
    assert labeled.to_list() == annotate(pool(), Once(), batch_size=3).to_list()
    judge.seen = []
    again = annotate(pool(), judge, journal=journal, report=report)
    assert judge.seen == ["p3"] and report.n_resumed == 3  # what failed is asked again
    assert again.to_list() == labeled.to_list()


def test_a_journal_keeps_the_verdicts_of_different_judges_apart(tmp_path):
    for name in ("one", "other"):
        judge = Once(name)
        annotate(pool(), judge, journal=tmp_path / "j.jsonl")
        assert len(judge.seen) == 4
    assert {line["name"] for line in Journal(tmp_path / "j.jsonl").read()} == {"one", "other"}


@pytest.mark.parametrize("judge", [ScoreJudge(), JudgePanel([ScoreJudge(), ScoreJudge(min_gap=0.5)])])
def test_journal_key_of_a_row_includes_its_scores(judge, tmp_path):
    corrected = pool(scores=[[2.0, 1.0], [3.0, 9.0, 2.0], [5.0, 5.0], [None, 1.0]])
    for rows in (pool(), corrected, concatenate_datasets([pool(), corrected])):
        labeled = annotate(rows, judge, journal=tmp_path / "j.jsonl")
        assert labeled.to_list() == annotate(rows, judge).to_list()
    report = LabelReport()
    annotate(corrected, judge, journal=tmp_path / "j.jsonl", report=report)
    assert report.n_resumed == 3  # all but the failure


def test_journal_keys_of_text_judges_equal_the_pair_keys(tmp_path):
    annotate(pool(), JudgePanel([Once(), Once()]), journal=tmp_path / "j.jsonl")
    keys = [line["key"] for line in Journal(tmp_path / "j.jsonl").read()]
    assert keys == [pair_key(*row) for row in (("p0", "a", "b"), ("p1", "c", "e"), ("p2", "f", "g"))]


def test_the_order_of_rows_changes_no_verdict_and_equal_rows_are_asked_once(tmp_path):
    doubled = concatenate_datasets([pool(), pool().select([2, 1, 0])])
    judge = Once()
    labeled = annotate(doubled, judge, journal=tmp_path / "j.jsonl")
    assert judge.seen == ["p0", "p1", "p2", "p3"]
    assert labeled["prompt"][:] == ["p0", "p1", "p1", "p0"]


class Stopped(Exception):
    pass


class InProcess(VerdictJudge):
    """Judge that runs in this process and is killed after some calls."""

    name, rows_per_save = "in process", ROWS_PER_SAVE

    def __init__(self, calls):
        self.left, self.n_asked = calls, 0

    def verdicts(self, batch):
        if not self.left:
            raise Stopped
        self.left -= 1
        self.n_asked += len(batch["prompt"])
        return [Verdict(1.0)] * len(batch["prompt"])


@pytest.mark.parametrize("wrap", [lambda judge: judge, lambda judge: JudgePanel([judge, ScoreJudge()])])
def test_a_kill_costs_one_call_of_a_judge_in_this_process(wrap, tmp_path):
    n = 250
    texts = {"prompt": [f"p{i}" for i in range(n)], "responses": [["a", "b"]] * n, "scores": [[2.0, 1.0]] * n}
    rows = Dataset.from_dict({**texts, "pair": [[0, 1]] * n, "response_a": ["a"] * n, "response_b": ["b"] * n})
    killed, again = InProcess(4), InProcess(99)
    with pytest.raises(Stopped):
        annotate(rows, wrap(killed), journal=tmp_path / "verdicts.jsonl")
    assert len(annotate(rows, wrap(again), journal=tmp_path / "verdicts.jsonl")) == n
    assert killed.n_asked == 4 * ROWS_PER_SAVE and again.n_asked == n - killed.n_asked


def test_judges_that_run_a_model_in_this_process_save_often():
    assert {cls.rows_per_save for cls in (RewardModelJudge, ImplicitRewardJudge)} == {ROWS_PER_SAVE}


def test_a_journal_in_use_is_reported_before_anything_is_asked(tmp_path):
    judge = InProcess(99)
    with Journal(tmp_path / "verdicts.jsonl"), pytest.raises(TrlRealError, match="Another process is writing"):
        annotate(pool(), judge, journal=tmp_path / "verdicts.jsonl")
    assert judge.n_asked == 0


def coin(batch):
    return [0.5] * len(batch["prompt"])


# What journals of older versions hold: another value means that every pair is asked, and paid for, again.
IDENTITIES = [
    (ScoreJudge(), "19b5c41a78f4cd71"),
    (ScoreJudge("s", 0.5, 1.5), "d4182b598aa20444"),
    (coin, "d394b38ee69cdf32"),
    (JudgePanel([ScoreJudge(), coin]), "7525bb74c2bd9680"),
    (RoutedJudge(ScoreJudge(), coin, 3), "d1173249838cea55"),
]


@pytest.mark.parametrize(("judge", "identity"), IDENTITIES)
def test_the_identity_of_a_judge_in_a_journal_never_changes(judge, identity):
    assert identity_of(judge) == identity


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda **given: ScoreJudge(**given), {"column": "s", "min_gap": 0.5, "min_ratio": 2.0}),
        (lambda **given: JudgePanel(**{"judges": [ScoreJudge(), coin], **given}),
         {"judges": [coin, ScoreJudge()], "pooling": "majority", "quorum": 1}),
        (lambda **given: RoutedJudge(**{"cheap": ScoreJudge(), "dear": coin, "budget": 3, **given}),
         {"cheap": ScoreJudge("s"), "dear": ScoreJudge(), "budget": 0.5, "random_share": 0.5, "seed": 1}),
    ],
)  # fmt: skip
def test_every_setting_that_changes_verdicts_is_a_part_of_the_identity(make, settings):
    assert identity_of(make()) == identity_of(make())
    found = {identity_of(make()), *(identity_of(make(**{name: value})) for name, value in settings.items())}
    assert len(found) == 1 + len(settings)


def test_an_ignored_setting_counts_for_no_member():
    one, other = (JudgePanel([ScoreJudge(min_gap=gap), coin]) for gap in (0.0, 0.5))
    assert identity_of(one) != identity_of(other)
    assert identity_of(one, ["min_gap"]) == identity_of(other, ["min_gap"]) != identity_of(one, ["name"])
