"""
Strategies that rank the candidate pairs of each prompt, and the prompts.

A strategy scores every candidate pair. The pair with the lowest score is the row's pair, and a budget takes the rows
with the lowest scores. `STRATEGIES` has one record (`Strategy`) per name. Instead of a name you can give a function:

    def most_orthogonal(embeddings, draws):            # (N, K, d), (N, P)
        return candidate_similarity(embeddings).abs()  # (N, P)

    EmbeddingPairSelector(model, strategy=most_orthogonal)

Scores should be on the scale of similarities, about 1: scores that differ by less than 1e-6 are a tie (`lowest`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.clustering import two_means, two_means_gap
from trl_real.functional.design import Design, design_margins, greedy_design
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.i_optimal import i_optimal_set
from trl_real.functional.similarity import candidate_pairs, candidate_similarity, normalize


Score = Callable[[Tensor, Tensor], Tensor]
Gap = Callable[[Tensor, Tensor], Tensor]

TIE_TOLERANCE = 1e-6


def easy(embeddings: Tensor, draws: Tensor) -> Tensor:
    """
    Rank the least similar responses first: a judge seldom errs on them (REAL, Eq. 9).

    Args:
        embeddings: Responses of `N` prompts. Shape `(N, K, d)`.
        draws: Uniform numbers in [0, 1), not used. Shape `(N, P)`.

    Returns:
        Scores, lowest first. Shape `(N, P)`.
    """
    return candidate_similarity(embeddings)


def hard(embeddings: Tensor, draws: Tensor) -> Tensor:
    """Rank the most similar responses first (REAL, Eq. 8). Shapes as in `easy`."""
    return -candidate_similarity(embeddings)


def uniform(embeddings: Tensor, draws: Tensor) -> Tensor:
    """
    Rank at random, as a baseline: all pairs of a row are equally likely, and all rows. Shapes as in `easy`.

    `1 - (1 - u)^P` is the distribution function of the lowest of `P` draws. With it the score of a row is uniform for
    any number of responses; otherwise a budget would favour prompts with many responses.
    """
    return 1 - (1 - draws) ** draws.shape[1]


def centroid(embeddings: Tensor, draws: Tensor, tie: Literal["first", "farthest", "random"] = "first") -> Tensor:
    """
    Pick the responses nearest to the two centres of exact two-means on unit vectors (REAL, Eq. 12).

    Each centre takes a member of its cluster, so the two responses always differ. With three responses, the two in
    one cluster are equally near to its centre, and `tie` decides (`functools.partial(centroid, tie="farthest")` makes
    it the easy pair). A budget takes the rows with the least similar centroid pairs.

    Args:
        embeddings: Responses of `N` prompts. Shape `(N, K, d)`.
        draws: Uniform numbers in [0, 1). Shape `(N, P)`.
        tie: Choice among equally near responses: the lowest indices, the least similar pair, or the lowest draw.

    Returns:
        The similarity of each pair, minus 4 for the centroid pair, so that it is the lowest. Shape `(N, P)`.
    """
    similarity = candidate_similarity(embeddings)
    unit = normalize(embeddings)
    second_cluster = two_means(unit)  # (N, K)
    nearest = _nearest_members(unit, second_cluster) | _nearest_members(unit, ~second_cluster)
    first, second = candidate_pairs(embeddings.shape[1])
    eligible = nearest[:, first] & nearest[:, second] & (second_cluster[:, first] != second_cluster[:, second])
    order = {"first": torch.zeros_like(similarity), "farthest": similarity, "random": draws}[tie]
    picked = lowest(order.masked_fill(~eligible, torch.inf))
    return similarity.scatter_add(1, picked[:, None], torch.full((len(picked), 1), -4.0, dtype=similarity.dtype))


def d_optimal(embeddings: Tensor, draws: Tensor) -> Tensor:
    r"""
    Rank by ADPO's D-optimal design (Kveton et al., arXiv 2503.01076) on `phi = f(y_1) - f(y_2)`, differences of unit
    vectors.

    A row's pair is the one with the longest `phi`, as in `easy`. A budget then takes rows in turn, each with the
    largest `phi^T V^-1 phi`, `V = I + sum phi phi^T` over the rows taken before (`design`): rows similar to a taken
    row rank lower. Shapes as in `easy`; the scores are `-|phi|^2`.
    """
    first, second = candidate_pairs(embeddings.shape[1])
    unit = normalize(embeddings)
    length = unit.square().sum(-1)  # (N, K): 1, or 0 for a zero vector
    return 2 * (unit @ unit.mT)[:, first, second] - length[:, first] - length[:, second]


def i_optimal(embeddings: Tensor, draws: Tensor) -> Tensor:
    """
    Rank like `d_optimal`; a budget takes rows in turn, each with the label that lowers the variance of the predictions
    over the whole pool most (`greedy_i_optimal`: BAIT, arXiv 2106.09675). Shapes as in `easy`.
    """
    return d_optimal(embeddings, draws)


SetBudget = Callable[[Tensor, int], Design]


def score_gap(embeddings: Tensor, scores: Tensor) -> Tensor:
    """
    Return the lead of each row's best pair over the second-best, at least 0. Shape `(N,)`.

    Args:
        embeddings: Responses of `N` prompts, not used. Shape `(N, K, d)`.
        scores: Scores of at least two pairs. Shape `(N, P)`.
    """
    two = scores.topk(2, largest=False).values
    return two[:, 1] - two[:, 0]


def centroid_gap(embeddings: Tensor, scores: Tensor) -> Tensor:
    """
    Return the change of similarity at which another pair becomes the centroid pair, from the margins of the partition
    and of the nearest members. Shapes as in `score_gap`.
    """
    return two_means_gap(normalize(embeddings))


@dataclass(frozen=True)
class Strategy:
    """
    Scoring function of a strategy, with its facts.

    Args:
        score: Function `(embeddings (N, K, d), draws (N, P)) -> scores (N, P)`, lowest first.
        help: Description in one line.
        color: Colour in every figure, as `#rrggbb`; None for a colour that the figure chooses.
        reads_embeddings: Whether the function reads embeddings; if not, no model is loaded.
        needs_draws: Whether the function reads the random numbers.
        rounding: Change of a score when a similarity changes by 1, which decides the rows that half precision embeds
            again in float32; None to measure it on the pool.
        gap: Function `(embeddings, scores) -> (N,)`, the lead of a row's best pair over the second-best.
        jumps: Whether the score of a row may jump when its pair changes.
        margins: Function `(differences (N, d), Design) -> (N,)` of a set budget: how near each row is to the cut.
        budget: Function `(differences (N, d), size) -> Design` that takes rows as a set, with `N d` numbers in
            memory; None takes the rows with the lowest scores.
        exact: Whether every row affects the choice of all others, so that all are embedded in float32.
    """

    score: Score
    help: str = ""
    color: str | None = None
    reads_embeddings: bool = True
    needs_draws: bool = False
    rounding: float | None = 1.0
    gap: Gap = score_gap
    jumps: bool = False
    margins: Callable[[Tensor, Design], Tensor] | None = None
    budget: SetBudget | None = None
    exact: bool = False

    def __call__(self, embeddings: Tensor, draws: Tensor) -> Tensor:
        """Score every candidate pair. Shapes `(N, K, d)` and `(N, P)` to `(N, P)`."""
        return self.score(embeddings, draws)

    @property
    def __name__(self) -> str:
        return getattr(self.score, "__name__", type(self.score).__name__)


STRATEGIES: dict[str, Strategy] = {
    "easy": Strategy(easy, "the least similar responses: judges err least on pairs that differ", "#0072B2"),
    "hard": Strategy(hard, "the most similar responses", "#D55E00"),
    "centroid": Strategy(
        centroid, "the responses nearest to the centres of two clusters", "#009E73", gap=centroid_gap, jumps=True
    ),
    "d_optimal": Strategy(
        d_optimal,
        "the rows that tell most about a linear reward, as a set",
        "#CC79A7",
        rounding=2.0,
        margins=design_margins,
        budget=greedy_design,
    ),
    "i_optimal": Strategy(
        i_optimal,
        "the rows whose labels tell most about the whole pool, as a set",
        "#56B4E9",
        rounding=2.0,
        budget=i_optimal_set,
        exact=True,
    ),
    "random": Strategy(
        uniform, "any pair: the baseline, which loads no model", "#000000", reads_embeddings=False, needs_draws=True
    ),
}

# Colour of each strategy in every figure, from Okabe and Ito's palette.
COLORS = {name: strategy.color for name, strategy in STRATEGIES.items() if strategy.color}


def as_strategy(strategy: Any) -> Strategy:
    """
    Return the record of a strategy.

    Args:
        strategy: Name in `STRATEGIES`, record, or function. The record of a function outside the table reads the
            draws and measures the effect of rounding.

    Raises:
        TrlRealError: If the name is unknown.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if callable(strategy):
        named = (record for record in STRATEGIES.values() if record.score is strategy)
        return next(named, Strategy(strategy, needs_draws=True, rounding=None))
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise TrlRealError(
            f"No strategy {strategy!r}; there are {', '.join(STRATEGIES)}. Or give a function or a mixture."
        )
    return STRATEGIES[strategy]


