"""Win rate by people's verdicts, from a judge's verdicts on all rows and people's on a sample of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.inputs import Numbers, as_preferences, check_confidence, check_count
from trl_real.functional.statistics.intervals import NO_VARIANCE, mean_interval
from trl_real.functional.statistics.rectified import (
    PeopleSample,
    effective_people,
    estimate_interval,
    rectified_mean,
    sample_of,
    t_quantile,
)
from trl_real.functional.statistics.win_rate import counts_of


METHODS = ("auto", "score", "t")


def people_win_rate(
    preferences: Numbers,
    people: Numbers,
    inclusion_probabilities: Numbers | None = None,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    method: str = "auto",
) -> dict[str, float | int | str]:
    """
    Estimate the win rate by people on all rows, from a judge's verdicts on all and people's on a sample.

    The interval is valid however wrong the judge is, and narrower than people's alone if it predicts them: PPI++
    (Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453) with inverse-probability weights (Zrnic and Candès 2024,
    "Active statistical inference", arXiv 2403.03208) and errors by prompt; see `rectified_mean`.

    Args:
        preferences: Judge's probability in [0, 1] that the model's response beats the baseline's, NaN or None not
            judged. Shape `(N,)`.
        people: People's verdict on the same rows, coded alike; NaN where nobody was asked or nobody decided.
            Shape `(N,)`.
        inclusion_probabilities: Probability in (0, 1] with which each row was drawn for people, as from
            `trl_real.functional.statistics.sampling.draw_rows`; only their ratios count. None: all rows were equally
            likely. Shape `(N,)`.
        clusters: Prompt of each row. Shape `(N,)`.
        confidence: Confidence level of the intervals, in (0, 1).
        method: `"score"` (as `"auto"`; Wilson's formula with this standard error, good near 0 and 1) or `"t"`.

    Returns:
        `win_rate`, `standard_error`, `ci_low`, `ci_high`, `ci_method` for people; counts of people's verdicts
        (`n_wins`, `n_losses`, `n_ties`, `n_total`) and their weighted `discrete_win_rate` and `win_rate_without_ties`;
        `n_failed`, the rows that the judge did not judge (they count, with the mean of its verdicts); `n_rows`. Also
        `judge_win_rate`, `judge_ci_low`, `judge_ci_high` (the judge alone), `judge_bias` (it minus `win_rate`),
        `judge_weight`, and, from the same votes without the judge, `people_only_win_rate`, `people_only_ci_low`,
        `people_only_ci_high`.
        `effective_people`: number of independent votes that alone would have this standard error.

    Raises:
        TrlRealError: If inputs differ in length, a value is out of range, or `method` is unknown.
    """
    judged, votes = as_preferences(preferences), as_preferences(people, "people")
    check_confidence(confidence)
    if method not in METHODS:
        raise TrlRealError(f"method is {method!r}. With people, give one of {', '.join(map(repr, METHODS))}.")
    sample = sample_of(judged, votes, inclusion_probabilities, clusters)
    found, alone = rectified_mean(sample), rectified_mean(sample, weight=0.0)
    low, high, made_by = estimate_interval(found, sample, confidence, method)
    people_only, asked = estimate_interval(alone, sample, confidence, method), ~np.isnan(votes)
    judge_low, judge_high, _ = mean_interval(judged[~np.isnan(judged)], sample.groups[~np.isnan(judged)], confidence)
    judge_rate = float(sample.judge.mean()) if not np.isnan(judged).all() else float("nan")
    return {
        "win_rate": found.mean,
        "standard_error": found.error,
        "ci_low": low,
        "ci_high": high,
        "ci_method": made_by,
        **counts_of(votes),
        "n_failed": int(np.isnan(judged).sum()),
        "n_rows": len(votes),
        "discrete_win_rate": _weighted((np.sign(votes - 0.5) + 1) / 2, sample),
        "win_rate_without_ties": _weighted(np.where(votes == 0.5, np.nan, votes > 0.5), sample, asked),
        "judge_win_rate": judge_rate,
        "judge_ci_low": judge_low,
        "judge_ci_high": judge_high,
        "judge_bias": judge_rate - found.mean,
        "judge_weight": found.weight,
        "people_only_win_rate": alone.mean,
        "people_only_ci_low": people_only.low,
        "people_only_ci_high": people_only.high,
        "effective_people": effective_people(found, sample),
    }


def paired_people(
    first: tuple[Numbers, Numbers],
    second: tuple[Numbers, Numbers],
    inclusion_probabilities: Numbers | None = None,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> dict[str, float | int]:
    """
    Estimate the difference of two models' win rates by people, both against one baseline on the same rows.

    Args:
        first: Judge's and people's verdicts on the first model, as in `people_win_rate`. Shapes `(N,)`.
        second: The same for the second model, row by row.
        inclusion_probabilities, clusters, confidence: Arguments of `people_win_rate`, for the rows on which people
            judged both models.

    Returns:
        `difference` (first minus second), `standard_error`, `ci_low`, `ci_high` (t interval, within [-1, 1]),
        `judge_difference`, `people_only_difference`, `judge_weight`, `effective_people` and `n_total`, the number of
        rows with people's verdict on both.

    Raises:
        TrlRealError: As in `people_win_rate`.
    """
    check_confidence(confidence)
    sides = [[as_preferences(values, "preferences") for values in side] for side in (first, second)]
    check_count(sides[1][0], len(sides[0][0]), "second", "first")
    judged, votes = sides[0][0] - sides[1][0], sides[0][1] - sides[1][1]
    sample = sample_of(judged, votes, inclusion_probabilities, clusters)
    found = rectified_mean(sample)
    half = t_quantile(found, confidence) * found.error if found.error > NO_VARIANCE else float("nan")
    return {
        "difference": found.mean,
        "standard_error": found.error,
        "ci_low": max(found.mean - half, -1.0),
        "ci_high": min(found.mean + half, 1.0),
        "judge_difference": float(sample.judge.mean()) if not np.isnan(judged).all() else float("nan"),
        "people_only_difference": rectified_mean(sample, weight=0.0).mean,
        "judge_weight": found.weight,
        "effective_people": effective_people(found, sample),
        "n_total": int((~np.isnan(votes)).sum()),
    }


def _weighted(values: np.ndarray, sample: PeopleSample, asked: np.ndarray | None = None) -> float:
    """Return the mean of the known values, weighted by the inverse of the inclusion probabilities."""
    known = ~np.isnan(values) if asked is None else asked & ~np.isnan(values)
    return float(np.average(values[known], weights=1 / sample.probabilities[known])) if known.any() else float("nan")
