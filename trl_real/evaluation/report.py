"""One page that tells what a run did, what came out, and whether anything was gained over choosing by chance."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trl_real.data.conversation import text_of
from trl_real.errors import MissingExtraError, TrlRealError
from trl_real.evaluation import plots
from trl_real.evaluation.comparison import Comparison
from trl_real.selection.record import SelectionRecord


REPORT_FILE, TEMPLATE = "report.html", "report.html.j2"
BASELINE = "random"
GAIN, NO_GAIN, WORSE, NOT_MEASURED = "gain", "no gain measured", "worse than random", "not measured"
VERDICT_METHOD = (
    "difference of two win rates taken as independent, its interval put together from the two arms' own intervals "
    "(MOVER, Zou and Donner 2008; of two Wilson intervals this makes Newcombe's hybrid score interval, 1998)"
)
# With fewer judged rows an arm is not set against another: MOVER calls two wins against two losses a gain.
MIN_JUDGED = 10
# The end of the kept rows' similarities at which the budget cut them off from the rest.
CUT_AT = {"easy": "max", "centroid": "max", "hard": "min"}


@dataclass
class Arm:
    """
    One way to spend the labels, and what came of it.

    Args:
        name (`str`): Such as `"easy 0.25"`.
        strategy (`str`): Name of the strategy; `"random"` is what the others are measured against.
        budget (`float` or `int`, *optional*): As given to `select`. Arms with the same budget are set side by side.
        n_labels (`int`): Labels that were paid for.
        record (`SelectionRecord`): How the pairs were chosen.
        comparison (`Comparison`): The trained model against the model before training.
        log_history (`list[dict]`): `trainer.state.log_history`.
        seconds (`float`): What the arm took.
        mean_score (`dict[str, float]`): Mean true rewards by name, a column of the table each.
        label_counts (`dict[str, int]`): `LabelReport.counts`: `labeled`, `ties`, `failed`.
        kept (iterable of rows): Kept pairs, labelled or not; the examples are among these.
    """

    name: str
    strategy: str
    budget: float | int | None
    n_labels: int
    record: SelectionRecord
    comparison: Comparison
    log_history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = math.nan
    mean_score: dict[str, float] = field(default_factory=dict)
    label_counts: dict[str, int] = field(default_factory=dict)
    kept: Iterable[Mapping[str, Any]] = ()

    @property
    def budget_text(self) -> str:
        """The budget in words."""
        return budget_words(self.budget)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the training log and the kept rows."""
        own = ("name", "strategy", "budget", "n_labels", "mean_score", "label_counts")
        return {
            **{name: getattr(self, name) for name in own},
            "seconds": self.seconds if math.isfinite(self.seconds) else None,
            "record": self.record.to_dict(),
            "comparison": self.comparison.to_dict(),
        }


class Verdict(NamedTuple):
    """Whether a selection beat random: outcome, difference of the win rates, its interval, level and method."""

    outcome: str
    difference: float
    ci_low: float
    ci_high: float
    confidence: float
    method: str = VERDICT_METHOD


def verdict(selection: Comparison, random: Comparison) -> Verdict:
    r"""
    Whether the win rate `p` of a selection is above that of random: a gain if all of the interval (MOVER)

    `p_s - p_r - sqrt((p_s - low_s)^2 + (high_r - p_r)^2)` to `p_s - p_r + sqrt((high_s - p_s)^2 + (p_r - low_r)^2)`

    is above 0. Built from the arms' own intervals, it knows of clusters, and of rates near 0 and 1, what they know.
    The arms are taken as independent: a `Comparison` keeps no verdicts of single rows that could be paired.

    Args:
        selection: The selection's model against a baseline.
        random: Random's model at the same budget, against the same baseline and by the same judge.

    Returns:
        The outcome: `"gain"`, `"no gain measured"` (0 is inside), `"worse than random"` or, with fewer than 10 judged
        rows or without an interval, `"not measured"`; and the numbers behind it.

    Raises:
        TrlRealError: If judge, baseline or level of confidence differ.
    """
    _check_comparable([selection, random])
    p_s, low_s, high_s = _interval(selection)
    p_r, low_r, high_r = _interval(random)
    low = p_s - p_r - math.hypot(p_s - low_s, high_r - p_r)
    high = p_s - p_r + math.hypot(high_s - p_s, p_r - low_r)
    outcome = GAIN if low > 0 else WORSE if high < 0 else NO_GAIN
    n_judged = min(selection.rates["n_total"], random.rates["n_total"])
    if n_judged < MIN_JUDGED or not (math.isfinite(low) and math.isfinite(high)):
        outcome = NOT_MEASURED
    return Verdict(outcome, p_s - p_r, low, high, selection.confidence)


