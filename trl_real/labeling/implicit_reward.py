"""The policy as its own judge: SPA's implicit rewards against the model that it came from."""

import math
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_real.errors import TrlRealError
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.verdicts import TIE, Verdict
from trl_real.runtime.journal import Journal


if TYPE_CHECKING:
    import torch


# The reason with which servers and `generate` tell that a text was broken off.
UNFINISHED = "length"
# Of differences of sums, and of means, in float32.
ROUNDING = (1e-3, 1e-5)
UNUSABLE = "log-probability not finite, or no token to score"


class ImplicitRewardJudge(VerdictJudge):
    r"""
    `P(a better) = sigmoid(beta (s_a - s_b))` with `s = log pi(y | x) - log pi_init(y | x)`, summed over the response's
    tokens, its end included: how far the policy has moved towards a response (SPA, arXiv 2406.04412, Eq. 7).

    The reference is the model from before any preference was learned, in every round: against the round before, a
    policy that has not moved yet says nothing. Texts and prompts are read as TRL's `DPOTrainer` reads them. Rows with
    a list `finish_reasons` beside `pair` tell which responses were cut (`"length"`): these are scored without an end.
    Order plays no role, so `a_first` and `b_first` stay NaN; a response that was cut by `max_length` is told as
    `truncated`, and a log-probability that is no number is a failure. `input_tokens` are those of the responses.

    Each distinct response is read once by each model, and never again: the sums are kept, by the models' weights and
    the very tokens.

    Args:
        policy: A causal LM or a PEFT model with a LoRA adapter: Hub id, path, or loaded.
        reference: The same; None for the policy with its adapter switched off.
        tokenizer: For loaded models; it serves both.
        revision: Branch, tag or commit of the policy, for a Hub id.
        beta: DPO's. It scales how sure the verdicts are and never changes one.
        length_normalize: Divide scores by the number of tokens; sums favour the longer of two good responses.
        min_gap: Differences below it, in units of the score, are ties; by default 0.001 nats, or 0.00001 nats a token.
            By half of that, sums in float32 change with what else is in a batch: rounding should not decide.
        max_length: Tokens of a response that are scored, from its start; of a prompt that are read, from its end.
        batch_tokens: Tokens in a forward pass; by default 1024 on a CPU and 16384 elsewhere.
        dtype: Precision: of the weights of models given by name, of a loaded model's matrix products.
        device: By default the accelerator, else the CPU. A loaded model stays where it is.
        cache: A dict that several judges share, or a file, in which the sums are kept beyond this judge: what one
            round has read of a reference, the next one takes from there. One process writes to a file at a time.

    Raises:
        TrlRealError: If a setting is out of range, a loaded model has no tokenizer, or a policy without an adapter no
            reference.
    """

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
            raise TrlRealError(f"beta={beta}, min_gap={min_gap}: give a beta above 0 and a gap of at least 0.")
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
        """What the verdicts hang on."""
        settings = {name: getattr(self, name) for name in ("beta", "length_normalize", "min_gap")}
        return {"name": self.name, **self.reader.identity, **settings}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Verdicts on a batch of pairs.

        Raises:
            TrlRealError: If a prompt is neither text nor messages, or a text is longer than a model reads.
        """
        n = len(batch["prompt"])
        responses = [*batch["response_a"], *batch["response_b"]]
        found = self.rewards(list(batch["prompt"]) * 2, responses, _ended(batch))
        rows = zip(self.scores_of(found), found.truncated.tolist(), found.n_scored.tolist(), strict=True)
        told = list(rows)
        return [self._verdict(*zip(told[i], told[n + i], strict=True)) for i in range(n)]

    def evidence(self, batch: dict[str, list[Any]]) -> list[Any]:
        """Whether the responses of each pair came to their ends; None where both did, or nothing is told."""
        ended, n = _ended(batch), len(batch["prompt"])
        return [None if ended is None or ended[i] and ended[n + i] else [ended[i], ended[n + i]] for i in range(n)]

    def score(self, prompts: list[Any], responses: list[Any], ended: list[bool] | None = None) -> list[float]:
        """
        The scores themselves.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts or message lists.
            ended: Whether each response came to its end, all by default.

        Returns:
            `N` scores in nats, or nats a token; NaN for those that have none.
        """
        return self.scores_of(self.rewards(prompts, responses, ended))

    def rewards(self, prompts: list[Any], responses: list[Any], ended: list[bool] | None = None) -> Any:
        """The same with all that it is made of: `trl_real.models.implicit.ImplicitRewards`, whose values are sums."""
        from trl_real.models.load import is_forked

        return self.reader(prompts, responses, ended, progress=not is_forked())

    def scores_of(self, rewards: Any) -> list[float]:
        """Rewards as scores: sums, or means where `length_normalize` says so."""
        values = rewards.values / rewards.n_scored if self.length_normalize else rewards.values
        return values.tolist()

    def probability(self, gap: float) -> float:
        """That the first of two responses is better, whose scores differ by `gap`; 0.5 is a tie."""
        if abs(gap) < self.min_gap:
            return TIE
        return TIE + math.tanh(self.beta * gap / 2) / 2  # sigmoid: odd, and it never overflows

    @property
    def reference_digest(self) -> str:
        """Of the reference's weights, as `trl_real.models.load.weights_digest` has it of the initial model."""
        return self.reader.reference_digest

    def _verdict(self, scores: tuple, truncated: tuple, n_scored: tuple) -> Verdict:
        told = {"truncated": any(truncated), "source": self.name, "n_asked": 2, "input_tokens": sum(n_scored)}
        if not all(map(math.isfinite, scores)):
            return Verdict(math.nan, failure=UNUSABLE, **told)
        return Verdict(self.probability(scores[0] - scores[1]), **told)


class KeptSums(dict):
    """
    Sums of log-probabilities in a file: what is added is on disk first, and a line that a crash tore is left out.

    Args:
        path: Of the file; made, with its folder, if need be.

    Raises:
        TrlRealError: If the file holds something else.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        for number, line in enumerate(Journal(self.path).read(), 1):
            if not isinstance(line.get("sums"), dict):
                raise TrlRealError(f"Line {number} of {str(path)!r} holds no sums. Give the path of a new file.")
            super().update(line["sums"])

    def update(self, found: dict[str, float]) -> None:  # type: ignore[override]  # takes a dict only
        """Keep some more."""
        if found:
            with Journal(self.path) as lines:
                lines.append({"sums": found})
        super().update(found)


def _ended(batch: dict[str, list[Any]]) -> list[bool] | None:
    """Whether the responses of the pairs came to their ends, all first ones before all second ones."""
    if "finish_reasons" not in batch or "pair" not in batch:
        return None
    rows = list(zip(batch["finish_reasons"], batch["pair"], strict=True))
    return [not reasons or reasons[pair[side]] != UNFINISHED for side in (0, 1) for reasons, pair in rows]
