"""Similarity of response embeddings (REAL, arXiv 2409.17169, section 4: cosine of mean-pooled hidden states)."""

import torch
from torch import Tensor


def normalize(embeddings: Tensor) -> Tensor:
    """Scale rows to length 1, in float64; a zero row stays zero. Shape `(..., d)` in and out."""
    embeddings = embeddings.double()
    return embeddings / embeddings.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def pair_similarity(first: Tensor, second: Tensor) -> Tensor:
    r"""
    Return the cosine similarity `s(y_1, y_2) = f(y_1)^T f(y_2) / (|f(y_1)| |f(y_2)|)`.

    Computed in float64: half precision has about 400 values in the range of 40,000 typical similarities, and in
    float32 the result would depend on the batches.

    Args:
        first: Embeddings of the first responses. Shape `(..., d)`.
        second: Embeddings of the second responses. Shape `(..., d)`.

    Returns:
        Similarities in [-1, 1], float64. Shape `(...)`.
    """
    return (normalize(first) * normalize(second)).sum(-1)


def candidate_pairs(n_responses: int) -> Tensor:
    """Return all pairs `i < j` of `K` responses in lexicographic order. Shape `(2, P)` with `P = K (K - 1) / 2`."""
    return torch.triu_indices(n_responses, n_responses, offset=1)


def candidate_similarity(embeddings: Tensor) -> Tensor:
    """Return the similarity of every candidate pair of `N` prompts, float64. Shape `(N, K, d)` to `(N, P)`."""
    first, second = candidate_pairs(embeddings.shape[1])
    unit = normalize(embeddings)
    return (unit @ unit.mT)[:, first, second]
