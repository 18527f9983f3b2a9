"""Tests of `trl_real.functional.statistics.paired`: two models against one baseline."""

import json
import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, wilcoxon

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.paired import holm, paired_comparison


def two_models(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.random.default_rng(seed).uniform(size=(2, n))
    return first, np.where(second < 0.2, first, second)  # some equal


def exact_sign_flip_p(differences: np.ndarray) -> float:
    """Over all signs, one at a time."""
    flips = np.array(list(product([1, -1], repeat=len(differences))))
    return float((np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9).mean())


def test_equals_computations_by_hand():
    first, second = two_models(11)
    found = paired_comparison(first, second)
    d = first - second
    assert found.difference == pytest.approx(d.mean())
    half = 2.2281388519649385 * d.std(ddof=1) / math.sqrt(11)  # t of 10 degrees at 97.5 %
    assert (found.ci_low, found.ci_high) == pytest.approx((d.mean() - half, d.mean() + half))
    better, worse = (d > 0).sum(), (d < 0).sum()
    assert (found.n_first_better, found.n_second_better, found.n_equal) == (better, worse, 11 - better - worse)
    assert found.n_equal > 0
    assert found.sign_p == pytest.approx(min(1, 2 * binom.cdf(min(better, worse), better + worse, 0.5)))
    assert found.permutation_p == pytest.approx(exact_sign_flip_p(d))
    assert found.wilcoxon_p == wilcoxon(d[d != 0]).pvalue


def test_swapping_the_models_mirrors_the_difference_and_keeps_the_p_values():
    first, second = two_models(60)
    found, swapped = paired_comparison(first, second), paired_comparison(second, first)
    assert swapped.difference == -found.difference
    assert (swapped.ci_low, swapped.ci_high) == pytest.approx((-found.ci_high, -found.ci_low))
    assert (swapped.n_first_better, swapped.n_second_better) == (found.n_second_better, found.n_first_better)
    assert swapped.sign_p == found.sign_p and swapped.wilcoxon_p == pytest.approx(found.wilcoxon_p)
    assert swapped.permutation_p == pytest.approx(found.permutation_p, abs=0.02)


def test_copies_of_a_prompt_add_no_certainty():
    first, second = two_models(30)
    copies = np.repeat(np.arange(30), 4)
    once = paired_comparison(first, second)
    clustered = paired_comparison(first[copies], second[copies], clusters=copies)
    iid = paired_comparison(first[copies], second[copies])
    assert (clustered.n_rows, clustered.n_prompts) == (120, 30)
    for name in ("difference", "ci_low", "ci_high", "sign_p", "permutation_p", "wilcoxon_p"):
        assert getattr(clustered, name) == pytest.approx(getattr(once, name))
    assert iid.ci_high - iid.ci_low < 0.6 * (once.ci_high - once.ci_low)


def test_paired_difference_is_more_precise_than_two_intervals():
    rng = np.random.default_rng(1)
    hard = rng.uniform(size=200)  # how hard the prompt is: the same for both
    first, second = (hard + 0.1).clip(0, 1), hard
    found = paired_comparison(first, second)
    assert found.ci_low > 0 and found.permutation_p < 0.001 and found.sign_p < 0.001
    spread = 1.96 * math.sqrt((first.var() + second.var()) / 200)
    assert spread > 3 * (found.ci_high - found.ci_low) / 2


def test_rows_that_failed_for_one_model_are_dropped_and_counted():
    first, second = two_models(20)
    with_gaps = paired_comparison([*first, None, 1, np.nan], [*second, 1, None, np.nan])
    assert with_gaps.n_dropped == 3 and with_gaps.n_rows == 20
    kept = paired_comparison(first, second)
    assert {**with_gaps.to_dict(), "n_dropped": 0} == kept.to_dict()
    assert "3 rows dropped" in with_gaps.words() and "dropped" not in kept.words()


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([None], [1]), ([1], [0]), ([0.5] * 4, [0.5] * 4), ([1] * 4, [0] * 4)]
)
def test_too_few_differences_give_no_significance(first, second):
    found = paired_comparison(first, second)
    assert min(found.sign_p, found.permutation_p, found.wilcoxon_p) >= 2 / 2**4
    assert math.isnan(found.ci_low) and "\n" not in found.words() and "nan" not in found.words()
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_difference_of_rounding_is_none():
    # 0.1 + 0.2 - 0.3 is 5.6e-17; equal sums of probabilities are a tie, whatever the order of the terms.
    first, second = [0.1, 0.2, 0.0] * 12, [0.0, 0.0, 0.3] * 12
    found = paired_comparison(first, second, clusters=np.repeat(np.arange(12), 3))
    assert (found.n_equal, found.n_first_better, found.n_second_better) == (12, 0, 0)
    assert found.sign_p == found.permutation_p == found.wilcoxon_p == 1
    almost = paired_comparison([0.3] * 20, np.full(20, 0.1 + 0.2) - 1e-17)
    assert almost.n_equal == 20


def test_words_name_every_test():
    words = paired_comparison(*two_models(40)).words()
    for part in ("sign", "permutation", "Wilcoxon", "of 40 prompts"):
        assert part in words
    assert "\n" not in words


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (([1, 0], [1]), {}, "1 second came with 2 first"),
        (([1, 2], [1, 0]), {}, "first row 1 is 2"),
        (([1, 1], [1, -3]), {}, "second row 1 is -3"),
        (([1, 1], [1, 0]), {"clusters": ["a"]}, "1 clusters"),
        (([1, 1], [1, 0]), {"confidence": 2}, "confidence is 2"),
    ],
)
def test_bad_input_is_named(inputs, options, message):
    with pytest.raises(TrlRealError, match=message) as raised:
        paired_comparison(*inputs, **options)
    assert "\n" not in str(raised.value)


def naive_holm(p_values):
    order, adjusted, worst = np.argsort(p_values), np.zeros(len(p_values)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted.tolist()


def test_holm_is_the_step_down_rule():
    pytest.importorskip("statsmodels")
    p_values = np.random.default_rng(2).beta(0.3, 2, size=25)
    assert holm(p_values) == pytest.approx(naive_holm(p_values))
    with_gap = holm([*p_values, np.nan])
    assert with_gap[:-1] == pytest.approx(naive_holm(p_values)) and math.isnan(with_gap[-1])
    assert holm([]) == [] and holm([0.04]) == [0.04]
    with pytest.raises(TrlRealError, match="p_values row 1 is 1.5"):
        holm([0.1, 1.5])


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ([0.9] * 9 + [0.8] * 9, [0.1] * 18, "gain"),
        ([0.1] * 18, [0.9] * 9 + [0.8] * 9, "worse"),
        ([0.0, 1.0] * 9, [1.0, 0.0] * 9, "no gain measured"),
        ([1.0] * 9, [0.0] * 8 + [0.5], "not measured"),
        ([0.5] * 18, [0.5] * 18, "not measured"),
    ],
    ids=["above 0", "below 0", "around 0", "nine prompts", "no variance"],
)
def test_the_outcome_follows_the_interval(first, second, outcome):
    assert paired_comparison(first, second).outcome == outcome
