"""Selection by the policy's own margins (APLP), as a baseline for uncertainties that cost more."""

from typing import Any

import numpy as np
from datasets import Dataset

from trl_real.errors import TrlRealError
from trl_real.models.implicit import ImplicitRewardReader
from trl_real.selection.active.base import ActiveSelector, Picks, Reading
from trl_real.selection.active.pool import ActivePool


# Margins are ranked in steps of this many nats, so that float32 rounding does not decide.
STEP = 1e-3

# Sign of |margin| in the ranking: largest first.
MARGIN_STRATEGIES = {"certainty": 1.0, "uncertainty": -1.0}


class MarginPairSelector(ActiveSelector):
    r"""
    Selector of pairs by `|r(x, y_1) - r(x, y_2)|`, the margin of the implicit rewards `r(x, y) = log pi(y | x) -
    log pi_ref(y | x)`, summed over the response's tokens (APLP, arXiv 2402.08114). `"certainty"` takes the largest
    margins first, as in the paper; `"uncertainty"` the smallest. DPO's `beta` would scale all margins alike, so it
    is left out.

    Ties, within 0.001 nats, are decided at random by the seed and the content. If the policy equals its reference (a
    new adapter), all margins are 0 and the whole choice is random. The history only excludes labelled pairs.

    `uncertainty` is `-|margin|`, in nats; `similarity` is NaN.

    Args:
        policy (`PreTrainedModel`, `PeftModel` or `str`): Loaded model, or path or Hub id of a model or an adapter.
        reference (*optional*): Reference model, like `policy`; by default the policy without its LoRA adapter.
        tokenizer (*optional*): Tokenizer of loaded models, for both.
        strategy (`str`, *optional*, defaults to `"uncertainty"`): `"uncertainty"` or `"certainty"`.
        max_per_prompt, max_length, batch_tokens, dtype, device, responses: As in `GradientPairSelector`.
        seed (`int`, *optional*, defaults to `42`): Seed of the order of ties.

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
        super().__init__(responses, seed, max_per_prompt)
        if strategy not in MARGIN_STRATEGIES:
            raise TrlRealError(f"No strategy {strategy!r}; there are {', '.join(MARGIN_STRATEGIES)}.")
        self.sign, self.strategy = MARGIN_STRATEGIES[strategy], f"margin_{strategy}"
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
        settings["batch_tokens"] = self.reader.used_batch_tokens
        settings["reference"] = reference.label if reference else "the policy without its adapter"
        unusable = ~np.isfinite(margins)
        return Reading(unusable, truncated, found.n_tokens, found.seconds, settings=settings, values=margins)

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
        settings = {"margin_median": round(float(np.median(gaps)), 6)} if len(gaps) else {}
        places = np.array(picked, int)
        return Picks(free[places], -gaps[places], settings)

    def _identity(self) -> dict[str, Any]:
        identity = self.reader.policy.identity
        return {"model": identity["model"], "revision": identity["revision"]}
