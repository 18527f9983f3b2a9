"""How far training moves the embeddings that a selection was made with."""

from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from trl_real.functional.similarity import normalize, pair_similarity


class Drift(NamedTuple):
    """
    Embeddings at a checkpoint against those before training (REAL, App. B.1).

    Args:
        relative_l2: Mean of `||f_s(y) - f_0(y)|| / ||f_0(y)||`.
        cosine: Mean of `cos(f_s(y), f_0(y))`.
        spearman: Rank correlation of the pairs' similarities then and before.
        jaccard: Overlap of the least similar pairs then and before: what a selection made now would share with the
            one that was made.
    """

    relative_l2: float
    cosine: float
    spearman: float
    jaccard: float


def embedding_drift(before: Tensor, after: Tensor, budget: float = 0.5) -> Drift:
    """
    Compare the embeddings of the same pairs before and after.

    Args:
        before: Of the two responses of each pair. Shape `(P, 2, d)`.
        after: The same at a checkpoint. Shape `(P, 2, d)`.
        budget: Share of the pairs in the easy sets that `jaccard` compares.
    """
    old, new = before.double(), after.double()
    moved = (new - old).norm(dim=-1) / old.norm(dim=-1)
    cosine = (normalize(old) * normalize(new)).sum(-1)
    similarity = [pair_similarity(x[:, 0], x[:, 1]).numpy() for x in (old, new)]
    size = max(1, round(budget * len(old)))
    easy = [set(np.argsort(s, kind="stable")[:size].tolist()) for s in similarity]
    rank = spearmanr(*similarity).statistic if len(old) > 1 else float("nan")
    return Drift(
        float(moved.mean()), float(cosine.mean()), float(rank), len(easy[0] & easy[1]) / len(easy[0] | easy[1])
    )
