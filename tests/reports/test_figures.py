"""Tests of `trl_real.reports.figures`."""

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
