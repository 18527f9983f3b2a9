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


def _best(gram: Tensor, masks: Tensor) -> Tensor:
    """
    Return the partition with the largest `sum_k |sum of C_k|^2 / |C_k|`, that is, the least scatter within clusters.

    Args:
        gram: Inner products of the points. Shape `(N, K, K)`.
        masks: Candidate second clusters, neither empty nor full. Shape `(S, K)`.

    Returns:
        Membership of the second cluster. Shape `(N, K)`, bool.
    """
    score = torch.zeros(len(gram), len(masks), dtype=torch.float64)
    for members in (masks, 1 - masks):
        score += torch.einsum("sk,nsk->ns", members, members @ gram) / members.sum(-1)
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
