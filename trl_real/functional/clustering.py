"""Two-means of a few points: exact search of all partitions up to 12 points, Lloyd's algorithm above."""

import torch
from torch import Tensor

from trl_real.functional.similarity import candidate_pairs


EXACT_UP_TO = 12
MAX_STARTS = 256
MAX_ELEMENTS = 2**24


def two_means(points: Tensor) -> Tensor:
    r"""
    Return the partition that minimises `sum_k sum_{i in C_k} |u_i - c_k|^2`, with `c_k` the cluster mean (REAL,
    Eq. 12).

    Up to 12 points, all `2^(K-1) - 1` partitions are tried, because k-means with one start misses the optimum in up to
    43 % of the cases (K = 4). Above, Lloyd's algorithm starts from every pair of points (at most from the 256 most
    distant pairs): it needs no random numbers and does not depend on the order of the points.

    Args:
        points: `N` sets of `K` points. Shape `(N, K, d)`.

    Returns:
        Membership of the second cluster; the first point is always in the first. Shape `(N, K)`, bool.
    """
    points = points.double()
    gram = points @ points.mT  # (N, K, K): the objective needs nothing else
    if points.shape[1] > EXACT_UP_TO:
        return torch.stack([_best(g[None], _lloyd(g))[0] for g in gram])
    masks = _partitions(points.shape[1])
    rows = max(1, MAX_ELEMENTS // masks.numel())
    return torch.cat([_best(block, masks) for block in gram.split(rows)])


def two_means_gap(points: Tensor) -> Tensor:
    r"""
    How far every inner product of unit vectors may move before `two_means`, or the member nearest to a centre, can
    change.

    The objective `sum_k sum_{i, j in C_k} <u_i, u_j> / |C_k|` of a partition moves by at most `(K - 2) e` when inner
    products of different points move by at most `e`, and the distance of a member to its centre, compared with that of
    another member, by at most `4 e`. So the margins are divided by `K - 2` and by 2. Exact up to 12 points; above, 0.

    Args:
        points: `N` sets of `K` unit vectors. Shape `(N, K, d)`.

    Returns:
        Twice the largest safe `e`. Infinite with two points. Shape `(N,)`, float64.
    """
    points = points.double()
    n, n_points = points.shape[:2]
    if n_points == 2:
        return torch.full((n,), torch.inf, dtype=torch.float64)
    if n_points > EXACT_UP_TO:
        return torch.zeros(n, dtype=torch.float64)
    gram, masks = points @ points.mT, _partitions(n_points)
    rows = max(1, MAX_ELEMENTS // masks.numel())
    best = torch.cat([_objective(block, masks).topk(2).values for block in gram.split(rows)])
    partition = (best[:, 0] - best[:, 1]) / (n_points - 2)
    second = two_means(points)
    members = torch.minimum(_nearest_gap(gram, second), _nearest_gap(gram, ~second)) / 2
    return torch.minimum(partition, members)


def _nearest_gap(gram: Tensor, members: Tensor) -> Tensor:
    """How much farther a cluster's second member is from its centre; two members are always as near. Shape `(N,)`."""
    size = members.sum(-1, keepdim=True)
    distance = gram.diagonal(dim1=1, dim2=2) - 2 * (gram * members[:, None]).sum(-1) / size  # less the centre's square
    two = distance.masked_fill(~members, torch.inf).topk(2, largest=False).values
    return (two[:, 1] - two[:, 0]).masked_fill(size[:, 0] <= 2, torch.inf)


def _objective(gram: Tensor, masks: Tensor) -> Tensor:
    """`sum_k |sum of C_k|^2 / |C_k|` of each partition. Shapes `(N, K, K)` and `(S, K)` to `(N, S)`."""
    score = torch.zeros(len(gram), len(masks), dtype=torch.float64)
    for members in (masks, 1 - masks):
        score += torch.einsum("sk,nsk->ns", members, members @ gram) / members.sum(-1)
    return score


def _best(gram: Tensor, masks: Tensor) -> Tensor:
    """Return the second cluster with the largest `_objective`, that is, the least scatter. Shape `(N, K)`, bool."""
    score = _objective(gram, masks)
    # Scores that differ only by rounding count as equal; otherwise the answer would depend on the batch.
    score = (score / score.amax(-1, keepdim=True).clamp_min(1e-30)).round(decimals=9)
    return masks.bool()[score.argmax(-1)]


def _partitions(n_points: int) -> Tensor:
    """Return the second cluster of every split into two non-empty parts with point 0 in the first. Shape `(S, K)`."""
    codes = torch.arange(1, 2 ** (n_points - 1))
    bits = (codes[:, None] >> torch.arange(n_points - 1)) & 1
    return torch.cat([torch.zeros(len(codes), 1), bits], dim=1).double()


def _lloyd(gram: Tensor, max_iterations: int = 100) -> Tensor:
    """Return the distinct results of Lloyd's algorithm, as second clusters without point 0. `(K, K)` to `(S, K)`."""
    n_points = len(gram)
    first, second = candidate_pairs(n_points)
    squared = gram.diagonal()[first] + gram.diagonal()[second] - 2 * gram[first, second]
    starts = squared.round(decimals=9).argsort(descending=True, stable=True)[:MAX_STARTS]
    identity = torch.eye(n_points, dtype=torch.float64)
    centres = torch.stack([identity[first[starts]], identity[second[starts]]])  # (2, S, K): weights of the points
    members = torch.zeros(len(starts), n_points, dtype=torch.bool)
    for _ in range(max_iterations):
        projections = centres @ gram
        distance = (projections * centres).sum(-1, keepdim=True) - 2 * projections  # less |u_i|^2, common to both
        nearer = distance[1] < distance[0]
        if torch.equal(nearer, members):
            break
        members = nearer
        masks = torch.stack([~members, members]).double()
        centres = masks / masks.sum(-1, keepdim=True).clamp_min(1)
    masks = (members ^ members[:, :1]).unique(dim=0).double()
    masks = masks[masks.any(-1)]
    alone = 1 - identity[:1]  # identical points: any split is optimal
    return masks if len(masks) else alone
