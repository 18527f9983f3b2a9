"""
Strategies: which pair of a prompt's responses deserves a label, and which prompts come first.

A strategy scores every candidate pair. The pair with the lowest score is the row's pair, and a budget takes the rows
with the lowest scores. `STRATEGIES` holds one record (`Strategy`) a name; a function of your own is accepted wherever
a name is:

    def most_orthogonal(embeddings, draws):            # (N, K, d), (N, P)
        return candidate_similarity(embeddings).abs()  # (N, P)

    EmbeddingPairSelector(model, strategy=most_orthogonal)

Scores belong on a scale of about 1, as similarities are: two scores that differ by less than 1e-6 are a tie (see
`lowest`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.clustering import two_means, two_means_gap
from trl_real.functional.design import greedy_design, uncertainty
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.similarity import candidate_pairs, candidate_similarity, normalize


Score = Callable[[Tensor, Tensor], Tensor]
Gap = Callable[[Tensor, Tensor], Tensor]

TIE_TOLERANCE = 1e-6
MARGINS = 64  # picks of a design at which margins are computed


def easy(embeddings: Tensor, draws: Tensor) -> Tensor:
    """
    The least similar responses first: a judge seldom errs on them (REAL, Eq. 9).

    Args:
        embeddings: Responses of `N` prompts. Shape `(N, K, d)`.
        draws: Uniform numbers in [0, 1), not used. Shape `(N, P)`.

    Returns:
        Scores, lowest first. Shape `(N, P)`.
    """
    return candidate_similarity(embeddings)


def hard(embeddings: Tensor, draws: Tensor) -> Tensor:
    """The most similar responses first (REAL, Eq. 8). Shapes as in `easy`."""
    return -candidate_similarity(embeddings)


def uniform(embeddings: Tensor, draws: Tensor) -> Tensor:
    """
    Every pair of a row is as likely as any other, and so is every row: the baseline. Reads no embedding.

    `1 - (1 - u)^P` is the distribution function of the least of `P` draws, so that a row's score is uniform whatever
    its number of responses; otherwise a budget would favour prompts with many.

    Shapes as in `easy`.
    """
    return 1 - (1 - draws) ** draws.shape[1]


def centroid(embeddings: Tensor, draws: Tensor, tie: Literal["first", "farthest", "random"] = "first") -> Tensor:
    """
    The responses nearest to the two centres of exact two-means on unit vectors (REAL, Eq. 12).

    Only members of a cluster can stand for it, so the two are always distinct. With three responses the two in one
    cluster are exactly as near to their centre as each other; `tie` settles that (`functools.partial(centroid,
    tie="farthest")` makes it the easy pair). A budget takes the rows whose centroid pair is least similar.

    Args:
        embeddings: Responses of `N` prompts. Shape `(N, K, d)`.
        draws: Uniform numbers in [0, 1). Shape `(N, P)`.
        tie: Among equally near responses the lowest indices, the least similar pair, or the pair with the lowest draw.

    Returns:
        The similarity of each pair, less 4 for the centroid pair, which is thereby the lowest. Shape `(N, P)`.
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
    ADPO's D-optimal design (Kveton et al., arXiv 2503.01076) on `phi = f(y_1) - f(y_2)`, differences of unit vectors.

    A row's pair is the one with the longest `phi`, which is `easy`'s; so is the first row. A budget then takes one row
    after the other, each with the largest `phi^T V^-1 phi`, `V = I + sum phi phi^T` over the rows before (`design`):
    what resembles a row that was taken is worth less. Shapes as in `easy`; the scores are `-|phi|^2`.
    """
    first, second = candidate_pairs(embeddings.shape[1])
    unit = normalize(embeddings)
    length = unit.square().sum(-1)  # (N, K): 1, or 0 for a zero vector
    return 2 * (unit @ unit.mT)[:, first, second] - length[:, first] - length[:, second]


class RankedSet(NamedTuple):
    """
    Rows taken together by a set budget.

    Args:
        rows: Rows that are taken, in the order of the picks. Shape `(size,)`.
        scores: How near each row came to the other side, lowest first: below 0 for rows that are taken, at least 0 for
            the others, by the least margin of any pick. Shape `(N,)`.
    """

    rows: Tensor
    scores: Tensor


SetBudget = Callable[[Tensor, int], RankedSet]


def design(differences: Tensor, size: int) -> RankedSet:
    """
    Take the rows of a greedy D-optimal design.

    The margin of a pick is its score less that of the best row that is never taken; it is computed at up to 64 picks,
    and a pick between two of these has the smaller one of their margins.

    Args:
        differences: `phi` of each row's pair. Shape `(N, d)`.
        size: Number of rows to take.
    """
    picked = greedy_design(differences, size)
    outside = torch.ones(len(differences), dtype=torch.bool)
    outside[picked.indices] = False
    scores = torch.full((len(differences),), torch.inf, dtype=torch.float64)
    if not size or not outside.any():
        return RankedSet(picked.indices, scores.where(outside, -scores))
    steps = torch.linspace(0, size - 1, min(size, MARGINS)).long()
    at_steps = []
    for step in steps.tolist():
        others = uncertainty(differences[outside], history=differences[picked.indices[:step]]).double()
        scores[outside] = scores[outside].minimum(picked.scores[step] - others)
        at_steps.append(picked.scores[step] - others.max())
    margins = torch.stack(at_steps)
    place = torch.searchsorted(steps, torch.arange(size))
    scores[picked.indices] = -margins[place].minimum(margins[(place - 1).clamp_min(0)])
    return RankedSet(picked.indices, scores)


def score_gap(embeddings: Tensor, scores: Tensor) -> Tensor:
    """
    How far each row's second-best pair is behind its best one.

    Args:
        embeddings: Responses of `N` prompts, not used. Shape `(N, K, d)`.
        scores: Shape `(N, P)`, with at least two pairs.

    Returns:
        Differences of scores, at least 0. Shape `(N,)`.
    """
    two = scores.topk(2, largest=False).values
    return two[:, 1] - two[:, 0]


def centroid_gap(embeddings: Tensor, scores: Tensor) -> Tensor:
    """
    How far similarities may move before another pair becomes the centroid pair: the margin of the partition, and that
    of the members nearest to their centres. Shapes as in `score_gap`.
    """
    return two_means_gap(normalize(embeddings))


@dataclass(frozen=True)
class Strategy:
    """
    One way to choose pairs.

    Args:
        score: Function `(embeddings (N, K, d), draws (N, P)) -> scores (N, P)`, lowest first.
        help: One line for a person.
        color: Colour in every figure, as `#rrggbb`; None for a colour that the figure chooses.
        reads_embeddings: Whether it looks at embeddings; if not, no model is loaded.
        needs_draws: Whether it looks at the random numbers.
        rounding: How far a score moves when a similarity moves by 1; None where that is measured on the pool. From
            this follows which rows half precision must embed again in float32.
        gap: Function `(embeddings, scores) -> (N,)`: how far a row's best pair is ahead of any other, in units of the
            score.
        jumps: Whether a row's score may jump when its pair changes, so that no row is safe from the cut.
        budget: Function `(differences (N, d), size) -> RankedSet` that takes rows as a set, where a row's worth
            depends on the other rows; None takes the rows with the lowest scores. It holds `N d` numbers in memory.
    """

    score: Score
    help: str = ""
    color: str | None = None
    reads_embeddings: bool = True
    needs_draws: bool = False
    rounding: float | None = 1.0
    gap: Gap = score_gap
    jumps: bool = False
    budget: SetBudget | None = None

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
        d_optimal, "the rows that tell most about a linear reward, as a set", "#CC79A7", rounding=2.0, budget=design
    ),
    "random": Strategy(
        uniform, "any pair: the baseline, which loads no model", "#000000", reads_embeddings=False, needs_draws=True
    ),
}

# Colour of each strategy in every figure, from Okabe and Ito's palette.
COLORS = {name: strategy.color for name, strategy in STRATEGIES.items() if strategy.color}


def as_strategy(strategy: Any) -> Strategy:
    """
    The record of a strategy.

    Args:
        strategy: Name in `STRATEGIES`, record, or function. A function that is not in the table may look at the draws,
            and the effect of rounding on its scores is measured.

    Raises:
        TrlRealError: If the name is unknown.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if callable(strategy):
        known = (record for record in STRATEGIES.values() if record.score is strategy)
        return next(known, Strategy(strategy, needs_draws=True, rounding=None))
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise TrlRealError(f"No strategy {strategy!r}; there are {', '.join(STRATEGIES)}. Or give a function.")
    return STRATEGIES[strategy]


