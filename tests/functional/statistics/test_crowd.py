"""Tests of several raters: their agreement (`rater_agreement`) and their aggregated verdict (`crowd`)."""

import math

import numpy as np
import pytest

from support.shared_data import data_path
from trl_real.errors import TrlRealError
from trl_real.functional.statistics.crowd import AGGREGATIONS, dawid_skene, majority
from trl_real.functional.statistics.rater_agreement import krippendorff_alpha


SIDES = [0.0, 0.5, 1.0]


def truth(n_pairs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(SIDES, p=[0.45, 0.1, 0.45], size=n_pairs)


def rate(true: np.ndarray, accuracies: list[float], missing: float = 0.0, seed: int = 1) -> np.ndarray:
    """Votes of raters who see the truth so often, and guess else. Shape `(R, P)`."""
    rng = np.random.default_rng(seed)
    shape = len(accuracies), len(true)
    votes = np.where(rng.random(shape) < np.array(accuracies)[:, None], true, rng.choice(SIDES, size=shape))
    votes[rng.random(shape) < missing] = np.nan
    return votes


def naive_alpha(votes: np.ndarray) -> float:
    """By the coincidence matrix (Krippendorff 2018), vote by vote."""
    coincidences = np.zeros((3, 3))
    for column in votes.T:
        said = [SIDES.index(vote) for vote in column if not math.isnan(vote)]
        for i, one in enumerate(said):
            for j, other in enumerate(said):
                if i != j:
                    coincidences[one, other] += 1 / (len(said) - 1)
    margins = coincidences.sum(0)
    n = margins.sum()
    observed = (coincidences.sum() - np.trace(coincidences)) / n
    expected = (n**2 - (margins**2).sum()) / (n * (n - 1))
    return 1 - observed / expected


class TestAgreement:
    @pytest.fixture(autouse=True)
    def needs_evalica(self):
        pytest.importorskip("evalica")

    @pytest.mark.parametrize("missing", [0.0, 0.5])
    def test_alpha_is_that_of_the_coincidence_matrix(self, missing):
        votes = rate(truth(80), [0.9, 0.6, 0.3], missing)
        found = krippendorff_alpha(votes)
        assert found.alpha == pytest.approx(naive_alpha(votes))
        assert found.ci_low < found.alpha < found.ci_high
        assert found.n_raters == 3 and found.n_pairs == ((~np.isnan(votes)).sum(0) > 1).sum()

    def test_perfect_agreement_is_one_and_guessing_is_zero(self):
        true = truth(300)
        assert krippendorff_alpha(rate(true, [1, 1, 1])) == (1, 1, 1, 3, 300)
        guessing = krippendorff_alpha(rate(true, [0, 0, 0]))
        assert guessing.ci_low < 0 < guessing.ci_high and abs(guessing.alpha) < 0.1

    def test_order_of_raters_and_pairs_does_not_matter(self):
        votes, rng = rate(truth(60), [0.9, 0.6, 0.3], 0.3), np.random.default_rng(2)
        shuffled = votes[rng.permutation(3)][:, rng.permutation(60)]
        assert krippendorff_alpha(shuffled) == pytest.approx(krippendorff_alpha(votes))
        assert krippendorff_alpha(1 - votes) == pytest.approx(krippendorff_alpha(votes), abs=0.02)

    def test_interval_covers_at_the_stated_confidence(self):
        accuracies = [0.7, 0.7, 0.7]
        true_alpha = krippendorff_alpha(rate(truth(50_000), accuracies)[:, :20_000]).alpha
        covered = 0
        for seed in range(200):
            found = krippendorff_alpha(rate(truth(40, seed), accuracies, seed=1000 + seed))
            covered += found.ci_low <= true_alpha <= found.ci_high
        assert 0.9 < covered / 200 < 0.99

    @pytest.mark.parametrize(
        ("votes", "n_raters", "n_pairs"),
        [
            (np.ones((2, 5)), 2, 5),
            (np.array([[1, np.nan], [np.nan, 0]]), 0, 0),
            (np.zeros((0, 3)), 0, 0),
            (np.zeros((3, 0)), 0, 0),
        ],
    )
    def test_alpha_is_nan_where_agreement_is_undefined(self, votes, n_raters, n_pairs):
        found = krippendorff_alpha(votes)
        assert all(map(math.isnan, found[:3])) and found[3:] == (n_raters, n_pairs)

    def test_a_single_pair_has_no_interval(self):
        found = krippendorff_alpha(np.array([[1.0], [0.0], [1.0]]))
        assert found.alpha < 0.5 and math.isnan(found.ci_low) and found.n_pairs == 1

    @pytest.mark.parametrize(
        ("votes", "message"), [(np.array([[1, 0.7]]), "rater 0 on pair 1 is 0.7"), (np.ones(3), "shape")]
    )
    @pytest.mark.parametrize("use", [krippendorff_alpha, *AGGREGATIONS.values()])
    def test_bad_votes_are_named(self, use, votes, message):
        with pytest.raises(TrlRealError, match=message):
            use(votes)


@pytest.fixture(params=AGGREGATIONS)
def aggregate(request):
    if request.param == "dawid_skene":
        pytest.importorskip("crowdkit")
    return AGGREGATIONS[request.param]


class TestAggregation:
    def test_verdict_is_a_probability_or_nan_without_votes(self, aggregate):
        votes = rate(truth(60), [0.9, 0.8, 0.5], 0.4)
        votes[:, 7] = np.nan
        p = aggregate(votes)
        assert p.shape == (60,) and math.isnan(p[7])
        voted = (~np.isnan(votes)).any(0)
        assert (np.isnan(p) == ~voted).all() and ((p[voted] >= 0) & (p[voted] <= 1)).all()

    def test_order_of_raters_and_pairs_does_not_matter(self, aggregate):
        votes, rng = rate(truth(60), [0.9, 0.8, 0.5], 0.2), np.random.default_rng(2)
        raters, pairs = rng.permutation(3), rng.permutation(60)
        assert aggregate(votes[raters][:, pairs]) == pytest.approx(aggregate(votes)[pairs], abs=1e-6, nan_ok=True)

    def test_swapping_the_responses_mirrors_the_verdict(self, aggregate):
        votes = rate(truth(60), [0.9, 0.8, 0.5], 0.2)
        assert aggregate(1 - votes) == pytest.approx(1 - aggregate(votes), abs=1e-6, nan_ok=True)

    def test_unanimous_votes_are_the_verdict(self, aggregate):
        votes = np.tile([1, 0, 0.5, 1], (3, 1))
        assert aggregate(votes) == pytest.approx([1, 0, 0.5, 1], abs=1e-8)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 2)])
    def test_no_votes_give_no_verdict(self, aggregate, shape):
        assert np.isnan(aggregate(np.full(shape, np.nan))).all()


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_pairs_that_most_raters_call_a_tie_are_exactly_ties(name):
    pytest.importorskip("crowdkit")
    votes = rate(truth(120), [0.8, 0.8, 0.8])
    votes[:, :24] = 0.5
    votes[0, 12:18] = 1.0
    assert (AGGREGATIONS[name](votes)[:24] == 0.5).all()
    assert (AGGREGATIONS[name](np.full((3, 10), 0.5)) == 0.5).all()


