"""Facts for the report besides the curves: similarities, examples at the cut, agreement by similarity, recipe."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trl_real.data.conversation import text_of
from trl_real.functional.bradley_terry import left_out_margins, tune_bradley_terry
from trl_real.functional.similarity import pair_similarity
from trl_real.functional.statistics.agreement_by_similarity import agreement_by_similarity
from trl_real.selection.record import describe_similarity, library_versions
from trl_real.study.arms import MixedPairs, ScoredPairs
from trl_real.study.frozen import FrozenCells
from trl_real.study.grid import Cell
from trl_real.study.learning_arms import LEARNING
from trl_real.study.pool import StudyPool, pair_vectors
from trl_real.study.results import RANDOM


N_EXAMPLES = 2
LEFT_OUT = "a Bradley-Terry model on frozen embeddings, fitted without the pair (leave-one-out)"
SECOND_OPINION = "a second annotator"


def describe(
    frozen: FrozenCells, arms: Sequence[str], budgets: Sequence[float | int], seed: int, everything: StudyPool
) -> dict[str, Any]:
    """
    Collect facts for the report, as plain JSON values. The shown selections are those of the seed at the middle
    budget; `everything` includes the test rows.
    """
    selector = frozen.selector
    budget = budgets[(len(budgets) - 1) // 2]
    chosen = [arm for arm in arms if arm != RANDOM and arm not in LEARNING]
    scored = {arm: selector.scored_pairs(arm, seed) for arm in chosen}
    return {
        "n_pool": selector.n_pool(),
        "n_test": frozen.n_test,
        "histograms": {arm: _histogram(scored[arm], budget) for arm in chosen},
        "examples": {arm: _examples(selector.pool, scored[arm], budget) for arm in chosen},
        "agreement": _agreement(frozen, seed),
        "recipe": {
            "rows with a pair": len(everything),
            "rows skipped": {str(reason): n for reason, n in (everything.skipped or {}).items()},
            "prompts": len(set(everything.prompt_keys())),
            "responses": sum(len(row.texts) for row in everything.rows),
            "shown selection": f"budget {budget:g}, seed {seed}",
            "versions": library_versions(),
        },
    }


def _histogram(pairs: ScoredPairs | MixedPairs, budget: float | int) -> dict[str, list]:
    return describe_similarity(pairs.similarity, pairs.similarity[pairs.selected(budget)])["histogram"]


def _examples(pool: StudyPool, pairs: ScoredPairs | MixedPairs, budget: float | int) -> list[dict[str, Any]]:
    """Return the pairs on both sides of the cut: the last ones kept, the first ones not; none of a mixture."""
    if isinstance(pairs, MixedPairs):
        return []
    order = np.argsort(pairs.scores, kind="stable")
    bought = np.isin(order, pairs.selected(budget))
    ends = {"just kept": order[bought][-N_EXAMPLES:], "just left out": order[~bought][:N_EXAMPLES]}
    return [_example(pool, pairs, int(i), where) for where, places in ends.items() for i in places]


def _example(pool: StudyPool, pairs: ScoredPairs, i: int, where: str) -> dict[str, Any]:
    row = pool.rows[pairs.places[i]]
    texts = [(f"response {side}", row.texts[k]) for side, k in zip("ab", pairs.pairs[i], strict=True)]
    prompt = text_of(row.prompt) if row.prompt else ""
    return {"where": where, "similarity": float(pairs.similarity[i]), "prompt": prompt, "texts": texts}


def _agreement(frozen: FrozenCells, seed: int) -> dict[str, list]:
    """Return agreement by second opinion: a model that has not seen the pair, and a column if there is one."""
    labeled = frozen.selector.labeled(Cell(RANDOM, 1.0, seed))
    vectors = frozen.selector.vectors
    if len(labeled.places) < 2:
        return {}
    similarity = pair_similarity(*pair_vectors(vectors, labeled.places, labeled.pairs)).numpy()
    differences = frozen.selector.differences(labeled.places, labeled.pairs)
    fit, _ = tune_bradley_terry(differences)
    verdicts = torch.sigmoid(left_out_margins(differences, fit)).numpy()
    found = {LEFT_OUT: agreement_by_similarity(similarity, verdicts)}
    opinions = frozen.selector.pool.opinions
    if opinions is not None:
        found[SECOND_OPINION] = agreement_by_similarity(similarity, opinions[labeled.places])
    return found
