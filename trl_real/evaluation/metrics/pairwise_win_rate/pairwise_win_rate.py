"""Metric for `evaluate`: the win rate of `trl_real.functional.statistics.win_rate`."""

# evaluate reads these imports with a regular expression: one absolute import per line.
import json
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.inputs import as_preferences, as_vector
from trl_real.functional.statistics.win_rate import win_rate


_DESCRIPTION = """
Win rate of a model against a baseline, judged pair by pair, with its standard error and confidence interval. Ties
count half; pairs without a verdict are counted separately and left out.
"""

_CITATION = """
@misc{alpaca_eval,
    author = {Xuechen Li and Tianyi Zhang and Yann Dubois and Rohan Taori and Ishaan Gulrajani and Carlos Guestrin and
        Percy Liang and Tatsunori B. Hashimoto},
    title = {AlpacaEval: An Automatic Evaluator of Instruction-following Models},
    year = {2023},
    howpublished = {https://github.com/tatsu-lab/alpaca_eval},
}
@article{dubois2024length,
    author = {Yann Dubois and Balazs Galambosi and Percy Liang and Tatsunori B. Hashimoto},
    title = {Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators},
    journal = {arXiv preprint arXiv:2404.04475},
    year = {2024},
}
"""

_INPUTS = """
Args:
    preferences: Probability in [0, 1] that the model's response beats the baseline's: 1 a win, 0 a loss, 0.5 a tie,
        None or nan not judged.
    lengths: Optional; characters of the model's responses.
    baseline_lengths: Optional; characters of the baseline's responses. With `lengths`.
    clusters: Optional; prompt ids (text or numbers), for several rows a prompt.
    confidence: Confidence level of the intervals, default 0.95; this and all further arguments in `compute` only.
    method: Method of the interval: "auto" (default), "wilson", "t", "score" or "bootstrap".
    seed: Seed of the bootstraps, default 42.
    difficulty: Optional; AlpacaEval's difficulty of its 805 instructions, if these are the rows, in its order.

Returns:
    `win_rate`, `standard_error`, `ci_low`, `ci_high` (fractions), `ci_method`, `n_wins`, `n_losses`, `n_ties`,
    `n_failed`, `n_total` (judged rows), `discrete_win_rate`, `win_rate_without_ties`; with both lengths,
    `equal_length_win_rate`, `equal_length_ci_low`, `equal_length_ci_high`, `matched_length_win_rate`,
    `n_matched_length`; with `difficulty`, `length_controlled_win_rate`.

Example:
    >>> metric = evaluate.load("pairwise_win_rate")
    >>> metric.compute(preferences=[1, 1, 0, 0.5, None])["win_rate"]
    0.625
"""


NOT_GIVEN = "null"
# Arguments of `compute` besides the columns.
OPTIONS = ("confidence", "method", "seed", "difficulty")


class PairwiseWinRate(evaluate.Metric):
    """
    Metric that collects preferences (`add`, `add_batch`, `compute`, also over several processes) and computes rates.

    The optional inputs are ordinary columns, empty if not given. Pass them to `add_batch` or `compute`, together with
    the preferences of their rows.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "preferences": datasets.Value("float64"),
                    "lengths": datasets.Value("float64"),
                    "baseline_lengths": datasets.Value("float64"),
                    "clusters": datasets.Value("string"),
                }
            ),
            license="Apache-2.0",
            reference_urls=["https://github.com/tatsu-lab/alpaca_eval"],
        )

    def compute(self, *, preferences: Sequence[float | None] | None = None, **inputs: Any) -> dict[str, Any] | None:
        """Compute the rates of all preferences, given here or added before; None on all processes except the first."""
        given = {name for name, value in inputs.items() if value is not None}  # `evaluate.combine` adds None
        unknown = sorted(given - {*OPTIONS, "lengths", "baseline_lengths", "clusters"})
        if unknown:
            raise TrlRealError(f"Unknown option {unknown[0]!r}. Besides the columns, use {', '.join(OPTIONS)}.")
        if self.num_process == 1 and not len(self) and (preferences is None or not len(preferences)):
            raise TrlRealError("No preferences: 0 rows were added. Give at least one: compute(preferences=[…]).")
        return super().compute(preferences=preferences, **inputs)

    def add_batch(
        self,
        *,
        preferences: Sequence[float | None] | None = None,
        lengths: Sequence[float] | None = None,
        baseline_lengths: Sequence[float] | None = None,
        clusters: Sequence[Any] | None = None,
    ) -> None:
        """Add a batch of preferences, with or without the optional inputs."""
        if preferences is None:
            raise TrlRealError(
                "No preferences in this call. Give lengths and clusters with the preferences of their rows."
            )
        values = as_preferences(preferences)
        columns: dict[str, Any] = {
            "lengths": None if lengths is None else as_vector(lengths, "lengths"),
            "baseline_lengths": None if baseline_lengths is None else as_vector(baseline_lengths, "baseline_lengths"),
            "clusters": None if clusters is None else _encode(clusters),
        }
        for name, column in columns.items():
            if column is None:
                columns[name] = [NOT_GIVEN if name == "clusters" else None] * len(values)
            elif len(column) != len(values):
                raise TrlRealError(f"{len(column)} {name} came with {len(values)} preferences. Give one a row.")
        super().add_batch(preferences=values, **columns)

    def add(
        self,
        *,
        preferences: float | None,
        lengths: float | None = None,
        baseline_lengths: float | None = None,
        clusters: Any = None,
    ) -> None:
        """Add the preference of one row, with or without the optional inputs."""
        optional = {"lengths": [lengths], "baseline_lengths": [baseline_lengths], "clusters": [clusters]}
        self.add_batch(preferences=[preferences], **optional)

    def _compute(self, *, preferences, lengths, baseline_lengths, clusters, **options: Any) -> dict[str, Any]:
        return win_rate(
            preferences,
            clusters=_given(clusters, "clusters"),
            lengths=_given(lengths, "lengths"),
            baseline_lengths=_given(baseline_lengths, "baseline_lengths"),
            **options,
        )


def _encode(clusters: Sequence[Any]) -> list[str]:
    """Encode ids as JSON: evaluate accepts no None among texts, and 1, "1" and "" must stay different prompts."""
    clusters = clusters.tolist() if hasattr(clusters, "tolist") else clusters
    return [json.dumps(name.item() if hasattr(name, "item") else name, default=str) for name in clusters]


def _given(column: Sequence[Any], name: str) -> Sequence[Any] | None:
    """Return a column that was given for every row; None if it was not given."""
    missing = [value is None or value != value or value == NOT_GIVEN for value in column]
    if all(missing):
        return None
    if any(missing):
        raise TrlRealError(f"{name} row {missing.index(True)} is missing. Give {name} for every row, or for none.")
    return column
