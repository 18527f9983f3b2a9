"""One page that tells what each arm made of its labels, round by round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trl_real.reports.figures import FONT, arm_styles, legend, new_axes, tidy
from trl_real.reports.render import check_extras, render, saved
from trl_real.rounds.selectors import COLORS


if TYPE_CHECKING:
    from matplotlib.figure import Figure


REPORT_FILE, TEMPLATE = "report.html", "rounds.html.j2"
NOT_METRICS = ("stage", "round", "n_asked", "n_labels", "n_pairs", "annotation", "phases")


class Kind(NamedTuple):
    """
    What the arms of a page are.

    Args:
        title: Headline.
        intro: What an arm is, and what its rounds do.
        x: Name of the count that curves are drawn against.
        x_label: The same in words.
        same_x: Whether arms are compared at the same count, as of labels that are paid for; else in the same round.
        baseline: The arm that the others are compared with.
    """

    title: str
    intro: str
    x: str
    x_label: str
    same_x: bool
    baseline: str


ACTIVE = Kind(
    "Choosing, labelling and training in rounds",
    "An arm is a way to choose which pairs are labelled, in rounds: choose, label, train, choose again with what was "
    "learned.",
    "n_asked",
    "labels asked for",
    True,
    "random",
)
SELF_ANNOTATION = Kind(
    "Self-annotation in rounds",
    "An arm is how much of the method takes part: first the model before alignment, then DPO on the seed labels, then "
    "rounds in which the policy labels what it writes and learns from it.",
    "n_pairs",
    "pairs learned from",
    False,
    "expansion",
)


class Point(NamedTuple):
    """
    A metric after some pairs, over seeds.

    Args:
        x: Of the page's kind: labels asked for, or pairs learned from.
        mean: Over the seeds.
        low, high: Student's t interval at 95 % over the seeds; NaN of a single one.
        n_seeds: Seeds.
    """

    x: float
    mean: float
    low: float
    high: float
    n_seeds: int


@dataclass
class Arms:
    """
    Runs by arm.

    Args:
        runs: Arm to a list of runs (one a seed), each a list of rounds as `Run.rounds` has them.
        kind: What they are.
    """

    runs: dict[str, list[list[dict[str, Any]]]]
    kind: Kind = ACTIVE

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured, in the order of the first run."""
        rounds = [row for runs in self.runs.values() for run in runs for row in run]
        return list(dict.fromkeys(name for row in rounds for name in row if name not in NOT_METRICS))

    def curve(self, arm: str, metric: str) -> list[Point]:
        """The metric's points, as many as every seed has."""
        return [point for _, point in self._points(arm, metric)]

    def at(self, arm: str, metric: str) -> dict[float, Point]:
        """The points by their columns in a table: counts, or rounds where arms are compared round by round."""
        return {round(p.x, 1) if self.kind.same_x else number: p for number, p in self._points(arm, metric)}

    def columns(self, metric: str) -> dict[float, str]:
        """All columns in which some arm has a point, and their heads."""
        found = sorted({column for arm in self.runs for column in self.at(arm, metric)})
        longest = max((run for runs in self.runs.values() for run in runs), key=len)
        names = [str(row.get("stage", f"round {number}")) for number, row in enumerate(longest)]
        return {column: f"{column:,.0f}" if self.kind.same_x else names[int(column)] for column in found}

    def _points(self, arm: str, metric: str) -> list[tuple[int, Point]]:
        rounds = enumerate(zip(*self.runs[arm], strict=False))
        known = [(number, rows) for number, rows in rounds if all(row.get(metric) is not None for row in rows)]
        return [(number, _point(rows, metric, self.kind.x)) for number, rows in known]

    def difference(self, arm: str, metric: str) -> Point | None:
        """
        Against the baseline, seed by seed, in the last round that both have done: with the same count, where the kind
        asks for that. None without a baseline, or of it.
        """
        if arm == self.kind.baseline or self.kind.baseline not in self.runs:
            return None
        x = self.kind.x
        pairs = list(zip(self.runs[arm], self.runs[self.kind.baseline], strict=False))
        for both in reversed(list(zip(*(zip(*pair, strict=False) for pair in pairs), strict=False))[1:]):
            measured = all(row.get(metric) is not None for pair in both for row in pair)
            if measured and (not self.kind.same_x or all(a[x] == b[x] for a, b in both)):
                return _point([{x: a[x], metric: a[metric] - b[metric]} for a, b in both], metric, x)
        return None

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """What self-annotation came to in each round of each arm, a mean over seeds of what is a number."""
        found = []
        for arm, runs in self.runs.items():
            for rows in zip(*runs, strict=False):
                told = [row["annotation"] for row in rows if row.get("annotation")]
                if told:
                    found.append({"arm": arm, "stage": rows[0]["stage"], **_means(told)})
        return found

    def costs(self, arm: str) -> dict[str, tuple[float, float]]:
        """Seconds and tokens of each phase, summed over rounds, a mean over seeds."""
        found: dict[str, tuple[float, float]] = {}
        for run in self.runs[arm]:
            for row in run:
                for phase, cost in row["phases"].items():
                    seconds, tokens = found.get(phase, (0.0, 0.0))
                    share = 1 / len(self.runs[arm])
                    found[phase] = seconds + share * cost["seconds"], tokens + share * cost["n_tokens"]
        return found


