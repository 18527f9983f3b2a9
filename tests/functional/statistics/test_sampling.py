"""Rows drawn for people: as many as asked for, with the probabilities that are reported, and none dropped later."""

import numpy as np
import pytest

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.sampling import draw_rows, uncertainty


P = 60
SCORES = uncertainty(np.linspace(0.02, 0.98, P))
STRATA = np.repeat(["a", "b", "c"], [40, 15, 5])
KINDS = {
    "uniform": {"uniform_share": 1.0},
    "uncertainty": {},
    "strata": {"strata": STRATA, "uniform_share": 1.0},
    "strata, uncertainty": {"strata": STRATA},
}


def test_uncertainty_is_largest_for_ties_and_failures_and_flattened_by_temperature():
    assert uncertainty([0.5, None, 0.1, 0.9, 1.0]) == pytest.approx([0.5, 0.5, 0.3, 0.3, np.sqrt(0.95 * 0.05)])
    assert uncertainty([0.1], 2.0) == pytest.approx([np.sqrt(0.25 * 0.75)])  # odds of 1 to 9 become 1 to 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_draw_keeps_the_rows_of_a_smaller_one(kind):
    draws = np.random.default_rng(0).random(P)
    before: list[int] = []
    for n in range(3, P + 2):
        drawn = draw_rows(SCORES, draws, n, **KINDS[kind])
        assert len(set(drawn.rows)) == min(n, P) and set(before) <= set(drawn.rows)
        assert ((drawn.inclusion_probabilities > 0) & (drawn.inclusion_probabilities <= 1)).all()
        before = drawn.rows.tolist()
    assert (drawn.inclusion_probabilities == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_probabilities_count_every_row_once_on_average(kind):
    rng, n, rounds = np.random.default_rng(1), 15, 4000
    total = np.zeros(P)
    for _ in range(rounds):
        drawn = draw_rows(SCORES, rng.random(P), n, **KINDS[kind])
        total[drawn.rows] += 1 / drawn.inclusion_probabilities[drawn.rows]
    means = total / rounds
    assert np.abs(means - 1).max() < 0.25 and means.mean() == pytest.approx(1, abs=0.01)
    # The uniform share bounds the weights: no row is less likely than half of n / N, up to the last priority's chance.
    least = drawn.inclusion_probabilities.min() if "strata" not in kind else None
    assert least is None or least > 0.3 * n / P


def test_uncertain_rows_are_drawn_more_often():
    rng = np.random.default_rng(2)
    drawn = np.concatenate([draw_rows(SCORES, rng.random(P), 10).rows for _ in range(500)])
    often = np.bincount(drawn, minlength=P)
    assert often[25:35].mean() > 1.3 * often[[*range(5), *range(55, 60)]].mean()


def test_rows_are_drawn_by_content_and_not_by_place():
    draws, mixed = np.random.default_rng(3).random(P), np.random.default_rng(4).permutation(P)
    one, two = draw_rows(SCORES, draws, 20), draw_rows(SCORES[mixed], draws[mixed], 20)
    assert one.rows.tolist() == mixed[two.rows].tolist()
    assert one.inclusion_probabilities[mixed] == pytest.approx(two.inclusion_probabilities)


def test_strata_get_their_share():
    drawn = draw_rows(np.zeros(P), np.random.default_rng(5).random(P), 12, strata=STRATA)
    assert np.unique(STRATA[drawn.rows], return_counts=True)[1].tolist() == [8, 3, 1]


@pytest.mark.parametrize(
    ("n", "options", "words"),
    [
        (0, {}, "n=0"),
        (2, {"strata": STRATA}, "2 rows cannot be drawn from 3 strata"),
        (2, {"uniform_share": 2}, "uniform_share=2"),
    ],
)
def test_wrong_requests_are_named(n, options, words):
    with pytest.raises(TrlRealError, match=words):
        draw_rows(SCORES, np.full(P, 0.5), n, **options)
