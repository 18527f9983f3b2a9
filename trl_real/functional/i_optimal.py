r"""
I-optimal design: choose the pairs whose labels lower the average variance of the predictions over the whole pool.

BAIT (Ash et al. 2021, arXiv 2106.09675) for a Bradley-Terry model at equal rewards, `p (1 - p) = 1 / 4`. Unlike a
D-optimal design it does not look for outliers: a direction counts by how much the pool varies in it.
"""

import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.design import Design
from trl_real.functional.greedy_design import TIE_TOLERANCE


OFFSET = 4.0  # 1 / (p (1 - p)) at equal rewards
AHEAD = 32  # picks between two updates of all candidates
BEST = 256  # candidates with exact gains among which these picks are looked for
PART = 4096  # candidates in one matrix product


class Forms:
    """
    Both quadratic forms of every candidate, `x^T M^-1 x` and `x^T M^-1 F M^-1 x`, float64, and their matrices.

    Args:
        features: Features. Shape `(P, d)`.
        ridge: `M` without picks is `ridge I`.
    """

    def __init__(self, features: Tensor, ridge: float):
        self.features = features
        self.inverse = torch.eye(features.shape[1], dtype=torch.float64) / ridge
        self.product = pool_moment(features) / ridge**2
        self.free = torch.ones(len(features), dtype=torch.bool)
        self.lengths, self.moved = torch.cat([self.of(part) for part in features.split(PART)], dim=1)

    def of(self, rows: Tensor) -> Tensor:
        """Compute both forms of these rows from the matrices. Shape `(n, d)` to `(2, n)`."""
        forms = [((rows @ matrix.to(rows)) * rows).sum(1) for matrix in (self.inverse, self.product)]
        return torch.stack(forms).double().clamp_min(0)

    def look_ahead(self, n: int) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor]:
        """
        Pick `n` of the candidates that have the largest gains now.

        Returns:
            The picks; `u = M^-1 x / sqrt(4 + x^T M^-1 x)` and `w`, shape `(n, d)`, with which the forms of a candidate
            fall by `(x u)^2` and by `2 (x u) (x w)`; `x^T M^-1 x` and the gain of each pick, shape `(n,)`.
        """
        gains = (self.moved / (OFFSET + self.lengths)).masked_fill(~self.free, -torch.inf)
        ids = gains.topk(min(BEST, len(gains))).indices.sort().values
        rows, picks = self.features[ids].double(), []
        (lengths, moved), free = self.of(rows), self.free[ids]
        u, w = torch.zeros(2, n, rows.shape[1], dtype=torch.float64)
        found = torch.zeros(2, n, dtype=torch.float64)
        for i in range(n):
            gains = (moved / (OFFSET + lengths)).masked_fill(~free, -torch.inf)
            best = int((gains >= gains.max() * (1 - TIE_TOLERANCE)).int().argmax())
            x, scale = rows[best], (OFFSET + lengths[best]).sqrt()
            on_u, on_w = u[:i] @ x, w[:i] @ x
            u[i] = (self.inverse @ x - on_u @ u[:i]) / scale
            w[i] = (self.product @ x - on_w @ u[:i] - on_u @ w[:i]) / scale - gains[best] / 2 * u[i]
            picks.append(int(ids[best]))
            found[:, i] = torch.stack([lengths[best], gains[best]])
            free[best] = False
            along_u, along_w = rows @ u[i], rows @ w[i]
            lengths, moved = lengths - along_u.square(), moved - 2 * along_u * along_w
        return picks, u, w, *found

    def take(self, picks: list[int], u: Tensor, w: Tensor, gains: Tensor) -> int:
        """
        Update all forms by the picks up to the first one at which another candidate has a larger gain.

        Returns:
            Number of picks taken, at least one.
        """
        directions = torch.cat([u, w]).to(self.features).mT
        on = torch.cat([part @ directions for part in self.features.split(PART)]).double()  # (P, 2n)
        on_u, on_w = on.split(len(picks), dim=1)
        lengths = self.lengths[:, None] - on_u.square().cumsum(1)  # (P, n): after each pick
        moved = self.moved[:, None] - 2 * (on_u * on_w).cumsum(1)
        self.free[picks] = False
        others = (moved / (OFFSET + lengths))[self.free, :-1].amax(0) if self.free.any() else gains[:0]
        larger = (others > gains[1 : 1 + len(others)] * (1 + 10 * TIE_TOLERANCE)).nonzero()[:1, 0]
        n = 1 + int(larger[0]) if len(larger) else len(picks)
        self.free[picks[n:]] = True
        self.lengths, self.moved = lengths[:, n - 1].clamp_min(0), moved[:, n - 1].clamp_min(0)
        self.inverse -= u[:n].mT @ u[:n]
        both = u[:n].mT @ w[:n]
        self.product -= both + both.mT
        return n