def rounds_figure(arms: Arms, metric: str) -> "Figure":
    """
    A metric against what was learned from, a line an arm, with intervals over the seeds.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = new_axes(height=3.8, title=metric)
    styles = arm_styles(list(arms.runs), COLORS)
    for name in arms.runs:
        points = arms.curve(name, metric)
        x, y = [p.x for p in points], [p.mean for p in points]
        color, style = styles[name].color, "--" if name == arms.kind.baseline else "-"
        axes.plot(x, y, style, marker="o", markersize=5, color=color, linewidth=2, label=name)
        if points and not math.isnan(points[-1].low):
            low, high = ([getattr(p, end) for p in points] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel(arms.kind.x_label, fontsize=FONT)
    axes.set_ylabel(metric, fontsize=FONT)
    tidy(axes)
    legend(figure, axes)
    return figure


def write_rounds_report(
    folder: str | Path,
    runs: Mapping[str, Sequence[Sequence[dict[str, Any]]]],
    *,
    kind: Kind = ACTIVE,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write `report.html`, which needs no other file and no network, and its pictures beside it.

    Args:
        folder: Made if need be.
        runs: Arm to its runs, a seed each, as `Run.rounds` has them.
        kind: What the arms are: `ACTIVE`, or this module's `SELF_ANNOTATION` for `self_annotation_rounds`.
        facts: About the run; never a secret.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    check_extras()
    folder = Path(folder)
    arms = Arms({name: [list(run) for run in found] for name, found in runs.items()}, kind)
    pictures = [saved(folder / f"{metric}.png", rounds_figure(arms, metric)) for metric in arms.metrics]
    page = render(TEMPLATE, arms=arms, pictures=pictures, facts=facts or {})
    path = folder / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The means of what is a number in all rows."""
    names = [name for name in rows[0] if all(isinstance(row.get(name), int | float) for row in rows)]
    found = {name: float(np.mean([row[name] for row in rows])) for name in names}
    medians = [row["confidence"]["median"] for row in rows if (row.get("confidence") or {}).get("median") is not None]
    return found | ({"confidence": float(np.mean(medians))} if medians else {})


def _point(rows: Sequence[Mapping[str, Any]], metric: str, x: str) -> Point:
    values = np.array([row[metric] for row in rows], dtype=float)
    n, mean = len(values), float(values.mean())
    half = math.nan
    if n > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Point(float(np.mean([row[x] for row in rows])), mean, mean - half, mean + half, n)
