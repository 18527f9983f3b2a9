"""Greedy design from the inside: `V^-1` without a `d x d` matrix, and a search that looks at few candidates a pick."""

import itertools

import torch
from torch import Tensor


# Candidates whose scores differ by less, relatively, are ties, and the first of them is picked.
TIE_TOLERANCE = 1e-6
POOL = 1024  # candidates that are always fresh: they stay in a core's cache
BLOCK = 4096  # candidates that are refreshed before another look at the bounds
PART = 1024  # of them in a product
AHEAD = 128  # true scores above every bound that is left, before a refresh ends
SWEEP = 0.05  # share of stale candidates in question from which on all are refreshed, where they lie: no row is copied
CHECK_EVERY = 256  # picks
MAX_DRIFT = 1e-4


class Inverse:
    """`V^-1` as `B^-1 - Q Q^T`: `B` is `ridge I` or a Cholesky factor, `Q` has a column a pick since. In float64."""

    def __init__(self, d: int, ridge: float, history: Tensor | None):
        self.d, self.ridge = d, ridge
        history = torch.zeros(0, d) if history is None else history
        self.rows = [history.double().cpu()] if len(history) else []
        self.q = torch.zeros(64, d, dtype=torch.float64)  # rows are the columns of Q, room for more
        self.rebase()
        self.n_history = self.n_base

    def fresh(self) -> "Inverse":
        """The same from the picked features themselves."""
        return Inverse(self.d, self.ridge, torch.cat(self.rows))

    def rebase(self) -> None:
        """Start again from the picked features themselves: what rounding did to `Q` is gone, and `Q` is short."""
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
        self.q_first = self.n_q  # columns that stand for the base
        self._single: Tensor | None = None

    def scores(self, block: Tensor) -> Tensor:
        """From scratch. Shape `(n, d)` to `(n,)`."""
        if self.factor is None:
            base = torch.linalg.vecdot(block, block) / self.ridge
        else:
            base = torch.linalg.solve_triangular(self.factor.to(block), block.T, upper=False).square().sum(0)
        return (base - (block @ self._columns(block.dtype, 0).T).square().sum(1)).clamp_min(0)

    def falls(self, block: Tensor, since: Tensor) -> Tensor:
        """By how much each score fell when `V` grew from `since` rows on. Shapes `(n, d)`, `(n,)` to `(n,)`."""
        first = int(since.min())
        parts = (self._columns(block.dtype, self.q_first + first - self.n_base) @ block.T).square_()  # (picks, n)
        if first < int(since.max()):
            parts *= torch.arange(first, first + len(parts))[:, None] >= since
        return parts.sum(0)

    @property
    def n_picks(self) -> int:
        """Rows in `V`, history and picks."""
        return self.n_base + self.n_q - self.q_first

    def add(self, phi: Tensor) -> None:
        """`V <- V + phi phi^T`."""
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
    Bounds on all scores, of which those in a small pool are always true.

    Attributes:
        bounds: A score that was true once; minus infinity for what cannot be picked. Shape `(P,)`.
        seen: Rows that `V` had then. Shape `(P,)`.
    """

    def __init__(self, features: Tensor, inverse: Inverse, allowed: Tensor):
        self.features, self.inverse = features, inverse
        self.bounds = torch.full((len(features),), -torch.inf, dtype=features.dtype)
        self.seen = torch.full((len(features),), inverse.n_picks)
        for ids in allowed.nonzero()[:, 0].split(BLOCK):
            self.bounds[ids] = inverse.scores(features[ids])
        self._fill()

    def _fill(self) -> None:
        """Take the best into the pool; they must be fresh."""
        size = min(POOL, len(self.bounds))
        # A stable sort would look at all of them; ties at the pool's edge stay outside, bounded and found when needed.
        self.ids = self.bounds.topk(size).indices.sort().values if size else torch.zeros(0, dtype=torch.long)
        fresh = self.seen[self.ids] == self.inverse.n_picks
        self.ids = self.ids[fresh]
        self.pool, self.scores = self.features[self.ids], self.bounds[self.ids].clone()
        self.outside = self.bounds.clone()
        self.outside[self.ids] = -torch.inf
        self.ceiling = float(self.outside.max()) if size else -torch.inf

    def best(self) -> tuple[int, float]:
        """The candidate with the largest score, the first among ties, and its score."""
        if self._edge() <= self.ceiling:
            self._refresh()
        tied = self.scores >= self._edge()
        place = int(tied.int().argmax())
        best = self.ids[place]
        beside = (self.outside[:best] >= self._edge()).nonzero()[:1, 0]  # fresh ties that found no room in the pool
        if len(beside):
            return int(beside[0]), float(self.bounds[beside[0]])
        return int(best), float(self.scores[place])

    def _edge(self) -> float:
        return self._below(self.scores.max()) if len(self.scores) else -torch.inf

    @staticmethod
    def _below(score: Tensor) -> float:
        """The lowest score that ties with this one."""
        return float(score) - TIE_TOLERANCE * abs(float(score))

    def _refresh(self) -> None:
        """Bring the highest bounds up to date, a block at a time, until those left are below enough true scores."""
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
                self._sweep()
                break
            ids = stale.topk(min(BLOCK, left)).indices
            self._update(ids)
            best = torch.cat([best, self.bounds[ids]])
        self._fill()

    def _sweep(self) -> None:
        """Make all bounds true."""
        for start in range(0, len(self.bounds), PART):
            self._renew(slice(start, start + PART))

    def _update(self, ids: Tensor) -> None:
        """Make some bounds true."""
        ids = ids.sort().values
        # Those last seen together miss the same columns: one matrix product, and hardly any of it in vain.
        for some in ids[self.seen[ids].argsort(stable=True)].split(PART):
            self._renew(some)

    def _renew(self, rows: Tensor | slice) -> None:
        """Make the bounds of these rows true; minus infinity stays."""
        block, since, bounds = self.features[rows], self.seen[rows], self.bounds[rows]
        if int(since.min()) < self.inverse.n_base:
            fresh = self.inverse.scores(block)
        else:
            fresh = (bounds - self.inverse.falls(block, since)).clamp_min(0)
        self.bounds[rows] = fresh.where(bounds > -torch.inf, bounds)
        self.seen[rows] = self.inverse.n_picks

    def take(self, best: int) -> None:
        """Pick a candidate: it leaves, and `V` grows."""
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
        """Candidates that cannot be picked any more."""
        self.bounds[ids] = self.outside[ids] = -torch.inf
        self.scores[torch.isin(self.ids, ids)] = -torch.inf

    def _check_drift(self) -> None:
        """Where rounding has moved the scores, start again from the picked features themselves."""
        known = self.scores > -torch.inf
        exact = self.inverse.fresh().scores(self.pool)
        drift = (exact - self.scores)[known].abs()
        if len(drift) and drift.max() > MAX_DRIFT * max(1.0, float(exact[known].max())):
            self.inverse.rebase()
            self.seen.fill_(-1)  # what is outside is computed from scratch when it is looked at
            self.scores = torch.where(known, self.inverse.scores(self.pool), self.scores)
