"""Mean of people's values from a judge's on all rows and people's on a sample: prediction-powered inference."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.inputs import Numbers, as_groups, as_vector, check_count
from trl_real.functional.statistics.intervals import (
    NO_VARIANCE,
    UNDEFINED,
    Interval,
    degrees_of_freedom,
    score_ends,
    wilson_interval,
)


# Two numbers are fitted, the mean and the judge's weight: with fewer prompts there is no error left to measure.
FEWEST = 3


class PeopleSample(NamedTuple):
    """
    Judge's and people's values of all rows, and how the rows for people were drawn.

    Args:
        judge: Value of the judge; rows without one have the mean of the others. Shape `(N,)`.
        people: Value of people; NaN where nobody was asked, or gave no verdict. Shape `(N,)`.
        probabilities: Inclusion probability of each row, in (0, 1]. Shape `(N,)`.
        groups: Cluster (prompt) of each row. Shape `(N,)`, int.
    """

    judge: np.ndarray
    people: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray


class RectifiedMean(NamedTuple):
    """
    Estimate of the mean that people would have given on all rows.

    Args:
        mean: The estimate; NaN without labels.
        error: Its standard error; NaN with fewer than 3 labelled prompts (2 with a given weight).
        degrees: Degrees of freedom for Student's t.
        weight: Weight of the judge; 0 is people alone.
    """

    mean: float
    error: float
    degrees: float
    weight: float


def sample_of(
    judged: np.ndarray, votes: np.ndarray, probabilities: Numbers | None, clusters: Sequence[Any] | None
) -> PeopleSample:
    """
    Check and complete the columns of a `PeopleSample`; rows without a verdict of the judge get the mean of the others.

    Raises:
        TrlRealError: If inputs differ in length, or an inclusion probability is not in (0, 1].
    """
    check_count(votes, len(judged), "people")
    known, asked = ~np.isnan(judged), ~np.isnan(votes)
    filled = np.where(known, judged, judged[known].mean() if known.any() else 0.5)
    if probabilities is None:
        shares = np.full(len(judged), asked.mean() if asked.any() else 1.0)
    else:
        shares = as_vector(probabilities, "inclusion_probabilities")
        check_count(shares, len(judged), "inclusion_probabilities")
        wrong = np.flatnonzero(~((shares > 0) & (shares <= 1 + 1e-9)))
        if wrong.size:
            raise TrlRealError(
                f"inclusion_probabilities row {wrong[0]} is {shares[wrong[0]]:g}. Give every row the probability in "
                "(0, 1] with which it was drawn for people, also those that were not drawn."
            )
    return PeopleSample(filled, votes, shares.clip(max=1.0), as_groups(clusters, len(judged)))


def rectified_mean(sample: PeopleSample, weight: float | None = None) -> RectifiedMean:
    r"""
    Estimate people's mean by `mean_w(y) + lambda * (mean(f) - mean_w(f))`, with `mean_w` over the labelled rows,
    weighted by `1 / pi` and normalised.

    `lambda` is PPI++'s plug-in, the weight of the smallest variance, at least 0:
    `mean_w(k (y - mean_w(y)) (f - mean_w(f))) / (sum(k (f - mean(f))^2) / (N - 1))` with `k = 1 / pi - 1`. For rows
    drawn uniformly the result is `ppi_mean_pointestimate` of `ppi-python` 0.2.3 to rounding, whose `lam` refers to the
    rows without labels and is `lambda * (1 - n / N)`; that one stops at 1, this one does not, since a judge that is
    too timid needs more.

    The variance sums the influence of all rows by prompt, so it contains the choice of prompts, the draw, and the
    agreement of rows of one prompt. The part of the labelled rows has Bell and McCaffrey's correction `1 / (1 - p_g)`,
    with `p_g` a prompt's share of the weights, and `(G - 1) / (G - 2)` for the fitted `lambda`; the degrees of freedom
    are those of `intervals.degrees_of_freedom` for these shares, less 1 for `lambda`. A judge that agrees with all
    labels may still be wrong elsewhere: that part is at least what one label with an error of 1 would give.

    Args:
        sample: Values `f` and `y`, probabilities `pi`, and prompts of the rows.
        weight: Value for `lambda`; None fits it.
    """
    asked = ~np.isnan(sample.people)
    n_rows = len(asked)
    if not asked.any():
        return RectifiedMean(*[float("nan")] * 4)
    f, y = sample.judge, np.where(asked, sample.people, 0.0)
    share = np.where(asked, 1 / sample.probabilities, 0.0)
    share /= share.sum()  # (N,)
    y_mean, f_labelled, f_all = share @ y, share @ f, f.mean()
    if weight is None:
        k = 1 / sample.probabilities - 1
        spread = (k * (f - f_all) ** 2).sum() / max(n_rows - 1, 1)
        shared = (share * k) @ ((y - y_mean) * (f - f_labelled))
        fitted = max(float(shared / spread), 0.0) if spread > NO_VARIANCE else 0.0
    else:
        fitted = weight
    people = share * (y - y_mean) - fitted * (share - asked / n_rows) * (f - f_labelled)
    judge = np.where(asked, 0.0, fitted * (f - _unlabelled_mean(f, sample.probabilities, ~asked)) / n_rows)
    _, place = np.unique(sample.groups, return_inverse=True)
    people, judge, shares = (np.bincount(place, weights=part) for part in (people, judge, share * asked))  # (G,)
    labelled = shares[shares > 0]
    n_fitted = int(weight is None and fitted > 0)
    if len(labelled) < FEWEST - (weight is not None):
        return RectifiedMean(float(y_mean + fitted * (f_all - f_labelled)), float("nan"), float("nan"), fitted)
    correction = (len(labelled) - 1) / (len(labelled) - 1 - n_fitted) / (1 - shares)
    labels = np.sqrt(correction) * people
    one_more = n_fitted * max((labelled**2).sum() ** 2 - (labels**2).sum(), 0.0)
    error = np.sqrt(((labels + judge) ** 2).sum() + one_more)
    degrees = max(degrees_of_freedom(labelled) - n_fitted, 1.0)
    return RectifiedMean(float(y_mean + fitted * (f_all - f_labelled)), float(error), degrees, fitted)


def estimate_interval(
    found: RectifiedMean, sample: PeopleSample, confidence: float = 0.95, method: str = "auto"
) -> Interval:
    """
    Return the interval of an estimate of a rate in [0, 1]; see `people_win_rate` for the methods.

    If all of people's verdicts are equal, Wilson's interval with one trial per effective label replaces it
    (`"wilson, no variance"`), since a standard error of 0 is not certainty.
    """
    if np.isnan(found.error):
        return UNDEFINED
    spread, trials = _variance(sample), max(int(_kish(sample)), 1)
    mean = min(max(found.mean, 0.0), 1.0)
    if spread < NO_VARIANCE or found.error < NO_VARIANCE or not 0 < mean < 1:
        low, high = wilson_interval(mean * trials, trials, confidence)
        return Interval(low, high, "wilson, no variance")
    quantile = t_quantile(found, confidence)
    if method == "t":
        half = quantile * found.error
        return Interval(max(found.mean - half, 0.0), min(found.mean + half, 1.0), "people, t")
    return Interval(*score_ends(mean, quantile * found.error), "people, score")


def effective_people(found: RectifiedMean, sample: PeopleSample) -> float:
    """Return the number of independent, uniformly drawn votes of people that alone would have this standard error."""
    return _variance(sample) / found.error**2 if found.error > NO_VARIANCE else float("nan")


def t_quantile(found: RectifiedMean, confidence: float) -> float:
    """Return Student's quantile for both ends of an interval at this level."""
    from scipy.special import stdtrit

    return float(stdtrit(found.degrees, (1 + confidence) / 2))


def _unlabelled_mean(f: np.ndarray, probabilities: np.ndarray, left: np.ndarray) -> float:
    """Return the mean of the judge's values over the rows without a label, weighted to represent all rows."""
    weights = 1 / np.maximum(1 - probabilities[left], 1 / len(f))
    return float(weights @ f[left] / weights.sum()) if left.any() else 0.0


def _variance(sample: PeopleSample) -> float:
    """Return the variance of people's values in the population, from the weighted labels."""
    asked = ~np.isnan(sample.people)
    y, weights = sample.people[asked], 1 / sample.probabilities[asked]
    n = _kish(sample)
    spread = float(np.average((y - np.average(y, weights=weights)) ** 2, weights=weights))
    return spread * n / (n - 1) if n > 1 else float("nan")


def _kish(sample: PeopleSample) -> float:
    """Return the effective number of labels by their weights, `sum(w)^2 / sum(w^2)`, at most one per prompt."""
    asked = ~np.isnan(sample.people)
    _, place = np.unique(sample.groups[asked], return_inverse=True)
    weights = np.bincount(place, weights=1 / sample.probabilities[asked])
    return float(weights.sum() ** 2 / (weights**2).sum())
