"""Judge that compares two responses by a reward model."""

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trl_real.errors import TrlRealError
from trl_real.labeling.base import ROWS_PER_SAVE, VerdictJudge
from trl_real.labeling.verdicts import TIE, Verdict


if TYPE_CHECKING:
    import torch


class RewardModelJudge(VerdictJudge):
    r"""
    Judge that prefers the response with the higher reward: `P(a better) = sigmoid((s_a - s_b) / scale)`
    (Bradley-Terry).

    Prompt and response go through the tokenizer's chat template. A tokenizer without one reads prompt, response and
    EOS token in a row, as TRL's `RewardTrainer` trains on text. The order of the responses has no effect, so `a_first`
    and `b_first` stay NaN. A text that is too long loses the beginning of its prompt, and the verdict is marked
    `truncated`; a score that is not finite is a failure.

    Args:
        model: Hub id or path of a sequence classifier with one output. It loads on first use, once per process. Or the
            loaded model.
        tokenizer: Tokenizer of a loaded model; for a model given by name, one with another chat template.
        revision: Branch, tag or commit on the Hub.
        dtype: Precision of the weights of a model given by name, float32 by default.
        device: Device of the model; the accelerator by default, else the CPU. A loaded model stays where it is.
        batch_tokens: Number of tokens in a forward pass. Padding counts.
        max_length: Maximum number of tokens of prompt and response; the model's own limit by default.
        scale: Divisor of score differences, in units of the score; above 1, the judge is less certain.
        min_gap: Smallest score difference that decides, in units of the score.

    Raises:
        TrlRealError: If a setting is out of range, or a loaded model has no tokenizer.
    """

    rows_per_save = ROWS_PER_SAVE

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
            raise TrlRealError(f"scale={scale}, min_gap={min_gap}: give a scale above 0 and a min_gap of at least 0.")
        if not all(value is None or value >= 1 for value in (batch_tokens, max_length)):
            raise TrlRealError(f"batch_tokens={batch_tokens}, max_length={max_length}: give at least 1, or None.")
        self.model = LazyModel(model, tokenizer, revision, dtype, device)
        if self.model.cast_to is not None:
            raise TrlRealError(f"dtype={dtype} only applies to a model given by name. Load this model in that dtype.")
        self.batch_tokens, self.max_length, self.scale, self.min_gap = batch_tokens, max_length, scale, min_gap
        self.name = f"reward:{self.model.label}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the verdicts depend on."""
        settings = {name: getattr(self, name) for name in ("max_length", "scale", "min_gap")}
        return {"name": self.name, **self.model.identity, **settings}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Judge a batch of pairs; each response to a prompt is scored once.

        Raises:
            TrlRealError: If the model does not have one output, a prompt is neither a text nor messages, or a row has
                images.
        """
        from trl_real.data.conversation import prompts_of, replies
        from trl_real.data.images import refuse_images

        refuse_images(batch, self.name)
        n = len(batch["prompt"])
        first, second = replies(batch)
        found = self._reader(prompts_of(batch) * 2, first + second)
        values = [values.tolist() for values in (found.scores, found.truncated, found.n_tokens)]
        return [self._verdict(*((column[i], column[n + i]) for column in values)) for i in range(n)]

    def evidence(self, batch: dict[str, list[Any]]) -> list[Any]:
        """Return the arguments of the chat template in each row; None without any."""
        from trl_real.data.conversation import template_evidence

        return template_evidence(batch)

    def score(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        """
        Return the rewards of responses.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts or message lists.

        Returns:
            `N` rewards, in the model's unit.
        """
        return self._reader(prompts, responses).scores.tolist()

    def _verdict(self, scores: tuple, truncated: tuple, n_tokens: tuple) -> Verdict:
        facts = {"truncated": any(truncated), "source": self.name, "n_asked": 2, "input_tokens": sum(n_tokens)}
        if not all(map(math.isfinite, scores)):
            return Verdict(math.nan, failure="a reward that is no number", **facts)
        gap = scores[0] - scores[1]
        half = math.tanh(gap / self.scale / 2) / 2  # sigmoid - 1/2: an odd function that never overflows
        return Verdict(TIE if abs(gap) < self.min_gap else TIE + half, **facts)

    @cached_property
    def _reader(self) -> Any:
        from trl_real.models.reward import RewardReader

        return RewardReader(*self.model.load("AutoModelForSequenceClassification"), self.batch_tokens, self.max_length)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}
