"""HTML report of runs in rounds: metrics, self-annotation and costs of each arm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trl_real.reports.arm_styles import arm_styles
from trl_real.reports.figures import FONT, legend, new_axes, tidy
from trl_real.reports.render import check_extras, render, saved
from trl_real.rounds.selectors import COLORS


if TYPE_CHECKING:
    from matplotlib.figure import Figure


REPORT_FILE, TEMPLATE = "report.html", "rounds.html.j2"
NOT_METRICS = ("stage", "round", "n_asked", "n_labels", "n_pairs", "annotation", "race", "phases")


class Kind(NamedTuple):
    """Texts of a report, and how it compares arms."""

    title: str
    intro: str
    x: str  # key of the count on the x-axis
    x_label: str
    same_x: bool  # whether arms are compared at the same count, such as paid labels; else in the same round
    baseline: str  # name of the arm to compare the others with


ACTIVE = Kind(
    "Selection, labelling and training in rounds",
    "An arm is a selector. In each round it selects pairs with the current policy; they are labelled, and the policy "
    "trains on the labels.",
    "n_asked",
    "labels asked for",
    True,
    "random",
)
SELF_ANNOTATION = Kind(
    "Self-annotation in rounds",
    "An arm is an ablation of the method. It starts with the model before alignment and trains on the seed labels. In "
    "each round the policy writes responses, labels them, and trains on them.",
    "n_pairs",
    "pairs learned from",
    False,
    "expansion",
)


class Point(NamedTuple):
    """Mean of a metric over seeds with its Student's t interval at 95 %, which is NaN for a single seed."""

    x: float  # count on the x-axis: labels asked for, or pairs learned from
    mean: float
    low: float
    high: float
    n_seeds: int


@dataclass
class Arms:
    """Runs by arm: one list of rounds, `RoundsResult.rounds`, per seed."""

    runs: dict[str, list[list[dict[str, Any]]]]
    kind: Kind = ACTIVE

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in the order of the first run."""
        rounds = [row for runs in self.runs.values() for run in runs for row in run]
        return list(dict.fromkeys(name for row in rounds for name in row if name not in NOT_METRICS))

    def curve(self, arm: str, metric: str) -> list[Point]:
        """Return the metric's points in the rounds that every seed has."""
        return [point for _, point in self._points(arm, metric)]

    def at(self, arm: str, metric: str) -> dict[float, Point]:
        """Return the points by table column: the count, or the round if arms are compared by round."""
        return {round(p.x, 1) if self.kind.same_x else number: p for number, p in self._points(arm, metric)}

    def columns(self, metric: str) -> dict[float, str]:
        """Return the table columns in which an arm has a point, with their headings."""
        found = sorted({column for arm in self.runs for column in self.at(arm, metric)})
        longest = max((run for runs in self.runs.values() for run in runs), key=len)
        names = [str(row.get("stage", f"round {number}")) for number, row in enumerate(longest)]
        return {column: f"{column:,.0f}" if self.kind.same_x else names[int(column)] for column in found}

    def _points(self, arm: str, metric: str) -> list[tuple[int, Point]]:
        rounds = enumerate(zip(*self.runs[arm], strict=False))
        measured = [(number, rows) for number, rows in rounds if all(row.get(metric) is not None for row in rows)]
        return [(number, _point(rows, metric, self.kind.x)) for number, rows in measured]

    def difference(self, arm: str, metric: str) -> Point | None:
        """
        Return the difference from the baseline, paired by seed, in the last round of both; with `same_x` also at the
        same count. None for the baseline itself, and without one.
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
        """Self-annotation of each arm and round: means of its numbers over the seeds."""
        found = []
        for arm, runs in self.runs.items():
            for rows in zip(*runs, strict=False):
                annotations = [row["annotation"] for row in rows if row.get("annotation")]
                if annotations:
                    found.append({"arm": arm, "stage": rows[0]["stage"], **_means(annotations)})
        return found

    @property
    def races(self) -> list[dict[str, Any]]:
        """Standing of each rule in each round of a race: shares, and estimates as `[value, low, high]` or None."""
        return [
            {"arm": arm, "run": run, "round": row["round"], **rule, "regret": row["race"].get("regret")}
            for arm, runs in self.runs.items()
            for run, rows in enumerate(runs)
            for row in rows
            if row.get("race")
            for rule in _standings(row["race"])
        ]

    def costs(self, arm: str) -> dict[str, tuple[float, float]]:
        """Return the seconds and tokens of each phase, summed over rounds, averaged over seeds."""
        found: dict[str, tuple[float, float]] = {}
        share = 1 / len(self.runs[arm])
        for row in chain.from_iterable(self.runs[arm]):
            for phase, cost in row["phases"].items():
                seconds, tokens = found.get(phase, (0.0, 0.0))
                found[phase] = seconds + share * cost["seconds"], tokens + share * cost["n_tokens"]
        return found


def rounds_figure(arms: Arms, metric: str) -> "Figure":
    """
    Draw a metric over the count of labels or pairs: one line per arm, with intervals over the seeds.

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
    Write `report.html`, a self-contained page that works offline, and its figures as PNG files.

    Args:
        folder: Folder to write to; created if missing.
        runs: Runs by arm: one list of rounds, `RoundsResult.rounds`, per seed.
        kind: Kind of the arms: `ACTIVE`, or this module's `SELF_ANNOTATION` for `self_annotation_rounds`.
        facts: Facts about the run to show on the page; no secrets.

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


def _standings(race: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one mapping for each rule of a race."""
    unknown = [None] * len(race["rules"])
    each = zip(race["rules"], race["shares"], race.get("loss", unknown), race.get("difference", unknown), strict=True)
    return [
        {"rule": rule, "share": share, "out": rule in race["out"], "loss": loss, "difference": difference}
        for rule, share, loss, difference in each
    ]


def race_in_words(race: Mapping[str, Any]) -> str:
    """Return what a race chose for a round and why, in one sentence or two."""
    shares = [f"{rule} {share:.0%}" for rule, share in zip(race["rules"], race["shares"], strict=True) if share > 0]
    told = f"shares {', '.join(shares)}"
    if "difference" not in race:
        return f"{told}; no test of the rules yet."
    each = zip(race["rules"][1:], race["difference"][1:], strict=True)
    gaps = [f"{rule} {_interval(gap)}" for rule, gap in each]
    out = f"; out: {', '.join(race['out'])}" if race["out"] else ""
    return (
        f"{told}{out}. Loss minus random's by {race['n_tests']} random labels, in nats: {', '.join(gaps)}; "
        f"regret against random {_interval(race['regret'])}."
    )


def _interval(found: Sequence[float | None]) -> str:
    value, low, high = found
    return f"{value:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means of the values that are numbers in all rows."""
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
