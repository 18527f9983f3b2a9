"""Relabel the least confident self-annotations with another judge."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from trl_real.data.conversation import TEMPLATE_COLUMNS, text_of
from trl_real.data.convert import from_rows, iterate
from trl_real.errors import TrlRealError, check_columns
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.labeling.implicit_reward import UNFINISHED
from trl_real.labeling.verdicts import Judge


NEEDED = ("prompt", "chosen", "rejected", "label_confidence", "label_source")

PLACE = "_trl_real_place"  # which of the pairs a row is

# Columns that a judge gets in addition to the prompt and the responses.
ASKED = {
    "response_a": Value("string"),
    "response_b": Value("string"),
    "pair": List(Value("int32")),
    "finish_reasons": List(Value("string")),
    PLACE: Value("int64"),
}

# Pairs of columns, one per side, that are swapped with the sides.
SIDES = (("chosen", "rejected"), ("score_chosen", "score_rejected"), ("chosen_finished", "rejected_finished"))


def relabel(
    labels: Dataset,
    judge: Judge,
    budget: float | int,
    *,
    source: str = "implicit_reward",
    undecided: str = "keep",
    batch_size: int = 256,
    journal: str | Path | None = None,
    report: LabelReport | None = None,
) -> Dataset:
    """
    Ask a judge, such as people (`PageJudge`, `VotesJudge`), to relabel the least confident rows of a source.

    A verdict replaces the label: `chosen`, `rejected`, `label_confidence` and `label_source` come from the judge; each
    response keeps its score. The judge sees the two responses sorted by text, so that their order does not reveal the
    old label.

    Args:
        labels: Output of `self_annotate`, alone or together with rows of other sources.
        judge: Any judge that reads texts.
        budget: Share in (0, 1] of the source's rows, or number of rows. Of equally confident rows, the first ones are
            taken.
        source: Prefix of `label_source` in the rows that may be relabelled.
        undecided: Treatment of pairs that the judge calls a tie or fails on: `"keep"` the old label, or `"drop"` the
            row. The report counts both.
        batch_size: Number of rows per call of the judge.
        journal: Path of a file that gets every verdict at once; a second run asks only for the rest.
        report: Report to fill in.

    Returns:
        Dataset with the same columns and, except for dropped rows, the same rows in the same order.

    Raises:
        MissingColumnError: If a column of labels is missing.
        TrlRealError: If a setting is out of range.
    """
    check_columns(labels.column_names, NEEDED, "Give the output of self_annotate.")
    if undecided not in ("keep", "drop"):
        raise TrlRealError(f"undecided={undecided!r} is not one of keep, drop.")
    plain = labels.with_format(None)
    rows = _least_confident(plain, budget, source)
    pairs = _as_pairs(plain.select(rows))
    asked = annotate(pairs, judge, batch_size=batch_size, journal=journal, report=report)
    verdicts = {row[PLACE]: row for row in asked}
    found = {row: verdicts.get(place) for place, row in enumerate(rows)}
    relabeled = plain.map(
        lambda row, number: _with_verdict(row, found.get(number)),
        with_indices=True,
        features=labels.features,
        load_from_cache_file=False,
        desc="Writing labels",
    )
    if undecided == "drop":
        relabeled = relabeled.select([i for i in range(len(plain)) if i not in found or found[i]])
    return relabeled


def _least_confident(labels: Dataset, budget: float | int, source: str) -> list[int]:
    """Return rows of the source, the least confident first."""
    sources = labels["label_source"][:]
    rows = [i for i, name in enumerate(sources) if (name or "").startswith(source)]
    is_count = isinstance(budget, int) and not isinstance(budget, bool)
    if not (is_count and budget >= 0 or isinstance(budget, float) and 0 < budget <= 1):
        raise TrlRealError(f"budget={budget!r}: give a share in (0, 1] as a float, or a number of rows.")
    confidences = np.array(labels["label_confidence"][:], dtype=float)[rows]
    n = budget if is_count else round(budget * len(rows))
    return [rows[i] for i in np.argsort(confidences, kind="stable")[:n]]


def _as_pairs(labels: Dataset) -> Dataset:
    """Return the pairs for the judge, with the responses sorted by text."""

    def pair(numbered: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        place, row = numbered
        sides = sorted(SIDES[0], key=lambda side: text_of(row[side]))
        a, b = (text_of(row[side]) for side in sides)
        ended = [row.get(f"{side}_finished") is not False for side in sides]
        reasons = ["stop" if is_complete else UNFINISHED for is_complete in ended]
        texts = {"responses": [row[side] for side in sides], "response_a": a, "response_b": b}
        return {**{name: row[name] for name in read}, **texts, "pair": [0, 1], "finish_reasons": reasons, PLACE: place}

    read = {name: labels.features[name] for name in ("prompt", *TEMPLATE_COLUMNS) if name in labels.features}
    features = {**read, "responses": List(labels.features["chosen"]), **ASKED}
    return from_rows(map(pair, enumerate(iterate(labels))), features)


def _with_verdict(row: dict[str, Any], verdict: dict[str, Any] | None) -> dict[str, Any]:
    """Return the row with the verdict as its label; without a verdict, the unchanged row."""
    if verdict is None:
        return row
    swapped = text_of(verdict["chosen"]) != text_of(row["chosen"])
    swaps = {name: row[other] for pair in SIDES for name, other in (pair, pair[::-1]) if swapped and other in row}
    return {**row, **swaps, **{name: verdict[name] for name in ("label_confidence", "label_source")}}