def strategy_name(strategy: Any) -> str:
    """Return the name of a strategy for the record: of a function its module and qualified name."""
    if isinstance(strategy, str):
        return strategy
    function = getattr(strategy, "score", strategy)
    function = getattr(function, "func", function)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def split_geometry(strategy: Any, geometry: str = "raw") -> tuple[Any, str]:
    """
    Return the strategy and the geometry, which may stand in the name, as in `"easy@centered"`, or be given apart.

    Raises:
        TrlRealError: If one of them is unknown, or the two geometries differ.
    """
    name, at, named = strategy.partition("@") if isinstance(strategy, str) else (strategy, "", "")
    as_strategy(name)
    if at and named not in GEOMETRIES:
        raise TrlRealError(f"No geometry {named!r} in {strategy!r}; there are {', '.join(GEOMETRIES)}.")
    if geometry not in GEOMETRIES:
        raise TrlRealError(f"No geometry {geometry!r}; there are {', '.join(GEOMETRIES)}.")
    if at and geometry not in ("raw", named):
        raise TrlRealError(
            f"The strategy names geometry {named!r}, but geometry={geometry!r}. Leave one of the two out."
        )
    return name, named or geometry


def lowest(scores: Tensor) -> Tensor:
    """
    Return the index of each row's lowest score, shapes `(N, P)` to `(N,)`. Scores within 1e-6 of it (relative, if it
    is beyond 1) are ties, and the first one wins.

    Without the tolerance, float rounding would decide ties, and it depends on the batch of a row. The tolerance is
    absolute below 1, since similarities of 0 are rounded like those of 1.
    """
    least = scores.amin(-1, keepdim=True)
    tied = scores <= least + TIE_TOLERANCE * least.abs().clamp_min(1.0)
    return tied.int().argmax(-1)


def _nearest_members(unit: Tensor, members: Tensor) -> Tensor:
    """Return a mask of the members nearest to the cluster's centre, with ties. Shapes `(N, K, d)`, `(N, K)`."""
    weights = members.double()
    centres = torch.einsum("nk,nkd->nd", weights, unit) / weights.sum(-1, keepdim=True)
    distance = (unit - centres[:, None]).square().sum(-1).masked_fill(~members, torch.inf)
    return distance <= distance.amin(-1, keepdim=True) + TIE_TOLERANCE
