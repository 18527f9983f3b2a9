"""The least confident labels of a policy go to another judge."""

import math

import pytest
from datasets import Dataset

from support.self_judge import CHAT, PROMPTS, annotated, judge, pool
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.relabel import relabel


pytestmark = pytest.mark.usefixtures("one_thread")


class TestRelabeling:
    labels = property(lambda self: annotated()[0])

    def contrary(self, labels):
        """Says the opposite of the labels, and notes what it was asked."""
        winners, asked = set(labels["chosen"][:]), []

        def other(rows):
            asked.extend(rows["prompt"])
            return [0.1 if a in winners else 0.9 for a in rows["response_a"]]

        return other, asked

    def test_least_confident_labels_come_from_the_judge(self):
        labels = self.labels
        other, asked = self.contrary(labels)
        report = LabelReport()
        mixed = relabel(labels, other, 2, report=report)
        order = sorted(range(5), key=lambda i: labels[i]["label_confidence"])
        assert sorted(asked) == sorted(PROMPTS[i] for i in order[:2]) and report.n_labeled == 2
        for i, (before, after) in enumerate(zip(labels, mixed, strict=True)):
            if i not in order[:2]:
                assert before == after
                continue
            assert (after["chosen"], after["rejected"]) == (before["rejected"], before["chosen"])
            assert (after["score_chosen"], after["score_rejected"]) == (
                before["score_rejected"],
                before["score_chosen"],
            )
            assert after["label_confidence"] == pytest.approx(0.9) and after["label_source"] == "other"
        assert mixed.features == labels.features
        other, asked = self.contrary(labels)
        relabel(mixed, other, 1.0)
        assert len(asked) == 3  # what another judge has said stays

    @pytest.mark.parametrize("undecided", ["keep", "drop"])
    def test_ties_and_failures_keep_the_label_or_drop_the_row(self, undecided):
        labels = self.labels

        def unsure(rows):
            return [(0.5, math.nan, 1.0)[PROMPTS.index(p) % 3] for p in rows["prompt"]]

        report = LabelReport()
        mixed = relabel(labels, unsure, 1.0, undecided=undecided, report=report)
        assert report.counts == {"labeled": 1, "ties": 2, "failed": 2}
        assert len(mixed) == (5 if undecided == "keep" else 1)
        kept = [row for row in mixed if row["label_source"] != "unsure"]
        assert kept == ([row for i, row in enumerate(labels) if i != 2] if undecided == "keep" else [])

    def test_judge_does_not_see_the_label_and_resumes_from_its_journal(self, tmp_path):
        labels = self.labels
        other, asked = self.contrary(labels)
        first = relabel(labels, other, 0.4, journal=tmp_path / "v.jsonl")
        assert len(asked) == 2
        assert relabel(labels, other, 0.4, journal=tmp_path / "v.jsonl").to_list() == first.to_list()
        assert len(asked) == 2

        def always_first(rows):
            return [1.0] * len(rows["prompt"])

        for row in relabel(labels, always_first, 1.0):
            assert row["chosen"] < row["rejected"]

    def test_messages_are_relabelled(self):
        answers = [[{"role": "assistant", "content": text}] for text in (" Boil it.", " No milk.")]
        labels = annotated(Dataset.from_dict({"prompt": [CHAT], "responses": [answers]}))[0]
        other, _ = self.contrary(Dataset.from_dict({"chosen": [labels[0]["chosen"][0]["content"]]}))
        assert relabel(labels, other, 1)[0]["chosen"] == labels[0]["rejected"]
        mixture = Dataset.from_list([{**labels[0], "prompt": "Tea?"}])
        swapped = relabel(mixture, other, 1)[0]
        assert (swapped["prompt"], swapped["chosen"]) == ("Tea?", labels[0]["rejected"])

    @pytest.mark.parametrize("undecided", ["keep", "drop"])
    def test_labels_stay_without_a_judge(self, undecided):
        labels = self.labels
        for rows, settings in ((labels, {"budget": 0}), (labels, {"budget": 0.05}), (labels.select([]), {"budget": 1}),
                               (labels, {"budget": 1, "source": "nobody"})):  # fmt: skip
            report = LabelReport(n_rows=9)
            same = relabel(rows, judge(), undecided=undecided, report=report, **settings)
            assert same.to_list() == rows.to_list() and same.features == rows.features
            assert (report.judge, report.n_rows, report.n_labeled) == (judge().name, 0, 0)

    def test_mistakes_get_a_one_line_error(self):
        for budget in (0.0, 1.5, -1, True):
            with pytest.raises(TrlRealError, match="give a share in"):
                relabel(self.labels, judge(), budget)
        with pytest.raises(TrlRealError, match="undecided='lose'"):
            relabel(self.labels, judge(), 1, undecided="lose")
        with pytest.raises(MissingColumnError, match="output of self_annotate"):
            relabel(pool(), judge(), 1)
