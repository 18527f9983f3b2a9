r"""
Optimal design: choose the candidates that tell the most about a linear reward, given earlier picks.

On differences of gradients this is ActiveDPO's selection (arXiv 2505.19241); on differences of last-layer features it
is the D-optimal design of ADPO (Kveton et al., arXiv 2503.01076). On differences of unit vectors, the first pick is
the least similar pair: REAL's "easy".
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.greedy_design import BLOCK, Inverse, Search


MARGINS = 64  # number of picks at which a design computes margins


class Design(NamedTuple):
    """
    Result of `greedy_design`.

    Args:
        indices: Picked candidates, in the order of the picks. Shape `(k,)`.
        scores: `phi^T V^-1 phi` of each at its pick; never increasing. Shape `(k,)`, float64.
        log_det: `log det V / ridge` after the last pick, history included: the information gained, in nats.
    """

    indices: Tensor
    scores: Tensor
    log_det: float

    @property
    def gains(self) -> Tensor:
        """Gain of each pick in `log_det`, `log(1 + score)`. Shape `(k,)`."""
        return self.scores.log1p()


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, vectors / length, torch.zeros_like(vectors))


def by_response(first: Tensor, second: Tensor) -> Tensor:
    """Return `g_1 / |g_1| - g_2 / |g_2|`: norms do not count. A zero vector stays zero. Shapes `(..., d)`."""
    return _unit(first) - _unit(second)


def by_pair(first: Tensor, second: Tensor) -> Tensor:
    """Return `(g_1 - g_2) / |g_1 - g_2|`: only the direction counts. Shapes `(..., d)`."""
    return _unit(first - second)


def unnormalized(first: Tensor, second: Tensor) -> Tensor:
    """Return `g_1 - g_2`: favours long responses, which have large gradients. Shapes `(..., d)`."""
    return first - second


NORMALIZATIONS: dict[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    "response": by_response,
    "pair": by_pair,
    None: unnormalized,
}


def pair_features(first: Tensor, second: Tensor, normalize: str | None = "response") -> Tensor:
    """
    Return features `phi` of pairs from vectors of their responses (gradients or embeddings).

    Args:
        first, second: Vectors of the two responses. Shape `(..., d)`.
        normalize: Name of the normalisation, a key of `NORMALIZATIONS`.

    Returns:
        Features. Shape `(..., d)`. Swapping the responses flips the sign, which changes no score.

    Raises:
        TrlRealError: If the normalisation is unknown.
    """
    if normalize not in NORMALIZATIONS:
        names = ", ".join(str(name) for name in NORMALIZATIONS)
        raise TrlRealError(f"No normalisation {normalize!r}; there are {names}. Type normalize='response'.")
    return NORMALIZATIONS[normalize](first, second)


def uncertainty(features: Tensor, history: Tensor, ridge: float = 1.0) -> Tensor:
    r"""
    Return `phi^T V^-1 phi` with `V = ridge I + sum_h phi_h phi_h^T`.

    Args:
        features: Shape `(P, d)`.
        history: Features of earlier pairs. Shape `(H, d)`.
        ridge: Above 0.

    Returns:
        Shape `(P,)`, float64 for float64 features, else float32.
    """
    inverse = Inverse(features.shape[1], ridge, history)
    return torch.cat([inverse.scores(block) for block in features.split(BLOCK)])


def greedy_design(
    features: Tensor,
    k: int,
    *,
    ridge: float = 1.0,
    history: Tensor | None = None,
    max_per_prompt: int | None = None,
    prompts: Tensor | None = None,
    exclude: Tensor | None = None,
) -> Design:
    r"""
    Pick `k` candidates, each with the largest `|phi|_{V^-1}` given the earlier picks: `V <- V + phi phi^T` after every
    pick (ActiveDPO, Algorithm 1), which greedily maximises `log det V` (within `1 - 1 / e` of the best set).

    Scores only fall when `V` grows, so an old score is an upper bound: a pool of the best candidates is updated after
    every pick, and the others are recomputed, in blocks, only when the pool's best score falls below their bounds. The
    result is exact. `V^-1` is `I / ridge - Q Q^T` with one column of `Q` per pick while picks and history are fewer
    than `d`, and a Cholesky factor of `V` afterwards; scores are recomputed from scratch at intervals.

    Args:
        features: Features `phi`, one row per candidate, float32 or float64; further memory does not grow with `P d`.
            Shape `(P, d)`.
        k: Number of picks.
        ridge: Ridge `lambda`, above 0, in units of the squared features.
        history: Features of the pairs picked in earlier rounds. Shape `(H, d)`.
        max_per_prompt: Maximum number of picks per prompt; None for no limit.
        prompts: Prompt number of each candidate. Shape `(P,)`.
        exclude: Candidates that must not be picked. Shape `(P,)`, bool.

    Returns:
        The picks. Ties (within 1e-6, relative) go to the lowest index; zero features come last, with a score of 0.

    Raises:
        TrlRealError: If a value is out of range, a feature is not finite or there are fewer than `k` candidates.
    """
    allowed = torch.ones(len(features), dtype=torch.bool) if exclude is None else ~exclude.cpu()
    _check(features, k, ridge, history, allowed, max_per_prompt, prompts)
    search = Search(features, Inverse(features.shape[1], ridge, history), allowed)
    left: dict[int, int] = {}
    picks: list[int] = []
    gains: list[float] = []
    for _ in range(k):
        best, score = search.best()
        picks.append(best)
        gains.append(score)
        search.take(best)
        if max_per_prompt is not None and prompts is not None:
            prompt = int(prompts[best])
            left[prompt] = left.get(prompt, max_per_prompt) - 1
            if not left[prompt]:
                search.drop((prompts == prompt).nonzero()[:, 0])
    scores = torch.tensor(gains, dtype=torch.float64)
    log_det = search.inverse.history_log_det + float(scores.log1p().sum())
    return Design(torch.tensor(picks, dtype=torch.long), scores, log_det)


def design_margins(differences: Tensor, picked: Design) -> Tensor:
    """
    Return the smallest margin of any pick for each row: below 0 for taken rows, at least 0 for the others. Shape
    `(N,)`.

    The margin of a pick is its score minus that of the best row outside the set. It is computed at up to 64 picks; a
    pick between two of these has the smaller one of their margins.

    Args:
        differences: `phi` of each row's pair. Shape `(N, d)`.
        picked: Design on these differences.
    """
    size, outside = len(picked.indices), torch.ones(len(differences), dtype=torch.bool)
    outside[picked.indices] = False
    scores = torch.full((len(differences),), torch.inf, dtype=torch.float64)
    if not size or not outside.any():
        return scores.where(outside, -scores)
    steps = torch.linspace(0, size - 1, min(size, MARGINS)).long()
    at_steps = []
    for step in steps.tolist():
        others = uncertainty(differences[outside], history=differences[picked.indices[:step]]).double()
        scores[outside] = scores[outside].minimum(picked.scores[step] - others)
        at_steps.append(picked.scores[step] - others.max())
    margins = torch.stack(at_steps)
    after = torch.searchsorted(steps, torch.arange(size))
    before = torch.searchsorted(steps, torch.arange(size), right=True) - 1
    scores[picked.indices] = -margins[before].minimum(margins[after])
    return scores


def _is_finite(block: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(block).isfinite())


def _check(features, k, ridge, history, allowed, max_per_prompt, prompts) -> None:
    if not ridge > 0:
        raise TrlRealError(f"ridge={ridge} is not above 0. Type ridge=1.0.")
    for name, rows in (("features", features), ("history", history)):
        if rows is not None and not all(_is_finite(block) for block in rows.split(BLOCK)):
            raise TrlRealError(
                f"The {name} contain NaN, infinity or values whose squares overflow. Remove such candidates first."
            )
    if history is not None and history.shape[1] != features.shape[1]:
        raise TrlRealError(f"The history has {history.shape[1]} features, the candidates {features.shape[1]}.")
    if max_per_prompt is not None and (prompts is None or max_per_prompt < 1):
        raise TrlRealError(f"max_per_prompt={max_per_prompt} must be 1 or more, and needs prompts=…, one a candidate.")
    n = int(allowed.sum())
    if max_per_prompt is not None:
        n = int(prompts.cpu()[allowed].unique(return_counts=True)[1].clamp_max(max_per_prompt).sum())
    if not 0 <= k <= n:
        raise TrlRealError(f"The budget is {k} pairs, but only {n} candidates are allowed. Type at most {n}.")
