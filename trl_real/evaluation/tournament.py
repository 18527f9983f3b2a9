"""Tournament: several models against each other, on the same prompts and with the same judge."""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from trl_real.errors import TrlRealError
from trl_real.evaluation.compare import compare_columns
from trl_real.evaluation.comparison import Comparison
from trl_real.functional.statistics.paired import PairedComparison, holm
from trl_real.functional.statistics.ranking import Ranking, bradley_terry_ranking
from trl_real.labeling.verdicts import Judge


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Tournament:
    """
    Result of a tournament.

    Args:
        comparisons: One comparison for each pair of models that met.
        ranking: All models on one scale (Bradley and Terry), with intervals from a bootstrap of prompts.
        against_reference: Paired comparison of each two models that met the reference, by their names, with the
            p-value of its sign test, corrected for the number of tests (Holm).
    """

    comparisons: list[Comparison]
    ranking: Ranking
    against_reference: dict[tuple[str, str], tuple[PairedComparison, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        paired = [
            {"models": list(names), **test.to_dict(), "holm": p} for names, (test, p) in self.against_reference.items()
        ]
        comparisons = [comparison.to_dict() for comparison in self.comparisons]
        return {"ranking": self.ranking.to_dict(), "comparisons": comparisons, "paired": paired}


def tournament(
    dataset: "Dataset",
    judge: Judge,
    models: list[str],
    *,
    reference: str | None = None,
    everyone: bool = True,
    rounds: int = 1000,
    seed: int = 42,
    **options: Any,
) -> Tournament:
    """
    Compare several columns of completions.

    Args:
        dataset: Rows with a prompt and the completions.
        judge: Judge for every pair of models on every prompt.
        models: Columns of completions, at least two.
        reference: Model with the rating 1000; by default the last.
        everyone: Whether all pairs of models meet; otherwise each model meets only the reference, with fewer verdicts
            and wider intervals.
        rounds: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        **options: Arguments of `compare_columns`: `prompt`, `confidence`, ….

    Raises:
        TrlRealError: If there are fewer than two models, or the reference is not one of them.
    """
    reference = models[-1] if reference is None and models else reference
    if len(set(models)) < 2 or reference not in models:
        raise TrlRealError(f"models={models}, reference={reference!r}. Give two columns or more, and one of them.")
    others = [name for name in dict.fromkeys(models) if name != reference]
    meetings = [(name, reference) for name in others] + (list(combinations(others, 2)) if everyone else [])
    found = [compare_columns(dataset, judge, model=a, baseline=b, seed=seed, **options) for a, b in meetings]
    rows = [(c.model, c.baseline, p, prompt) for c in found for p, prompt in zip(*_judged(c), strict=True)]
    first, second, preferences, prompts = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    confidence = options.get("confidence", 0.95)
    chosen = {"reference": reference, "confidence": confidence, "rounds": rounds, "seed": seed}
    ranking = bradley_terry_ranking(first, second, preferences, prompts=prompts, **chosen)
    return Tournament(found, ranking, _paired(found[: len(others)], seed))


def _judged(comparison: Comparison) -> tuple[list[float], list[str]]:
    return comparison.rows["preference"], comparison.rows["prompt"]


def _paired(met_reference: list[Comparison], seed: int) -> dict[tuple[str, str], tuple[PairedComparison, float]]:
    """Compare each two models by their results against the reference."""
    tests = {(a.model, b.model): a.against(b, seed) for a, b in combinations(met_reference, 2)}
    corrected = holm([test.sign_p for test in tests.values()]) if tests else []
    return {names: (test, float(p)) for (names, test), p in zip(tests.items(), corrected, strict=True)}
