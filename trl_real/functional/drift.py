"""Drift: distance between embeddings before training, which a selection used, and embeddings at a checkpoint."""

from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from trl_real.functional.similarity import pair_similarity


class Drift(NamedTuple):
    """
    Difference of the embeddings at a checkpoint from those before training (REAL, App. B.1).

    Args:
        relative_l2: Mean of `||f_s(y) - f_0(y)|| / ||f_0(y)||`.
        cosine: Mean of `cos(f_s(y), f_0(y))`.
        spearman: Rank correlation of the pairs' similarities before and after.
        jaccard: Overlap of the least similar pairs before and after: the share of the old selection that a new one
            would repeat.
    """

    relative_l2: float
    cosine: float
    spearman: float
    jaccard: float


def embedding_drift(before: Tensor, after: Tensor, budget: float = 0.5) -> Drift:
    """
    Compare the embeddings of the same pairs before and after.

    Args:
        before: Embeddings of the two responses of each pair before training. Shape `(P, 2, d)`.
        after: Embeddings of the same responses at a checkpoint. Shape `(P, 2, d)`.
        budget: Share of the pairs in the easy sets that `jaccard` compares.
    """
    old, new = before.double(), after.double()
    moved = (new - old).norm(dim=-1) / old.norm(dim=-1)
    cosine = pair_similarity(old, new)
    similarity = [pair_similarity(x[:, 0], x[:, 1]).numpy() for x in (old, new)]
    size = max(1, round(budget * len(old)))
    easy = [set(np.argsort(s, kind="stable")[:size].tolist()) for s in similarity]
    rank = spearmanr(*similarity).statistic if len(old) > 1 else float("nan")
    return Drift(
        float(moved.mean()), float(cosine.mean()), float(rank), len(easy[0] & easy[1]) / len(easy[0] | easy[1])
    )
