"""Verdict of a judge on a pair, and summary of many verdicts."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import without_nan
from trl_real.runtime.digests import sha256


TIE = 0.5
VOTES = "votes:"  # start of the source of every verdict that is a vote of people


@dataclass(frozen=True)
class Verdict:
    """
    Verdict of a judge on one pair.

    Args:
        probability: Probability that `response_a` is better, in [0, 1]: 0.5 is a tie, NaN no verdict.
        a_first: Probability that `response_a` is better, asked with `response_a` first; NaN if not asked.
        b_first: Probability that `response_a` is better, asked with `response_b` first; NaN if not asked.
        failure: Reason for a missing verdict; empty if there is a verdict.
        truncated: Whether the judge read a text that was cut.
        source: Name of the judge.
        n_asked: Number of answers asked for now.
        n_cached: Number of answers from the cache.
        input_tokens: Number of tokens read for all answers, cached ones included.
        output_tokens: Number of tokens generated for all answers, cached ones included.
        cost: Cost of all answers, cached ones included, in the currency of the judge's prices.
        members: Probability of each judge of a panel; NaN for no verdict.
        label_mass: Mean probability of all labels together where the answers name one; NaN if it is unknown.
        unread: Start of an answer that could not be read; empty if there is none.
    """

    probability: float
    a_first: float = math.nan
    b_first: float = math.nan
    failure: str = ""
    truncated: bool = False
    source: str = ""
    n_asked: int = 0
    n_cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    members: tuple[float, ...] = ()
    label_mass: float = math.nan
    unread: str = ""

    @property
    def outcome(self) -> str:
        """`"a"`, `"b"`, `"tie"` or `"failed"`."""
        if math.isnan(self.probability):
            return "failed"
        return "tie" if self.probability == TIE else "a" if self.probability > TIE else "b"


class Judge(Protocol):
    """
    Callable with a `name` that labels pairs. A judge that reports more than a probability also has
    `verdicts(batch) -> list[Verdict]`; a judge that reads more of a row than its texts also has `evidence(batch)`, see
    `evidence_of`.
    """

    name: str

    def __call__(self, batch: dict[str, list[Any]]) -> Sequence[float | None]:
        """Return the probability in [0, 1] that `response_a` is better, per row; NaN or None for no verdict."""
        ...


def ask(judge: Judge, batch: dict[str, list[Any]], rows: Sequence[int] | None = None) -> list[Verdict]:
    """
    Ask any judge for the verdicts on a batch, and check them.

    Args:
        judge: Judge, or plain function of a batch.
        batch: Columns as in `VerdictJudge.verdicts`.
        rows: Row numbers of the batch in the dataset, for error messages.

    Raises:
        TrlRealError: If the number of verdicts differs from the number of rows, or a verdict is not a probability.
    """
    n_rows = len(batch["response_a"])
    rows = range(n_rows) if rows is None else rows
    if hasattr(judge, "verdicts"):
        found = list(judge.verdicts(batch))
    else:
        found = [Verdict(_number(answer, judge, i)) for i, answer in enumerate(judge(batch))]
    if len(found) != n_rows:
        raise TrlRealError(
            f"Judge {name_of(judge)} returned {len(found)} verdicts on {n_rows} rows. Return one per row, or NaN."
        )
    for row, verdict in zip(rows, found, strict=True):
        if not math.isnan(verdict.probability) and not 0 <= verdict.probability <= 1:
            raise TrlRealError(
                f"Judge {name_of(judge)} returned {verdict.probability} on row {row}; "
                "a verdict is a probability in [0, 1], or NaN."
            )
    return found


def drawn_swap(one: str, other: str, *seed: Any) -> bool:
    """Draw whether two texts swap sides: given in the other order, they end up on the same sides."""
    low, high = sorted((one, other))
    return bool(sha256(*seed, low, high)[0] & 1) != (one > other)


def evidence_of(judge: Judge, batch: dict[str, list[Any]]) -> list[Any]:
    """
    Return what the verdict on each row depends on in addition to its texts, as JSON values; None for nothing.

    A journal needs it to distinguish rows with equal texts. A judge without a method `evidence` reads only the texts.
    """
    return judge.evidence(batch) if hasattr(judge, "evidence") else [None] * len(batch["response_a"])


def name_of(judge: Judge) -> str:
    """Return the name of a judge; for a plain function, the name of the function."""
    return str(getattr(judge, "name", None) or getattr(judge, "__name__", type(judge).__name__))


def _number(answer: Any, judge: Judge, place: int) -> float:
    try:
        return math.nan if answer is None else float(answer)
    except (TypeError, ValueError):
        raise TrlRealError(
            f"Judge {name_of(judge)} returned a {type(answer).__name__} at position {place} of a batch; "
            "a verdict is a probability in [0, 1], or NaN."
        ) from None


@dataclass
class Report:
    """Base of dataclasses that report numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return without_nan(asdict(self))


