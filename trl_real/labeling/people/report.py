"""A votes file in figures: who did how much, how fast, with which bias, and how far they agree."""

import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.people.votes import VERDICTS, Vote, VoteBook
from trl_real.runtime.atomic_files import without_nan


@dataclass
class AnnotatorReport:
    """
    What one person did.

    Args:
        votes: In force, skips included.
        counts: Of them, by verdict.
        undone: Votes that were taken back.
        median_seconds: A pair; NaN if not told.
        pairs_per_hour: At that pace.
        first_shown_rate: Share of the decided votes that went to the response shown first; 0.5 is fair, NaN of none.
        first_shown_low, first_shown_high: Wilson's interval at 95 %.
    """

    votes: int
    counts: dict[str, int]
    undone: int
    median_seconds: float
    pairs_per_hour: float
    first_shown_rate: float
    first_shown_low: float
    first_shown_high: float


@dataclass
class VoteReport:
    """
    What a votes file holds.

    Args:
        n_pairs: Pairs with a vote in force.
        n_decided: Of them, those with at least one vote that is no skip.
        n_shared: Pairs that two or more people decided.
        annotators: By name.
        alpha: Krippendorff's, of the people who shared pairs; NaN if nobody did.
        alpha_low, alpha_high: Its bootstrap interval at 95 %.
    """

    n_pairs: int
    n_decided: int
    n_shared: int
    annotators: dict[str, AnnotatorReport] = field(default_factory=dict)
    alpha: float = math.nan
    alpha_low: float = math.nan
    alpha_high: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is NaN becomes None."""
        return without_nan(asdict(self))

    def words(self) -> str:
        """A line a person, and one for all."""
        lines = [_words(name, report) for name, report in self.annotators.items()]
        lines.append(
            f"{self.n_pairs} pairs with votes, {self.n_decided} decided, {self.n_shared} by two people or more"
        )
        if not math.isnan(self.alpha):
            interval = f"[{self.alpha_low:.2f}, {self.alpha_high:.2f}]"
            lines.append(f"agreement: Krippendorff's alpha {self.alpha:.2f} {interval} on {self.n_shared} pairs")
        return "\n".join(lines)


def vote_report(path: str | Path, seed: int = 42) -> VoteReport:
    """
    Read a votes file and count.

    Args:
        path: Of the file.
        seed: Of the bootstrap of the agreement's interval.

    Raises:
        TrlRealError: If there is no such file, or a line of it is no vote.
    """
    book = VoteBook.read(path)
    _, _, votes = book.matrix()  # (R, P)
    decided = (votes == votes).sum(0)  # (P,)
    report = VoteReport(
        n_pairs=votes.shape[1],
        n_decided=int((decided > 0).sum()),
        n_shared=int((decided > 1).sum()),
        annotators={name: _annotator(book.votes(name), book.n_undone.get(name, 0)) for name in book.annotators},
    )
    if report.n_shared:
        from trl_real.functional.statistics.rater_agreement import krippendorff_alpha

        found = krippendorff_alpha(votes, seed=seed)
        report.alpha, report.alpha_low, report.alpha_high = found.alpha, found.ci_low, found.ci_high
    return report


def _annotator(votes: list[Vote], undone: int) -> AnnotatorReport:
    counts = {verdict: sum(vote.verdict == verdict for vote in votes) for verdict in VERDICTS}
    seconds = [vote.seconds for vote in votes if math.isfinite(vote.seconds)]
    median = statistics.median(seconds) if seconds else math.nan
    n, first = counts["a"] + counts["b"], sum(vote.verdict == vote.shown_first for vote in votes)
    low, high = wilson_interval(first, n, 0.95) if n else (math.nan, math.nan)
    pace = 3600 / median if median > 0 else math.nan
    return AnnotatorReport(len(votes), counts, undone, median, pace, first / n if n else math.nan, low, high)


def _words(name: str, report: AnnotatorReport) -> str:
    counts = ", ".join(f"{n} {verdict}" for verdict, n in report.counts.items() if n)
    line = f"{name}: {report.votes} votes ({counts}), {report.undone} undone"
    if not math.isnan(report.median_seconds):
        line += f", {report.median_seconds:.1f} s a pair"
    if not math.isnan(report.first_shown_rate):
        interval = f"[{report.first_shown_low:.2f}, {report.first_shown_high:.2f}]"
        line += f", {report.first_shown_rate:.2f} {interval} of the decided ones for the response shown first"
    return line
