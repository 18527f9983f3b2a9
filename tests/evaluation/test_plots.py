"""What the figures of a comparison draw, by their numbers."""

import numpy as np
import pytest

from trl_real.evaluation.plots import history_figure, length_figure
from trl_real.functional.statistics.win_rate import win_rate


def test_win_rates_by_length_are_those_of_equally_many_rows_without_failed_ones():
    pytest.importorskip("matplotlib")
    length = np.random.default_rng(0).permutation(40) * 10.0
    preference = (length > 120).astype(float)
    rows = {"preference": [*preference, *[np.nan] * 5], "length": [*length, *[9e9] * 5], "baseline_length": [7.0] * 45}
    _, *drawn = length_figure(rows, "a name").axes[0].lines
    points = [line.get_xydata()[0] for line in drawn if len(line.get_xydata()) == 1]
    bars = [line.get_xydata() for line in drawn if len(line.get_xydata()) == 2]
    order = np.argsort(length)
    for part, point, bar in zip(np.split(order, 4), points, bars, strict=True):
        found = win_rate(preference[part])
        assert point == pytest.approx((np.median(length[part]) - 7, found["win_rate"]))
        assert bar[:, 1] == pytest.approx([found["ci_low"], found["ci_high"]]) and (bar[:, 0] == point[0]).all()
    assert length_figure({name: values[:19] for name, values in rows.items()}, "few") is None


def test_the_history_of_a_training_is_drawn_by_its_steps():
    pytest.importorskip("matplotlib")
    names = ("step", "win_rate", "win_rate_low", "win_rate_high", "completion_length", "baseline_length", "n")
    rows = [
        (4, 0.5, 0.25, 0.75, 40.0, 30.0, 9),
        (2, 0.25, 0.125, 0.5, 10.0, 30.0, 9),
        (6, None, None, None, 20.0, None, 9),
    ]
    figure = history_figure([dict(zip(names, row, strict=True)) for row in rows])
    upper, lower = figure.axes
    half, rate = (line.get_xydata() for line in upper.lines)
    assert half[:, 1].tolist() == [0.5, 0.5]
    assert rate[:2].tolist() == [[2, 0.25], [4, 0.5]] and np.isnan(rate[2, 1])
    (band,) = upper.collections
    assert {(2, 0.125), (2, 0.5), (4, 0.25), (4, 0.75)} <= {
        tuple(point) for path in band.get_paths() for point in path.vertices
    }
    lines = {line.get_label(): line.get_ydata().tolist() for line in lower.lines}
    assert lines["model"] == [10, 40, 20] and lines["baseline"][:2] == [30, 30]
    assert lower.get_ylim() == (0, pytest.approx(44))
