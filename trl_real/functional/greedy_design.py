"""Engine of `greedy_design`: `V^-1` without a `d x d` matrix, and a search that computes few scores per pick."""

import itertools

import torch
from torch import Tensor


# Scores that differ by less, relatively, are ties; the first candidate is picked.
TIE_TOLERANCE = 1e-6
POOL = 1024  # candidates with always exact scores: they fit in a core's cache
BLOCK = 4096  # candidates refreshed before the bounds are checked again
PART = 1024  # candidates in one matrix product
AHEAD = 128  # exact scores required above every remaining bound before a refresh ends
SWEEP = 0.05  # share of stale candidates above which all are refreshed in place, without copying rows
CHECK_EVERY = 256  # picks between two checks for rounding errors
MAX_DRIFT = 1e-4


class Inverse:
    """`V^-1` as `B^-1 - Q Q^T` in float64: `B` is `ridge I` or a Cholesky factor, `Q` one column per later pick."""

    def __init__(self, d: int, ridge: float, history: Tensor | None):
        self.d, self.ridge = d, ridge
        history = torch.zeros(0, d) if history is None else history
        self.rows = [history.double().cpu()] if len(history) else []
        self.q = torch.zeros(64, d, dtype=torch.float64)  # rows are the columns of Q, room for more
        self.rebase()
        self.n_history = self.n_base

    def fresh(self) -> "Inverse":
        """Return a new `Inverse` computed from the picked features."""
        return Inverse(self.d, self.ridge, torch.cat(self.rows))

    def rebase(self) -> None:
        """Recompute the base from the picked features: removes the rounding errors of `Q` and shortens it."""
        rows = torch.cat(self.rows) if self.rows else torch.zeros(0, self.d, dtype=torch.float64)
        self.n_base, self.n_q, self.factor = len(rows), 0, None
        if len(rows) >= self.d:
            v = rows.T @ rows
            v.diagonal().add_(self.ridge)
            self.factor = torch.linalg.cholesky(v)
        elif len(rows):
            # Woodbury: V^-1 = I / ridge - R^T (ridge I + R R^T)^-1 R / ridge
            gram = rows @ rows.T
            gram.diagonal().add_(self.ridge)
            q = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), rows, upper=False) / self.ridge**0.5
            self._room(len(q))
            self.q[: len(q)], self.n_q = q, len(q)
        self.q_first = self.n_q  # columns that belong to the base
        self._single: Tensor | None = None

    def scores(self, block: Tensor) -> Tensor:
        """Compute scores from scratch. Shape `(n, d)` to `(n,)`."""
        if self.factor is None:
            base = torch.linalg.vecdot(block, block) / self.ridge
        else:
            base = torch.linalg.solve_triangular(self.factor.to(block), block.T, upper=False).square().sum(0)
        return (base - (block @ self._columns(block.dtype, 0).T).square().sum(1)).clamp_min(0)

    def falls(self, block: Tensor, since: Tensor) -> Tensor:
        """Return the decrease of each score since `V` had `since` rows. Shapes `(n, d)`, `(n,)` to `(n,)`."""
        first = int(since.min())
        parts = (self._columns(block.dtype, self.q_first + first - self.n_base) @ block.T).square_()  # (picks, n)
        if first < int(since.max()):
            parts *= torch.arange(first, first + len(parts))[:, None] >= since
        return parts.sum(0)

    @property
    def n_picks(self) -> int:
        """Number of rows in `V`, history and picks."""
        return self.n_base + self.n_q - self.q_first

    def add(self, phi: Tensor) -> None:
        """Update `V <- V + phi phi^T`."""
        phi = phi.double().cpu()
        self.rows.append(phi[None])
        columns = self._columns(torch.float64, 0)
        base = phi / self.ridge if self.factor is None else torch.cholesky_solve(phi[:, None], self.factor)[:, 0]
        u = base - columns.T @ (columns @ phi)
        self._room(self.n_q + 1)
        self.q[self.n_q] = u / (1 + phi @ u).sqrt()
        if self._single is not None:
            self._single[self.n_q] = self.q[self.n_q]
        self.n_q += 1

    def _room(self, n: int) -> None:
        if n > len(self.q):
            self.q = torch.cat([self.q, torch.zeros(max(n, len(self.q)), self.d, dtype=torch.float64)])
            self._single = None

    def _columns(self, dtype: torch.dtype, start: int) -> Tensor:
        if dtype == torch.float64:
            return self.q[start : self.n_q]
        if self._single is None or self._single.dtype != dtype:
            self._single = self.q.to(dtype)
        return self._single[start : self.n_q]

    @property
    def history_log_det(self) -> float:
        """`log det V / ridge` before the first pick, in nats."""
        rows = torch.cat(self.rows)[: self.n_history] if self.n_history else torch.zeros(0, self.d).double()
        gram = rows @ rows.T if len(rows) < self.d else rows.T @ rows
        gram = gram / self.ridge
        gram.diagonal().add_(1)
        return float(torch.linalg.slogdet(gram).logabsdet)