def check_extras() -> None:
    """
    For the start of a long run that ends in a report.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    plots.check_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("jinja2", "plots") from error


def write_report(
    folder: str | Path,
    *,
    title: str,
    task: str,
    pool: Mapping[str, Any],
    arms: Sequence[Arm],
    recipe: Mapping[str, Any] | None = None,
    n_examples: int = 2,
) -> Path:
    """
    Write `report.html`, which needs no other file and no network, and its pictures as PNG files beside it.

    Args:
        folder: Made if need be.
        title: Headline.
        task: What was tried, a paragraph of plain text.
        pool: Facts about the pool, name to value, such as `{"prompts": 80, "responses a prompt": 4}`.
        arms: Those of one budget are set side by side, random last.
        recipe: Further facts about the run, such as the settings of the training. Never a secret: all of it is shown.
        n_examples: Kept pairs shown from either end of the similarities, for each arm.

    Returns:
        Path of `report.html`.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
        TrlRealError: If there is no arm, or the arms have different judges, baselines or levels of confidence.
    """
    check_extras()
    if not arms:
        raise TrlRealError("A report needs an arm. Type write_report(…, arms=[Arm(…)]).")
    _check_comparable([arm.comparison for arm in arms])
    groups: dict[str, list[Arm]] = {}
    for arm in sorted(arms, key=lambda arm: arm.strategy == BASELINE):
        groups.setdefault(arm.budget_text, []).append(arm)
    groups = {budget: groups[budget] for budget in dict.fromkeys(arm.budget_text for arm in arms)}
    arms = [arm for group in groups.values() for arm in group]
    page = render(
        TEMPLATE,
        title=title,
        task=task,
        pool=pool,
        recipe={**_recipe(arms), **(recipe or {})},
        groups=groups,
        arms=arms,
        scores=list(dict.fromkeys(name for arm in arms for name in arm.mean_score)),
        comparison=arms[0].comparison,
        verdicts={budget: _verdicts(group) for budget, group in groups.items()},
        verdict_method=VERDICT_METHOD,
        pictures=_pictures(Path(folder), arms),
        examples=[(arm, _examples(arm, n_examples)) for arm in arms],
    )
    path = Path(folder) / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def budget_words(budget: float | int | None) -> str:
    """A budget in words; 1 is a pair and 1.0 everything."""
    if budget is None:
        return "every pair"
    if isinstance(budget, float):
        return f"{100 * budget:.4g}% of the pairs"
    return "1 pair" if budget == 1 else f"{budget} pairs"


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; everything in `values` is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("trl_real.evaluation")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(short=plots.one_line, number=in_digits, words=_words, reward_rows=plots.reward_rows)
    return environment.get_template(template).render(**values)


def _pictures(folder: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """Draw and save everything: `win_rates` is a URI, `similarity` and `training` an arm and its URI each."""
    rates = [plots.Rate(arm.name, arm.strategy, *_interval(arm.comparison), arm.budget_text) for arm in arms]
    win_rates = plots.win_rate_figure(rates, confidence=arms[0].comparison.confidence)
    pictures = {"win_rates": saved(folder / "win_rates.png", win_rates), "similarity": [], "training": []}
    limits = plots.reward_limits([arm.log_history for arm in arms])
    for i, arm in enumerate(arms, 1):
        file_name = picture_name(i, arm.name)
        record, n_labels = arm.record, arm.label_counts.get("labeled", arm.n_labels)
        if record.histogram:
            cut = record.similarity_kept.get(CUT_AT.get(arm.strategy)) if record.n_not_chosen else None
            figure = plots.similarity_figure(record.histogram, name=arm.name, strategy=arm.strategy, cut=cut)
            pictures["similarity"].append((arm, saved(folder / f"similarity_{file_name}", figure)))
        if plots.reward_rows(arm.log_history):
            figure = plots.training_figure(arm.log_history, name=arm.name, n_labels=n_labels, limits=limits)
            pictures["training"].append((arm, saved(folder / f"training_{file_name}", figure)))
    return pictures


def picture_name(i: int, name: str) -> str:
    """A file's name for a picture of the i-th arm, whatever the arm is called."""
    return f"{i}_{re.sub(r'[^a-z0-9.]+', '-', name.lower())[:40].strip('-.')}.png"


