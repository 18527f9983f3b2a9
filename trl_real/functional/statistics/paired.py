"""Paired comparison of two models that were judged against one baseline on the same prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError, needs_extra
from trl_real.functional.statistics.inputs import (
    Numbers,
    as_groups,
    as_preferences,
    as_vector,
    check_confidence,
    check_count,
)
from trl_real.functional.statistics.intervals import NO_VARIANCE, t_half_width
from trl_real.functional.statistics.win_rate import sign_test


ROUNDS = 9999
MIN_PROMPTS = 10  # with fewer, the outcome is "not measured"
# Rounding that makes equal sums of probabilities equal again.
DIGITS = 12


@dataclass
class PairedComparison:
    """
    Result of a paired comparison of two models against one baseline.

    Args:
        difference: Mean of `first - second`: a difference of win rates, in [-1, 1].
        ci_low, ci_high: Its t interval, clustered by prompt; NaN with fewer than two prompts or without variance.
        sign_p: p-value of the exact two-sided sign test on the prompts in which the two differ.
        permutation_p: p-value of the sign-flip permutation test of the mean differences per prompt.
        wilcoxon_p: p-value of Wilcoxon's signed-rank test of these differences (without those of 0).
        n_rows: Number of rows in which both models were judged.
        n_prompts: Number of prompts of these rows.
        n_first_better, n_second_better, n_equal: Number of prompts by outcome; they add up to `n_prompts`.
        n_dropped: Number of rows in which a model was not judged; they count nowhere else.
        confidence: Confidence level of the interval.
        seed: Seed of the permutations.
    """

    difference: float
    ci_low: float
    ci_high: float
    sign_p: float
    permutation_p: float
    wilcoxon_p: float
    n_rows: int
    n_prompts: int
    n_first_better: int
    n_second_better: int
    n_equal: int
    n_dropped: int
    confidence: float = 0.95
    seed: int = 42

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @property
    def outcome(self) -> str:
        """`"gain"`, `"worse"` or `"no gain measured"` by the interval; `"not measured"` with fewer than 10 prompts."""
        if self.n_prompts < MIN_PROMPTS or self.ci_low != self.ci_low:
            return "not measured"
        return "gain" if self.ci_low > 0 else "worse" if self.ci_high < 0 else "no gain measured"

    def words(self) -> str:
        """Return the result in one line."""
        dropped = f", {self.n_dropped} rows dropped" if self.n_dropped else ""
        if not self.n_rows:
            return f"difference of win rates: no row was judged for both models{dropped}"
        no_interval = self.ci_low != self.ci_low
        interval = "no interval" if no_interval else f"[{self.ci_low:+.3f}, {self.ci_high:+.3f}]"
        return (
            f"difference of win rates {self.difference:+.3f} {interval}; "
            f"p = {self.sign_p:.3g} (sign), {self.permutation_p:.3g} (permutation), {self.wilcoxon_p:.3g} (Wilcoxon); "
            f"better on {self.n_first_better}, worse on {self.n_second_better} and equal on {self.n_equal} "
            f"of {self.n_prompts} prompts{dropped}"
        )


def paired_comparison(
    first: Numbers,
    second: Numbers,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    seed: int = 42,
) -> PairedComparison:
    """
    Compare two models by their preferences against the same baseline on the same rows.

    The three tests answer different questions and may disagree; choose one before you see the results. The sign test
    asks which model is better more often, by any amount; the permutation test, whether the mean difference is 0;
    Wilcoxon's test, whether the differences are symmetric around 0. All three use one mean difference per prompt, so
    several rows of a prompt count once.

    Args:
        first: Probability in [0, 1] that the first model beats the baseline; NaN or None not judged. Shape `(N,)`.
        second: The same for the second model, row by row. Shape `(N,)`.
        clusters: Prompt of each row. Shape `(N,)`.
        confidence: Confidence level of the interval, in (0, 1).
        seed: Seed of the permutations; at most 9,999 are drawn.

    Returns:
        Difference, interval, tests and counts. A test without data has p = 1.

    Raises:
        TrlRealError: If a preference is out of range or the inputs differ in length.
    """
    check_confidence(confidence)
    first, second = as_preferences(first, "first"), as_preferences(second, "second")
    check_count(second, len(first), "second", "first")
    groups = as_groups(clusters, len(first))
    judged = ~np.isnan(first - second)
    differences = (first - second)[judged]
    names, place = np.unique(groups[judged], return_inverse=True)
    means = (np.bincount(place, weights=differences) / np.bincount(place)).round(DIGITS)  # (G,)
    low, high = _interval(differences, place, confidence)
    return PairedComparison(
        difference=float(differences.mean()) if len(differences) else float("nan"),
        ci_low=low,
        ci_high=high,
        sign_p=sign_test((np.sign(means) + 1) / 2),
        permutation_p=_permutation_p(means, seed),
        wilcoxon_p=_wilcoxon_p(means),
        n_rows=len(differences),
        n_prompts=len(names),
        n_first_better=int((means > 0).sum()),
        n_second_better=int((means < 0).sum()),
        n_equal=int((means == 0).sum()),
        n_dropped=int((~judged).sum()),
        confidence=confidence,
        seed=seed,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Return Holm's adjusted p-values for several comparisons: with all of them below 0.05 accepted, the risk that any is
    wrong is 5 % (Holm 1979).

    Args:
        p_values: p-values in [0, 1]; NaN for a missing one. Shape `(m,)`.

    Returns:
        Adjusted p-values in the same order; NaN stays and does not count.

    Raises:
        TrlRealError: If a p-value is out of range.
        MissingExtraError: If statsmodels is not installed.
    """
    with needs_extra("statsmodels", "stats"):
        from statsmodels.stats.multitest import multipletests

    adjusted = as_vector(p_values, "p_values").copy()
    wrong = np.flatnonzero((adjusted < 0) | (adjusted > 1))
    if wrong.size:
        raise TrlRealError(f"p_values row {wrong[0]} is {adjusted[wrong[0]]:g}. Give p-values between 0 and 1.")
    given = ~np.isnan(adjusted)
    if given.any():
        adjusted[given] = multipletests(adjusted[given], method="holm")[1]
    return adjusted.tolist()


def _interval(differences: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the t interval of the mean difference, cut off at -1 and 1."""
    if len(np.unique(groups)) < 2:
        return float("nan"), float("nan")
    half, mean = t_half_width(differences, groups, confidence), differences.mean()
    if half < NO_VARIANCE:
        return float("nan"), float("nan")
    return float(max(mean - half, -1)), float(min(mean + half, 1))


def _permutation_p(means: np.ndarray, seed: int) -> float:
    """Run the two-sided test; a permutation within a pair `(mean, 0)` flips the sign of the difference."""
    from scipy.stats import permutation_test

    means = means[means != 0]
    if len(means) < 2:
        return 1.0
    return float(
        permutation_test(
            (means, np.zeros_like(means)),
            lambda x, y, axis: (x - y).mean(axis),
            permutation_type="samples",
            n_resamples=ROUNDS,
            batch=max(1, 1_000_000 // len(means)),
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def _wilcoxon_p(means: np.ndarray) -> float:
    from scipy.stats import wilcoxon

    return float(wilcoxon(means).pvalue) if means.any() else 1.0
