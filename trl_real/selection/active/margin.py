"""Selection by the policy's own margins (APLP): the baselines beside which an uncertainty has to earn its cost."""

from typing import Any

import numpy as np
from datasets import Dataset

from trl_real.errors import TrlRealError
from trl_real.models.implicit import ImplicitRewardReader
from trl_real.selection.active.base import ActiveSelector, Picks, Reading, checked_cap
from trl_real.selection.active.pool import ActivePool


# Margins are ranked in steps of this many nats: rounding in float32 does not decide.
STEP = 1e-3

# Sign of |margin| in the ranking: largest first.
MARGIN_STRATEGIES = {"certainty": 1.0, "uncertainty": -1.0}


class MarginPairSelector(ActiveSelector):
    r"""
    Pick pairs by `|r(x, y_1) - r(x, y_2)|`, the margin of the implicit rewards `r(x, y) = log pi(y | x) -
    log pi_ref(y | x)`, summed over the response's tokens (APLP, arXiv 2402.08114). `"certainty"` takes the largest
    margins first, as its authors do; `"uncertainty"` the smallest. DPO's `beta` would scale all margins alike, so it
    is left out.

    A policy that is its own reference (a fresh adapter) has margins of 0: what is taken is then drawn from the seed
    and the content, and so are all ties, within 0.001 nats. The labels in the history are not looked at, except that
    their pairs are not picked again.

    `uncertainty` is `-|margin|`, in nats; `similarity` is NaN.

    Args:
        policy (`PreTrainedModel`, `PeftModel` or `str`): Loaded, or a path or Hub id of a model or an adapter.
        reference (*optional*): The same; by default the policy without its LoRA adapter.
        tokenizer (*optional*): For loaded models; it serves both.
        strategy (`str`, *optional*, defaults to `"uncertainty"`): Or `"certainty"`.
        max_per_prompt (`int`, *optional*): Pairs of one prompt that a selection may pick.
        max_length (`int`, *optional*, defaults to `512`): Tokens of a response that are scored, and of a prompt read.
        batch_tokens (`int`, *optional*): Tokens in a forward pass; by default 1024 on a CPU and 16384 elsewhere.
        dtype (`str`, *optional*): Precision of the matrix products.
        device (`str`, *optional*): For models given by name; a loaded one stays where it is.
        responses (`str`, *optional*, defaults to `"responses"`): Column that holds the list of responses.
        seed (`int`, *optional*, defaults to `42`): Of the order of ties.

    Raises:
        TrlRealError: If a setting is out of range, or a policy without an adapter has no reference.
    """

    unusable = "log-probability not finite, or no token to score"

    def __init__(
        self,
        policy: Any,
        *,
        reference: Any = None,
        tokenizer: Any = None,
        strategy: str = "uncertainty",
        max_per_prompt: int | None = None,
        max_length: int = 512,
        batch_tokens: int | None = None,
        dtype: Any = None,
        device: str | None = None,
        responses: str = "responses",
        seed: int = 42,
    ):
        super().__init__(responses, seed)
        if strategy not in MARGIN_STRATEGIES:
            raise TrlRealError(f"No strategy {strategy!r}; there are {', '.join(MARGIN_STRATEGIES)}.")
        self.sign, self.strategy = MARGIN_STRATEGIES[strategy], f"margin_{strategy}"
        self.max_per_prompt = checked_cap(max_per_prompt)
        settings = {"max_length": max_length, "batch_tokens": batch_tokens, "dtype": dtype, "device": device}
        self.reader = ImplicitRewardReader(policy, reference, tokenizer, **settings)

    def _read(self, pool: ActivePool, plain: Dataset) -> Reading:
        wanted = np.unique(pool.ends[pool.free])
        found = self.reader([pool.prompts[i] for i in wanted], [pool.texts[i] for i in wanted])
        rewards, truncated = np.full(len(pool.texts), np.nan), np.zeros(len(pool.texts), bool)
        rewards[wanted], truncated[wanted] = found.values.numpy(), found.truncated.numpy()
        margins = rewards[pool.ends[:, 0]] - rewards[pool.ends[:, 1]]
        policy, reference = self.reader.policy, self.reader.reference
        settings = {"max_length": self.reader.max_length, "dtype": policy.dtype or policy.precision}
        settings["reference"] = reference.label if reference else "the policy without its adapter"
        cost = found.n_tokens, found.seconds
        return Reading(~np.isfinite(margins), truncated, *cost, settings=settings, values=margins)

    def _pick(self, pool: ActivePool, reading: Reading, k: int) -> Picks:
        free = np.flatnonzero(pool.free)
        gaps = np.abs(reading.values[free])
        order = np.lexsort((pool.draws(free, self.seed), -self.sign * np.round(gaps / STEP)))
        picked: list[int] = []
        left: dict[int, int] = {}
        for i in order if self.max_per_prompt is not None else order[:k]:
            prompt = int(pool.groups[pool.row[free[i]]])
            left[prompt] = left.get(prompt, self.max_per_prompt or len(free)) - 1
            if left[prompt] >= 0 and len(picked) < k:
                picked.append(i)
        told = {"margin_median": round(float(np.median(gaps)), 6)} if len(gaps) else {}
        return Picks(free[picked], -gaps[picked], told) if picked else Picks(np.zeros(0, int), np.zeros(0), told)

    def _identity(self) -> dict[str, Any]:
        known = self.reader.policy.identity
        return {"model": known["model"], "revision": known["revision"]}