def test_majority_is_the_mean():
    assert majority(np.array([[1, 1, 0.5], [1, 0, 0], [0, 0, np.nan]])) == pytest.approx([2 / 3, 1 / 3, 0.25])


class TestDawidSkene:
    @pytest.fixture(autouse=True)
    def needs_crowd_kit(self):
        pytest.importorskip("crowdkit")

    def test_equally_good_raters_give_the_majority(self):
        votes = rate(np.where(truth(400) > 0.5, 1.0, 0.0), [0.7] * 5)
        votes = np.where(votes == 0.5, np.round(np.random.default_rng(3).random(votes.shape)), votes)
        assert (np.sign(dawid_skene(votes) - 0.5) == np.sign(majority(votes) - 0.5)).mean() > 0.99

    @pytest.mark.parametrize("kind", ["always the first", "guessing"])
    def test_random_raters_lose_their_weight(self, kind):
        true = truth(300)
        bad = np.ones((2, 300)) if kind == "always the first" else rate(true, [0, 0], seed=4)
        votes = np.concatenate([rate(true, [0.8, 0.8, 0.8]), bad])

        def right(p):
            return (np.round(2 * p) / 2 == true).mean()

        p = dawid_skene(votes)
        assert right(p) > 0.85 > right(majority(votes)) + 0.15
        without = dawid_skene(votes[:3])
        assert (np.round(2 * p) == np.round(2 * without)).mean() > 0.88, "much as if they had not been asked"


def annotators(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Votes `(R, P)` and labels `(P,)` of a source in `labelled_pairs`."""
    path = data_path("labelled_pairs/labelled_pairs.parquet")
    rows = pytest.importorskip("pandas").read_parquet(path)
    rows = rows[(rows.source == source) & rows.annotator_labels.notna()]
    side = {1: 1.0, 2: 0.0, 0: 0.5}
    votes = np.full((rows.annotator_labels.map(len).max(), len(rows)), np.nan)
    for pair, labels in enumerate(rows.annotator_labels):
        votes[: len(labels), pair] = [side[label] for label in labels]
    return votes, rows.label.map(side).to_numpy()


@pytest.mark.parametrize(("source", "n_pairs", "alpha"), [("pandalm", 701, 0.875), ("lfqa_experts", 69, 0.561)])
def test_agreement_of_real_annotators(source, n_pairs, alpha):
    pytest.importorskip("evalica")
    votes, labels = annotators(source)
    found = krippendorff_alpha(votes)
    assert found.n_pairs == n_pairs and found.alpha == pytest.approx(alpha, abs=1e-3)
    assert found.alpha == pytest.approx(naive_alpha(votes))
    assert found.ci_low < found.alpha < found.ci_high
    known = ~np.isnan(labels)
    assert (np.sign(majority(votes) - 0.5) == np.sign(labels - 0.5))[known].mean() > 0.98


def test_aggregation_of_real_annotators_finds_their_labels():
    pytest.importorskip("crowdkit")
    votes, labels = annotators("pandalm")
    assert (np.round(2 * dawid_skene(votes[:3])) / 2 == labels).mean() > 0.98
