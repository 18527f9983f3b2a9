"""Page for the person who pays for labels: labels, pace, agreement, judge against people, cost, and what is left."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from trl_real.errors import needs_extra
from trl_real.labeling.agreement import GoldAgreement, alpha_words, gold_agreement
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.people.report import VoteReport, vote_report
from trl_real.labeling.people.votes import VotesJudge
from trl_real.labeling.verdicts import Verdict
from trl_real.reports.render import REPORT_FILE, render


TEMPLATE = "labels.html.j2"
OPEN = "not labelled"  # failure of a pair that nobody voted on yet
SKIPPED = "skipped"


class LabelCost(NamedTuple):
    """
    Cost of the labels, in one currency.

    Args:
        votes: Cost of the votes of people; NaN without a price.
        judge: Cost of the judge's answers.
        total: Sum of the known parts.
        per_label: Total per label; NaN without labels.
        left: Cost of the pairs without a verdict, at the price per pair so far; NaN if unknown.
    """

    votes: float
    judge: float
    total: float
    per_label: float
    left: float


def people_agreement(preferences: Dataset, people: VotesJudge) -> GoldAgreement:
    """Compare labels of a judge, in TRL's preference format, with the votes of people on the same pairs."""
    columns = {"prompt": "prompt", "response_a": "chosen", "response_b": "rejected"}
    theirs = people.verdicts({name: preferences[column][:] for name, column in columns.items()})
    return gold_agreement([Verdict(1.0)] * len(theirs), theirs)


def label_cost(labels: Mapping[str, Any], votes: VoteReport | None, price_per_vote: float | None) -> LabelCost:
    """
    Compute the cost of labels so far, and of those that are left.

    Args:
        labels: `LabelReport.to_dict()`.
        votes: Report on the votes of people, if there are any.
        price_per_vote: Price of one vote.
    """
    verdicts = labels["verdicts"]
    n_votes = sum(one.votes for one in votes.annotators.values()) if votes else 0
    by_people = n_votes * price_per_vote if price_per_vote is not None and votes else math.nan
    judge = float(verdicts["cost"])
    known = [part for part in (by_people, judge) if not math.isnan(part)]
    total, n_left = sum(known), n_open(labels)
    n_done = verdicts["n"] - n_left
    per_pair = total / n_done if n_done and total else math.nan
    return LabelCost(
        by_people, judge, total, total / labels["labeled"] if labels["labeled"] else math.nan, n_left * per_pair
    )


def n_open(labels: Mapping[str, Any]) -> int:
    """Return the number of pairs that still wait for a verdict; those that people skipped do not."""
    return labels["verdicts"]["n_failed"] - labels["verdicts"]["failures"].get(SKIPPED, 0)


def hours_left(labels: Mapping[str, Any], votes: VoteReport | None) -> float:
    """Return the hours of work that are left for people at their median pace; NaN if unknown."""
    paces = [(one.votes, one.median_seconds) for one in votes.annotators.values()] if votes else []
    known = [(n, seconds) for n, seconds in paces if seconds > 0]
    if not known or not votes or not votes.n_pairs:
        return math.nan
    seconds = sum(n * pace for n, pace in known) / sum(n for n, _ in known)
    votes_per_pair = sum(n for n, _ in known) / votes.n_pairs
    return n_open(labels) * votes_per_pair * seconds / 3600


def write_label_page(
    folder: str | Path,
    labels: Mapping[str, Any],
    *,
    votes: str | Path | None = None,
    preferences: Dataset | None = None,
    price_per_vote: float | None = None,
    currency: str = "USD",
    title: str = "Labels",
) -> Path:
    """
    Write `report.html`, one self-contained page about a labelling.

    Args:
        folder: Folder to write to; created if needed.
        labels: `LabelReport.to_dict()`, the content of `labels.json`.
        votes: Votes file, if people voted on these pairs.
        preferences: The labels; with `votes`, a judge's labels are compared with people's votes.
        price_per_vote: Price of one vote of a person; None leaves people's cost out.
        currency: Currency of all prices, such as `EUR`.
        title: Title of the page.

    Returns:
        Path of the page.

    Raises:
        MissingExtraError: If jinja2 is not installed, or the votes need evalica and it is not installed.
        TrlRealError: If the votes file is missing or invalid.
    """
    with needs_extra("jinja2", "plots"):
        import jinja2  # noqa: F401
    empty = LabelReport().to_dict()  # an older labels.json may lack a key
    labels = empty | dict(labels) | {"verdicts": empty["verdicts"] | labels["verdicts"]}
    people = vote_report(votes) if votes else None
    against = None
    if votes and preferences is not None and len(preferences) and not labels["verdicts"]["by_people"]:
        against = people_agreement(preferences, VotesJudge(votes))
    page = render(
        TEMPLATE,
        title=title,
        labels=labels,
        people=people if people and people.annotators else None,
        against=against if against and against.n else None,
        bill=label_cost(labels, people, price_per_vote),
        currency=currency,
        price_per_vote=price_per_vote,
        n_open=n_open(labels),
        hours_left=hours_left(labels, people),
        alpha_words=alpha_words,
    )
    path = Path(folder) / REPORT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
