"""Win rates of one model against a baseline, with the uncertainty that belongs to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError


# Further out of [0, 1] than float32 rounding of a probability is a mistake.
ROUNDING = 1e-6
NO_VARIANCE = 1e-12
NUMBER = int | float | np.number | None


def win_rate(
    preferences: Sequence[float | None],
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    lengths: Sequence[float] | None = None,
    baseline_lengths: Sequence[float] | None = None,
) -> dict[str, float | int | str]:
    """
    Share of the rows in which the model's response beats the baseline's, a tie as half a win.

    `win_rate`, `standard_error` and `discrete_win_rate` are AlpacaEval's, as fractions: the mean, the sample standard
    deviation over `sqrt(n)`, and the mean after every preference became 0, 0.5 or 1. With several rows a prompt
    (two orders, several judges) give `clusters`: the standard error then is the cluster-robust one.

    Args:
        preferences: Probability in [0, 1] that the model's response beats the baseline's: 1 a win, 0 a loss, 0.5 a
            tie, NaN or None not judged. Shape `(N,)`.
        clusters: Prompt of each row: hashable ids, in any order. Shape `(N,)`. One row a prompt is the same as none.
        confidence: Level of the interval, in (0, 1).
        lengths: Characters of the model's responses. Shape `(N,)`. With `baseline_lengths` or not at all.
        baseline_lengths: Characters of the baseline's responses. Shape `(N,)`.

    Returns:
        `win_rate`, `standard_error`, `ci_low`, `ci_high` (fractions; NaN where too few rows were judged to say),
        `ci_method` (see `interval`), `n_wins`, `n_losses`, `n_ties`, `n_failed` (not judged, left out of every rate),
        `n_total` (judged rows, `n_wins + n_losses + n_ties`, as AlpacaEval counts; `n_failed` comes on top),
        `discrete_win_rate`, and `length_controlled_win_rate` if both lengths are given.

    Raises:
        TrlRealError: If a preference is out of range (the row and the value are named), inputs differ in length, a
            cluster or a length is missing, or `confidence` is out of range.
    """
    preferences = as_preferences(preferences)
    if not 0 < confidence < 1:
        raise TrlRealError(f"confidence is {confidence}. Give a level between 0 and 1, such as confidence=0.95.")
    judged = ~np.isnan(preferences)
    scores, groups = preferences[judged], _groups(clusters, len(preferences))[judged]
    error = standard_error(scores, groups)
    low, high, method = interval(scores, groups, error, confidence)
    rates = {
        "win_rate": float(scores.mean()) if len(scores) else float("nan"),
        "standard_error": error,
        "ci_low": low,
        "ci_high": high,
        "ci_method": method,
        **_counts(preferences),
    }
    if (lengths is None) != (baseline_lengths is None):
        raise TrlRealError("Only one of lengths and baseline_lengths is there. Give both, or neither.")
    if lengths is not None:
        rates["length_controlled_win_rate"] = length_controlled_win_rate(preferences, lengths, baseline_lengths)
    return rates


def standard_error(scores: np.ndarray, groups: np.ndarray) -> float:
    r"""
    Cluster-robust standard error of the mean: `sqrt(G / (G - 1) * sum_g (sum_{i in g} (y_i - mean))^2) / n`.

    With one row a group it is `std(y, ddof=1) / sqrt(n)`; statsmodels calls it `cov_type="cluster"` on a constant.

    Args:
        scores: Judged preferences `y`. Shape `(n,)`.
        groups: Cluster of each score. Shape `(n,)`, int.

    Returns:
        A fraction; NaN with fewer than two clusters.
    """
    names, groups = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    sums = np.bincount(groups, weights=scores - scores.mean())  # (G,)
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(scores))


def interval(scores: np.ndarray, groups: np.ndarray, error: float, confidence: float) -> tuple[float, float, str]:
    """
    Confidence interval of the win rate, and how it was made.

    Args:
        scores, groups: As in `standard_error`.
        error: What `standard_error` returns.
        confidence: Level, in (0, 1).

    Returns:
        Lower end, upper end (both in [0, 1], or NaN) and the method:
        `"wilson"`: wins and losses only, one row a cluster (Wilson's score interval).
        `"t"` and `"clustered t"`: ties, graded preferences or clusters: mean and standard error, Student's t with one
        degree of freedom less than clusters, cut off at 0 and 1.
        `"wilson, no variance"`: the same where the standard error is 0 (all ties, or every prompt alike), which a t
        interval would take for certainty: Wilson's interval for as many trials as there are clusters.
        `"undefined"`: no row, one graded row, or several rows of a single cluster.
    """
    n, n_clusters = len(scores), len(np.unique(groups))
    if n and n == n_clusters and np.isin(scores, (0, 1)).all():
        return *wilson_interval(scores.sum(), n, confidence), "wilson"
    if n_clusters < 2:
        return float("nan"), float("nan"), "undefined"
    if error < NO_VARIANCE:
        return *wilson_interval(scores.mean() * n_clusters, n_clusters, confidence), "wilson, no variance"
    from scipy.stats import t

    half = t.ppf((1 + confidence) / 2, n_clusters - 1) * error
    low, high = np.clip([scores.mean() - half, scores.mean() + half], 0, 1)
    return float(low), float(high), "t" if n == n_clusters else "clustered t"


def length_controlled_win_rate(
    preferences: Sequence[float | None], lengths: Sequence[float], baseline_lengths: Sequence[float]
) -> float:
    r"""
    Win rate that a logistic model predicts for responses as long as the baseline's: `sigmoid(theta)` of

    `P(win) = sigmoid(phi * tanh((length - baseline_length) / s) + theta)`

    with `s` the standard deviation of the length differences, fitted by plain maximum likelihood with soft targets.

    **Not comparable with the AlpacaEval leaderboard**, whose length control also knows the difficulty of each
    instruction: for 20 models of AlpacaEval 2 this function is 5 points too high on average, and up to 15. Compare its
    values with each other only, on the same prompts. For the leaderboard's, see `alpaca_eval_length_controlled`.

    Args:
        preferences, lengths, baseline_lengths: As in `win_rate`. Shape `(N,)` each.

    Returns:
        A fraction. 1 or 0 if the model won, or lost, every row; the plain win rate if both responses have the same
        length in every row. NaN where length cannot be told from quality: no judged row, the same difference (other
        than 0) in all rows, or a difference that parts all wins from all losses.

    Raises:
        TrlRealError: If inputs differ in length, or the length of a judged row is missing or negative.
    """
    preferences = as_preferences(preferences)
    judged = ~np.isnan(preferences)
    difference = _lengths(lengths, judged, "lengths") - _lengths(baseline_lengths, judged, "baseline_lengths")  # (n,)
    scores = preferences[judged]
    if not len(scores):
        return float("nan")
    if not difference.any() or scores.min() == 1 or scores.max() == 0:
        return float(scores.mean())
    if np.ptp(difference) == 0 or _separated(difference, scores):
        return float("nan")
    return _logistic_at_zero(np.tanh(difference / difference.std(ddof=1)), scores)


def alpaca_eval_length_controlled(difficulty: Sequence[float], difficulty_coef: float, model_coef: float) -> float:
    r"""
    AlpacaEval 2's length-controlled win rate from its weights: `mean_i sigmoid(psi * gamma_i + theta)`.

    Args:
        difficulty: Difficulty `gamma` of the 805 AlpacaEval instructions. Shape `(N,)`.
        difficulty_coef: The model's weight `psi` of the difficulty.
        model_coef: The model's own weight `theta`.

    Returns:
        A fraction; the leaderboard prints it in percent. The baseline's is 0.5.
    """
    from scipy.special import expit

    return float(expit(difficulty_coef * as_vector(difficulty, "difficulty") + model_coef).mean())


def sign_test(preferences: Sequence[float | None]) -> float:
    """
    Two-sided exact sign test of "wins and losses are equally likely"; ties and rows not judged are left out.

    Args:
        preferences: As in `win_rate`, one row a prompt (rows are taken as independent). Shape `(N,)`.

    Returns:
        The p-value, in (0, 1]; 1 if there is neither a win nor a loss.
    """
    from scipy.stats import binomtest

    counts = _counts(as_preferences(preferences))
    n = counts["n_wins"] + counts["n_losses"]
    return float(binomtest(counts["n_wins"], n).pvalue) if n else 1.0


def as_preferences(preferences: Sequence[float | None]) -> np.ndarray:
    """
    Preferences as float64, None as NaN, and what is out of [0, 1] by rounding (1e-6) moved to its edge. Shape `(N,)`.

    Raises:
        TrlRealError: If one is no number, or out of range by more.
    """
    values = as_vector(preferences, "preferences")
    wrong = np.flatnonzero((values < -ROUNDING) | (values > 1 + ROUNDING))
    if wrong.size:
        raise TrlRealError(
            f"preferences row {wrong[0]} is {values[wrong[0]]:g}, which is no probability in [0, 1]. "
            "From AlpacaEval's coding (1 baseline, 2 model, 1.5 or 0 draw): turn 0 into 1.5 and subtract 1."
        )
    return values.clip(0, 1)


def as_vector(values: Sequence[float | None], name: str) -> np.ndarray:
    """
    Numbers as float64, None as NaN. Shape `(N,)`.

    Raises:
        TrlRealError: If one is no number, or the list is not flat; the text found is not repeated.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = [f"row {i} is a {type(v).__name__}" for i, v in enumerate(values) if not isinstance(v, NUMBER)]
        found = found[0] if found else f"are a {type(values).__name__}"
        raise TrlRealError(f"{name} {found}, not a number. Give a flat list of numbers, one a row.") from None
    if vector.ndim != 1:
        raise TrlRealError(f"{name} have shape {vector.shape}. Give a flat list of numbers, one a row.")
    return vector


def _counts(preferences: np.ndarray) -> dict[str, float | int]:
    """Wins, losses, ties, failures and judged rows, and the win rate of these counts."""
    n_wins, n_losses, n_ties = (int(x.sum()) for x in (preferences > 0.5, preferences < 0.5, preferences == 0.5))
    n_total = n_wins + n_losses + n_ties
    counts = {"n_wins": n_wins, "n_losses": n_losses, "n_ties": n_ties, "n_failed": len(preferences) - n_total}
    rate = (n_wins + n_ties / 2) / n_total if n_total else float("nan")
    return {**counts, "n_total": n_total, "discrete_win_rate": rate}


def wilson_interval(wins: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval; between two whole numbers of wins, the lower end of one and the upper of the other."""
    from scipy.stats import binomtest

    fewest, most = (int(to_whole(round(float(wins), 9))) for to_whole in (np.floor, np.ceil))
    low, high = (binomtest(k, n).proportion_ci(confidence, method="wilson") for k in (fewest, most))
    return float(low.low), float(high.high)


def _separated(difference: np.ndarray, scores: np.ndarray) -> bool:
    """Whether one difference parts all wins from all losses (graded rows are both): then no finite fit exists."""
    wins, losses = difference[scores > 0], difference[scores < 1]
    return wins.min() >= losses.max() or wins.max() <= losses.min()


def _logistic_at_zero(x: np.ndarray, scores: np.ndarray) -> float:
    """Fit `sigmoid(phi * x + theta)` to soft targets, both of shape `(n,)`, and return `sigmoid(theta)`."""
    from scipy.optimize import minimize
    from scipy.special import expit

    design = np.stack([x, np.ones_like(x)], axis=1)  # (n, 2)

    def loss(weights):
        logits = design @ weights
        return (np.logaddexp(0, logits) - scores * logits).mean(), design.T @ (expit(logits) - scores) / len(x)

    def hessian(weights):
        p = expit(design @ weights)
        return (design.T * (p * (1 - p))) @ design / len(x)

    fit = minimize(loss, np.zeros(2), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-10})
    return float(expit(fit.x[1]))


def _groups(clusters: Sequence[Any] | None, n: int) -> np.ndarray:
    """Clusters as integers, in order of appearance; without clusters each row is its own. Shape `(N,)`."""
    if clusters is None:
        return np.arange(n)
    clusters = clusters.tolist() if hasattr(clusters, "tolist") else list(clusters)
    _check_count(clusters, n, "clusters")
    wrong = [row for row, name in enumerate(clusters) if name is None or name != name or isinstance(name, list | dict)]
    if wrong:
        found = type(clusters[wrong[0]]).__name__
        raise TrlRealError(f"clusters row {wrong[0]} is a {found}. Give every row the id or the text of its prompt.")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=int)


def _lengths(lengths: Sequence[float], judged: np.ndarray, name: str) -> np.ndarray:
    """Lengths of the judged rows, checked. Shape `(n,)`."""
    values = as_vector(lengths, name)
    _check_count(values, len(judged), name)
    wrong = np.flatnonzero(judged & ~((values >= 0) & np.isfinite(values)))
    if wrong.size:
        raise TrlRealError(f"{name} row {wrong[0]} is {values[wrong[0]]:g}. Give the number of characters, 0 or more.")
    return values[judged]


def _check_count(values: Sequence[Any], n: int, name: str) -> None:
    if len(values) != n:
        raise TrlRealError(f"{len(values)} {name} came with {n} preferences. Give one a row, in the same order.")
