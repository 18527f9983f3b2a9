"""Geometries of the embedding space in which similarity is measured; REAL uses only `raw`, the others are ours."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


# Whitening does not enlarge directions with less than this share of the mean variance.
WHITENING_FLOOR = 0.01


class Geometry(NamedTuple):
    """
    Affine map `x -> (x - shift) @ matrix`, or elementwise `(x - shift) * matrix` if `matrix` is a vector.

    Args:
        shift: Vector to subtract. Shape `(d,)`.
        matrix: Matrix or vector to multiply with. Shape `(d, d)` or `(d,)`.
    """

    shift: Tensor
    matrix: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Map embeddings to this geometry. Shape `(..., d)` to `(..., d)`."""
        moved = embeddings - self.shift.to(embeddings)
        matrix = self.matrix.to(embeddings)
        return moved * matrix if matrix.ndim == 1 else moved @ matrix


def raw(sample: Tensor) -> Geometry:
    """
    Keep embeddings as they are (REAL). Mean-pooled hidden states share a large direction that dominates their cosines.
    The sample is embeddings of the pool. Shape `(n, d)`.
    """
    return Geometry(sample.new_zeros(sample.shape[1]), sample.new_ones(sample.shape[1]))


def centered(sample: Tensor) -> Geometry:
    """Subtract the pool's mean, so that unrelated responses have a cosine near 0. Shape as in `raw`."""
    return Geometry(sample.mean(0), sample.new_ones(sample.shape[1]))


def standardized(sample: Tensor) -> Geometry:
    """Scale each coordinate to mean 0 and variance 1 over the pool, so that no few dominate. Shape as in `raw`."""
    spread = sample.std(0)
    return Geometry(sample.mean(0), 1 / spread.clamp_min(1e-6 * spread.max()))


def whitened(sample: Tensor) -> Geometry:
    """Make coordinates uncorrelated with variance 1 (Mahalanobis), small directions damped. Shape as in `raw`."""
    mean, values, vectors = _principal(sample)
    return Geometry(mean, vectors / (values + WHITENING_FLOOR * values.mean()).sqrt())


def debiased(sample: Tensor) -> Geometry:
    """
    Subtract the mean and remove the leading principal direction. Shape as in `raw`.

    Mu and Viswanath (arXiv 1702.01417) remove about d / 100 directions; for hidden states that already removes the
    differences between responses (docs/log.md).
    """
    mean, _, vectors = _principal(sample)
    top = vectors[:, -1:]
    return Geometry(mean, torch.eye(len(mean), dtype=top.dtype) - top @ top.mT)


def _principal(sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variances (ascending) and principal directions of the sample, in float64."""
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
