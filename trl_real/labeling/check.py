"""Check of a judge against known labels, before it is used."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from trl_real.data.checks.row_check import check_texts
from trl_real.data.convert import iterate
from trl_real.data.pairs import preference_candidates
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.functional.statistics.alternative_annotator import AnnotatorTest, alternative_annotator_test
from trl_real.functional.statistics.calibration import (
    brier_score,
    calibration_error,
    calibration_temperature,
    log_loss,
)
from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.verdicts import TIE, Judge, Report, Verdict, VerdictSummary, ask, drawn_swap, name_of, summarize


PREFERENCE = "preference"


@dataclass
class JudgeCheck(Report):
    """
    Agreement of a judge with known labels.

    Args:
        judge: Name of the judge.
        n: Number of pairs that both the labels and the judge decided.
        accuracy: Share of these pairs with the same winner; NaN if `n` is 0.
        ci_low, ci_high: Wilson interval.
        n_label_ties: Number of pairs that the labels call a tie.
        n_undecided: Number of labelled pairs that the judge called a tie or failed on.
        prefers_longer: Share of the decided pairs of unequal length for which the judge prefers the longer response.
        label_prefers_longer: Share of the same pairs for which the label prefers the longer response.
        calibration: Temperature with which the probabilities fit the labels best: `ChatJudge(calibration=…)`.
        loss, calibrated_loss: Mean log loss before and after calibration, in nats; a coin has log 2 = 0.693.
        brier: Mean squared distance of the probabilities from the labels; a coin has 0.25.
        calibration_error: Expected calibration error in [0, 1], over 10 bins.
        verdicts: Ties, failures, position bias, tokens and cost.
        confidence: Level of the interval.
        n_skipped: Number of rows without two different responses, or without a label.
        annotators: Alternative annotator test, if votes of people were given.
    """

    judge: str
    n: int
    accuracy: float
    ci_low: float
    ci_high: float
    n_label_ties: int
    n_undecided: int
    prefers_longer: float
    label_prefers_longer: float
    calibration: float
    loss: float
    calibrated_loss: float
    verdicts: VerdictSummary
    confidence: float = 0.95
    n_skipped: int = 0
    annotators: AnnotatorTest | None = None
    brier: float = math.nan
    calibration_error: float = math.nan

    def words(self) -> str:
        """Return a summary of a few lines."""
        lines = [
            f"{self.judge}: accuracy {self.accuracy:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}] on {self.n} pairs "
            f"({self.n_undecided} undecided, {self.n_label_ties} ties among the labels)",
            f"prefers the longer response in {self.prefers_longer:.0%} of them, the labels in "
            f"{self.label_prefers_longer:.0%}",
            f"calibration temperature {self.calibration:.3g}: log loss {self.loss:.3f} before, "
            f"{self.calibrated_loss:.3f} after (a coin has 0.693)",
            f"Brier score {self.brier:.3f} (a coin has 0.25), expected calibration error {self.calibration_error:.3f}",
            self.verdicts.words(),
        ]
        if self.ci_low <= TIE:
            lines.insert(1, "here it is not better than a coin: do not label with it")
        lines.append(self.annotators.words() if self.annotators else "")
        return "\n".join(filter(None, lines))


def check_judge(
    dataset: Dataset,
    judge: Judge,
    *,
    people: Any = None,
    epsilon: float = 0.1,
    confidence: float = 0.95,
    batch_size: int = 256,
    seed: int = 42,
) -> JudgeCheck:
    """
    Compare a judge with known labels.

    Args:
        dataset: TRL's preference format (`prompt`, `chosen`, `rejected`, the prompt explicit or implied), or
            `prompt`, `response_a`, `response_b` and `preference`: 1 if `response_a` is better, 0 if `response_b` is,
            0.5 for a tie. With `people`, `preference` may be missing: it is then the majority of the votes.
        judge: Any judge that reads texts. The seed and the texts decide which response is `response_a`.
        people: Votes of several annotators on these pairs, a `VotesJudge`: adds the alternative annotator test, which
            says whether the judge may replace them.
        epsilon: Advantage that the test grants the judge, see
            `trl_real.functional.statistics.alternative_annotator.alternative_annotator_test`.
        confidence: Level of the interval.
        batch_size: Number of rows per call of the judge.
        seed: Seed of the sides.

    Raises:
        MissingColumnError: If the dataset has neither format.
        TrlRealError: If a preference is not 0, 0.5 or 1, or there is nothing to compare.
    """
    if people is not None and {"chosen", PREFERENCE}.isdisjoint(dataset.column_names):
        dataset = _with_majority(dataset, people)
    rows, n_skipped = _labeled_rows(dataset, seed)
    if not rows:
        raise TrlRealError("No row has a prompt, two different responses and a label. Give labelled pairs.")
    verdicts: list[Verdict] = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batch = {name: [row[name] for row in some] for name in ("prompt", "response_a", "response_b")}
        verdicts += ask(judge, batch, range(start, start + len(some)))
    found = _compared(name_of(judge), rows, verdicts, confidence, n_skipped)
    if people is not None:
        columns = {name: [row[name] for row in rows] for name in ("prompt", "response_a", "response_b")}
        votes = np.array([verdict.members for verdict in people.verdicts(columns)], dtype=float).T  # (R, P)
        probabilities = np.array([verdict.probability for verdict in verdicts])
        found.annotators = alternative_annotator_test(probabilities, votes, epsilon)
    return found


def _with_majority(dataset: Dataset, people: Any) -> Dataset:
    """Add the majority of the votes as `preference`, None for a pair without a vote."""
    missing = [name for name in ("prompt", "response_a", "response_b") if name not in dataset.column_names]
    if missing:
        raise MissingColumnError(missing[0], dataset.column_names, "Give the pairs that people voted on.")
    sides: dict[str, float | None] = {"a": 1.0, "b": 0.0, "tie": TIE, "failed": None}
    return dataset.add_column(PREFERENCE, [sides[verdict.outcome] for verdict in people.verdicts(dataset[:])])


def _compared(
    judge: str, rows: list[dict[str, Any]], verdicts: list[Verdict], confidence: float, n_skipped: int
) -> JudgeCheck:
    targets = np.array([row[PREFERENCE] for row in rows])
    probabilities = np.array([verdict.probability for verdict in verdicts])
    longer = np.sign([len(row["response_a"]) - len(row["response_b"]) for row in rows])
    labeled, known = targets != TIE, ~np.isnan(probabilities)
    both = labeled & known & (probabilities != TIE)
    n, n_agree = int(both.sum()), int(((probabilities > TIE) == (targets > TIE))[both].sum())
    low, high = wilson_interval(n_agree, n, confidence) if n else (math.nan, math.nan)
    temperature = calibration_temperature(probabilities[known], targets[known])
    return JudgeCheck(
        judge=judge,
        n=n,
        accuracy=n_agree / n if n else math.nan,
        ci_low=low,
        ci_high=high,
        n_label_ties=int((~labeled).sum()),
        n_undecided=int(labeled.sum()) - n,
        prefers_longer=_share_longer(probabilities, longer, both),
        label_prefers_longer=_share_longer(targets, longer, both),
        calibration=temperature,
        loss=log_loss(probabilities[known], targets[known]) if known.any() else math.nan,
        calibrated_loss=log_loss(probabilities[known], targets[known], temperature) if known.any() else math.nan,
        verdicts=summarize(verdicts),
        confidence=confidence,
        n_skipped=n_skipped,
        brier=brier_score(probabilities[known], targets[known]),
        calibration_error=calibration_error(probabilities[known], targets[known]),
    )


def _share_longer(probabilities: np.ndarray, longer: np.ndarray, both: np.ndarray) -> float:
    """Return the share of decided pairs of unequal length in which the longer response wins."""
    unequal = both & (longer != 0)
    return float((np.sign(probabilities - TIE) == longer)[unequal].mean()) if unequal.any() else math.nan


def _labeled_rows(dataset: Dataset, seed: int) -> tuple[list[dict[str, Any]], int]:
    columns = set(dataset.column_names)
    if {"chosen", "rejected"} <= columns:
        found = _from_preferences(dataset, seed)
    elif {"prompt", "response_a", "response_b", PREFERENCE} <= columns:
        found = _from_pairs(dataset)
    else:
        fix = "Give 'prompt', 'chosen' and 'rejected', or 'prompt', 'response_a', 'response_b' and 'preference'."
        raise MissingColumnError("chosen", columns, fix)
    rows = list(found)
    kept = [row for row in rows if row]
    return kept, len(rows) - len(kept)


def _from_preferences(dataset: Dataset, seed: int) -> Iterator[dict[str, Any]]:
    check_texts(dataset, (), optional=("prompt", "chosen", "rejected"))
    for row in iterate(dataset):
        pair = preference_candidates(row.get("prompt"), row["chosen"], row["rejected"])
        if pair.skipped:
            yield {}
            continue
        chosen, rejected = pair.texts
        swapped = drawn_swap(chosen, rejected, seed)
        a, b = (rejected, chosen) if swapped else (chosen, rejected)
        yield {"prompt": pair.prompt, "response_a": a, "response_b": b, PREFERENCE: float(not swapped)}


def _from_pairs(dataset: Dataset) -> Iterator[dict[str, Any]]:
    check_texts(dataset, ("prompt",), optional=("response_a", "response_b"))
    for number, row in enumerate(iterate(dataset)):
        values = [row[name] for name in ("response_a", "response_b", PREFERENCE)]
        if None in values or values[0] == values[1]:
            yield {}
            continue
        if row[PREFERENCE] not in (0, TIE, 1):
            raise TrlRealError(
                f"Row {number} of 'preference' is {row[PREFERENCE]!r}. Give 1 if response_a is better, 0 if "
                "response_b is, 0.5 for a tie."
            )
        yield row
