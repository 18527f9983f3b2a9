r"""
Random projections of gradients, one parameter at a time: `z = Pi g` with `E <Pi g, Pi h> = <g, h>`.

The full gradient is never in memory. The random numbers depend on the seed and on each parameter's name and shape,
through SHA-256 and a counter-based generator: they are the same in every process, on every rank, in any order of the
parameters and for any PYTHONHASHSEED.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_real.errors import TrlRealError


# Entries of a dense projection in memory at a time: 64 MB in float32.
MAX_ELEMENTS = 2**24


class Projection:
    """
    Linear map of the gradients of named matrices to vectors of `dim` numbers.

    ```python
    buffer = projection.buffer(n_rows)
    projection.add(buffer, "layers.0.q_proj.lora_A", gradients)  # (B, r, d_in), once a parameter, in any order
    vectors = projection.finish(buffer)  # (B, d)
    ```

    Args:
        shapes: Rows and columns of each parameter, by name.
        dim: Length of a vector, `d`.
        seed: Seed of the random numbers.

    Raises:
        TrlRealError: If `dim` is not positive.
    """

    kind = "exact"

    def __init__(self, shapes: Mapping[str, tuple[int, int]], dim: int | None, seed: int = 42):
        self.shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self.dim, self.seed = self._width(dim), seed
        self._kept: dict[tuple, Any] = {}

    def _width(self, dim: int | None) -> int:
        if not isinstance(dim, int) or dim < 1:
            raise TrlRealError(f"projection_dim={dim!r} is not a positive number. Type projection_dim=8192, or None.")
        return dim

    @property
    def fingerprint(self) -> str:
        """Identifier that is equal for two projections exactly if their vectors can be compared."""
        text = repr((self.kind, self.dim, self.seed, list(self.shapes.items())))
        return f"{self.kind}-{self.dim}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def buffer(self, n_rows: int, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        """Return zeros to add to. Shape `(B, d)`, or wider if `finish` folds it."""
        return torch.zeros(n_rows, self.dim, dtype=dtype, device=device)

    def add(self, buffer: Tensor, name: str, gradients: Tensor) -> None:
        """
        Add the part of the product that belongs to one parameter.

        Args:
            buffer: Result of `buffer`; changed in place.
            name: Name of the parameter.
            gradients: One gradient per row. Shape `(B, m, n)`, with `(m, n)` the shape of the parameter.
        """
        raise NotImplementedError

    def finish(self, buffer: Tensor) -> Tensor:
        """Return the projected gradients. Shape `(B, d)`."""
        return buffer

    def _random(self, name: str, part: Any, n_words: int) -> np.ndarray:
        """Return random 64-bit words for this seed, parameter and part. Shape `(n_words,)`."""
        text = repr((self.kind, self.dim, self.seed, name, self.shapes[name], part))
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        return np.random.Philox(key=key).random_raw(n_words)

    def _signs(self, name: str, part: Any, rows: int, columns: int) -> Tensor:
        """Return independent random signs, 1 or -1. Shape `(rows, columns)`."""
        words = self._random(name, part, -(-rows * columns // 64)).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=rows * columns)
        return torch.from_numpy(bits).to(torch.float32).mul_(2).sub_(1).view(rows, columns)


class Exact(Projection):
    """No projection: full gradients, parameters sorted by name. For tests and tiny models."""

    def _width(self, dim: int | None) -> int:
        return sum(m * n for m, n in self.shapes.values())

    def add(self, buffer: Tensor, name: str, gradients: Tensor) -> None:
        start = 0
        for other, (m, n) in self.shapes.items():
            if other == name:
                buffer[:, start : start + m * n] += gradients.flatten(1)
            start += m * n


class CountSketch(Projection):
    r"""
    Count sketch: one random bucket and sign per coordinate, `z[h(i)] += s(i) g_i` (Charikar et al. 2002), a sparse
    Johnson-Lindenstrauss transform. It has the error of a dense projection, `Var |Pi g|^2 <= 2 / d |g|^4`, at a cost
    that does not grow with `d`.

    Coordinates with a negative sign go to a second half of the buffer, which `finish` subtracts: no product is
    needed. The buckets stay in memory, four bytes per coordinate.
    """

    kind = "count_sketch"

    def buffer(self, n_rows: int, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        """Return zeros to add to. Shape `(B, 2 d)`."""
        return torch.zeros(n_rows, 2 * self.dim, dtype=dtype, device=device)

    def add(self, buffer: Tensor, name: str, gradients: Tensor) -> None:
        # index_add_ with 32-bit indices takes ten times as long on a CPU.
        buffer.index_add_(1, self._buckets(name, buffer.device).long(), gradients.flatten(1))

    def finish(self, buffer: Tensor) -> Tensor:
        return buffer[:, : self.dim] - buffer[:, self.dim :]

    def _buckets(self, name: str, device: Any) -> Tensor:
        if (name, device) not in self._kept:
            m, n = self.shapes[name]
            words = self._random(name, "buckets", m * n) % np.uint64(2 * self.dim)
            self._kept[name, device] = torch.from_numpy(words.astype(np.int32)).to(device)
        return self._kept[name, device]


class Rademacher(Projection):
    """
    Dense signs `+-1 / sqrt(d)`, as in LESS and TRAK, in blocks. It draws `d` random bits per coordinate for every
    batch, so it is hundreds of times slower than a sketch, and not more exact.
    """

    kind = "rademacher"

    def add(self, buffer: Tensor, name: str, gradients: Tensor) -> None:
        flat = gradients.flatten(1)  # (B, m n)
        size = max(1, MAX_ELEMENTS // self.dim)
        for start in range(0, flat.shape[1], size):
            block = flat[:, start : start + size]
            signs = self._signs(name, start, block.shape[1], self.dim).to(buffer)
            buffer.addmm_(block, signs, alpha=self.dim**-0.5)


class Kronecker(Projection):
    r"""
    `vec(P_L G P_R^T)` with dense signs on both sides, `P_L` and `P_R` of `k_L k_R = d` rows. It is noisier than the
    others for gradients of few blocks of low rank: its variance is `(1 + 2 / k_L) (1 + 2 / k_R) - 1` for rank 1.
    """

    kind = "kronecker"

    def add(self, buffer: Tensor, name: str, gradients: Tensor) -> None:
        left, right = self._sides(name, buffer)
        buffer += (left @ gradients @ right.mT).flatten(1)  # (B, k_L k_R)

    def _sides(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        if (name, like.device, like.dtype) not in self._kept:
            m, n = self.shapes[name]
            small = max(k for k in range(1, min(m, n, self.dim) + 1) if self.dim % k == 0)
            rows = (small, self.dim // small) if m <= n else (self.dim // small, small)
            sides = [
                self._signs(name, side, k, size) / k**0.5 for side, k, size in zip("lr", rows, (m, n), strict=True)
            ]
            self._kept[name, like.device, like.dtype] = tuple(side.to(like) for side in sides)
        return self._kept[name, like.device, like.dtype]


PROJECTIONS: dict[str | None, type[Projection]] = {
    "count_sketch": CountSketch,
    "rademacher": Rademacher,
    "kronecker": Kronecker,
    None: Exact,
}


def make_projection(
    kind: str | None, shapes: Mapping[str, tuple[int, int]], dim: int | None = 8192, seed: int = 42
) -> Projection:
    """
    Return the projection of this name, a key of `PROJECTIONS`; `Exact` if `dim` is None.

    Raises:
        TrlRealError: If the name is unknown.
    """
    if kind not in PROJECTIONS:
        names = ", ".join(str(name) for name in PROJECTIONS)
        raise TrlRealError(f"No projection {kind!r}; there are {names}. Type projection='count_sketch'.")
    return PROJECTIONS[None if dim is None else kind](shapes, dim, seed)
