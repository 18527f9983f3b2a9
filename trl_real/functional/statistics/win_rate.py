"""Win rate of a model against a baseline, with standard error and confidence interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.inputs import Numbers, as_groups, as_preferences, check_confidence
from trl_real.functional.statistics.intervals import mean_interval, standard_error
from trl_real.functional.statistics.length_control import length_controlled_win_rate, length_rates


def win_rate(
    preferences: Numbers,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    lengths: Numbers | None = None,
    baseline_lengths: Numbers | None = None,
    difficulty: Numbers | None = None,
    method: str = "auto",
    seed: int = 42,
) -> dict[str, float | int | str]:
    """
    Compute the share of rows in which the model's response beats the baseline's; a tie is half a win.

    `win_rate`, `standard_error` and `discrete_win_rate` are AlpacaEval's, as fractions: the mean, the sample standard
    deviation over `sqrt(n)`, and the mean with every preference rounded to 0, 0.5 or 1. For several rows per prompt
    (two orders, several judges) give `clusters`: the standard error is then cluster-robust.

    Args:
        preferences: Probability in [0, 1] that the model's response beats the baseline's: 1 a win, 0 a loss, 0.5 a
            tie, NaN or None not judged. Shape `(N,)`.
        clusters: Prompt of each row, as hashable ids in any order; not needed for one row per prompt. Shape `(N,)`.
        confidence: Confidence level of the intervals, in (0, 1).
        lengths: Number of characters of the model's responses; requires `baseline_lengths`. Shape `(N,)`.
        baseline_lengths: Number of characters of the baseline's responses. Shape `(N,)`.
        difficulty: AlpacaEval's difficulty of its 805 instructions, if these are the rows, in its order; requires both
            lengths. Shape `(805,)`.
        method: Method of the interval: `"auto"` (Wilson's if it applies, else Student's t), `"wilson"`, `"t"`,
            `"score"` (better than t for rates near 0 or 1) or `"bootstrap"`; see
            `trl_real.functional.statistics.intervals.mean_interval`.
        seed: Seed of the bootstraps.

    Returns:
        `win_rate`, `standard_error`, `ci_low`, `ci_high` (fractions; NaN with too few judged rows), `ci_method` (see
        `mean_interval`), `n_wins`, `n_losses`, `n_ties`, `n_failed` (not judged, not in any rate), `n_total` (judged
        rows, `n_wins + n_losses + n_ties`, as in AlpacaEval; without `n_failed`), `discrete_win_rate`,
        `win_rate_without_ties` (wins over wins and losses). With both lengths, also the result of
        `trl_real.functional.statistics.length_control.length_rates`: `equal_length_win_rate`, its interval, and
        `matched_length_win_rate`. With `difficulty`, also AlpacaEval's `length_controlled_win_rate`.

    Raises:
        TrlRealError: If a preference is out of range (the message names row and value), inputs differ in length, a
            cluster or a length is missing, `confidence` or `method` is invalid, or `difficulty` comes with other rows
            than AlpacaEval's 805.
    """
    preferences = as_preferences(preferences)
    check_confidence(confidence)
    judged, groups = ~np.isnan(preferences), as_groups(clusters, len(preferences))
    scores = preferences[judged]
    low, high, made_by = mean_interval(scores, groups[judged], confidence, method, seed)
    rates: dict[str, Any] = {
        "win_rate": float(scores.mean()) if len(scores) else float("nan"),
        "standard_error": standard_error(scores, groups[judged]),
        "ci_low": low,
        "ci_high": high,
        "ci_method": made_by,
        **counts_of(preferences),
    }
    if (lengths is None) != (baseline_lengths is None):
        raise TrlRealError("Only one of lengths and baseline_lengths is given. Give both, or neither.")
    if lengths is not None and baseline_lengths is not None:
        rates |= length_rates(preferences, lengths, baseline_lengths, groups, confidence, seed)
    if difficulty is not None:
        rates["length_controlled_win_rate"] = length_controlled_win_rate(
            preferences, lengths, baseline_lengths, difficulty, groups
        )
    return rates


def sign_test(preferences: Numbers) -> float:
    """
    Run the two-sided exact sign test of "wins and losses are equally likely", without ties and rows not judged.

    Args:
        preferences: Preferences as in `win_rate`, one row per prompt (rows count as independent). Shape `(N,)`.

    Returns:
        p-value, in (0, 1]; 1 without wins and losses.
    """
    from scipy.stats import binomtest

    counts = counts_of(as_preferences(preferences))
    n = counts["n_wins"] + counts["n_losses"]
    return float(binomtest(counts["n_wins"], n).pvalue) if n else 1.0


def counts_of(preferences: np.ndarray) -> dict[str, float | int]:
    """Count wins, losses, ties, failures and judged rows, and compute the win rates of these counts."""
    n_wins, n_losses, n_ties = (int(x.sum()) for x in (preferences > 0.5, preferences < 0.5, preferences == 0.5))
    n_decided, n_total = n_wins + n_losses, n_wins + n_losses + n_ties
    return {
        "n_wins": n_wins,
        "n_losses": n_losses,
        "n_ties": n_ties,
        "n_failed": len(preferences) - n_total,
        "n_total": n_total,
        "discrete_win_rate": (n_wins + n_ties / 2) / n_total if n_total else float("nan"),
        "win_rate_without_ties": n_wins / n_decided if n_decided else float("nan"),
    }
