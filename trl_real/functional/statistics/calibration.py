"""Log loss and calibration of a judge's probabilities."""

import numpy as np


SURE = 1e-6  # closest allowed distance to 0 and 1: a written answer is never certain
LEAST, MOST = 1e-2, 1e3


def log_loss(probabilities: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> float:
    r"""
    Return the mean of `-t log q - (1 - t) log(1 - q)` with `q = sigmoid(logit(p) / temperature)`, in nats.

    Args:
        probabilities: Probabilities `p`, in [0, 1]. Shape `(n,)`.
        targets: True outcomes `t`: 1, 0, or 0.5. Shape `(n,)`.
        temperature: Temperature, above 0.
    """
    p = np.clip(probabilities, SURE, 1 - SURE)
    logits = np.log(p / (1 - p)) / temperature
    return float((np.logaddexp(0, logits) - targets * logits).mean())


def calibration_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """
    Return the temperature with the lowest `log_loss` (Guo et al. 2017, "On calibration of modern neural networks").

    Args:
        probabilities, targets: See `log_loss`.

    Returns:
        Temperature between 0.01 and 1000; at the upper end the probabilities carry no information. NaN without values.
    """
    from scipy.optimize import minimize_scalar

    if not len(probabilities):
        return float("nan")
    fit = minimize_scalar(
        lambda log_t: log_loss(probabilities, targets, float(np.exp(log_t))),
        bounds=(np.log(LEAST), np.log(MOST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(fit.x))


def brier_score(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean of `(p - t)^2`; a coin has 0.25. Arguments as in `log_loss`; NaN without values."""
    return float(np.mean((probabilities - targets) ** 2)) if len(probabilities) else float("nan")


def calibration_error(probabilities: np.ndarray, targets: np.ndarray, n_bins: int = 10) -> float:
    """
    Return the expected calibration error, in [0, 1]: the mean distance between a judge's confidence in the side that
    it prefers, `max(p, 1 - p)`, and how often that side won, over `n_bins` bins of equal width on [0.5, 1] (Guo et al.
    2017). Arguments as in `log_loss`; NaN without values.
    """
    if not len(probabilities):
        return float("nan")
    confidence = np.maximum(probabilities, 1 - probabilities)
    right = np.where(probabilities >= 0.5, targets, 1 - np.asarray(targets))
    bins = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, confidence - right, n_bins)
    return float(np.abs(gaps).sum() / len(confidence))
