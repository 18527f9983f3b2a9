"""What choosing saves: labels that a strategy needs to reach what a random choice reaches."""

import math
from typing import NamedTuple

import numpy as np

from trl_real.errors import TrlRealError


class ValueWithInterval(NamedTuple):
    """A figure with the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


class Saving(NamedTuple):
    """
    Labels saved at one level of the random curve.

    Args:
        level: Share of the random curve's labels whose value is to be reached.
        target: The value that a random choice reaches there.
        n_random: Labels that the random choice spends on it.
        n_labels: Labels that the strategy needs; infinite if it does not get there.
        saving: `1 - n_labels / n_random`; minus infinity, "not reached", if it does not get there.
        low, high: Percentile interval of the bootstrap; minus infinity where the end is "not reached".
        reached: Share of the bootstrap's curves that reach the target.
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
    `n = min{n : m(n) >= target}`, with `m` the running maximum of a curve, linear between its points (REAL, Fig. 2a;
    the formula is spelled out in the documentation, since the paper gives none).

    Args:
        n_labels: Labels at the points, ascending. Shape `(B,)`.
        values: A metric of which more is better, at the points. Shape `(R, B)`.
        targets: What is to be reached. Shape `(R,)`.

    Returns:
        Labels, infinite where the curve ends below its target. Shape `(R,)`.
    """
    best = np.maximum.accumulate(values, axis=1)  # (R, B)
    reached = best >= targets[:, None]
    point = reached.argmax(axis=1)  # the first point that is high enough
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
    Labels that a strategy saves against a random choice, with a bootstrap interval.

    Args:
        n_labels: Labels at the points of both curves, ascending, from 0 on. Shape `(B,)`.
        strategy: The strategy's curves, more is better: the first one as measured, then one a resample of the
            bootstrap. Shape `(1 + R, B)`.
        random: The random choice's, resampled together with the strategy's. Shape `(1 + R, B)`.
        level: Share in (0, 1] of the last point's labels; the random choice's value there is the target.
        confidence: Level of the interval, in (0, 1).

    Raises:
        TrlRealError: If the level is out of range.
    """
    if not 0 < level <= 1:
        raise TrlRealError(f"level={level} is no share in (0, 1]. Type 1.0 for the level of all labels.")
    n_random = float(level * n_labels[-1])
    targets = np.array([np.interp(n_random, n_labels, curve) for curve in random])
    needed = labels_needed(n_labels, strategy, targets)
    nothing_learned = random[:, 0] >= targets  # where the random choice gained nothing, there is nothing to save
    savings = np.where(nothing_learned, 0.0, 1 - needed / n_random)
    low, high = percentiles(savings[1:], confidence)
    reached = float(np.isfinite(savings[1:]).mean()) if len(savings) > 1 else math.nan
    return Saving(level, float(targets[0]), n_random, float(needed[0]), float(savings[0]), low, high, reached)


def percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Ends of the percentile interval, minus infinity allowed; NaN of no value. Takes shape `(R,)`."""
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
    Means over seeds and test pairs, as measured and in a bootstrap that draws seeds and prompts with replacement:
    what other seeds, and another test set of the same kind, could have given. All curves are drawn together, so that
    differences between them are paired.

    Args:
        sums: Of a metric over the test pairs of each prompt, for each curve, seed and budget. Shape `(A, S, B, C)`.
        counts: Test pairs of each prompt. Shape `(C,)`.
        n_resamples: Resamples `R`.
        generator: Source of chance.

    Returns:
        Shape `(1 + R, A, B)`: the means as measured, then one a resample.
    """
    n_seeds, n_prompts = sums.shape[1], sums.shape[3]
    prompts = generator.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), n_resamples).astype(float)
    seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_resamples) / n_seeds
    prompts = np.concatenate([np.ones((1, n_prompts)), prompts])
    seeds = np.concatenate([np.full((1, n_seeds), 1 / n_seeds), seeds])
    totals = np.tensordot(prompts, sums, axes=(1, 3))  # (1 + R, A, S, B)
    return np.einsum("rs,rasb->rab", seeds, totals) / (prompts @ counts)[:, None, None]
