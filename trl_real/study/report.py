"""Report page of a study of label efficiency: curves, label savings, and comparisons without a measured gain."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval
from trl_real.reports import figures
from trl_real.reports.arm_styles import arm_styles
from trl_real.reports.render import (
    REPORT_FILE,
    budget_words,
    check_extras,
    in_digits,
    picture_name,
    render,
    saved,
)
from trl_real.selection.strategies import COLORS
from trl_real.study import plots
from trl_real.study.results import ENGINES, METRICS, RANDOM, Study


TEMPLATE, PLOTS = "study.html.j2", "plots"
GAIN, NO_GAIN, WORSE, NOT_MEASURED = "gain", "no gain measured", "worse than random", "not measured"
MIXED = "mixed"
# Fields of a study with one figure per metric, and the label of its horizontal axis.
X_LABELS = {
    "curves": "labels used",
    "savings": "labels saved",
    "run_curves": "labels seen in the run",
    "run_savings": "fewer labels seen",
}
DIGITS = {"loss": 4}  # digits of a metric's values; 3 for the others
# A bootstrap of S seeds measures (S - 1) / S of their variance.
FEW_SEEDS = 5


class StudyVerdict(NamedTuple):
    """
    Comparison of an arm with random selection at the same budgets, on one metric.

    Args:
        arm: Name of the arm.
        metric: Key of `METRICS`.
        outcome: `"gain"`, `"worse than random"`, `"mixed"` (a gain at some budgets, a loss at others),
            `"no gain measured"` (every interval contains 0), or `"not measured"`.
        better, worse: Budgets, in words, with an interval entirely on this side of 0.
        at: Each budget below the whole pool, in words, with the difference from random.
    """

    arm: str
    metric: str
    outcome: str
    better: list[str]
    worse: list[str]
    at: list[tuple[str, ValueWithInterval]]


def study_verdict(study: Study, metric: str, arm: str) -> StudyVerdict:
    """Compare an arm with random at each budget below the whole pool, where all arms take the same pairs."""
    differences = study.differences.get(metric, {}).get(arm, [])
    found = zip(study.budgets, differences, strict=False)
    at = [(budget_label(budget), d) for budget, d in found if not is_whole(budget, study.n_pool)]
    at = [(words, difference) for words, difference in at if not any(math.isnan(x) for x in difference)]
    up, down = [words for words, d in at if d.low > 0], [words for words, d in at if d.high < 0]
    better, worse = (up, down) if METRICS[metric].sign > 0 else (down, up)
    outcome = MIXED if better and worse else GAIN if better else WORSE if worse else NO_GAIN if at else NOT_MEASURED
    return StudyVerdict(arm, metric, outcome, better, worse, at)


def budget_label(budget: float | int) -> str:
    """Format a budget: `25%` of the pairs, or `64 pairs`."""
    return budget_words(budget).removesuffix(" of the pairs")


def is_whole(budget: float | int, n_pool: float) -> bool:
    """Return whether a budget takes every pair; 1.0 is a share and 1 is one pair."""
    return budget >= (1.0 if isinstance(budget, float) else n_pool)


def write_study_report(folder: str | Path, study: Study) -> Path:
    """
    Write `report.html`, a self-contained page without network access, and its figures to the folder `plots/`.

    Args:
        folder: Folder to write to; created if needed.
        study: Finished or unfinished study; the page names the parts that are missing.

    Returns:
        Path of `report.html`.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    check_extras()
    others = [arm for arm in study.arms if arm != RANDOM]
    page = render(
        TEMPLATE,
        study=study,
        others=others,
        metrics=METRICS,
        digits={name: DIGITS.get(name, 3) for name in METRICS},
        engine=ENGINES[study.engine],
        budgets=[budget_label(budget) for budget in study.budgets],
        points={key: {arm: curve.points for arm, curve in found.items()} for key, found in study.curves.items()},
        whole_pool=bool(study.budgets) and is_whole(study.budgets[-1], study.n_pool),
        few_seeds=FEW_SEEDS,
        same_end=_same_end(study),
        verdicts=[[study_verdict(study, metric, arm) for metric in METRICS] for arm in others],
        pictures=_pictures(Path(folder) / PLOTS, study),
        excess=_excess(study.tuning),
        missing=_missing(study),
        count=_count,
        percent=plots.percent,
        budget_label=budget_label,
        ends=_ends,
        interval_of=_interval_of,
    )
    path = Path(folder) / REPORT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _pictures(folder: Path, study: Study) -> dict[str, Any]:
    """Draw and save all figures: URIs by metric, or pairs of a name (arm or second opinion) and a URI."""
    styles = arm_styles(study.arms, COLORS)
    limits = figures.reward_limits(list(study.rewards.values()))
    labels = {arm: _labels_of_run(study, arm) for arm in study.rewards}
    drawn: dict[str, dict[str, Any]] = {
        "rewards": {
            arm: log and figures.training_figure(log, name=arm, n_labels=labels[arm], limits=limits)
            for arm, log in ((arm, figures.reward_rows(log)) for arm, log in study.rewards.items())
        },
        "similarity": {
            arm: histogram and figures.similarity_figure(histogram, name=arm, color=styles[arm].color)
            for arm, histogram in study.histograms.items()
        },
        "agreement": {
            name: bins and plots.agreement_figure(bins, name=name, confidence=study.confidence)
            for name, bins in study.agreement.items()
        },
    }
    pictures: dict[str, Any] = {kind: _by_metric(folder, kind, study, styles) for kind in X_LABELS}
    for kind, found in drawn.items():
        files = [folder / f"{kind}_{picture_name(i, name)}" for i, name in enumerate(found, 1)]
        shown = zip(found.items(), files, strict=True)
        pictures[kind] = [(name, saved(file, figure)) for (name, figure), file in shown if figure]
    drift = plots.drift_figure(study.drift, title="drift of the embeddings") if study.drift else None
    pictures["drift"] = saved(folder / "drift.png", drift) if drift else None
    return pictures


