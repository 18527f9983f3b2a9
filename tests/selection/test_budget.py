"""Which rows a budget takes, and which decisions rounding could change."""

import numpy as np
import pytest

from trl_real import TrlRealError
from trl_real.errors import TooFewPairsError
from trl_real.selection.budget import budget_size, lowest_rows, rows_in_doubt
from trl_real.selection.half_precision import SAFETY, Bands


SCORES = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, np.nan])
FAR = np.full(7, np.inf)  # one pair a row: no other pair can win


def doubtful(kept=(0, 1, 2), band=0.0, gaps=FAR, gap_band=0.0, jumps=False):
    return rows_in_doubt(SCORES, gaps, np.array(kept, dtype=int), band, gap_band, jumps).tolist()


@pytest.mark.parametrize(
    ("budget", "n_pairs", "size"),
    [
        (None, 7, 7),
        (0.4, 7, 3),
        (0.35, 7, 2),
        (1.0, 7, 7),
        (0.99, 7, 7),
        (3, 7, 3),
        (7, 7, 7),
        (0.5, 0, 0),
        (None, 0, 0),
    ],
)
def test_a_share_is_rounded_and_a_number_is_taken_as_it_is(budget, n_pairs, size):
    assert budget_size(budget, n_pairs) == size


@pytest.mark.parametrize(("budget", "n_pairs"), [(8, 7), (1, 0)])
def test_more_rows_than_there_are_is_an_error_that_names_both(budget, n_pairs):
    with pytest.raises(TooFewPairsError, match=f"budget={budget}, but (only {n_pairs} rows have|no row has) a pair"):
        budget_size(budget, n_pairs)


def test_a_share_of_no_row_is_an_error():
    with pytest.raises(TrlRealError, match=r"budget=0.05 of 7 rows with a pair is 0 rows. Type budget=1"):
        budget_size(0.05, 7)


@pytest.mark.parametrize(
    ("band", "rows"), [(0.4, []), (0.6, [2, 3]), (1.6, [1, 2, 3, 4]), (9.0, [0, 1, 2, 3, 4, 5])], ids=str
)
def test_rows_near_the_cut_are_in_doubt_on_both_sides(band, rows):
    assert doubtful(band=band) == rows


@pytest.mark.parametrize("kept", [(), (0, 1, 2, 3, 4, 5)], ids=["none kept", "all kept"])
def test_a_cut_that_nothing_can_cross_leaves_no_doubt(kept):
    assert doubtful(kept, band=1.0) == []


@pytest.mark.parametrize(
    ("gap", "jumps", "rows"),
    [
        (0.21, False, []),
        (0.19, False, [0, 1, 2, 3]),  # row 4 is beyond the cut even with its best pair
        (0.19, True, [0, 1, 2, 3, 4, 5]),
    ],
    ids=["clear leads", "near leads", "near leads of a score that jumps"],
)
def test_a_row_whose_second_pair_is_near_is_in_doubt(gap, jumps, rows):
    assert doubtful(gaps=np.full(7, gap), gap_band=0.1, band=0.3, jumps=jumps) == rows


def test_bands_grow_with_what_was_measured_and_never_shrink():
    bands = Bands(None, None).widened(0.1, 0.2)
    assert bands == pytest.approx((0.1 * SAFETY, 0.2 * SAFETY)) and SAFETY > 1
    assert bands.widened(0.01, 0.02) == bands
    assert bands.widened(1.0, 0.0) == pytest.approx((SAFETY, 0.2 * SAFETY))


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("size", range(7))
def test_a_budget_takes_the_lowest_scores_and_of_equal_ones_the_first(size, scale):
    scores = scale * np.array([3.0, 1.0, 2.0 + 1e-7, np.nan, 2.0, 2.0 - 1e-7, 1.0])
    expected = [1, 6, 2, 4, 5, 0][:size]
    assert lowest_rows(scores, size).tolist() == sorted(expected)
