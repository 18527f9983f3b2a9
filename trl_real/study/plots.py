"""Figures of a study, with matplotlib and in the style of `reports.figures`."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from trl_real.functional.statistics.agreement_by_similarity import AgreementBin
from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval
from trl_real.reports import figures
from trl_real.reports.arm_styles import ArmStyle
from trl_real.reports.figures import FONT, LINE_COLOR, POOL_COLOR
from trl_real.study.results import RANDOM, WITH_PROMPT, Curve, Metric


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NOT_REACHED = "not reached"
# Ratio of the largest to the smallest budget above which the axis is logarithmic.
LOG_SPAN = 8
# Savings below this value are shown as an arrow and the number.
LEAST_SAVING = -1.0
DRIFT_LINES = {  # key of a row: name, colour, line style, marker
    "cosine": ("cosine, now and before", "#0072B2", "-", "o"),
    "spearman": ("rank correlation of similarities", "#D55E00", "--", "s"),
    "jaccard": ("overlap of the easy sets", "#009E73", ":", "D"),
}


def curve_figure(
    curves: Mapping[str, Curve],
    metric: Metric,
    styles: Mapping[str, ArmStyle],
    *,
    title: str,
    x_label: str = "labels used",
) -> "Figure":
    """
    Draw a metric against labels: one line per arm, with its interval as a band. The metric's value without labels is a
    thin line, if it is in range.
    """
    figure, axes = figures.new_axes(height=4.0, title=title)
    for i, (arm, curve) in enumerate(curves.items()):
        _draw_curve(axes, arm, curve, styles[arm], dodge=i - (len(curves) - 1) / 2)
    axes.set_ylim(axes.get_ylim())
    axes.axhline(metric.untrained, color=POOL_COLOR, linewidth=1.2, zorder=0)
    axes.set_xlabel(x_label, fontsize=FONT)
    axes.set_ylabel(f"{metric.title}, {'more' if metric.sign > 0 else 'less'} is better", fontsize=FONT)
    figures.tidy(axes)
    _scale_labels(axes, sorted({n for curve in curves.values() for n in curve.n_labels}))
    longest = max((len(arm) for arm in curves), default=0)
    n_rows = math.ceil(len(curves) / (4 if longest < 9 else 3 if longest < 15 else 2))
    figures.legend(figure, axes, ncols=math.ceil(len(curves) / max(1, n_rows)))
    return figure


def savings_figure(
    savings: Mapping[str, Sequence[Saving]],
    styles: Mapping[str, ArmStyle],
    *,
    title: str,
    confidence: float = 0.95,
    x_label: str = "labels saved",
) -> "Figure":
    """Draw the savings of each arm and level: one row each, with intervals and a line at 0."""
    rows = [(arm, saving) for arm, found in savings.items() for saving in found]
    heights = figures.row_heights([arm for arm, _ in rows], gap=1.2)
    figure, axes = figures.new_axes(height=1.9 + 0.47 * (1 - min(heights)), title=title)
    ends = [x for _, saving in rows for x in (saving.saving, saving.low, saving.high) if math.isfinite(x)]
    left, right = max(LEAST_SAVING, min([*ends, -0.25])) - 0.1, max([*ends, 0.25]) + 0.1
    axes.axvline(0, color=LINE_COLOR, linestyle="--", linewidth=1.5)
    axes.set_xlim(left, right)
    for i, ((arm, saving), y) in enumerate(zip(rows, heights, strict=True)):
        if i == 0 or arm != rows[i - 1][0]:
            bold: dict[str, Any] = dict(fontsize=FONT, fontweight="bold", color=styles[arm].color)
            plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.text(left, y + 1, figures.short_label(arm), va="center", bbox=plate, **bold)
        _draw_saving(axes, saving, y, styles[arm], left)
    figures.name_rows(axes, heights, [percent(saving.level, sign=False) for _, saving in rows])
    axes.set_ylim(top=1.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylabel("share of random's labels", fontsize=FONT)
    axes.xaxis.set_major_formatter(lambda x, _: percent(x, sign=False))
    axes.set_xlabel(f"{x_label}, with {confidence:.0%} interval", fontsize=FONT)
    return figure


def agreement_figure(bins: Sequence[AgreementBin], *, name: str, confidence: float = 0.95) -> "Figure":
    """Draw the agreement of a second opinion with the labels: one row per bin of similarity, least similar first."""
    heights = figures.row_heights([""] * len(bins))
    figure, axes = figures.new_axes(height=1.9 + 0.6 * len(bins), title="")
    title = "\n".join(wrap(figures.short_label(name, 84), 44))
    figure.suptitle(title, x=0.02, ha="left", fontsize=FONT + 1, fontweight="bold")
    axes.axvline(0.5, color=LINE_COLOR, linestyle="--", linewidth=1.5)
    for found, y in zip(bins, heights, strict=True):
        if math.isfinite(found.agreement):
            figures.draw_interval(axes, (found.agreement, found.ci_low, found.ci_high), y, color=LINE_COLOR)
        else:
            axes.text(0.5, y, " none decided", fontsize=FONT, va="center")
    ends = [x for found in bins for x in (found.agreement, found.ci_low, found.ci_high) if math.isfinite(x)]
    axes.set_xlim(max(-0.02, min([*ends, 0.45]) - 0.04), min(1.02, max([*ends, 0.6]) + 0.04))
    names = [f"{found.low:.3f} to {found.high:.3f}".replace("-", "\u2212") for found in bins]
    figures.name_rows(axes, heights, names)
    axes.set_ylabel("similarity", fontsize=FONT)
    axes.set_xlabel(f"agreement with the label, {confidence:.0%} interval", fontsize=FONT)
    return figure


def drift_figure(rows: Sequence[Mapping[str, float]], *, title: str) -> "Figure":
    """
    Draw the drift of the embeddings during training: above, measures that are 1 without drift; below, the relative
    distance.

    Args:
        rows: One mapping per checkpoint: `labels`, `cosine`, `spearman`, `jaccard`, `relative_l2`, and perhaps
            `relative_l2` of prompts with their responses (`WITH_PROMPT`).
        title: Title of the figure.
    """
    figure, above, below = figures.new_panels(height=5.6, title=title)
    labels = [figures.to_float(row["labels"]) for row in rows]
    for key, (name, color, line, marker) in DRIFT_LINES.items():
        values = [figures.to_float(row.get(key)) for row in rows]
        above.plot(labels, values, linestyle=line, color=color, marker=marker, markersize=6, linewidth=2.2, label=name)
    lines: list[Any] = list(above.lines)
    lowest = min((line.get_ydata().min() for line in lines), default=0.0)
    above.set_ylim(min(-0.03, lowest - 0.05) if lowest < 0 else -0.03, 1.05)
    for prefix, name, line in (("", "responses", "-"), (WITH_PROMPT, "prompts with responses", "--")):
        distance = [figures.to_float(row.get(f"{prefix}relative_l2")) for row in rows]
        if any(map(math.isfinite, distance)):
            below.plot(labels, distance, line, color="#000000", marker="o", markersize=6, linewidth=2.2, label=name)
    below.set_ylim(bottom=0)
    if len(below.lines) > 1:
        below.legend(fontsize=FONT, frameon=False)
    for axes in (above, below):
        figures.tidy(axes)
    above.set_ylabel("1: as before", fontsize=FONT)
    below.set_ylabel("relative distance", fontsize=FONT)
    below.set_xlabel("labels seen", fontsize=FONT)
    figures.legend(figure, above, ncols=1)
    return figure


def percent(share: float, sign: bool = True) -> str:
    """Format a saving: a whole percentage, "not reached" for infinity, a dash for NaN."""
    if math.isnan(share):
        return "–"
    if math.isinf(share):
        return NOT_REACHED
    number = round(100 * share)
    return f"{number:{'+' if sign and number else ''}d}%".replace("-", "\u2212")


def _draw_curve(axes: "Axes", arm: str, curve: Curve, style: ArmStyle, dodge: float) -> None:
    """Draw one arm. A single point has a bar instead of a band, moved sideways by `dodge`."""
    value, low, high = (list(ends) for ends in zip(*curve.points, strict=True)) if curve.points else ([], [], [])
    order = 3 if arm == RANDOM else 2
    drawn: dict[str, Any] = dict(color=style.color, linestyle=style.line, linewidth=2.4, zorder=order)
    face = "white" if arm == RANDOM else style.color
    label = figures.short_label(arm)
    marks: dict[str, Any] = dict(marker=style.marker, markersize=6, mfc=face, markeredgewidth=1.6, label=label)
    n_labels = curve.n_labels
    if len(n_labels) == 1:
        n_labels = [n_labels[0] * (1 + 0.01 * dodge)]
        axes.vlines(n_labels, low, high, color=style.color, linewidth=2.4)
    else:
        axes.fill_between(n_labels, low, high, color=style.color, alpha=0.1, linewidth=0, zorder=1)
        for end in (low, high):
            axes.plot(n_labels, end, color=style.color, linestyle=style.line, linewidth=0.7, alpha=0.6, zorder=1)
    axes.plot(n_labels, value, **drawn, **marks)


def _scale_labels(axes: "Axes", n_labels: Sequence[float]) -> None:
    """Use a logarithmic axis with the budgets as ticks if they span a wide range; else start the axis at 0 labels."""
    if len(n_labels) < 2:
        axes.set_xticks(n_labels, [f"{n:.0f}" for n in n_labels])
        return
    if n_labels[0] <= 0 or n_labels[-1] / n_labels[0] <= LOG_SPAN:
        axes.set_xlim(left=0)
        return
    axes.set_xscale("log")
    ticks = [n_labels[-1]]
    room = (n_labels[-1] / n_labels[0]) ** 0.12
    for n in reversed(n_labels):
        if ticks[-1] / n >= room:
            ticks.append(n)
    axes.set_xticks(ticks, [f"{n:.0f}" for n in ticks])
    axes.minorticks_off()


def _draw_saving(axes: "Axes", saving: Saving, y: float, style: ArmStyle, left: float) -> None:
    """Draw a point with its interval and number; values beyond the left edge become an arrow and a text."""
    edge = left + 0.01
    ends = ValueWithInterval(saving.saving, saving.low, saving.high)
    if ends.low < left and ends.high > left:
        tail = ends.high
        arrow = dict(arrowstyle="-|>", color=style.color, linewidth=3, shrinkA=0, shrinkB=0, mutation_scale=16)
        axes.annotate("", (left, y), (tail, y), arrowprops=arrow)
        ends = ends._replace(low=math.nan)
    if saving.saving > left:
        figures.draw_interval(axes, ends, y, color=style.color, text=percent(saving.saving))
        return
    words = percent(saving.saving)
    axes.annotate(
        words, (edge, y), xytext=(4, 10 if ends.high > left else 0), textcoords="offset points", fontsize=FONT - 1,
        va="baseline" if ends.high > left else "center", color=style.color,
    )  # fmt: skip
