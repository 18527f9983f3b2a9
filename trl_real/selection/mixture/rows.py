"""Kept rows of a mixture: the columns of the part that took each row."""

from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from trl_real.data.columns import MIXTURE_COLUMNS, OWN_FEATURES
from trl_real.selection.budget import budget_size
from trl_real.selection.mixture.shares import Scored, Taken, take_shares
from trl_real.selection.scorer import PairScorer
from trl_real.selection.scoring_columns import SCORING_FEATURES, numbers, of_part, part_column, vectors


def decide_mixture(selector: PairScorer, scored: Dataset, budget: float | int | None) -> Taken:
    """Return the rows that each part takes of the rows of a scoring pass."""
    parts = []
    for j, part in enumerate(selector.parts):
        differences = vectors(scored, part_column("_difference", j)) if part.rule.budget else []
        keys = vectors(scored, part_column("_responses", j)) if any(part.once for part in selector.parts) else []
        responses = np.stack(keys) if keys else None
        parts.append(Scored(numbers(scored, part_column("_score", j)), differences, responses))
    return take_shares(selector.parts, parts, budget_size(budget, int(np.isfinite(parts[0].scores).sum())))


def rows_of_parts(selector: PairScorer, scored: Dataset, taken: Taken) -> Dataset:
    """
    Return the columns that the selector adds, one row per row of the scoring pass: in a row that a part took, those of
    that part and `MIXTURE_COLUMNS`.
    """
    names = [name for name in OWN_FEATURES if name in scored.column_names]
    n = len(scored)
    part, by, probability = np.zeros(n, int), np.full(n, "", dtype=object), np.full(n, np.nan, np.float32)
    part[taken.rows], probability[taken.rows] = taken.parts, taken.probabilities
    by[taken.rows] = [selector.parts[j].name for j in taken.parts]
    if n:
        each = concatenate_datasets([of_part(scored, j, names) for j in range(len(selector.parts))])
        scored = each.select(part * n + np.arange(n)).flatten_indices()
    scored = scored.remove_columns([name for name in SCORING_FEATURES if name in scored.column_names])
    added = {"selected_by": by.tolist(), "selection_probability": probability}
    mine = Dataset.from_dict(added, features=Features({name: OWN_FEATURES[name] for name in MIXTURE_COLUMNS}))
    return concatenate_datasets([scored, mine], axis=1) if n else _empty(names)


def kept_by_part(selector: PairScorer, taken: Taken) -> dict[str, dict[str, Any]]:
    """Return share, number of rows and, where it is known, probability of each part, for the record."""
    found = {}
    for j, part in enumerate(selector.parts):
        own = taken.probabilities[taken.parts == j]
        found[part.name] = {"share": part.share, "kept": len(own)}
        if len(own) and np.isfinite(own[0]):
            found[part.name]["probability"] = float(own[0])
    return found


def _empty(names: list[str]) -> Dataset:
    features = Features({name: OWN_FEATURES[name] for name in (*names, *MIXTURE_COLUMNS)})
    return Dataset.from_dict({name: [] for name in features}, features=features)
