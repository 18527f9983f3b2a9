"""One page that tells what each way of choosing made of its labels, round by round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trl_real.evaluation.plots import FONT, color_of, legend, new_axes, tidy
from trl_real.evaluation.report import check_extras, render, saved


if TYPE_CHECKING:
    from matplotlib.figure import Figure


REPORT_FILE, TEMPLATE = "report.html", "active.html.j2"
BASELINE = "random"
NOT_METRICS = ("round", "n_asked", "n_labels", "phases")


class Point(NamedTuple):
    """
    A metric after some labels, over seeds.

    Args:
        n_asked: Pairs that were judged by then.
        mean: Over the seeds.
        low, high: Student's t interval at 95 % over the seeds; NaN of a single one.
        n_seeds: Seeds.
    """

    n_asked: float
    mean: float
    low: float
    high: float
    n_seeds: int


@dataclass
class Arms:
    """
    Runs by selector.

    Args:
        runs: Selector to a list of runs (one a seed), each a list of rounds as `Run.rounds` has them.
    """

    runs: dict[str, list[list[dict[str, Any]]]]

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured, in the order of the first run."""
        rounds = [row for runs in self.runs.values() for run in runs for row in run]
        return list(dict.fromkeys(name for row in rounds for name in row if name not in NOT_METRICS))

    def curve(self, selector: str, metric: str) -> list[Point]:
        """The metric's points, as many as every seed has."""
        runs = self.runs[selector]
        return [
            _point(rows, metric)
            for rows in zip(*runs, strict=False)
            if all(row.get(metric) is not None for row in rows)
        ]

    def difference(self, selector: str, metric: str) -> Point | None:
        """Against random in the last common round, seed by seed; None without random, or of it."""
        if selector == BASELINE or BASELINE not in self.runs:
            return None
        pairs = list(zip(self.runs[selector], self.runs[BASELINE], strict=False))
        last = min(min(len(a), len(b)) for a, b in pairs) - 1
        if last < 1 or any(run[last].get(metric) is None for pair in pairs for run in pair):
            return None
        rows = [{"n_asked": a[last]["n_asked"], metric: a[last][metric] - b[last][metric]} for a, b in pairs]
        return _point(rows, metric)

    def costs(self, selector: str) -> dict[str, tuple[float, float]]:
        """Seconds and tokens of each phase, summed over rounds, a mean over seeds."""
        found: dict[str, tuple[float, float]] = {}
        for run in self.runs[selector]:
            for row in run:
                for phase, cost in row["phases"].items():
                    seconds, tokens = found.get(phase, (0.0, 0.0))
                    share = 1 / len(self.runs[selector])
                    found[phase] = seconds + share * cost["seconds"], tokens + share * cost["n_tokens"]
        return found


def active_figure(arms: Arms, metric: str) -> "Figure":
    """
    A metric against labels, a line an arm, with intervals over the seeds.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = new_axes(height=3.8, title=metric)
    for name in arms.runs:
        points = arms.curve(name, metric)
        x, y = [p.n_asked for p in points], [p.mean for p in points]
        color, style = color_of(name), "--" if name == BASELINE else "-"
        axes.plot(x, y, style, marker="o", markersize=5, color=color, linewidth=2, label=name)
        if points and not math.isnan(points[-1].low):
            low, high = ([getattr(p, end) for p in points] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel("labels", fontsize=FONT)
    axes.set_ylabel(metric, fontsize=FONT)
    tidy(axes)
    legend(figure, axes)
    return figure


def write_active_report(
    folder: str | Path,
    runs: Mapping[str, Sequence[Sequence[dict[str, Any]]]],
    *,
    title: str = "Choosing, labelling and training in rounds",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write `report.html`, which needs no other file and no network, and its pictures beside it.

    Args:
        folder: Made if need be.
        runs: Selector to its runs, a seed each, as `Run.rounds` has them.
        title: Headline.
        facts: About the run; never a secret.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    check_extras()
    folder = Path(folder)
    arms = Arms({name: [list(run) for run in found] for name, found in runs.items()})
    pictures = [saved(folder / f"{metric}.png", active_figure(arms, metric)) for metric in arms.metrics]
    page = render(TEMPLATE, title=title, arms=arms, pictures=pictures, facts=facts or {})
    path = folder / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _point(rows: Sequence[Mapping[str, Any]], metric: str) -> Point:
    values = np.array([row[metric] for row in rows], dtype=float)
    n, mean = len(values), float(values.mean())
    half = math.nan
    if n > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Point(float(np.mean([row["n_asked"] for row in rows])), mean, mean - half, mean + half, n)
