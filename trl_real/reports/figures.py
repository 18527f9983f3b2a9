"""
Figures of the reports: plain data in, a matplotlib `Figure` out, without `pyplot` and its global state.

Every figure raises `MissingExtraError` if matplotlib is not installed.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trl_real.errors import needs_extra


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# From Okabe and Ito's palette for colour-blind readers.
OTHER_COLOR = "#56B4E9"
POOL_COLOR, LINE_COLOR = "#BDBDBD", "#444444"
CURVES = {  # key in the trainer's log: name, colour, line style, width
    "rewards/margins": ("margin", "#000000", "-", 2.6),
    "rewards/chosen": ("chosen", "#0072B2", "--", 2.0),
    "rewards/rejected": ("rejected", "#D55E00", ":", 2.6),
}

# A figure fits a phone's screen: 12 points in 5 inches stay readable there.
WIDTH, FONT, DPI = 5.0, 12, 160
LABEL_LENGTH = 22

_UNSHOWN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Rate(NamedTuple):
    """
    Row of the win-rate figure.

    Args:
        name: Label of the row.
        rate, low, high: Win rate and the ends of its interval, in [0, 1] or NaN.
        group: Name of the group, such as the budget; rows of a group are drawn together.
    """

    name: str
    rate: float
    low: float
    high: float
    group: str = ""


def similarity_figure(
    histogram: Mapping[str, Sequence[float]],
    *,
    name: str,
    color: str = OTHER_COLOR,
    cut: float | None = None,
) -> "Figure":
    """
    Draw the similarity of the two responses of a pair, in the pool and in the kept rows.

    Args:
        histogram: `SelectionRecord.histogram`: `edges` (bins + 1 values), `pool` and `kept` (counts).
        name: Title.
        color: Colour of the kept rows.
        cut: Similarity at the end of the budget; None if the budget does not end at a similarity.
    """
    figure, axes = new_axes(height=3.6, title=name)
    edges = histogram["edges"]
    axes.stairs(histogram["pool"], edges, fill=True, color=POOL_COLOR, label=f"pool ({sum(histogram['pool'])})")
    kept = f"kept ({sum(histogram['kept'])})"
    axes.stairs(histogram["kept"], edges, fill=True, color=color, alpha=0.85, label=kept)
    if cut is not None:
        axes.axvline(cut, color=LINE_COLOR, linestyle="--", linewidth=1.8, label=f"cut at {cut:.3g}")
    axes.set_xlabel("similarity of the two responses", fontsize=FONT)
    axes.set_ylabel("rows", fontsize=FONT)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", integer=True)
    tidy(axes)
    legend(figure, axes)
    return figure


def win_rate_figure(rates: Sequence[Rate], *, confidence: float = 0.95) -> "Figure":
    """Draw win rates as points with intervals, one row per arm from top to bottom, with a line at 0.5."""
    heights = row_heights([rate.group for rate in rates])
    figure, axes = new_axes(height=1.35 + 0.55 * (1 - min(heights)), title="")
    axes.axvline(0.5, color=LINE_COLOR, linestyle="--", linewidth=1.5)
    for rate, y in zip(rates, heights, strict=True):
        if math.isfinite(rate.rate):
            draw_interval(axes, rate[1:4], y, color=OTHER_COLOR)
        else:
            axes.text(0.5, y, " not measured", fontsize=FONT, va="center")
    ends = [x for rate in rates for x in (rate.low, rate.rate, rate.high) if math.isfinite(x)] + [0.4, 0.6]
    axes.set_xlim(max(-0.02, min(ends) - 0.04), min(1.02, max(ends) + 0.04))
    axes.set_xlabel(f"win rate with {confidence:.0%} interval", fontsize=FONT)
    name_rows(axes, heights, [rate.name for rate in rates])
    return figure


def training_figure(
    log_history: Sequence[Mapping[str, Any]],
    *,
    name: str,
    n_labels: int,
    limits: tuple[float, float] | None = None,
) -> "Figure":
    """
    Draw the rewards of the chosen and the rejected responses, and their margin, against labels seen.

    Args:
        log_history: `Trainer.state.log_history`: `rewards/chosen`, `rewards/rejected`, `rewards/margins`, and `epoch`
            or else `step`; other rows are ignored.
        name: Title.
        n_labels: Number of labelled pairs per epoch.
        limits: Limits of the vertical axis, equal for all arms; see `reward_limits`.
    """
    figure, axes = new_axes(height=3.8, title=name)
    rows = reward_rows(log_history)
    by_labels = bool(rows) and all("epoch" in row for row in rows)
    x = [float(row["epoch"]) * n_labels if by_labels else float(row.get("step", i)) for i, row in enumerate(rows)]
    axes.axhline(0, color=POOL_COLOR, linewidth=1.2)
    for key, (label, color, style, width) in CURVES.items():
        marker = "o" if len(rows) == 1 else None
        y = [to_float(row.get(key)) for row in rows]
        axes.plot(x, y, style, color=color, lw=width, marker=marker, label=label)
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlabel("labels seen (again in each epoch)" if by_labels else "optimizer steps", fontsize=FONT)
    axes.set_ylabel("reward", fontsize=FONT)
    tidy(axes)
    legend(figure, axes)
    return figure


def reward_rows(log_history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of a trainer's log with the rewards of a training step."""
    return [row for row in log_history if "rewards/chosen" in row]


