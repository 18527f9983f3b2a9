"""Selection in half precision, with rows near a decision embedded again in float32."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from datasets import Dataset, concatenate_datasets

from trl_real.selection.budget import budget_rows, budget_size, rows_in_doubt
from trl_real.selection.scorer import PairScorer
from trl_real.selection.scoring_columns import SCORING_FEATURES, numbers, vectors
from trl_real.selection.strategies import Strategy


# bfloat16 moved similarities by at most 0.012 (SmolLM2-135M, HH-RLHF).
BAND = 0.015
# If the effect of rounding on a score is unknown, it is measured on this share of the rows, those nearest to the cut.
MEASURED_SHARE, MEASURED_ROWS = 0.02, 8
# Factor from the largest error of the measured rows to the band for all rows.
SAFETY = 1.5

Rescore = Callable[[PairScorer, np.ndarray, str], Dataset]


class Bands(NamedTuple):
    """
    Largest expected errors of half precision.

    Args:
        score: Error of the score that the budget ranks by; None before it is measured.
        pair: Error of the score of a single pair; None before it is measured.
    """

    score: float | None
    pair: float | None

    def widened(self, score: float, pair: float) -> "Bands":
        """Return bands that include the measured errors."""
        return Bands(max(self.score or 0.0, SAFETY * score), max(self.pair or 0.0, SAFETY * pair))


class Decision(NamedTuple):
    """
    Decision of a budget on scored rows.

    Args:
        kept: Rows that the budget takes, ascending. Shape `(k,)`.
        scores: Scores that decided; NaN without a pair. Shape `(N,)`.
        pairs: Scores of each row's best and second-best pair. Shape `(2, N)`.
    """

    kept: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray


def settle_doubts(
    selector: PairScorer, scored: Dataset, budget: float | int | None, rescore: Rescore, once: Callable
) -> tuple[Dataset, int]:
    """
    Embed the rows near a decision again in float32, until no decision depends on half precision.

    The width of "near" is `Strategy.rounding` if it is known, else the error measured on the rows nearest to the cut.
    It grows with every larger error.

    Args:
        selector: Strategy and model; without half precision the function returns at once.
        scored: Output of the scoring pass over all rows.
        budget: Budget as in `EmbeddingPairSelector.select`.
        rescore: Function that scores the rows with the given numbers by another selector.
        once: Function that gives all processes the result of the first one.

    Returns:
        The corrected rows, and the number of rows embedded again.
    """
    exact = copy.copy(selector)
    exact.encoder = selector.encoder and selector.encoder.in_float32()
    settled = np.zeros(0, int)
    if exact.encoder is None:
        return scored, 0
    rule = selector.rule
    known = None if rule.rounding is None else rule.rounding * BAND
    bands = Bands(None if rule.budget else known, known)
    decision = decide(selector, scored, budget)
    while True:
        doubtful = once(lambda: np.setdiff1d(_doubtful(decision, bands, rule), settled))  # noqa: B023
        if not len(doubtful):
            return scored, len(settled)
        again = rescore(exact, doubtful, f"again-{len(settled)}")
        scored = _replaced(scored, doubtful, _with_cost_of(scored.select(doubtful), again))
        before, decision = decision, decide(selector, scored, budget)
        error = _largest_error(before, decision, doubtful)
        judged = np.s_[: 1 if rule.jumps else 2, doubtful]
        finite = np.isfinite(decision.pairs[judged])
        of_pairs = float(np.abs(decision.pairs[judged][finite] - before.pairs[judged][finite]).max())
        if not rule.jumps or error < 1:
            bands = bands.widened(error, of_pairs)
        settled = np.union1d(settled, doubtful)


def decide(selector: PairScorer, scored: Dataset, budget: float | int | None) -> Decision:
    """Return the rows that the budget takes, and the scores."""
    scores, gaps = numbers(scored, "_score"), numbers(scored, "_gap")
    size = budget_size(budget, int(np.isfinite(scores).sum()))
    differences = vectors(scored, "_difference") if selector.rule.budget else []
    return Decision(*budget_rows(selector.rule, scores, differences, size), np.stack([scores, scores + gaps]))


def _largest_error(before: Decision, after: Decision, rows: np.ndarray) -> float:
    """Return the largest change of a score among rows that stay on their side of the cut; other rows may jump."""
    stayed = [row for row in rows if (row in before.kept) == (row in after.kept)]
    return float(np.abs(after.scores - before.scores)[stayed].max(initial=0.0))


def _doubtful(decision: Decision, bands: Bands, rule: Strategy) -> np.ndarray:
    if bands.score is None or bands.pair is None:
        return _nearest_to_cut(decision)
    gaps = decision.pairs[1] - decision.pairs[0]
    jumps = rule.jumps or rule.budget is not None
    doubtful = rows_in_doubt(decision.scores, gaps, decision.kept, bands.score, bands.pair, jumps)
    # Every row of a set affects the scores of all others.
    return doubtful if rule.budget is None else np.union1d(doubtful, decision.kept)


def _nearest_to_cut(decision: Decision) -> np.ndarray:
    """Return the rows to measure the error on, ascending."""
    rows = np.flatnonzero(np.isfinite(decision.scores))
    size = min(len(rows), max(MEASURED_ROWS, math.ceil(MEASURED_SHARE * len(rows))))
    order = rows[np.argsort(decision.scores[rows], kind="stable")]
    start = min(max(0, len(decision.kept) - size // 2), len(rows) - size)
    return np.sort(order[start : start + size])


def _replaced(scored: Dataset, rows: np.ndarray, again: Dataset) -> Dataset:
    """Return the scored rows with some rows replaced."""
    order = np.arange(len(scored))
    order[rows] = len(scored) + np.arange(len(rows))
    return concatenate_datasets([scored, again]).select(order).flatten_indices()


def _with_cost_of(first: Dataset, again: Dataset) -> Dataset:
    """Return the rows of the second pass, with the tokens and seconds of both passes."""
    for name in ("_n_tokens", "_seconds"):
        both = numbers(first, name) + numbers(again, name)
        again = again.remove_columns(name).add_column(name, both, feature=SCORING_FEATURES[name])
    return again.select_columns(first.column_names)
