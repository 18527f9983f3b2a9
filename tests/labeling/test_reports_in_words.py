"""What is told of verdicts: each line where its numbers are known, and only there."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.agreement import GoldAgreement, alpha_words, gold_agreement, in_words, panel_agreement
from trl_real.labeling.routed import RoutingReport
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.labeling.verdicts import VOTES, Verdict, VerdictSummary, mean_known, summarize


WORDS = {
    "nothing": ({}, ""),
    "failures": ({"failures": {"cut": 2, "no label": 7}}, "failed: 7 no label, 2 cut"),
    "what was not read": ({"failures": {"cut": 2}, "unread": "x" * 99}, f"failed: 2 cut; such as '{'x' * 80}'"),
    "bias": ({"position_bias": -0.0123}, "position bias -0.012 for the first shown"),
    "bias and flips": (
        {"position_bias": 0.1, "flip_rate": 0.25},
        "position bias +0.100 for the first shown, 25% of the pairs change with the order",
    ),
    "bias of people": (
        {"position_bias": 0.1, "flip_rate": 0.25, "by_people": True},
        "people chose the response shown first in 60%; fair is 50%",
    ),
    "mass": ({"label_mass": 0.9}, "the labels have 0.90 of the probability"),
    "cut texts": ({"n_truncated": 3}, "3 pairs were judged with a text that was cut"),
    "answers": (
        {"n_asked": 4, "n_cached": 1, "input_tokens": 50, "output_tokens": 6},
        "4 answers asked for, 1 from the cache; 50 tokens read and 6 generated",
    ),
    "cached ones alone, with their price": (
        {"n_cached": 1, "cost": 0.25},
        "0 answers asked for, 1 from the cache; 0 tokens read and 0 generated, total cost 0.25",
    ),
    "votes have no tokens": ({"n_asked": 4, "by_people": True}, ""),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_summary_says_what_is_known_and_no_more(name):
    found, words = WORDS[name]
    assert VerdictSummary(n=9, **found).words() == words


def test_a_summary_has_a_line_for_each_of_its_findings():
    found = {**WORDS["bias"][0], **WORDS["failures"][0], **WORDS["answers"][0], **WORDS["cut texts"][0]}
    lines = VerdictSummary(label_mass=0.9, **found).words().split("\n")
    assert lines == [WORDS[name][1] for name in ("failures", "bias", "mass", "cut texts", "answers")]


def test_verdicts_are_those_of_people_only_if_all_are():
    vote, other = Verdict(1.0, source=f"{VOTES}votes.jsonl"), Verdict(1.0, source="chat")
    assert [summarize(found).by_people for found in ([vote, vote], [vote, other], [other], [])] == [True] + [False] * 3


def test_a_failure_without_a_reason_is_no_verdict_and_unknown_masses_do_not_count():
    verdicts = [Verdict(math.nan), Verdict(math.nan, failure="cut", unread="Hm"), Verdict(1.0, label_mass=0.5)]
    found = summarize([*verdicts, Verdict(0.0, label_mass=0.7, unread="Well")])
    assert found.failures == {"no verdict": 1, "cut": 1} and found.unread == "Hm"
    assert found.label_mass == pytest.approx(0.6) and math.isnan(mean_known([math.nan]))


def test_agreement_with_gold_counts_pairs_that_both_decided_and_adds_up():
    ours = [Verdict(p) for p in (0.9, 0.1, 0.5, math.nan, 0.8, 0.7)]
    gold = [Verdict(p) for p in (1.0, 1.0, 0.0, 1.0, 0.5, math.nan)]
    found = gold_agreement(ours, gold)
    assert (found.n, found.n_agree, found.n_undecided, found.rate) == (2, 1, 2, 0.5)
    assert (found.ci_low, found.ci_high) == wilson_interval(1, 2, 0.95)
    both = found + GoldAgreement.of(6, 5, 1)
    assert both == GoldAgreement.of(8, 6, 3) and both.rate == 0.75
    assert "0.75 [" in both.words() and "on 8 pairs that both decided; the judge left 3 more undecided" in both.words()
    nothing = GoldAgreement.of(0, 0, 4)
    assert math.isnan(nothing.rate) and nothing.words() == "agreement with gold labels: no pair was decided by both"


@pytest.mark.parametrize(
    ("alpha", "words"),
    [(-0.01, "less than chance"), (0.0, "hardly above chance"), (0.2, "low"), (0.4, "moderate"), (0.667, "good"),
     (0.8, "high"), (math.nan, "")],
)  # fmt: skip
def test_an_alpha_at_the_end_of_a_range_belongs_to_the_next(alpha, words):
    assert alpha_words(alpha)[0] == words
    assert in_words(alpha) == (f": {words}; {alpha_words(alpha)[1]}" if words else "")


def test_members_of_a_panel_agree_by_the_side_that_they_take():
    members = [(0.9, 0.6), (0.1, 0.4), (0.8, 0.7), (0.2, 0.3), (0.5, 0.5), (0.9, math.nan)]
    found = panel_agreement([Verdict(0.5, members=row) for row in members])
    assert (found.alpha, found.n_judges, found.n_pairs) == (1.0, 2, 5)
    assert panel_agreement([Verdict(0.5, members=row[:1]) for row in members]) is None
    assert panel_agreement([Verdict(0.5)]) is None and panel_agreement([]) is None
    apart = panel_agreement([Verdict(0.5, members=(p, 1 - p)) for p in (0.9, 0.1) * 4])
    assert (
        apart.alpha < 0
        and "raters: Krippendorff's alpha -" in apart.words()
        and "on 8 pairs: less than" in apart.words()
    )


def test_a_routing_tells_what_as_many_random_pairs_would_have_changed():
    report = RoutingReport("cheap", "dear", 100, 20, 18, 9, 0, math.nan, math.nan, math.nan)
    line = "20 of 100 pairs went to dear: 18 answered, 9 labels changed"
    assert report.words() == line
    known = replace(report, n_random=4, random_agreement=0.75, ci_low=0.3, ci_high=0.95)
    assert known.words() == (
        f"{line}; on 4 random ones both agree in 0.75 [0.30, 0.95], so as many at random would have changed about 4"
    )


def annotated(dropped="", confidence=0.8, tokens=(2, 5), texts=("four", "fourteen"), winner=0):
    return SimpleNamespace(
        dropped=dropped, confidence=confidence, n_scored=tokens, texts=texts, winner=winner, loser=1 - winner
    )


def test_a_self_annotation_counts_its_labels_and_what_it_dropped():
    report = SelfAnnotationReport("spa")
    assert report.words() == (
        "spa: 0 of 0 prompts labeled\n0 responses read by the policy, 0 by the reference; 0 tokens in 0.0 s"
    )
    report.add_rows([annotated(), annotated("tied"), annotated("cut"), annotated("tied")])
    report.add_rows([annotated(confidence=0.5, winner=1), annotated(confidence=1.0)])
    rewards = SimpleNamespace(values=torch.tensor([1.0, math.nan]), truncated=torch.tensor([True, False]))
    rewards.n_tokens, rewards.n_policy, rewards.n_reference = 70, 2, 1
    for _ in range(2):
        report.add_scored(rewards, [True, False])
    assert (report.n_prompts, report.n_labeled, report.dropped) == (6, 3, {"tied": 2, "cut": 1})
    assert (report.n_responses, report.n_unfinished, report.n_unusable, report.n_truncated) == (4, 2, 2, 2)
    assert report.mean_lengths == {
        "chosen_tokens": 3, "rejected_tokens": 4, "chosen_chars": pytest.approx(16 / 3),
        "rejected_chars": pytest.approx(20 / 3),
    }  # fmt: skip
    assert report.histogram == [1, 0, 0, 0, 0, 0, 1, 0, 0, 1] and report.quantiles["median"] == 0.8
    assert report.words().split("\n") == [
        "spa: 3 of 6 prompts labeled; dropped: 2 tied, 1 cut",
        "confidence 0.800 (5 to 95 %: 0.530 to 0.980); winners have 3 tokens, losers 4; "
        "50% of the responses are unfinished",
        "4 responses read by the policy, 2 by the reference; 140 tokens in 0.0 s",
    ]
    plain = report.to_dict()
    assert plain["dropped"] == {"tied": 2, "cut": 1} and plain["gold"] is None and "confidences" not in plain
    assert SelfAnnotationReport().to_dict()["unfinished_share"] is None
