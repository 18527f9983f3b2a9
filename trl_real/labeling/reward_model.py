"""A reward model as a judge."""

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trl_real.errors import TrlRealError
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.verdicts import TIE, Verdict


if TYPE_CHECKING:
    import torch


class RewardModelJudge(VerdictJudge):
    r"""
    The response with the higher reward is better: `P(a better) = sigmoid((s_a - s_b) / scale)` (Bradley-Terry).

    Prompts and responses go through the tokenizer's chat template; a tokenizer without one reads prompt and response
    one after the other, the EOS token at the end, as TRL's `RewardTrainer` trains on text. The order of the two plays
    no role, so `a_first` and `b_first` stay NaN. Where a text is too long, the prompt loses its beginning and the
    verdict says `truncated`; scores that are no numbers are failures.

    Args:
        model: Hub id or path (loaded late, once a process), or a loaded sequence classifier with one output.
        tokenizer: For a loaded model; beside a name, one with another chat template.
        revision: Branch, tag or commit, for a Hub id.
        dtype: Precision of the weights of a model given by name, float32 where None.
        device: By default the accelerator, else the CPU. A loaded model stays where it is.
        batch_tokens: Tokens in a forward pass, padding included.
        max_length: Tokens of prompt and response that are read; by default as many as the model reads.
        scale: What score differences are divided by, in units of the score; above 1 less sure.
        min_gap: Differences below it, in units of the score, are ties.

    Raises:
        TrlRealError: If a setting is out of range, or a loaded model has no tokenizer.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: "str | torch.dtype | None" = None,
        device: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        scale: float = 1.0,
        min_gap: float = 0.0,
    ):
        from trl_real.models.lazy_model import LazyModel

        if not (scale > 0 and min_gap >= 0):
            raise TrlRealError(f"scale={scale}, min_gap={min_gap}: give a scale above 0 and a gap of at least 0.")
        if not all(value is None or value >= 1 for value in (batch_tokens, max_length)):
            raise TrlRealError(f"batch_tokens={batch_tokens}, max_length={max_length}: give at least 1, or neither.")
        self.model = LazyModel(model, tokenizer, revision, dtype, device)
        if self.model.cast_to is not None:
            raise TrlRealError(f"dtype={dtype} is for a model that is given by name. Load this one with it.")
        self.batch_tokens, self.max_length, self.scale, self.min_gap = batch_tokens, max_length, scale, min_gap
        self.name = f"reward:{self.model.label}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the verdicts hang on."""
        settings = {name: getattr(self, name) for name in ("max_length", "scale", "min_gap")}
        return {"name": self.name, **self.model.identity, **settings}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Verdicts on a batch of pairs; each response to a prompt is scored once.

        Raises:
            TrlRealError: If the model does not have one output, or a prompt is neither text nor messages.
        """
        n = len(batch["prompt"])
        found = self._rewards(batch["prompt"] * 2, [*batch["response_a"], *batch["response_b"]])
        values = [values.tolist() for values in found]
        return [self._verdict(*((column[i], column[n + i]) for column in values)) for i in range(n)]

    def score(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        """
        The rewards themselves.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts or message lists.

        Returns:
            `N` scores, in the model's unit.
        """
        return self._rewards(prompts, responses).scores.tolist()

    def _verdict(self, scores: tuple, truncated: tuple, n_tokens: tuple) -> Verdict:
        told = {"truncated": any(truncated), "source": self.name, "n_asked": 2, "input_tokens": sum(n_tokens)}
        if not all(map(math.isfinite, scores)):
            return Verdict(math.nan, failure="a reward that is no number", **told)
        gap = scores[0] - scores[1]
        half = math.tanh(gap / self.scale / 2) / 2  # sigmoid - 1/2: odd, and it never overflows
        return Verdict(TIE if abs(gap) < self.min_gap else TIE + half, **told)

    def _rewards(self, prompts: list[Any], responses: list[Any]) -> Any:
        from trl_real.models.load import is_forked

        return self._reader(prompts, responses, progress=not is_forked())

    @cached_property
    def _reader(self) -> Any:
        from trl_real.models.reward import RewardReader

        return RewardReader(*self.model.load("AutoModelForSequenceClassification"), self.batch_tokens, self.max_length)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}
