"""What a judge says of a pair, and what many verdicts say of the judge."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import without_nan


TIE = 0.5


@dataclass(frozen=True)
class Verdict:
    """
    What a judge says of one pair.

    Args:
        probability: That `response_a` is the better one, in [0, 1]: 0.5 a tie, NaN no verdict.
        a_first: The same, as said when `response_a` was shown first; NaN if it was not asked so.
        b_first: The same (that `response_a` is better), as said when `response_b` was shown first.
        failure: Why there is no verdict; empty where there is one.
        truncated: Whether the judge read a text that was cut.
        source: Who says so.
        n_asked: Answers that were asked for now.
        n_cached: Answers that were there from before.
        input_tokens: Read for all its answers, those from before included.
        output_tokens: Written for them.
        cost: What they cost, in the currency of the judge's prices, whenever they were paid for.
        members: Of a panel, what each judge said; NaN for none.
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

    @property
    def outcome(self) -> str:
        """`"a"`, `"b"`, `"tie"` or `"failed"`."""
        if math.isnan(self.probability):
            return "failed"
        return "tie" if self.probability == TIE else "a" if self.probability > TIE else "b"


class Judge(Protocol):
    """
    What labels pairs: a callable with a `name`. One that has more to say than a probability also has
    `verdicts(batch) -> list[Verdict]`; one that reads more of a row than its texts also has `evidence(batch)`, which
    tells what it reads: see `evidence_of`.
    """

    name: str

    def __call__(self, batch: dict[str, list[Any]]) -> Sequence[float | None]:
        """Probabilities in [0, 1] that `response_a` is better than `response_b`; NaN or None where there is none."""
        ...


def ask(judge: Judge, batch: dict[str, list[Any]], rows: Sequence[int] | None = None) -> list[Verdict]:
    """
    The verdicts of any judge on a batch, checked.

    Args:
        judge: A judge, or a plain function of a batch.
        batch: Columns as `VerdictJudge.verdicts` takes them.
        rows: Numbers of the batch's rows in the dataset, for the errors.

    Raises:
        TrlRealError: If there is not one verdict a row, or one is no probability.
    """
    n_rows = len(batch["response_a"])
    rows = range(n_rows) if rows is None else rows
    if hasattr(judge, "verdicts"):
        found = list(judge.verdicts(batch))
    else:
        found = [Verdict(_number(answer, judge, i)) for i, answer in enumerate(judge(batch))]
    if len(found) != n_rows:
        raise TrlRealError(
            f"Judge {name_of(judge)} gave {len(found)} verdicts on {n_rows} rows. Give one a row, NaN for none."
        )
    for row, verdict in zip(rows, found, strict=True):
        if not math.isnan(verdict.probability) and not 0 <= verdict.probability <= 1:
            raise TrlRealError(
                f"Judge {name_of(judge)} said {verdict.probability} on row {row}; "
                "a verdict is a probability in [0, 1], or NaN."
            )
    return found


def evidence_of(judge: Judge, batch: dict[str, list[Any]]) -> list[Any]:
    """
    What the verdict on each row hangs on beside its texts, as JSON values: by this a journal tells rows apart whose
    texts are equal. None where there is nothing.

    Args:
        judge: A judge; its `evidence(batch)` says so, if it has one.
        batch: Columns as `VerdictJudge.verdicts` takes them.
    """
    return judge.evidence(batch) if hasattr(judge, "evidence") else [None] * len(batch["response_a"])


def name_of(judge: Judge) -> str:
    """What the judge calls itself; a plain function has its own name."""
    return str(getattr(judge, "name", None) or getattr(judge, "__name__", type(judge).__name__))


def _number(answer: Any, judge: Judge, place: int) -> float:
    try:
        return math.nan if answer is None else float(answer)
    except (TypeError, ValueError):
        raise TrlRealError(
            f"Judge {name_of(judge)} said a {type(answer).__name__} at place {place} of a batch; "
            "a verdict is a probability in [0, 1], or NaN."
        ) from None


@dataclass
class VerdictSummary:
    """
    Many verdicts in figures.

    Args:
        n: Pairs.
        n_a, n_b, n_ties, n_failed: Pairs by outcome; they add up to `n`.
        failures: Reason to pairs, of those that failed.
        n_truncated: Pairs of which the judge read a text that was cut.
        n_both: Pairs that were judged in both orders.
        position_bias: Mean of P(the response shown first is better) - 1/2, over all orders asked; NaN if none was
            told. 0 is fair, +0.5 is always the first.
        flip_rate: Share of the pairs judged in both orders where the two orders name different winners.
        n_asked, n_cached: Answers asked for now, and there from before.
        input_tokens, output_tokens: For all of them.
        cost: Of all of them, in the currency of the judge's prices.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is NaN becomes None."""
        return without_nan(asdict(self))

    def words(self) -> str:
        """One to three lines for a person: failures, position bias and price, as far as there are any."""
        lines = []
        if self.failures:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.failures.items(), key=lambda x: -x[1]))
            lines.append(f"failed: {reasons}")
        if not math.isnan(self.position_bias):
            flips = "" if math.isnan(self.flip_rate) else f", {self.flip_rate:.0%} of the pairs change with the order"
            lines.append(f"position bias {self.position_bias:+.3f} for the first shown{flips}")
        if self.n_truncated:
            lines.append(f"{self.n_truncated} pairs were judged by a text that was cut")
        if self.n_asked or self.n_cached:
            price = f", {self.cost:.4g} spent on them in all" if self.cost else ""
            lines.append(
                f"{self.n_asked} answers asked for, {self.n_cached} known before; "
                f"{self.input_tokens} tokens read and {self.output_tokens} written{price}"
            )
        return "\n".join(lines)


def summarize(verdicts: Sequence[Verdict]) -> VerdictSummary:
    """Figures of many verdicts; of none, zeros and NaN."""
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
        **{name: sum(getattr(v, name) for v in verdicts) for name in totals},
    )
