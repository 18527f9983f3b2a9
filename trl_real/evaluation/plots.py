"""Figures of win rates: along a training, and against the length of the completions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_real.reports.figures import FONT, LINE_COLOR, new_axes, new_panels, tidy, to_float


if TYPE_CHECKING:
    from matplotlib.figure import Figure


RATE_COLOR, LENGTH_COLOR = "#0072B2", "#D55E00"
LEAST_ROWS = 10


def history_figure(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw the win rate with its interval, and below it the length of the completions, against training steps."""
    rows = sorted(history, key=lambda row: row["step"])
    steps = [row["step"] for row in rows]
    rate, low, high, length, other = (
        [to_float(row[name]) for row in rows]
        for name in ("win_rate", "win_rate_low", "win_rate_high", "completion_length", "baseline_length")
    )
    figure, upper, lower = new_panels(height=5.4, title=f"win rate and length (n={rows[-1]['n']})")
    upper.axhline(0.5, color=LINE_COLOR, linestyle="--", linewidth=1.5)
    upper.fill_between(steps, low, high, color=RATE_COLOR, alpha=0.2, linewidth=0)
    upper.plot(steps, rate, "o-", color=RATE_COLOR, linewidth=2)
    upper.set_ylabel("win rate", fontsize=FONT)
    lower.plot(steps, length, "o-", color=LENGTH_COLOR, linewidth=2, label="model")
    lower.plot(steps, other, "--", color=LINE_COLOR, linewidth=1.5, label="baseline")
    lower.set_ylim(0, 1.1 * np.nanmax([*length, *other, 1.0]))
    lower.set_ylabel("characters", fontsize=FONT)
    lower.set_xlabel("optimizer steps", fontsize=FONT)
    lower.legend(fontsize=FONT - 1, frameon=False, loc="lower right")
    lower.locator_params(axis="x", integer=True)
    for axes in (upper, lower):
        tidy(axes)
    return figure


def length_figure(rows: Mapping[str, Sequence[Any]], name: str, n_bins: int = 6) -> "Figure | None":
    """
    Draw the mean preference against the difference in length, in up to `n_bins` bins of equally many rows, 10 at
    least. Return None with fewer than 20 judged rows.
    """
    from trl_real.functional.statistics.win_rate import win_rate

    values = np.array([rows["preference"], rows["length"], rows["baseline_length"]], dtype=float)
    preference, length, other = values[:, ~np.isnan(values[0])]
    if len(preference) < 2 * LEAST_ROWS:
        return None
    figure, axes = new_axes(height=3.6, title=name)
    axes.axhline(0.5, color=LINE_COLOR, linestyle="--", linewidth=1.5)
    order = np.argsort(length - other, kind="stable")
    for part in np.array_split(order, min(n_bins, len(order) // LEAST_ROWS)):
        found, x = win_rate(preference[part]), float(np.median((length - other)[part]))
        axes.plot([x, x], [found["ci_low"], found["ci_high"]], color=RATE_COLOR, linewidth=3, solid_capstyle="butt")
        axes.plot([x], [found["win_rate"]], "o", color=RATE_COLOR, markersize=8)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("characters more than the baseline", fontsize=FONT)
    axes.set_ylabel("win rate", fontsize=FONT)
    tidy(axes)
    return figure