def _by_metric(folder: Path, kind: str, study: Study, styles: Mapping) -> dict[str, str]:
    """Draw and save the curves or the savings for each metric that has them."""
    pictures = {}
    for key, metric in METRICS.items():
        found = getattr(study, kind).get(key, {})
        if any(found.values()):
            words = {"title": f"{metric.title} ({study.engine})", "x_label": X_LABELS[kind]}
            if kind in ("curves", "run_curves"):
                figure = plots.curve_figure(found, metric, styles, **words)
            else:
                figure = plots.savings_figure(found, styles, confidence=study.confidence, **words)
            pictures[key] = saved(folder / f"{kind}_{key}.png", figure)
    return pictures


def _labels_of_run(study: Study, arm: str) -> int:
    """Return the labels per epoch of the arm's run at the largest budget below the whole pool."""
    below = [i for i, budget in enumerate(study.budgets) if not is_whole(budget, study.n_pool)]
    place = below[-1] if below else len(study.budgets) - 1
    for curves in study.curves.values():
        if arm in curves and place < len(curves[arm].n_labels):
            return round(curves[arm].n_labels[place])
    budget = study.budgets[place]
    return round(budget * study.n_pool) if isinstance(budget, float) else budget


def in_words(saving: Saving) -> str:
    """Format a saving with its interval, or "not reached"."""
    words = plots.percent(saving.saving)
    return words if words == plots.NOT_REACHED else f"{words} {_ends(saving)}"


def _same_end(study: Study) -> bool:
    """Return whether all arms have the same values at the whole pool."""
    ends = [differences[-1].value for found in study.differences.values() for differences in found.values()]
    return bool(ends) and is_whole(study.budgets[-1], study.n_pool) and all(abs(value) < 1e-9 for value in ends)


def _excess(tuning: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean test loss minus that of the best choice on the test pairs, in nats per pair; NaN if unknown."""
    both = [(figures.to_float(row.get("loss")), figures.to_float(row.get("loss_if_best"))) for row in tuning]
    excess = [loss - best for loss, best in both if math.isfinite(loss - best)]
    return sum(excess) / len(excess) if excess else math.nan


def _missing(study: Study) -> list[str]:
    """List the parts that are missing on the page, with the reason if known."""
    no_run = " (frozen features are fitted at once, not step by step)" if study.engine == "frozen" else ""
    parts = {
        f"training dynamics{no_run}": study.rewards,
        f"curves along a run{no_run}": study.run_curves,
        "agreement of a second opinion": study.agreement,
        "similarity distributions": study.histograms,
        "drift of the embeddings": study.drift,
        "examples": study.examples,
        "tuning": study.tuning,
    }
    return [name for name, found in parts.items() if not found]


def _count(n: float) -> str:
    """Format a number of labels, or "not reached"."""
    if math.isinf(n):
        return plots.NOT_REACHED
    return "–" if math.isnan(n) else f"{n:,.0f}"


def _ends(value: Saving | ValueWithInterval, form: Callable[[float], str] = plots.percent) -> str:
    """Format the interval of a value."""
    if math.isnan(value.low) or math.isnan(value.high):
        return "no interval"
    return f"[{form(value.low)}, {form(value.high)}]"


def _interval_of(value: ValueWithInterval, digits: int, sign: bool = False) -> str:
    return _ends(value, lambda end: in_digits(end, digits, sign))
