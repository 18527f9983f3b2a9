"""Judge that compares responses by the implicit rewards of a policy against its reference (SPA)."""

import math
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_real.errors import TrlRealError
from trl_real.labeling.base import ROWS_PER_SAVE, VerdictJudge
from trl_real.labeling.verdicts import TIE, Verdict
from trl_real.runtime.journal import Journal


if TYPE_CHECKING:
    import torch


# Finish reason of servers and `generate` for a text that was cut.
UNFINISHED = "length"
# Rounding error of differences in float32: of sums, and of means.
ROUNDING = (1e-3, 1e-5)
UNUSABLE = "log-probability not finite, or no token to score"


class ImplicitRewardJudge(VerdictJudge):
    r"""
    `P(a better) = sigmoid(beta (s_a - s_b))` with `s = log pi(y | x) - log pi_init(y | x)`, summed over the response's
    tokens, EOS included: how far the policy has moved towards a response (SPA, arXiv 2406.04412, Eq. 7).

    In every round the reference is the model before any preference training: compared with the previous round, a
    policy that has not moved yet gives no signal. Texts and prompts are read as in TRL's `DPOTrainer`. If the rows
    have a list `finish_reasons` next to `pair`, responses that were cut (`"length"`) are scored without EOS. The order
    of the responses has no effect, so `a_first` and `b_first` stay NaN. A response cut by `max_length` is marked
    `truncated`; a log-probability that is not finite is a failure. `input_tokens` counts the tokens of the responses.

    Each model reads each distinct response once: the sums are cached, keyed by the weights and the token ids.

    Args:
        policy: Hub id or path of a causal LM, or of a PEFT model with a LoRA adapter. Or the loaded model.
        reference: Hub id or path of the model before preference training; by default the policy without its adapter.
            Or the loaded model.
        tokenizer: Tokenizer of loaded models, shared by both.
        revision: Branch, tag or commit on the Hub. It applies to the policy.
        beta: Beta of DPO, which scales how certain the verdicts are. It never changes the winner.
        length_normalize: Whether to divide scores by the number of tokens. Sums favour the longer of two good
            responses.
        min_gap: Smallest score difference that decides, in units of the score; by default 0.001 nats, or 0.00001 nats
            per token. Sums in float32 vary by half of that with the composition of a batch.
        max_length: Maximum number of tokens of a response, from its start, and of a prompt, from its end.
        batch_tokens: Number of tokens in a forward pass. The default is 1024 on a CPU, elsewhere as many as fit,
            16384 at most.
        dtype: Precision of the weights of a model given by name, float32 by default. For a loaded model, precision of
            the matrix products.
        device: Device of the model; the accelerator by default, else the CPU. A loaded model stays where it is.
        cache: Path of a file that keeps the sums for later judges. Or a dict that several judges share. The next round
            takes from it what this round read with the reference. One process at a time writes to a file.

    Raises:
        TrlRealError: If a setting is out of range, a loaded model has no tokenizer, or a policy without an adapter has
            no reference.
    """

    rows_per_save = ROWS_PER_SAVE

    def __init__(
        self,
        policy: Any,
        reference: "str | torch.nn.Module | None" = None,
        tokenizer: Any = None,
        *,
        revision: str | None = None,
        beta: float = 0.1,
        length_normalize: bool = False,
        min_gap: float | None = None,
        max_length: int = 512,
        batch_tokens: int | None = None,
        dtype: "str | torch.dtype | None" = None,
        device: str | None = None,
        cache: MutableMapping[str, float] | str | Path | None = None,
    ):
        from trl_real.models.implicit import ImplicitRewardReader

        min_gap = ROUNDING[bool(length_normalize)] if min_gap is None else min_gap
        if not (beta > 0 and min_gap >= 0):
            raise TrlRealError(f"beta={beta}, min_gap={min_gap}: give a beta above 0 and a min_gap of at least 0.")
        known = {} if cache is None else KeptSums(cache) if isinstance(cache, str | Path) else cache
        self.reader = ImplicitRewardReader(
            policy,
            reference,
            tokenizer,
            revision=revision,
            max_length=max_length,
            batch_tokens=batch_tokens,
            dtype=dtype,
            device=device,
            cache=known,
        )
        self.beta, self.length_normalize, self.min_gap = beta, length_normalize, min_gap
        self.name = f"implicit_reward:{self.reader.policy.label}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the verdicts depend on."""
        settings = {name: getattr(self, name) for name in ("beta", "length_normalize", "min_gap")}
        return {"name": self.name, **self.reader.identity, **settings}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Judge a batch of pairs.

        Raises:
            TrlRealError: If a prompt is neither a text nor messages, a row has images, or a text is longer than a
                model's context.
        """
        from trl_real.data.conversation import prompts_of, replies
        from trl_real.data.images import refuse_images

        refuse_images(batch, self.name)
        n = len(batch["prompt"])
        first, second = replies(batch)
        found = self.rewards(prompts_of(batch) * 2, first + second, _ended(batch))
        rows = zip(self.scores_of(found), found.truncated.tolist(), found.n_scored.tolist(), strict=True)
        sides = list(rows)
        return [self._verdict(*zip(sides[i], sides[n + i], strict=True)) for i in range(n)]

    def evidence(self, batch: dict[str, list[Any]]) -> list[Any]:
        """
        Return whether the responses of each pair are complete, None if both are or if that is unknown; together with
        the row's arguments of the chat template, if it has any.
        """
        from trl_real.data.conversation import template_evidence

        ended, n = _ended(batch), len(batch["prompt"])
        cut = [None if ended is None or ended[i] and ended[n + i] else [ended[i], ended[n + i]] for i in range(n)]
        return [a if b is None else [a, b] for a, b in zip(cut, template_evidence(batch), strict=True)]

    def score(self, prompts: list[Any], responses: list[Any], ended: list[bool] | None = None) -> list[float]:
        """
        Return the scores of responses.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts or message lists.
            ended: Whether each response is complete; all are by default.

        Returns:
            `N` scores in nats, or in nats per token; NaN for a response without a finite score.
        """
        return self.scores_of(self.rewards(prompts, responses, ended))

    def rewards(self, prompts: list[Any], responses: list[Any], ended: list[bool] | None = None) -> Any:
        """Return `trl_real.models.implicit.ImplicitRewards` (the values are sums); arguments as in `score`."""
        return self.reader(prompts, responses, ended)

    def scores_of(self, rewards: Any) -> list[float]:
        """Return rewards as scores: sums, or means with `length_normalize`."""
        values = rewards.values / rewards.n_scored if self.length_normalize else rewards.values
        return values.tolist()

    def probability(self, gap: float) -> float:
        """Return the probability that the first response is better, given the score difference; 0.5 is a tie."""
        if abs(gap) < self.min_gap:
            return TIE
        return TIE + math.tanh(self.beta * gap / 2) / 2  # sigmoid: an odd function that never overflows

    @property
    def reference_digest(self) -> str:
        """Digest of the reference's weights: `trl_real.models.load.weights_digest` of the initial model."""
        return self.reader.reference_digest

    def _verdict(self, scores: tuple, truncated: tuple, n_scored: tuple) -> Verdict:
        facts = {"truncated": any(truncated), "source": self.name, "n_asked": 2, "input_tokens": sum(n_scored)}
        if not all(map(math.isfinite, scores)):
            return Verdict(math.nan, failure=UNUSABLE, **facts)
        return Verdict(self.probability(scores[0] - scores[1]), **facts)


