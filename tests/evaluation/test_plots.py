"""What the figures of a comparison draw, by their numbers."""

import numpy as np
import pytest

from trl_real.evaluation.plots import length_figure
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