def strategy_name(strategy: Any) -> str:
    """Return the name of a strategy for the record: of a function its module and qualified name."""
    if isinstance(strategy, str):
        return strategy
    function = getattr(strategy, "score", strategy)
    function = getattr(function, "func", function)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def split_geometry(strategy: Any) -> tuple[Any, str | None]:
    """
    Split `"easy@centered"` into a strategy and the name of a geometry.

    Args:
        strategy: Name, with or without a geometry, or function.

    Returns:
        The strategy, and the geometry or None.

    Raises:
        TrlRealError: If the strategy or the geometry is unknown.
    """
    name, at, geometry = strategy.partition("@") if isinstance(strategy, str) else (strategy, "", "")
    as_strategy(name)
    if at and geometry not in GEOMETRIES:
        raise TrlRealError(f"No geometry {geometry!r} in {strategy!r}; there are {', '.join(GEOMETRIES)}.")
    return name, geometry or None


def lowest(scores: Tensor) -> Tensor:
    """
    Index of each row's lowest score; scores within 1e-6 of it (relative, if it is beyond 1) are ties and the first of
    them wins.

    Without the tolerance a tie would be settled by float rounding, that is by the batch a row happened to be in. It
    has a floor since similarities of 0 are rounded like those of 1; scores that are all below 1e-6 are one tie.

    Args:
        scores: Shape `(N, P)`.

    Returns:
        Indices. Shape `(N,)`.
    """
    least = scores.amin(-1, keepdim=True)
    tied = scores <= least + TIE_TOLERANCE * least.abs().clamp_min(1.0)
    return tied.int().argmax(-1)


def _nearest_members(unit: Tensor, members: Tensor) -> Tensor:
    """Mask of the cluster's members that are nearest to its centre, ties included. Shapes `(N, K, d)`, `(N, K)`."""
    weights = members.double()
    centres = torch.einsum("nk,nkd->nd", weights, unit) / weights.sum(-1, keepdim=True)
    distance = (unit - centres[:, None]).square().sum(-1).masked_fill(~members, torch.inf)
    return distance <= distance.amin(-1, keepdim=True) + TIE_TOLERANCE
