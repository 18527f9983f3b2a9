"""Result of self-annotation in numbers: labels, their confidence, and the lengths of winners and losers."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trl_real.labeling.agreement import GoldAgreement
from trl_real.runtime.atomic_files import without_nan


QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
BINS = np.linspace(0.5, 1, 11)


@dataclass
class SelfAnnotationReport:
    """
    Result of self-annotation in numbers; `self_annotate` fills it, and a second call with it adds to the numbers.

    Args:
        judge: Name of the judge.
        n_prompts: Number of input rows, labelled or dropped.
        n_labeled: Number of rows that became preferences.
        dropped: Number of dropped rows by reason.
        n_responses: Number of scored responses, without blank and repeated ones and those of dropped rows.
        n_unfinished: Number of scored responses that were cut at generation.
        n_unusable: Number of scored responses without a finite score.
        n_truncated: Number of scored responses that the judge's `max_length` cut.
        n_with_control_tokens: Number of labels with control tokens in a response: the judge reads them as plain text,
            TRL trains on them as such.
        confidences: Confidence of each label.
        lengths: Tokens of winner and loser, then characters of winner and loser, of each label.
        n_tokens: Number of tokens that the models read.
        n_policy, n_reference: Number of responses that each model read; cached ones are not read again.
        gold: Agreement with the gold labels, if there are any.
        seconds: Duration in seconds.
    """

    judge: str = ""
    n_prompts: int = 0
    n_labeled: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    n_responses: int = 0
    n_unfinished: int = 0
    n_unusable: int = 0
    n_truncated: int = 0
    n_with_control_tokens: int = 0
    confidences: list[float] = field(default_factory=list)
    lengths: list[tuple[int, int, int, int]] = field(default_factory=list)
    n_tokens: int = 0
    n_policy: int = 0
    n_reference: int = 0
    gold: GoldAgreement | None = None
    seconds: float = 0.0

    def add_scored(self, rewards: Any, ended: Sequence[bool]) -> None:
        """Count scored responses: `trl_real.models.implicit.ImplicitRewards`, and whether each is complete."""
        self.n_responses += len(ended)
        self.n_unfinished += len(ended) - sum(ended)
        self.n_unusable += int(rewards.values.isnan().sum())
        self.n_truncated += int(rewards.truncated.sum())
        for name in ("n_tokens", "n_policy", "n_reference"):
            setattr(self, name, getattr(self, name) + getattr(rewards, name))

    def add_rows(self, rows: Sequence[Any]) -> None:
        """Count decided rows: `trl_real.labeling.self_annotate.Annotated`."""
        self.n_prompts += len(rows)
        self.dropped.update(one.dropped for one in rows if one.dropped)
        for one in rows:
            if not one.dropped:
                sides = (one.winner, one.loser)
                self.n_labeled += 1
                self.confidences.append(one.confidence)
                self.lengths.append((*(one.n_scored[i] for i in sides), *(len(one.texts[i]) for i in sides)))

    @property
    def quantiles(self) -> dict[str, float]:
        """Quantiles of the confidences; NaN without labels."""
        found = np.quantile(self.confidences, list(QUANTILES.values())) if self.confidences else [math.nan] * 5
        return {name: float(value) for name, value in zip(QUANTILES, found, strict=True)}

    @property
    def histogram(self) -> list[int]:
        """Number of labels by confidence, in ten bins of 0.05 from 0.5 to 1."""
        return np.histogram(np.clip(self.confidences, 0.5, 1), BINS)[0].tolist()

    @property
    def mean_lengths(self) -> dict[str, float]:
        """Mean lengths of winners and losers; winners that grow from round to round are a drift."""
        names = ("chosen_tokens", "rejected_tokens", "chosen_chars", "rejected_chars")
        found = np.mean(self.lengths, axis=0) if self.lengths else [math.nan] * 4
        return {name: float(value) for name, value in zip(names, found, strict=True)}

    @property
    def unfinished_share(self) -> float:
        """Share of scored responses that were cut; NaN without responses."""
        return self.n_unfinished / self.n_responses if self.n_responses else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        left_out = ("confidences", "lengths", "gold", "dropped")
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        values |= {"dropped": dict(self.dropped), "confidence": self.quantiles, "confidence_histogram": self.histogram}
        values |= {**self.mean_lengths, "unfinished_share": self.unfinished_share}
        return without_nan(values) | {"gold": self.gold and self.gold.to_dict()}

    def words(self) -> str:
        """Return a summary of a few lines."""
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())
        lines = [f"{self.judge}: {self.n_labeled} of {self.n_prompts} prompts labeled"]
        lines[0] += f"; dropped: {reasons}" if reasons else ""
        if self.n_labeled:
            mean, spread = self.mean_lengths, self.quantiles
            lines.append(
                f"confidence {spread['median']:.3f} (5 to 95 %: {spread['p05']:.3f} to {spread['p95']:.3f}); winners "
                f"have {mean['chosen_tokens']:.0f} tokens, losers {mean['rejected_tokens']:.0f}; "
                f"{self.unfinished_share:.0%} of the responses are unfinished"
            )
        if self.n_with_control_tokens:
            lines.append(f"{self.n_with_control_tokens} labels hold control tokens in a response; TRL trains on them")
        lines.append(self.gold.words() if self.gold else "")
        read = f"{self.n_policy} responses read by the policy, {self.n_reference} by the reference"
        lines.append(f"{read}; {self.n_tokens} tokens in {self.seconds:.1f} s")
        return "\n".join(filter(None, lines))
