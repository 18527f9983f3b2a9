"""Metric for `evaluate`: the win rate of `trl_real.functional.statistics.win_rate`."""

# evaluate reads these imports with a regular expression: one absolute import per line.
import json
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.inputs import as_preferences, as_vector
from trl_real.functional.statistics.people import people_win_rate
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
    people: Optional; people's verdicts on the same rows, coded as `preferences`, nan where nobody was asked. The rates
        are then those by people, estimated with the help of the judge's `preferences`.
    inclusion_probabilities: Optional, with `people`; probability with which each row was drawn for people.
    confidence: Confidence level of the intervals, default 0.95; this and all further arguments in `compute` only.
    method: Method of the interval: "auto" (default), "wilson", "t", "score" or "bootstrap".
    seed: Seed of the bootstraps, default 42.
    difficulty: Optional; AlpacaEval's difficulty of its 805 instructions, if these are the rows, in its order.

Returns:
    `win_rate`, `standard_error`, `ci_low`, `ci_high` (fractions), `ci_method`, `n_wins`, `n_losses`, `n_ties`,
    `n_failed`, `n_total` (judged rows), `discrete_win_rate`, `win_rate_without_ties`; with both lengths,
    `equal_length_win_rate`, `equal_length_ci_low`, `equal_length_ci_high`, `matched_length_win_rate`,
    `n_matched_length`; with `difficulty`, `length_controlled_win_rate`. With `people`, the first four are by people,
    the counts are of people's verdicts (`n_failed` of the judge's), and `judge_win_rate`, `judge_ci_low`,
    `judge_ci_high`, `judge_bias`, `judge_weight`, `people_only_win_rate`, `people_only_ci_low`, `people_only_ci_high`,
    `effective_people` and `n_rows` come next to them.

Example:
    >>> metric = evaluate.load("pairwise_win_rate")
    >>> metric.compute(preferences=[1, 1, 0, 0.5, None])["win_rate"]
    0.625
"""


NOT_GIVEN = "null"
NO_PEOPLE = -1.0  # nan is a row on which nobody was asked
NUMBERS = ("lengths", "baseline_lengths", "people", "inclusion_probabilities")
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
                    "people": datasets.Value("float64"),
                    "inclusion_probabilities": datasets.Value("float64"),
                }
            ),
            license="Apache-2.0",
            reference_urls=["https://github.com/tatsu-lab/alpaca_eval"],
        )

    def compute(self, *, preferences: Sequence[float | None] | None = None, **inputs: Any) -> dict[str, Any] | None:
        """Compute the rates of all preferences, given here or added before; None on all processes except the first."""
        given = {name for name, value in inputs.items() if value is not None}  # `evaluate.combine` adds None
        unknown = sorted(given - {*OPTIONS, *NUMBERS, "clusters"})
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
        people: Sequence[float | None] | None = None,
        inclusion_probabilities: Sequence[float] | None = None,
    ) -> None:
        """Add a batch of preferences, with or without the optional inputs."""
        if preferences is None:
            raise TrlRealError(
                "No preferences in this call. Give lengths and clusters with the preferences of their rows."
            )
        values = as_preferences(preferences)
        given = dict(zip(NUMBERS, (lengths, baseline_lengths, people, inclusion_probabilities), strict=True))
        columns: dict[str, Any] = {name: None if v is None else as_vector(v, name) for name, v in given.items()}
        columns["people"] = None if people is None else as_preferences(people, "people")
        columns["clusters"] = None if clusters is None else _encode(clusters)
        for name, column in columns.items():
            if column is None:
                empty: Any = {"clusters": NOT_GIVEN, "people": NO_PEOPLE}.get(name)
                columns[name] = [empty] * len(values)
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
        people: float | None = NO_PEOPLE,
        inclusion_probabilities: float | None = None,
    ) -> None:
        """Add the preference of one row, with or without the optional inputs."""
        optional = {"lengths": [lengths], "baseline_lengths": [baseline_lengths], "clusters": [clusters]}
        optional["inclusion_probabilities"] = [inclusion_probabilities]
        optional |= {} if people == NO_PEOPLE else {"people": [people]}
        self.add_batch(preferences=[preferences], **optional)

    def _compute(self, *, preferences, people, **columns: Any) -> dict[str, Any]:
        found = {name: _given(columns.pop(name), name) for name in (*NUMBERS, "clusters") if name in columns}
        given: dict[str, Any] = {name: column for name, column in found.items() if column is not None}
        left_out = [value == NO_PEOPLE for value in people]
        if all(left_out):
            if "inclusion_probabilities" in given:
                raise TrlRealError("inclusion_probabilities came without people. Give people, nan where not asked.")
            return win_rate(preferences, **given, **columns)
        if any(left_out):
            raise TrlRealError(f"people row {left_out.index(True)} is missing. Give people, nan where not asked.")
        unused = sorted({"lengths", "baseline_lengths", "seed", "difficulty"} & {*given, *columns})
        if unused:
            raise TrlRealError(f"{unused[0]} is for rates of the judge alone. Leave it out with people.")
        return people_win_rate(preferences, people, **given, **columns)


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
