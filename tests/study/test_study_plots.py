"""What the figures of a study draw, by their numbers."""

import math

import pytest

from trl_real.functional.statistics.agreement_by_similarity import AgreementBin
from trl_real.study import plots
from trl_real.study.results import WITH_PROMPT


pytest.importorskip("matplotlib")


def points(axes):
    return [line.get_xydata().tolist() for line in axes.lines]


def test_agreement_is_drawn_by_bin_with_its_interval():
    bins = [AgreementBin(-0.25, 0.4, 187, 13, 0.8, 0.75, 0.875), AgreementBin(0.4, 0.9, 0, 4, *[math.nan] * 3)]
    axes = plots.agreement_figure(bins, name="the scores", confidence=0.9).axes[0]
    half, *drawn = points(axes)
    assert [x for x, _ in half] == [0.5, 0.5] and drawn == [[[0.75, 0.0], [0.875, 0.0]], [[0.8, 0.0]]]
    assert [text.get_text() for text in axes.texts] == ["0.80", " none decided"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["\u22120.250 to 0.400", "0.400 to 0.900"]
    low, high = axes.get_xlim()
    assert low < 0.45 and 0.875 < high <= 1.02 and "90% interval" in axes.get_xlabel()


ROWS = [
    {"labels": 64, "cosine": 0.9, "spearman": 0.8, "jaccard": 0.7, "relative_l2": 0.25},
    {"labels": 128, "cosine": 0.5, "spearman": -0.4, "jaccard": 0.3, "relative_l2": 0.5},
]


@pytest.mark.parametrize("both", [False, True])
def test_drift_is_drawn_over_labels_and_with_prompts_where_it_was_measured(both):
    rows = [row | ({f"{WITH_PROMPT}relative_l2": row["relative_l2"] / 2} if both else {}) for row in ROWS]
    above, below = plots.drift_figure(rows, title="drift").axes
    drawn = {tuple(line.get_ydata()) for line in above.lines}
    assert {tuple(row[name] for row in ROWS) for name in ("cosine", "spearman", "jaccard")} <= drawn
    assert all(line.get_xdata().tolist() == [64, 128] for line in above.lines)
    assert above.get_ylim()[0] < -0.4 and above.get_ylim()[1] > 1
    lines = {line.get_label(): line.get_ydata().tolist() for line in below.lines}
    assert lines == {"responses": [0.25, 0.5], **({"prompts with responses": [0.125, 0.25]} if both else {})}
    assert (below.get_legend() is not None) == both


@pytest.mark.parametrize(
    ("share", "words", "plain"),
    [(0.412, "+41%", "41%"), (-0.2, "\u221220%", "\u221220%"), (0.001, "0%", "0%"), (-0.001, "0%", "0%"),
     (math.nan, "–", "–"), (-math.inf, plots.NOT_REACHED, plots.NOT_REACHED)],
)  # fmt: skip
def test_a_share_in_words(share, words, plain):
    assert (plots.percent(share), plots.percent(share, sign=False)) == (words, plain)


@pytest.mark.parametrize(
    ("n_labels", "scale", "ticks"),
    [
        ([100.0], "linear", [100]),
        ([10.0, 20.0, 1000.0], "log", [10, 20, 1000]),
        ([10.0, 11.0, 1000.0], "log", [11, 1000]),
        ([0.0, 1000.0], "linear", None),
        ([100.0, 200.0], "linear", None),
    ],
)
def test_budgets_far_apart_have_a_logarithmic_axis_with_ticks_that_have_room(n_labels, scale, ticks):
    from trl_real.reports.figures import new_axes

    _, axes = new_axes(3, "")
    axes.plot(n_labels, [1.0] * len(n_labels))
    plots._scale_labels(axes, n_labels)
    assert axes.get_xscale() == scale
    if ticks:
        assert sorted(axes.get_xticks()) == ticks
        assert sorted(int(label.get_text()) for label in axes.get_xticklabels()) == ticks
    else:
        assert axes.get_xlim()[0] == 0
