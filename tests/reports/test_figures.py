"""Tests of `trl_real.reports.figures`."""

import math
import sys

import numpy as np
import pytest

from trl_real.reports import figures
from trl_real.selection.record import describe_similarity


def log_history(steps: int = 6) -> list[dict]:
    """A chosen reward that falls, and a margin that grows."""
    rewards = {"rewards/chosen": -0.05, "rewards/rejected": -0.2, "rewards/margins": 0.15}
    rows = [
        {"step": s, "epoch": s / 2, "loss": 0.69 / s, **{name: s * slope for name, slope in rewards.items()}}
        for s in range(1, steps + 1)
    ]
    return [*rows, {"step": steps, "train_runtime": 12.0, "train_loss": 0.4}]


def test_figures_leave_pyplot_alone():
    figures.to_data_uri(figures.win_rate_figure([figures.Rate("easy", 0.6, 0.5, 0.7)]))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_similarity_figure_shows_the_threshold_and_both_sets():
    pool = np.linspace(0.5, 0.98, 80)
    histogram = describe_similarity(pool, pool[:20])["histogram"]
    figure = figures.similarity_figure(histogram, name="easy", cut=0.615)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["pool (80)", "kept (20)", "cut at 0.615"]


def test_curves_are_drawn_over_the_number_of_labels():
    figure = figures.training_figure(log_history(), name="easy", n_labels=16)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["chosen"].get_xdata().tolist() == [8, 16, 24, 32, 40, 48]
    assert lines["margin"].get_ydata()[-1] == pytest.approx(0.9)
    without_epochs = [{k: v for k, v in row.items() if k != "epoch"} for row in log_history()]
    figure = figures.training_figure(without_epochs, name="easy", n_labels=16)
    assert figure.axes[0].get_xlabel() == "optimizer steps"


@pytest.mark.parametrize(("steps", "marker"), [(1, "o"), (2, "None")])
def test_a_single_point_of_a_training_is_seen(steps, marker):
    """A line of one point is invisible without a marker."""
    figure = figures.training_figure(log_history(steps), name="easy", n_labels=16)
    assert {line.get_marker() for line in figure.axes[0].lines if line.get_label() in ("chosen", "margin")} == {marker}


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([[]], None), ([[math.nan, None]], None), ([[0.0, 0.0]], (-1.0, 1.0)), ([[2.0], [-1.0]], (-1.18, 2.18)),
        ([[4.0, 1.0]], (-0.24, 4.24)), ([[-5.0, math.inf]], (-5.3, 0.3)),
    ],
)  # fmt: skip
def test_limits_hold_all_curves_and_zero(values, limits):
    histories = [[{"rewards/chosen": v, "rewards/rejected": v, "rewards/margins": v} for v in row] for row in values]
    assert figures.reward_limits(histories) == (None if limits is None else pytest.approx(limits))


def test_win_rates_are_drawn_from_top_to_bottom_with_their_intervals_on_one_axis():
    rates = [
        figures.Rate("easy", 0.9, 0.7, 0.98), figures.Rate("hard", 0.5, math.nan, math.nan),
        figures.Rate("none", math.nan, math.nan, math.nan),
    ]  # fmt: skip
    axes = figures.win_rate_figure(rates, confidence=0.9).axes[0]
    half, *drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert half == [[0.5, 0.0], [0.5, 1.0]]
    assert drawn == [[[0.7, 0.0], [0.98, 0.0]], [[0.9, 0.0]], [[0.5, -1.0]]]
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.50", " not measured"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["easy", "hard", "none"]
    low, high = axes.get_xlim()
    assert low < 0.4 and 0.98 < high <= 1.02 and axes.get_xlabel() == "win rate with 90% interval"