class KeptSums(dict):
    """
    Sums of log-probabilities in a file: `update` writes to disk first; a line that a crash cut short is ignored.

    Args:
        path: Path of the file; it and its folder are created if missing.
        part: Name of what is read for. `read` holds the counts of what an earlier process read for the same part.

    Raises:
        TrlRealError: If the file has other content.
    """

    def __init__(self, path: str | Path, part: str = ""):
        super().__init__()
        self.path, self.part = Path(path), part
        self.read: Counter[str] = Counter()
        for number, line in enumerate(Journal(self.path).read(), 1):
            sums = line.get("sums")
            if not isinstance(sums, dict) or not all(isinstance(value, float | int) for value in sums.values()):
                raise TrlRealError(f"Line {number} of {str(path)!r} has no sums. Give the path of a new file.")
            super().update(line["sums"])
            if part and line.get("part") == part:
                self.read.update(line.get("read", {}))

    def update(self, found: dict[str, float]) -> None:  # type: ignore[override]  # takes a dict only
        """Add sums, to the file and to the dict."""
        if found:
            with Journal(self.path) as lines:
                lines.append({"sums": found, "part": self.part, "read": getattr(found, "read", {})})
        super().update(found)


def _ended(batch: dict[str, list[Any]]) -> list[bool] | None:
    """Return whether the responses are complete, all first ones before all second ones; None if unknown."""
    if "finish_reasons" not in batch or "pair" not in batch:
        return None
    rows = list(zip(batch["finish_reasons"], batch["pair"], strict=True))
    return [not reasons or reasons[pair[side]] != UNFINISHED for side in (0, 1) for reasons, pair in rows]