class Search:
    """
    Upper bounds on all scores, with exact scores for a small pool of the best candidates.

    Attributes:
        bounds: Last exact score of each candidate; minus infinity if it cannot be picked. Shape `(P,)`.
        seen: Number of rows of `V` at that time. Shape `(P,)`.
    """

    def __init__(self, features: Tensor, inverse: Inverse, allowed: Tensor):
        self.features, self.inverse = features, inverse
        self.bounds = torch.full((len(features),), -torch.inf, dtype=features.dtype)
        self.seen = torch.full((len(features),), inverse.n_picks)
        for ids in allowed.nonzero()[:, 0].split(BLOCK):
            self.bounds[ids] = inverse.scores(features[ids])
        self._fill()

    def _fill(self) -> None:
        """Fill the pool with the best candidates that have exact scores."""
        size = min(POOL, len(self.bounds))
        # A stable sort would read all candidates; ties at the pool's edge stay outside and are found when needed.
        self.ids = self.bounds.topk(size).indices.sort().values if size else torch.zeros(0, dtype=torch.long)
        fresh = self.seen[self.ids] == self.inverse.n_picks
        self.ids = self.ids[fresh]
        self.pool, self.scores = self.features[self.ids], self.bounds[self.ids].clone()
        self.outside = self.bounds.clone()
        self.outside[self.ids] = -torch.inf
        self.ceiling = float(self.outside.max()) if size else -torch.inf

    def best(self) -> tuple[int, float]:
        """Return the candidate with the largest score (the first among ties) and its score."""
        if self._edge() <= self.ceiling:
            self._refresh()
        tied = self.scores >= self._edge()
        place = int(tied.int().argmax())
        best = self.ids[place]
        earlier = (self.outside[:best] >= self._edge()).nonzero()[:1, 0]  # exact ties that did not fit in the pool
        if len(earlier):
            return int(earlier[0]), float(self.bounds[earlier[0]])
        return int(best), float(self.scores[place])

    def _edge(self) -> float:
        return self._below(self.scores.max()) if len(self.scores) else -torch.inf

    @staticmethod
    def _below(score: Tensor) -> float:
        """Return the lowest score that ties with this one."""
        return float(score) - TIE_TOLERANCE * abs(float(score))

    def _refresh(self) -> None:
        """Recompute the highest bounds, block by block, until the rest are below enough exact scores."""
        self.bounds[self.ids] = best = self.scores
        self.seen[self.ids] = self.inverse.n_picks
        for n_blocks in itertools.count():
            stale = self.bounds.where(self.seen < self.inverse.n_picks, -torch.inf)
            best = best.topk(min(AHEAD, len(best))).values
            bar = max(self._below(best.min()), 0.0) if len(best) == AHEAD else 0.0
            left = int((stale >= bar).sum())
            if not left:
                break
            if n_blocks and left > SWEEP * len(stale):
                for start in range(0, len(stale), PART):
                    self._renew(slice(start, start + PART))
                break
            ids = stale.topk(min(BLOCK, left)).indices.sort().values
            # Candidates last seen together miss the same columns: one matrix product with almost no wasted work.
            for some in ids[self.seen[ids].argsort(stable=True)].split(PART):
                self._renew(some)
            best = torch.cat([best, self.bounds[ids]])
        self._fill()

    def _renew(self, rows: Tensor | slice) -> None:
        """Recompute the bounds of these rows; minus infinity stays."""
        block, since, bounds = self.features[rows], self.seen[rows], self.bounds[rows]
        if int(since.min()) < self.inverse.n_base:
            fresh = self.inverse.scores(block)
        else:
            fresh = (bounds - self.inverse.falls(block, since)).clamp_min(0)
        self.bounds[rows] = fresh.where(bounds > -torch.inf, bounds)
        self.seen[rows] = self.inverse.n_picks

    def take(self, best: int) -> None:
        """Pick a candidate: remove it and update `V`."""
        before = self.inverse.n_picks
        self.inverse.add(self.features[best])
        fallen = self.scores - self.inverse.falls(self.pool, torch.full((len(self.pool),), before))
        self.scores = torch.where(self.scores > -torch.inf, fallen.clamp_min(0), self.scores)
        self.drop(torch.tensor([best]))
        if self.inverse.n_q >= self.inverse.d:
            self.inverse.rebase()
        elif self.inverse.n_picks % CHECK_EVERY == 0:
            self._check_drift()

    def drop(self, ids: Tensor) -> None:
        """Exclude candidates from further picks."""
        self.bounds[ids] = self.outside[ids] = -torch.inf
        self.scores[torch.isin(self.ids, ids)] = -torch.inf

    def _check_drift(self) -> None:
        """Recompute from the picked features if rounding errors have moved the scores."""
        finite = self.scores > -torch.inf
        exact = self.inverse.fresh().scores(self.pool)
        drift = (exact - self.scores)[finite].abs()
        if len(drift) and drift.max() > MAX_DRIFT * max(1.0, float(exact[finite].max())):
            self.inverse.rebase()
            self.seen.fill_(-1)  # candidates outside the pool are recomputed when they are needed
            self.scores = torch.where(finite, self.inverse.scores(self.pool), self.scores)
