"""Label savings: labels that a strategy needs to reach the result of a random selection."""

import math
from typing import NamedTuple

import numpy as np

from trl_real.errors import TrlRealError


class ValueWithInterval(NamedTuple):
    """A value and the ends of its interval; NaN without an interval."""

    value: float
    low: float
    high: float


class Saving(NamedTuple):
    """
    Labels saved at one level of the random curve.

    Args:
        level: Share of the labels of the random curve that sets the target.
        target: Value that random selection reaches there.
        n_random: Number of labels that random selection needs.
        n_labels: Number of labels that the strategy needs; infinite if it does not reach the target.
        saving: `1 - n_labels / n_random`; minus infinity ("not reached") if the strategy does not reach the target.
        low, high: Percentile interval of the bootstrap; minus infinity if an end is "not reached".
        reached: Share of the bootstrap curves that reach the target.
    """

    level: float
    target: float
    n_random: float
    n_labels: float
    saving: float
    low: float
    high: float
    reached: float


def labels_needed(n_labels: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """
    Return `n = min{n : m(n) >= target}`, with `m` the running maximum of a curve, linear between its points (REAL,
    Fig. 2a; the paper gives no formula, the documentation does).

    Args:
        n_labels: Number of labels at the points, ascending. Shape `(B,)`.
        values: Metric at the points, higher is better. Shape `(R, B)`.
        targets: Values to reach. Shape `(R,)`.

    Returns:
        Numbers of labels; infinite if the curve ends below its target. Shape `(R,)`.
    """
    best = np.maximum.accumulate(values, axis=1)  # (R, B)
    reached = best >= targets[:, None]
    point = reached.argmax(axis=1)  # first point that reaches the target
    rows, before = np.arange(len(best)), np.maximum(point - 1, 0)
    low, high = best[rows, before], best[rows, point]
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(point == 0, 1.0, (targets - low) / rise)
    needed = n_labels[before] + share * (n_labels[point] - n_labels[before])
    return np.where(reached.any(axis=1), needed, np.inf)


def label_saving(
    n_labels: np.ndarray,
    strategy: np.ndarray,
    random: np.ndarray,
    level: float = 1.0,
    confidence: float = 0.95,
) -> Saving:
    """
    Compute the labels that a strategy saves compared with random selection, with a bootstrap interval.

    Args:
        n_labels: Number of labels at the points of both curves, ascending from 0. Shape `(B,)`.
        strategy: Curves of the strategy, higher is better: the measured one, then one per bootstrap resample.
            Shape `(1 + R, B)`.
        random: Curves of random selection, resampled together with the strategy's. Shape `(1 + R, B)`.
        level: Share in (0, 1] of the last point's labels; the value of random selection there is the target.
        confidence: Confidence level of the interval, in (0, 1).

    Raises:
        TrlRealError: If the level is out of range.
    """
    if not 0 < level <= 1:
        raise TrlRealError(f"level={level} is not in (0, 1]. Type 1.0 for the level of all labels.")
    n_random = float(level * n_labels[-1])
    targets = np.array([np.interp(n_random, n_labels, curve) for curve in random])
    needed = labels_needed(n_labels, strategy, targets)
    nothing_learned = random[:, 0] >= targets  # without a gain of random selection there is nothing to save
    savings = np.where(nothing_learned, 0.0, 1 - needed / n_random)
    low, high = percentiles(savings[1:], confidence)
    reached = float(np.isfinite(savings[1:]).mean()) if len(savings) > 1 else math.nan
    return Saving(level, float(targets[0]), n_random, float(needed[0]), float(savings[0]), low, high, reached)


def percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the ends of the percentile interval, minus infinity allowed; NaN without values. Shape `(R,)`."""
    if not len(values):
        return math.nan, math.nan
    ranked = np.sort(values)
    tail = (1 - confidence) / 2
    low, high = (round(share * (len(ranked) - 1)) for share in (tail, 1 - tail))
    return float(ranked[low]), float(ranked[high])


def resample_means(
    sums: np.ndarray, counts: np.ndarray, n_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """
    Compute means over seeds and test pairs, as measured and in a bootstrap that draws seeds and prompts with
    replacement. The bootstrap covers other seeds and another test set of the same kind. All curves share the draws, so
    differences between them are paired.

    Args:
        sums: Sums of a metric over the test pairs of each prompt, per curve, seed and budget. Shape `(A, S, B, C)`.
        counts: Number of test pairs of each prompt. Shape `(C,)`.
        n_resamples: Number of resamples `R`.
        generator: Random generator.

    Returns:
        Measured means, then one per resample. Shape `(1 + R, A, B)`.
    """
    n_seeds, n_prompts = sums.shape[1], sums.shape[3]
    prompts = generator.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), n_resamples).astype(float)
    seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_resamples) / n_seeds
    prompts = np.concatenate([np.ones((1, n_prompts)), prompts])
    seeds = np.concatenate([np.full((1, n_seeds), 1 / n_seeds), seeds])
    totals = np.tensordot(prompts, sums, axes=(1, 3))  # (1 + R, A, S, B)
    return np.einsum("rs,rasb->rab", seeds, totals) / (prompts @ counts)[:, None, None]
