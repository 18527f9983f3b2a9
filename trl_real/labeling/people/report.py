"""Report on a votes file: votes, pace and position bias of each annotator, and their agreement."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.agreement import in_words
from trl_real.labeling.people.votes import VERDICTS, Vote, VoteBook
from trl_real.labeling.verdicts import Report


@dataclass
class AnnotatorReport:
    """
    Votes of one annotator in numbers.

    Args:
        votes: Number of valid votes, skips included.
        counts: Number of valid votes by verdict.
        undone: Number of votes that were undone.
        median_seconds: Median seconds per pair; NaN if unknown.
        pairs_per_hour: Number of pairs per hour at that pace.
        first_shown_rate: Share of decided votes for the response shown first; 0.5 is fair, NaN without decided votes.
        first_shown_low, first_shown_high: Wilson interval at 95 %.
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
class VoteReport(Report):
    """
    Summary of a votes file.

    Args:
        n_pairs: Number of pairs with a valid vote.
        n_decided: Number of pairs with at least one vote that is not a skip.
        n_shared: Number of pairs that two or more annotators decided.
        annotators: Report of each annotator, by name.
        alpha: Krippendorff's alpha on the shared pairs; NaN without shared pairs.
        alpha_low, alpha_high: Bootstrap interval of alpha at 95 %.
    """

    n_pairs: int
    n_decided: int
    n_shared: int
    annotators: dict[str, AnnotatorReport] = field(default_factory=dict)
    alpha: float = math.nan
    alpha_low: float = math.nan
    alpha_high: float = math.nan

    def words(self) -> str:
        """Return one line per annotator, and lines for all."""
        lines = [_words(name, report) for name, report in self.annotators.items()]
        lines.append(
            f"{self.n_pairs} pairs with votes, {self.n_decided} decided, {self.n_shared} by two people or more"
        )
        if not math.isnan(self.alpha):
            interval = f"[{self.alpha_low:.2f}, {self.alpha_high:.2f}]"
            value = f"Krippendorff's alpha {self.alpha:.2f} {interval} on {self.n_shared} pairs"
            lines.append(f"agreement: {value}{in_words(self.alpha)}")
        return "\n".join(lines)


def vote_report(path: str | Path, seed: int = 42) -> VoteReport:
    """
    Read a votes file and summarize it.

    Args:
        path: Path of the votes file.
        seed: Seed of the bootstrap for the interval of alpha.

    Raises:
        TrlRealError: If the file is missing, or a line is not a valid vote.
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
        line += f", {report.median_seconds:.1f} s per pair"
    if not math.isnan(report.first_shown_rate):
        interval = f"[{report.first_shown_low:.2f}, {report.first_shown_high:.2f}]"
        line += f", {report.first_shown_rate:.2f} {interval} of the decided ones for the response shown first"
    return line