def saved(path: Path, figure: Any) -> str:
    """Write a figure's PNG file, and return it as a URI."""
    return plots.to_data_uri(plots.save_png(figure, path).read_bytes())


def _verdicts(group: Sequence[Arm]) -> list[tuple[Arm, Arm, Verdict]]:
    """Each selection beside each random arm of its budget."""
    selections, randoms = ([arm for arm in group if (arm.strategy == BASELINE) == is_random] for is_random in (0, 1))
    return [(arm, other, verdict(arm.comparison, other.comparison)) for arm in selections for other in randoms]


def _examples(arm: Arm, n: int) -> list[dict[str, Any]]:
    """Up to `n` kept pairs from either end of the similarities, each with a word on where it stands."""
    rows = [row for row in arm.kept if math.isfinite(plots.to_float(row.get("similarity")))]
    rows.sort(key=lambda row: row["similarity"])
    n_low = min(n, (len(rows) + 1) // 2)
    ends = {"min": rows[:n_low], "max": rows[max(n_low, len(rows) - n) :]}
    words = {"min": "least similar of the kept", "max": "most similar of the kept"}
    if arm.record.n_not_chosen and arm.strategy in CUT_AT:
        words[CUT_AT[arm.strategy]] += ", at the cut"
    return [_example(row, words[end]) for end, found in ends.items() for row in found]


def _example(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = ("chosen", "rejected") if "chosen" in row else ("response_a", "response_b")
    texts = [(name.replace("_", " "), text_of(row.get(name) or "")) for name in names]
    return {
        "where": where,
        "similarity": row["similarity"],
        "prompt": text_of(row.get("prompt") or ""),
        "texts": texts,
    }


def _recipe(arms: Sequence[Arm]) -> dict[str, Any]:
    """What the records say of model, seed and versions, the different values of several arms side by side."""
    names = {"model": "embedding model", "revision": "its revision", "seed": "selection seed"}
    names |= {"settings": "embedding settings", "versions": "versions"}
    found = {title: dict.fromkeys(_words(getattr(arm.record, name)) for arm in arms) for name, title in names.items()}
    return {title: " | ".join(filter(None, values)) for title, values in found.items()}


def _words(value: Any) -> str:
    """A value as text: `name value, name value` of a mapping, nothing of None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def in_digits(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with a true minus sign; a dash for what is not known."""
    value = plots.to_float(value)
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "–"


def _check_comparable(comparisons: Sequence[Comparison]) -> None:
    for name in ("judge", "baseline", "confidence"):
        found = list(dict.fromkeys(getattr(comparison, name) for comparison in comparisons))
        if len(found) > 1:
            raise TrlRealError(f"The arms' comparisons differ in {name}: {found}. Compare all arms in the same way.")


def _interval(comparison: Comparison) -> tuple[float, float, float]:
    return tuple(plots.to_float(comparison.rates[name]) for name in ("win_rate", "ci_low", "ci_high"))
