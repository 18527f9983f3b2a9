"""Win rates controlled for length: AlpacaEval's figure for its prompts, and one for any prompts."""

from typing import NamedTuple

import numpy as np

from trl_real.errors import TrlRealError, needs_extra
from trl_real.functional.statistics.equal_length import equal_length_interval, equal_length_rate
from trl_real.functional.statistics.inputs import Numbers, as_lengths, as_preferences, as_vector, check_count


N_ALPACA_EVAL = 805
# Largest difference of two matched lengths, as a share of the longer one.
MATCHED = 0.1


class AlpacaEvalWeights(NamedTuple):
    """
    Weights of AlpacaEval 2's length-controlled model for one entry, as in its repository.

    Args:
        length_coef: Weight `phi` of `tanh` of the length difference; positive if shorter responses win more.
        difficulty_coef: Weight `psi` of the instruction's difficulty.
        model_coef: Weight `theta` of the model itself.
    """

    length_coef: float
    difficulty_coef: float
    model_coef: float


def length_rates(
    preferences: np.ndarray,
    lengths: Numbers,
    baseline_lengths: Numbers,
    groups: np.ndarray,
    confidence: float = 0.95,
    seed: int = 42,
) -> dict[str, float | int]:
    """
    Compute the two length-controlled rates that work for any prompts.

    Args:
        preferences, lengths, baseline_lengths, confidence, seed: Arguments of `win_rate`; preferences are checked.
        groups: Prompt of each row. Shape `(N,)`, int.

    Returns:
        `equal_length_win_rate` (see `equal_length_rate`), `equal_length_ci_low`, `equal_length_ci_high` (bootstrap by
        prompt, 2,000 refits; NaN if the rate is NaN), and for comparison, without a model, `matched_length_win_rate`:
        the plain rate over the `n_matched_length` rows in which the lengths differ by at most 10 % of the longer one
        (NaN without such rows).
    """
    judged = ~np.isnan(preferences)
    scores, groups = preferences[judged], groups[judged]
    own, other = as_lengths(lengths, judged, "lengths"), as_lengths(baseline_lengths, judged, "baseline_lengths")
    rate = equal_length_rate(scores, own - other)
    low, high = equal_length_interval(scores, own - other, groups, confidence, seed)
    matched = np.abs(own - other) <= MATCHED * np.maximum(own, other)
    return {
        "equal_length_win_rate": rate,
        "equal_length_ci_low": low,
        "equal_length_ci_high": high,
        "matched_length_win_rate": float(scores[matched].mean()) if matched.any() else float("nan"),
        "n_matched_length": int(matched.sum()),
    }


def length_controlled_win_rate(
    preferences: Numbers,
    lengths: Numbers | None,
    baseline_lengths: Numbers | None,
    difficulty: Numbers,
    groups: np.ndarray | None = None,
) -> float:
    """
    Compute AlpacaEval 2's length-controlled win rate from our own fit of its weights. `fit_alpaca_eval_weights` states
    the error compared with the published leaderboard.

    Args:
        preferences, lengths, baseline_lengths: Values for the 805 instructions, in AlpacaEval's order.
            Shape `(805,)` each.
        difficulty: Difficulty of the instructions. Shape `(805,)`.
        groups: Prompt of each row, if known. Shape `(805,)`.

    Returns:
        Win rate as a fraction; NaN if no row was judged.

    Raises:
        TrlRealError: If there is not one row for each of the 805 instructions, or lengths are missing.
    """
    n_prompts = len(preferences) if groups is None else len(np.unique(groups))
    found = {"rows": len(preferences), "prompts": n_prompts, "difficulties": len(difficulty)}
    wrong = [f"{n} {name}" for name, n in found.items() if n != N_ALPACA_EVAL]
    if wrong:
        raise TrlRealError(
            f"difficulty is for AlpacaEval's {N_ALPACA_EVAL} instructions, one row each; found {wrong[0]}. "
            "For other prompts leave difficulty out and use equal_length_win_rate."
        )
    if lengths is None or baseline_lengths is None:
        raise TrlRealError("difficulty needs lengths. Give lengths and baseline_lengths too, in characters.")
    if np.isnan(as_preferences(preferences)).all():
        return float("nan")
    weights = fit_alpaca_eval_weights(preferences, lengths, baseline_lengths, difficulty)
    return alpaca_eval_length_controlled(difficulty, weights.difficulty_coef, weights.model_coef)


