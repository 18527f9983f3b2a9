"""Report page of win rates: rates with intervals, reasons to doubt them, and details of the judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_real.data.conversation import text_of
from trl_real.evaluation.comparison import Comparison
from trl_real.evaluation.plots import length_figure
from trl_real.functional.statistics.ranking import Ranking
from trl_real.reports import figures
from trl_real.reports.render import REPORT_FILE, check_extras, render, saved


TEMPLATE = "comparison.html.j2"


def write_comparison_report(
    folder: str | Path,
    comparisons: Sequence[Comparison],
    *,
    title: str = "Win rates",
    ranking: Ranking | None = None,
    paired: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """
    Write `report.html`, a self-contained page without network access, and its figures as PNG files.

    Args:
        folder: Folder to write to; created if needed.
        comparisons: Comparisons to show, at least one.
        title: Title of the page.
        ranking: Ranking of several models.
        paired: Tests between two models in words, by their names.
        facts: Further facts about the run; the page shows all of them, so no secrets.
        examples: Rows of `example_rows` by the name of their comparison.

    Returns:
        Path of `report.html`.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    check_extras()
    folder = Path(folder)
    rates = [figures.Rate(f"{c.model} : {c.baseline}", *_interval(c)) for c in comparisons]
    overview = saved(folder / "win_rates.png", figures.win_rate_figure(rates))
    people = [
        (c, saved(folder / f"people_{i}.png", figures.win_rate_figure(three_rates(c.rates), confidence=c.confidence)))
        for i, c in enumerate(comparisons, 1)
        if c.people
    ]
    lengths: list[tuple[Comparison, Any]] = []
    for i, comparison in enumerate(comparisons, 1):
        figure = (
            length_figure(comparison.rows, f"{comparison.model} : {comparison.baseline}") if comparison.rows else None
        )
        if figure is not None:
            lengths.append((comparison, saved(folder / f"lengths_{i}.png", figure)))
    page = render(
        TEMPLATE,
        title=title,
        comparisons=comparisons,
        verdicts=[_verdict(comparison) for comparison in comparisons],
        examples=examples or {},
        grave=dict.fromkeys((c.model, doubt.words) for c in comparisons for doubt in c.doubts if doubt.grave),
        ranking=ranking,
        paired=paired or {},
        facts=facts or {},
        pictures={"rates": overview, "people": people, "lengths": lengths},
    )
    path = folder / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def example_rows(
    comparison: Comparison, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any], n: int = 2
) -> list[dict[str, Any]]:
    """
    Return the clearest verdicts for the page, side by side.

    Args:
        comparison: Comparison with its rows.
        prompts: Texts or messages, one per row. Length `N`.
        first, second: Completions of the model and of the baseline. Length `N`.
        n: Number of rows that the model wins, of rows that it loses, and of ties.
    """
    preferences = [figures.to_float(value) for value in comparison.rows["preference"]]
    order = sorted(range(len(preferences)), key=lambda i: -abs(preferences[i] - 0.5))
    found: list[dict[str, Any]] = []
    for outcome, words in ((1, "win"), (-1, "loss"), (0, "tie")):
        rows = [i for i in order if (preferences[i] > 0.5) - (preferences[i] < 0.5) == outcome]
        for i in [row for row in rows if preferences[row] == preferences[row]][:n]:
            where = f"{words}, row {i}, probability {preferences[i]:.2f} that {comparison.model} is better"
            sides = ((comparison.model, text_of(first[i])), (comparison.baseline, text_of(second[i])))
            found.append({"where": where, "prompt": text_of(prompts[i]), "texts": sides})
    return found


def _verdict(comparison: Comparison) -> tuple[str, str, str]:
    """Return the style, the one-sentence verdict, and the figures that it rests on."""
    rate, low, high = _interval(comparison)
    sides = f"{comparison.model} and {comparison.baseline}"
    n = comparison.rates["n_total"]
    measured = f"Win rate {rate:.2f}, {100 * comparison.confidence:.4g} % interval [{low:.2f}, {high:.2f}], {n} rows"
    if any(doubt.grave for doubt in comparison.doubts):
        return "", f"Nothing is known about {sides}: the rate is not to be trusted", measured
    if low > 0.5:
        return "gain", f"{comparison.model} is better than {comparison.baseline}", measured
    if high < 0.5:
        return "worse", f"{comparison.model} is worse than {comparison.baseline}", measured
    return "", f"No difference was measured between {sides}", measured if n else "No row was judged"


def _interval(comparison: Comparison) -> tuple[float, float, float]:
    value, low, high = (figures.to_float(comparison.rates[name]) for name in ("win_rate", "ci_low", "ci_high"))
    return value, low, high


def three_rates(rates: Mapping[str, Any]) -> list[figures.Rate]:
    """Return the rows of the picture of people and the judge together, people alone, and the judge alone."""
    names = {"people and judge": "", "people alone": "people_only_", "judge alone": "judge_"}
    rows = []
    for name, who in names.items():
        rate, low, high = (figures.to_float(rates[f"{who}{end}"]) for end in ("win_rate", "ci_low", "ci_high"))
        rows.append(figures.Rate(name, rate, low, high))
    return rows
