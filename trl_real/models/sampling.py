"""Tokens drawn with a random state of each row's own, so that no row's draw hangs on which rows are beside it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


MOST_LIKELY = 256  # tokens among which a nucleus is looked for before the whole vocabulary is sorted


class Sampler:
    """
    Draws from `softmax(logits / temperature)` as `argmax(logits / temperature - log E)` with `E` from the standard
    exponential distribution, one a token (the Gumbel-max trick). Logits that differ by rounding give the same token
    but where the two best are as close as that, which an inverse of the cumulative distribution would not do.

    Args:
        temperature: Divides the logits; 0 for greedy decoding.
        top_p: Draw from the smallest set of tokens with at least this probability, in (0, 1].
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0):
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, logits: Tensor, states: Sequence[np.random.Generator]) -> list[int]:
        """
        A token a row.

        Args:
            logits: Shape `(B, V)`.
            states: Random states, one a row; each goes on by `V` draws.
        """
        if not self.temperature:
            return logits.argmax(-1).tolist()
        scores = logits.float() / self.temperature
        if self.top_p < 1:
            scores = nucleus(scores, self.top_p)
        noise = torch.empty(scores.shape)
        for row, state in zip(noise, states, strict=True):
            # in double precision, where a zero, which would beat every other token, does not happen
            row.copy_(torch.from_numpy(state.standard_exponential(scores.shape[-1])))
        return (scores - noise.log_().to(scores.device)).argmax(-1).tolist()


def random_state(seed: int) -> np.random.Generator:
    """The random state of a row."""
    return np.random.Generator(np.random.PCG64(seed))


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """
    `-inf` for all but the smallest set of tokens with a probability of at least `top_p` (arXiv 1904.09751).

    Args:
        scores: Log-probabilities up to a constant. Shape `(B, V)`.
        top_p: In (0, 1).
    """
    probabilities = scores.softmax(-1)
    ranked, order = probabilities.topk(min(MOST_LIKELY, scores.shape[-1]))
    if bool((ranked.sum(-1) < top_p).any()):
        ranked, order = probabilities.sort(descending=True)
    within = ranked.cumsum(-1) - ranked < top_p
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, within), -torch.inf)