def pool_moment(features: Tensor) -> Tensor:
    """Return `F = 1 / P sum_i x_i x_i^T` of the pool, in float64. Shapes `(P, d)` to `(d, d)`."""
    moment = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for part in features.split(PART):
        moment += part.double().mT @ part.double() / len(features)
    return moment


def greedy_i_optimal(features: Tensor, k: int, *, ridge: float | None = None) -> Design:
    r"""
    Pick `k` candidates, each with the largest decrease of `tr(F M^-1)`, the average variance of the predictions, with
    `F = 1 / P sum_pool x x^T` and `M = ridge I + 1/4 sum_picks x x^T`:

    `gain(x) = (x^T M^-1 F M^-1 x) / (4 + x^T M^-1 x)`.

    Picks are looked for among the candidates with the largest gains, 32 ahead; then both forms of all candidates are
    updated at once, and only the picks that no other candidate would have beaten stay. A pick costs `O(P d + d^2)`.

    Args:
        features: Features `x`, one row per candidate, float32 or float64. Shape `(P, d)`.
        k: Number of picks.
        ridge: Ridge, above 0, in units of the squared features; by default the mean of `|x|^2`.

    Returns:
        The picks, with their gains as scores, and `log det M / ridge`. Ties (within 1e-6, relative) go to the lowest
        index; zero features come last, with a gain of 0.

    Raises:
        TrlRealError: If the ridge is not above 0, a feature is not finite or there are fewer than `k` candidates.
    """
    if not features.isfinite().all():
        raise TrlRealError("The features contain NaN or infinity. Remove such candidates before the selection.")
    if not 0 <= k <= len(features):
        raise TrlRealError(f"The budget is {k} pairs, but there are {len(features)} candidates. Type at most that.")
    if ridge is not None and not ridge > 0:
        raise TrlRealError(f"ridge={ridge} is not above 0. Type ridge=1.0, or None for the mean of |x|^2.")
    # Without any difference the ridge has no effect.
    forms = Forms(features, ridge or float(features.double().square().sum(1).mean().nan_to_num()) or 1.0)
    picks: list[int] = []
    lengths: list[float] = []
    gains: list[float] = []
    while len(picks) < k:
        ahead, u, w, length, gain = forms.look_ahead(min(AHEAD, BEST, k - len(picks)))
        n = forms.take(ahead, u, w, gain)
        picks += ahead[:n]
        lengths += length[:n].tolist()
        gains += gain[:n].tolist()
    log_det = float((torch.tensor(lengths, dtype=torch.float64) / OFFSET).log1p().sum())
    return Design(torch.tensor(picks, dtype=torch.long), torch.tensor(gains, dtype=torch.float64), log_det)


def i_optimal_set(features: Tensor, k: int) -> Design:
    """
    Pick `k` candidates as `greedy_i_optimal` does, on features in units of their spread over the pool: without units,
    the few coordinates in which hidden states are largest would decide. Shape `(P, d)`.
    """
    spread = features.double().square().mean(0).sqrt()
    floor = max(1e-6 * float(spread.amax()), torch.finfo(torch.float32).tiny) if len(features) else 1.0
    return greedy_i_optimal(features / spread.clamp_min(floor).to(features), k)