def alpaca_eval_length_controlled(difficulty: Numbers, difficulty_coef: float, model_coef: float) -> float:
    r"""
    Compute AlpacaEval 2's length-controlled win rate from its weights: `mean_i sigmoid(psi * gamma_i + theta)` (Dubois
    et al. 2024, arXiv 2404.04475, section 3).

    The leaderboard's `lc_standard_error` is the spread of these predictions over the instructions, not a sampling
    error. This function returns no standard error.

    Args:
        difficulty: Difficulty `gamma` of the 805 AlpacaEval instructions. Shape `(N,)`.
        difficulty_coef: Weight `psi` of the difficulty.
        model_coef: Weight `theta` of the model.

    Returns:
        Win rate as a fraction (the leaderboard prints percent); 0.5 for the baseline itself.
    """
    from scipy.special import expit

    return float(expit(difficulty_coef * as_vector(difficulty, "difficulty") + model_coef).mean())


def fit_alpaca_eval_weights(
    preferences: Numbers,
    lengths: Numbers,
    baseline_lengths: Numbers,
    difficulty: Numbers,
) -> AlpacaEvalWeights:
    r"""
    Fit the weights of AlpacaEval 2's length-controlled model to the annotations of a model:

    `P(win) = sigmoid(phi * tanh((baseline_length - length) / s) + psi * gamma + theta)`

    with `s` the standard deviation of the length differences. L1-regularised logistic regression (liblinear) with the
    strength from 5-fold cross-validation and soft targets as two weighted rows each, as in `glm_winrate.py` of
    `alpaca_eval`.

    AlpacaEval also regularises with two rewritings of the baseline (one verbose, one concise), which its repository
    does not publish. Without them, held-out entries differ by 1.15 points on average and 2.39 at most; a model that
    games the length differs far more (`gpt4_gamed`: 27 instead of 12). Mention this when you compare with the
    leaderboard.

    Args:
        preferences: Probabilities in [0, 1] that the model's response wins; NaN or None not judged. Shape `(N,)`.
        lengths, baseline_lengths: Number of characters of the responses. Shape `(N,)` each.
        difficulty: Difficulty `gamma` of each row's instruction. Shape `(N,)`.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        TrlRealError: If inputs differ in length, or a judged row lacks a value.
    """
    preferences = as_preferences(preferences)
    judged = ~np.isnan(preferences)
    own, other = as_lengths(lengths, judged, "lengths"), as_lengths(baseline_lengths, judged, "baseline_lengths")
    gamma = as_vector(difficulty, "difficulty")
    check_count(gamma, len(judged), "difficulty values")
    wrong = np.flatnonzero(judged & ~np.isfinite(gamma))
    if wrong.size:
        raise TrlRealError(f"difficulty row {wrong[0]} is {gamma[wrong[0]]:g}. Give a number for every row.")
    spread = (other - own).std(ddof=1)
    x = np.stack([np.tanh((other - own) / (spread or 1.0)), gamma[judged], np.ones(judged.sum())], axis=1)  # (n, 3)
    return AlpacaEvalWeights(*_soft_logistic(x, preferences[judged]))


def _soft_logistic(x: np.ndarray, scores: np.ndarray) -> list[float]:
    """Fit soft targets by cross-validated L1 regression without an intercept. Shapes `(n, p)`, `(n,)` to `(p,)`."""
    with needs_extra("scikit-learn", "stats"):
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.model_selection import GroupKFold

    n = len(scores)
    rows, targets = np.concatenate([x, x]), np.repeat([1, 0], n)
    weights, group = np.concatenate([scores, 1 - scores]), np.tile(np.arange(n), 2)
    folds = list(GroupKFold(n_splits=5).split(rows, targets, group))
    fit = LogisticRegressionCV(
        Cs=10,
        l1_ratios=(1.0,),
        solver="liblinear",
        fit_intercept=False,
        cv=folds,
        scoring="neg_log_loss",
        random_state=123,
        use_legacy_attributes=False,
    ).fit(rows, targets, sample_weight=weights)
    return fit.coef_[0].tolist()
