"""
Which pair of a prompt's responses deserves a label, and which prompts first.

A strategy is a function `(embeddings, draws) -> scores`; the candidate pair with the lowest score is the row's pair,
and a budget takes the rows with the lowest scores. A function of your own is accepted wherever a name is:

    def most_orthogonal(embeddings, draws):          # (N, K, d), (N, P)
        return candidate_similarity(embeddings).abs()  # (N, P)

    EmbeddingPairSelector(model, strategy=most_orthogonal)

Its scores belong on a scale of about 1, as similarities are: what differs by less than 1e-6 is a tie (see `lowest`).

Where rows are worth more or less beside each other, a strategy has a budget of its own, too: see `SET_BUDGETS`.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from trl_real.functional.clustering import two_means
from trl_real.functional.design import greedy_design
from trl_real.functional.similarity import candidate_pairs, candidate_similarity, normalize


Strategy = Callable[[Tensor, Tensor], Tensor]
SetBudget = Callable[[Tensor, int], Tensor]

TIE_TOLERANCE = 1e-6


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


def design(differences: Tensor, size: int) -> Tensor:
    """
    The rows of a greedy D-optimal design.

    Args:
        differences: `phi` of each row's pair. Shape `(N, d)`.
        size: How many to take.

    Returns:
        Rows, in the order of the picks. Shape `(size,)`.
    """
    return greedy_design(differences, size).indices


STRATEGIES: dict[str, Strategy] = {
    "easy": easy,
    "hard": hard,
    "centroid": centroid,
    "d_optimal": d_optimal,
    "random": uniform,
}

# Which rows a budget takes, where these are not simply those with the lowest scores. The rows' differences are held in
# memory for it: `N d` numbers in float32.
SET_BUDGETS: dict[Strategy, SetBudget] = {d_optimal: design}


def set_budget(strategy: Strategy) -> SetBudget | None:
    """The strategy's own budget, if it has one."""
    return next((budget for known, budget in SET_BUDGETS.items() if known is strategy), None)


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
