r"""
Race of selection rules: what each one's labels teach about the pool, estimated from a random share of the labels.

In each round a share of the budget is drawn at random from the pairs without a label. These labels come *after* the
heads that learned from the earlier rounds, so that on them each head makes an honest error. A pool of `N` pairs has
`n` labelled ones, `K`, and the rest. For any quantity `q_i` of a pair that is fixed before the draw (the loss of a
head, or the difference of two), with `S` the `m` pairs that the round draws,

`(sum_K q_i + (N - n) mean_S q_i) / N`

has the pool's mean as its expectation: the first sum is known, and the mean over uniform draws is unbiased for the
mean over the rest. Its variance is `((N - n) / N)^2 (1 - m / (N - n)) s^2 / m`. The loss of a labelled pair that a
head learned from is that of the head without the pair (`left_out_margins`).

A head of rule `r` is compared with a random head that learned from as many labels, the first ones of each. Estimates
of several rounds are averaged by `m`, which is set before the labels come, so that the average is unbiased for the
average over the rounds; errors of different rounds are uncorrelated.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from trl_real.functional.bradley_terry import left_out_margins, pair_loss, tune_bradley_terry


CONFIDENCE = 0.95
LEAST_FREEDOM = 4  # with fewer degrees of freedom no rule is out, and shares stay


class RoundSample(NamedTuple):
    """
    Quantities of the pairs with a label after a round.

    Args:
        known: Quantities of the pairs that were labelled before the round. Shape `(n, Q)`.
        fresh: Quantities of the pairs that the round drew at random. Shape `(m, Q)`.
        n_pool: Number of pairs in the pool, labelled ones included.
    """

    known: np.ndarray
    fresh: np.ndarray
    n_pool: int


class PoolMeans(NamedTuple):
    """
    Means over the pool.

    Args:
        values: Estimated means of `Q` quantities. Shape `(Q,)`.
        covariance: Their estimated covariance; infinite variances without two draws in a round. Shape `(Q, Q)`.
        n_fresh: Number of random draws.
        freedom: Degrees of freedom of the covariance.
    """

    values: np.ndarray
    covariance: np.ndarray
    n_fresh: int
    freedom: int

    def half_width(self, weights: np.ndarray, confidence: float = CONFIDENCE) -> float:
        """Return the half width of the Student interval of a weighted sum of the values. Shape `(Q,)`."""
        if self.freedom < 1:
            return float("inf")
        error = np.sqrt(max(float(weights @ self.covariance @ weights), 0.0))
        return float(student.ppf((1 + confidence) / 2, self.freedom) * error)


class Standing(NamedTuple):
    """
    Standing of the rules, random first.

    Args:
        shares: Shares of the next round's budget; they add up to 1. Shape `(R,)`.
        out: Mask of the rules that are measurably worse than the leader. Shape `(R,)`, bool; never random.
        leader: Index of the rule with the least estimated loss.
    """

    shares: np.ndarray
    out: np.ndarray
    leader: int


def pool_means(rounds: Sequence[RoundSample]) -> PoolMeans:
    """
    Estimate the means of quantities over the pool, averaged over the rounds by their number of draws.

    Args:
        rounds: Quantities after each round with a draw; at least one.
    """
    draws = [d for d in rounds if len(d.fresh)]
    n_fresh = sum(len(d.fresh) for d in draws)
    values = sum(len(d.fresh) / n_fresh * _stratified(d) for d in draws)
    freedom = n_fresh - len(draws)
    spread = sum((d.fresh - d.fresh.mean(0)).T @ (d.fresh - d.fresh.mean(0)) for d in draws) / max(freedom, 1)
    scale = sum((len(d.fresh) / n_fresh) ** 2 * _variance_of_mean(d) for d in draws)
    return PoolMeans(np.asarray(values), spread * scale, n_fresh, freedom)


def _stratified(drawn: RoundSample) -> np.ndarray:
    rest = drawn.n_pool - len(drawn.known)
    return (drawn.known.sum(0) + rest * drawn.fresh.mean(0)) / drawn.n_pool


def _variance_of_mean(drawn: RoundSample) -> float:
    """Return the variance of the stratified mean of a quantity of variance 1 in the rest."""
    m, rest = len(drawn.fresh), drawn.n_pool - len(drawn.known)
    return (rest / drawn.n_pool) ** 2 * (1 - m / rest) / m


def standing(differences: PoolMeans | None, shares: np.ndarray) -> Standing:
    r"""
    Decide the next round's shares from the estimated losses of `R` rules minus that of random.

    Rule `r` is out while the interval of its difference from the leader lies above 0. The others share the budget in
    proportion to `share_r P(T > t_r)`, with `t_r` their difference from the leader in standard errors and Student's
    `T`: a rule that equals the leader keeps its share, a doubtful one gets less. Random, which tests all others, is
    never out and never below its own share.

    Args:
        differences: Estimated losses minus random's, random (0) first; None before the first test.
        shares: Shares before any label, random first; they add up to 1. Shape `(R,)`.
    """
    n_rules = len(shares)
    out, leader = np.zeros(n_rules, bool), 0
    if differences is None or differences.freedom < LEAST_FREEDOM:
        return Standing(shares.copy(), out, leader)
    leader = int(differences.values.argmin())
    weights = np.full(n_rules, 0.5)
    for rule in range(n_rules):
        contrast = np.zeros(n_rules)
        contrast[rule] += 1
        contrast[leader] -= 1
        gap = float(contrast @ differences.values)
        half = differences.half_width(contrast)
        if rule == leader or gap <= 0:
            continue
        error = half / student.ppf((1 + CONFIDENCE) / 2, differences.freedom)
        weights[rule] = student.sf(gap / error, differences.freedom) if error > 0 else 0.0
        out[rule] = rule > 0 and gap > half
    found = np.where(out, 0.0, shares * weights)
    found = found / found.sum()
    if found[0] < shares[0]:
        found[1:] *= (1 - shares[0]) / found[1:].sum()
        found[0] = shares[0]
    return Standing(found, out, leader)


class Labels(NamedTuple):
    """
    Labels of a race so far, in the order in which each rule picked.

    Args:
        differences: Features of the better minus the worse response. Shape `(H, d)`.
        confidences: Probabilities in [0.5, 1] that the labels are right; a tie, 0.5, only tests. Shape `(H,)`.
        rules: Rule that picked each pair; 0 is random. Shape `(H,)`.
        rounds: Round of each label, from 1 on. Shape `(H,)`.
    """

    differences: Tensor
    confidences: np.ndarray
    rules: np.ndarray
    rounds: np.ndarray


def losses_of_heads(labels: Labels, number: int, n_rules: int, n_pool: int) -> RoundSample:
    """
    Test the head that each rule's labels of earlier rounds teach on the labels of a round.

    Args:
        labels: Labels up to this round, at least.
        number: Number of the round, 2 or more.
        n_rules: Number of rules `R`.
        n_pool: Number of pairs in the pool, labelled ones included.

    Returns:
        The quantities of each pair (`Q = 2 R + 1`): the losses of the rules' heads; each one's loss minus that of a
        random head with as many labels; and the mean of these differences, weighted by the labels of each rule so far:
        the regret against random. Without a random draw in the round there is no fresh pair.
    """
    x, soft = labels.differences.double(), torch.from_numpy(np.asarray(labels.confidences, dtype=float))
    before = labels.rounds < number
    places = np.flatnonzero(before | ((labels.rounds == number) & (labels.rules == 0)))
    own = [np.flatnonzero(before & (labels.rules == rule) & (labels.confidences > 0.5)) for rule in range(n_rules)]

    @cache
    def losses(rule: int, n: int) -> np.ndarray:
        learned = own[rule][:n]
        fit = tune_bradley_terry(x[learned])[0]
        margins = x @ fit.weights
        if n:
            margins[learned] = left_out_margins(x[learned], fit)
        return (pair_loss(margins) + (1 - soft) * margins).numpy()[places]

    full = np.stack([losses(rule, len(own[rule])) for rule in range(n_rules)], axis=1)
    equal = [min(len(learned), len(own[0])) for learned in own]
    gaps = np.stack([losses(rule, n) - losses(0, n) for rule, n in enumerate(equal)], axis=1)
    weights = np.bincount(labels.rules[before], minlength=n_rules) / max(before.sum(), 1)
    found = np.concatenate([full, gaps, (gaps @ weights)[:, None]], axis=1)
    return RoundSample(found[before[places]], found[~before[places]], n_pool)


def race(rounds: Sequence[RoundSample], shares: np.ndarray) -> tuple[Standing, dict[str, list | float] | None]:
    """
    Decide the next round's shares from the tests so far (`losses_of_heads`), and describe them with 95 % intervals.

    Args:
        rounds: Tests of the rounds.
        shares: Shares before any label, random first; they add up to 1. Shape `(R,)`.

    Returns:
        The standing, and `n_tests`, `loss` and `difference` (one `[value, low, high]` per rule) and `regret`
        (`[value, low, high]`), in nats per pair; None before the first test.
    """
    n, tests = len(shares), [drawn for drawn in rounds if len(drawn.fresh)]
    if not tests:
        return standing(None, shares), None
    found = pool_means(tests)
    gaps = slice(n, 2 * n)
    now = standing(found._replace(values=found.values[gaps], covariance=found.covariance[gaps, gaps]), shares)
    each = []
    for value, row in zip(found.values, np.eye(len(found.values)), strict=True):
        half = found.half_width(row)
        each.append(
            [float(value), *((float(value - half), float(value + half)) if np.isfinite(half) else (None, None))]
        )
    return now, {"n_tests": found.n_fresh, "loss": each[:n], "difference": each[gaps], "regret": each[-1]}