@dataclass
class VerdictSummary(Report):
    """
    Summary of many verdicts.

    Args:
        n: Number of pairs.
        n_a, n_b, n_ties, n_failed: Number of pairs by outcome; they add up to `n`.
        failures: Number of failed pairs by reason.
        n_truncated: Number of pairs with a text that was cut for the judge.
        n_both: Number of pairs judged in both orders.
        position_bias: Mean of P(the response shown first is better) - 1/2, over all orders asked; NaN if unknown.
            0 is fair, +0.5 always prefers the first.
        flip_rate: Share of the pairs judged in both orders for which the orders name different winners.
        n_asked, n_cached: Number of answers asked for now, and from the cache.
        input_tokens, output_tokens: Number of tokens of all answers.
        cost: Cost of all answers, in the currency of the judge's prices.
        label_mass: Mean probability of all labels together where the answers name one; NaN if it is unknown.
        unread: Start of one of the answers that could not be read; empty if there is none.
        by_people: Whether all verdicts are votes of people: orders, tokens and cost of answers do not apply.
    """

    n: int = 0
    n_a: int = 0
    n_b: int = 0
    n_ties: int = 0
    n_failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    n_truncated: int = 0
    n_both: int = 0
    position_bias: float = math.nan
    flip_rate: float = math.nan
    n_asked: int = 0
    n_cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    label_mass: float = math.nan
    unread: str = ""
    by_people: bool = False

    def words(self) -> str:
        """Return a summary of a few lines: failures, position bias and price, if there are any."""
        lines = []
        if self.failures:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.failures.items(), key=lambda x: -x[1]))
            lines.append(f"failed: {reasons}" + (f"; such as {self.unread[:80]!r}" if self.unread else ""))
        if self.by_people and not math.isnan(self.position_bias):
            lines.append(f"people chose the response shown first in {TIE + self.position_bias:.0%}; fair is 50%")
        elif not math.isnan(self.position_bias):
            flips = "" if math.isnan(self.flip_rate) else f", {self.flip_rate:.0%} of the pairs change with the order"
            lines.append(f"position bias {self.position_bias:+.3f} for the first shown{flips}")
        if not math.isnan(self.label_mass):
            lines.append(f"the labels have {self.label_mass:.2f} of the probability")
        if self.n_truncated:
            lines.append(f"{self.n_truncated} pairs were judged with a text that was cut")
        if not self.by_people and (self.n_asked or self.n_cached):
            price = f", total cost {self.cost:.4g}" if self.cost else ""
            lines.append(
                f"{self.n_asked} answers asked for, {self.n_cached} from the cache; "
                f"{self.input_tokens} tokens read and {self.output_tokens} generated{price}"
            )
        return "\n".join(lines)


def summarize(verdicts: Sequence[Verdict]) -> VerdictSummary:
    """Summarize verdicts; without verdicts, the counts are 0 and the rates NaN."""
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    orders = np.array([(v.a_first, v.b_first) for v in verdicts], dtype=float).reshape(-1, 2)  # (N, 2)
    first_shown = np.concatenate([orders[:, 0], 1 - orders[:, 1]])
    first_shown = first_shown[~np.isnan(first_shown)]
    both = orders[~np.isnan(orders).any(1)]
    sides = np.sign(both - TIE)
    totals = ("n_asked", "n_cached", "input_tokens", "output_tokens", "cost")
    return VerdictSummary(
        n=len(verdicts),
        n_a=outcomes["a"],
        n_b=outcomes["b"],
        n_ties=outcomes["tie"],
        n_failed=outcomes["failed"],
        failures=dict(Counter(v.failure or "no verdict" for v in verdicts if v.outcome == "failed")),
        n_truncated=sum(v.truncated for v in verdicts),
        n_both=len(both),
        position_bias=float(first_shown.mean() - TIE) if len(first_shown) else math.nan,
        flip_rate=float((sides[:, 0] * sides[:, 1] < 0).mean()) if len(both) else math.nan,
        label_mass=mean_known(v.label_mass for v in verdicts),
        unread=next((v.unread for v in verdicts if v.unread), ""),
        by_people=bool(verdicts) and all(v.source.startswith(VOTES) for v in verdicts),
        **{name: sum(getattr(v, name) for v in verdicts) for name in totals},
    )


def mean_known(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
