"""What a dataset's card says besides the selection: labels, authors of the responses, licence, language, title."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, List, Value

from trl_real.data.conversation import text_of
from trl_real.labeling.annotate import LabelReport


Table = tuple[str, list[str], Sequence[tuple]]  # title, header, rows
LABELLED = {"chosen", "rejected"}
# Columns with the model that wrote each side; pushed instead of what would be needed to find it out.
AUTHORS = {"chosen": "chosen_model", "rejected": "rejected_model"}


@dataclass
class CardFacts:
    """
    Facts that the card states, and the data cannot tell.

    Args:
        title: Title of the dataset; by default the name of the repository, on a new card.
        license: Licence by the Hub's identifiers, such as `"cc-by-4.0"`.
        language: Codes of the languages, such as `"en"` or `["en", "de"]`.
        currency: Currency of the judge's prices, for the cost of the labels.
        labels: Report of the labelling, as `annotate` fills it, or its dict (`labels.json`).
    """

    title: str | None = None
    license: str | None = None
    language: str | list[str] | None = None
    currency: str | None = None
    labels: LabelReport | dict | None = None

    def metadata(self) -> dict[str, Any]:
        """Return what is given as fields of the card's metadata."""
        found = {"pretty_name": self.title, "license": self.license, "language": self.language}
        return {name: value for name, value in found.items() if value}

    def label_table(self) -> list[Table]:
        """Return a table with the outcome, agreement and cost of the labelling, if its report is given."""
        report = self.labels.to_dict() if isinstance(self.labels, LabelReport) else self.labels
        if not report:
            return []
        verdicts = report.get("verdicts") or {}
        rows: list[tuple] = [("judge", report.get("judge"))]
        rows += [(words, report[name]) for name, words in OUTCOMES.items() if name in report]
        rows += [(name, words) for name, words in _agreement(report) if words]
        if verdicts.get("position_bias") is not None:
            rows.append(("bias for the response shown first", f"{verdicts['position_bias']:+.3f}"))
        if verdicts.get("input_tokens"):
            tokens = f"{verdicts['input_tokens']} read, {verdicts.get('output_tokens', 0)} generated"
            rows.append(("tokens of the judge", tokens))
        if verdicts.get("cost"):
            currency = self.currency or "in the currency of the judge's prices, which was not stated"
            rows.append(("cost of the labels", f"{verdicts['cost']:.4g} {currency}"))
        return [("Labelling", ["what", "value"], rows)]


OUTCOMES = {"labeled": "pairs with a label", "ties": "ties, left out", "failed": "pairs without a verdict, left out"}


def _agreement(report: dict[str, Any]) -> list[tuple[str, str]]:
    gold, panel, votes = (report.get(name) or {} for name in ("gold", "panel", "votes"))
    found = [("agreement with gold labels", ""), ("agreement of the judges", ""), ("agreement of the people", "")]
    if gold.get("rate") is not None:
        found[0] = (found[0][0], f"{gold['rate']:.2f} [{gold['ci_low']:.2f}, {gold['ci_high']:.2f}], n = {gold['n']}")
    for i, (part, low, high, n) in enumerate([(panel, "ci_low", "ci_high", "n_pairs"),
                                              (votes, "alpha_low", "alpha_high", "n_shared")], 1):  # fmt: skip
        if part.get("alpha") is not None:
            between = f"[{part[low]:.2f}, {part[high]:.2f}]"
            found[i] = (found[i][0], f"Krippendorff's alpha {part['alpha']:.2f} {between}, n = {part[n]}")
    return found


def as_pushed(dataset: Any) -> Any:
    """
    Return labelled rows without columns that repeat (the texts of a pair, an empty `skipped`), and with the models
    that wrote `chosen` and `rejected`, where `models` says it; other rows unchanged.
    """
    if isinstance(dataset, DatasetDict):
        whole = DatasetDict({name: _with_authors(rows) for name, rows in dataset.items()})
        return whole.remove_columns(_repeated(columns_of(whole), list(whole.values())))
    rows = _with_authors(dataset)
    return rows.remove_columns(_repeated(rows.column_names, [rows]))


def columns_of(dataset: Dataset | DatasetDict) -> list[str]:
    """Return the columns, of a `DatasetDict` those of its first split."""
    return (next(iter(dataset.values())) if isinstance(dataset, DatasetDict) else dataset).column_names


def label_sources(dataset: Dataset | DatasetDict) -> list[Table]:
    """Return a table with the source of the labels, the number of its rows and their mean confidence."""
    if not {"label_source", "label_confidence"} <= set(columns_of(dataset)):
        return []
    found: dict[str, list[float]] = {}
    for source, confidence in zip(*_values(dataset, "label_source", "label_confidence"), strict=True):
        found.setdefault(str(source), []).append(confidence or 0.0)
    sources = sorted(found, key=lambda source: (-len(found[source]), source))
    rows = [(name, len(found[name]), f"{sum(found[name]) / len(found[name]):.3f}") for name in sources]
    return [("Labels", ["labelled by", "rows", "mean confidence"], rows)]


def authors(dataset: Dataset | DatasetDict) -> list[Table]:
    """Return a table with the models that wrote the responses, by side of labelled rows, else of all responses."""
    columns = columns_of(dataset)
    if set(AUTHORS.values()) <= set(columns):
        sides = {side: Counter(_values(dataset, column)[0]) for side, column in AUTHORS.items()}
    elif "models" in columns and "responses" in columns:
        sides = {"responses": Counter(model for models in _values(dataset, "models")[0] for model in models or ())}
    else:
        return []
    names = sorted(set().union(*sides.values()), key=lambda name: (-sum(c[name] for c in sides.values()), str(name)))
    rows = [(name or "not known", *(counts[name] for counts in sides.values())) for name in names]
    return [("Who wrote the responses", ["model", *sides], rows)]


def _values(dataset: Dataset | DatasetDict, *names: str) -> list[list[Any]]:
    splits = list(dataset.values()) if isinstance(dataset, DatasetDict) else [dataset]
    plain = [rows.with_format(None) for rows in splits]
    return [[value for rows in plain for value in rows[name]] for name in names]


def _repeated(columns: list[str], splits: list[Dataset]) -> list[str]:
    if not LABELLED <= set(columns):
        return []
    repeated = ["response_a", "response_b"]
    if "skipped" in columns and not any(reason for rows in splits for reason in rows.unique("skipped")):
        repeated.append("skipped")
    return [name for name in repeated if name in columns]


def _with_authors(rows: Dataset) -> Dataset:
    needed = {"chosen", "rejected", "models", "pair", "response_a"}
    if not needed <= set(rows.column_names) or not isinstance(rows.features["models"], List):
        return rows
    found: dict[str, list] = {column: [] for column in AUTHORS.values()}
    for row in rows.with_format(None).select_columns(sorted(needed - {"rejected"})):
        first = text_of(row["chosen"]) == row["response_a"]
        models = [(row["models"] or {})[place] for place in row["pair"]] if row["models"] else [None, None]
        for column, model in zip(found, models if first else models[::-1], strict=True):
            found[column].append(model)
    for column, models in found.items():
        kept = rows.remove_columns(column) if column in rows.column_names else rows
        rows = kept.add_column(column, models, feature=Value("string"))
    return rows