def reward_limits(histories: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[float, float] | None:
    """Return limits of a vertical axis that fit the curves of all histories; None without a finite value."""
    values = [to_float(row.get(key)) for history in histories for row in reward_rows(history) for key in CURVES]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    low, high = min(values + [0.0]), max(values + [0.0])
    space = 0.06 * (high - low) or 1.0
    return low - space, high + space


def one_line(text: Any, length: int) -> str:
    """
    Make text from data safe to show: single blanks for white space, at most `length` characters and then "…".

    Control characters, lone surrogates and marks that change the direction of the following text become U+FFFD; plain
    left-to-right and right-to-left marks stay.
    """
    line = " ".join(_UNSHOWN.sub("\ufffd", str(text)).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def to_png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def to_data_uri(figure: "Figure | bytes") -> str:
    """Return the figure, or its PNG, as a data URI."""
    png = figure if isinstance(figure, bytes) else to_png(figure)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def save_png(figure: "Figure | bytes", path: str | Path) -> Path:
    """Write the figure, or its PNG, to `path`; create the folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(figure if isinstance(figure, bytes) else to_png(figure))
    return path


def check_matplotlib() -> None:
    """Raise `MissingExtraError` if matplotlib is not installed."""
    with needs_extra("matplotlib", "plots"):
        import matplotlib.figure  # noqa: F401


def new_axes(height: float, title: str) -> tuple["Figure", "Axes"]:
    """Create a figure of the common width with one pair of axes; `height` is in inches."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    if title:
        axes.set_title(short_label(title, 40), fontsize=FONT + 1, fontweight="bold", loc="left")
    return figure, axes


def new_panels(height: float, title: str) -> tuple["Figure", "Axes", "Axes"]:
    """Create a figure as `new_axes` does, with a second panel below the first, on the same horizontal axis."""
    figure, above = new_axes(height, title)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    above.set_subplotspec(grid[0])
    below = figure.add_subplot(grid[1], sharex=above)
    above.tick_params(axis="x", labelbottom=False)
    return figure, above, below


def draw_interval(axes: "Axes", ends: tuple[float, float, float], y: float, *, color: str, text: str = "") -> None:
    """Draw a value and its interval as a point, a line and the number."""
    value, low, high = ends
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], color=color, linewidth=3, solid_capstyle="butt")
    axes.plot([value], [y], "o", markersize=9, color=color, markeredgewidth=2, clip_on=False)
    write_above(axes, value, y, text or f"{value:.2f}")


def write_above(axes: "Axes", x: float, y: float, text: str) -> None:
    """Write a number on a white plate above its point."""
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    place: dict[str, Any] = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}
    axes.annotate(text, (x, y), **place, fontsize=FONT - 1, bbox=plate)


def name_rows(axes: "Axes", heights: Sequence[float], names: Sequence[str]) -> None:
    """Write names in place of a vertical axis."""
    axes.set_ylim(min(heights) - 0.55, 0.75)
    axes.set_yticks(heights, [short_label(name) for name in names], fontsize=FONT)
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def row_heights(groups: Sequence[str], gap: float = 0.5) -> list[float]:
    """Return vertical positions, downward from 0, with a gap between groups."""
    heights: list[float] = []
    for i, group in enumerate(groups):
        heights.append(heights[-1] - 1 - gap * (group != groups[i - 1]) if i else 0.0)
    return heights


def tidy(axes: "Axes") -> None:
    """Set the ticks and borders that all figures share."""
    axes.tick_params(labelsize=FONT - 0.5)
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="x", useOffset=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend(figure: "Figure", axes: "Axes", ncols: int = 3) -> None:
    """Draw the legend below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=ncols, fontsize=FONT - 0.5, frameon=False,
        handlelength=1.6, columnspacing=1.0, handletextpad=0.5,
    )  # fmt: skip


def short_label(text: str, length: int = LABEL_LENGTH) -> str:
    """Return one short line without math text for matplotlib."""
    return one_line(text, length).replace("$", r"\$")


def to_float(value: Any) -> float:
    """Return a float; None, the NaN of JSON files, becomes NaN."""
    return math.nan if value is None else float(value)
