"""In which geometry of the embedding space "dissimilar" is measured; none of these is in REAL, which takes it raw."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


# Directions that carry less than this share of the mean variance are not blown up by whitening.
WHITENING_FLOOR = 0.01


class Geometry(NamedTuple):
    """
    An affine map `x -> (x - shift) @ matrix`, or elementwise `(x - shift) * matrix` where `matrix` is a vector.

    Args:
        shift: Shape `(d,)`.
        matrix: Shape `(d, d)` or `(d,)`.
    """

    shift: Tensor
    matrix: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Embeddings in this geometry. Shape `(..., d)` to `(..., d)`."""
        moved = embeddings - self.shift.to(embeddings)
        matrix = self.matrix.to(embeddings)
        return moved * matrix if matrix.ndim == 1 else moved @ matrix


def raw(sample: Tensor) -> Geometry:
    """
    As they are (REAL). Mean-pooled hidden states share a large common direction, which dominates their cosines.

    Args:
        sample: Embeddings of the pool. Shape `(n, d)`.
    """
    return Geometry(sample.new_zeros(sample.shape[1]), sample.new_ones(sample.shape[1]))


def centered(sample: Tensor) -> Geometry:
    """Less the pool's mean, so that unrelated responses have a cosine near 0. Shape as in `raw`."""
    return Geometry(sample.mean(0), sample.new_ones(sample.shape[1]))


def standardized(sample: Tensor) -> Geometry:
    """Each coordinate with mean 0 and variance 1 over the pool: no few coordinates decide. Shape as in `raw`."""
    spread = sample.std(0)
    return Geometry(sample.mean(0), 1 / spread.clamp_min(1e-6 * spread.max()))


def whitened(sample: Tensor) -> Geometry:
    """Uncorrelated coordinates of variance 1 (Mahalanobis), small directions damped. Shape as in `raw`."""
    mean, values, vectors = _principal(sample)
    return Geometry(mean, vectors / (values + WHITENING_FLOOR * values.mean()).sqrt())


def debiased(sample: Tensor) -> Geometry:
    """
    Centred, without the leading principal direction. Shape as in `raw`.

    Mu and Viswanath ("all but the top", arXiv 1702.01417) take out about d / 100 directions; of hidden states that
    already takes what responses differ in (docs/log.md).
    """
    mean, _, vectors = _principal(sample)
    top = vectors[:, -1:]
    return Geometry(mean, torch.eye(len(mean), dtype=top.dtype) - top @ top.mT)


def _principal(sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variances (ascending) and directions of the sample, in float64."""
    sample = sample.double()
    mean = sample.mean(0)
    moved = sample - mean
    values, vectors = torch.linalg.eigh(moved.mT @ moved / max(1, len(sample) - 1))
    return mean, values.clamp_min(0), vectors


GEOMETRIES: dict[str, Callable[[Tensor], Geometry]] = {
    "raw": raw,
    "centered": centered,
    "standardized": standardized,
    "whitened": whitened,
    "debiased": debiased,
}
