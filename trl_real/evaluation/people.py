"""People in a comparison: draw the pairs for them, ask them, and estimate the win rate by their verdicts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.evaluation.checks import Doubt
from trl_real.functional.statistics.people import people_win_rate
from trl_real.functional.statistics.rectified import PeopleSample, estimate_interval, rectified_mean
from trl_real.functional.statistics.sampling import UNIFORM_SHARE, draw_rows, uncertainty
from trl_real.labeling.people.votes import VotesJudge, pair_key
from trl_real.labeling.verdicts import TIE, Judge, ask, name_of
from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.runtime.digests import sha256


INCLUSION = "inclusion_probability"
NOT_LABELLED = "not labelled"
SHOWN = ("prompt", "response_a", "response_b")
DRAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"uncertainty": uncertainty, "uniform": np.zeros_like}
FEW_VOTES = 30

Batches = Callable[[], Iterator[dict[str, list]]]


@dataclass(frozen=True)
class People:
    """
    People who judge some pairs of a comparison.

    Args:
        votes: Votes file or judge that reads it, or a judge that asks people, such as `PageJudge`.
        n: Number of pairs to draw for them; identical completions are no pairs. None: every pair with a verdict
            counts, with the dataset's column `inclusion_probability` if it has one, else as a uniform sample.
        by: Name in `DRAWS`: `"uncertainty"` of the judge, half of the draw uniform, or `"uniform"`.
        strata: Column with the source of each prompt; each source gets its share of the pairs.
        uniform_share: Share of the draw by uncertainty that is uniform.
        draw: Path of a file that keeps the draw's scores, so that it stays the same if the judge's verdicts change.
        seed: Seed of the draw, combined with prompts and texts.
        on_draw: Function that receives the drawn pairs (`prompt`, `response_a`, `response_b`, `pair`,
            `inclusion_probability`) before people are asked.

    Raises:
        TrlRealError: If `n` or `by` is out of range.
    """

    votes: Judge | str | Path
    n: int | None = None
    by: str = "uncertainty"
    strata: str | None = None
    uniform_share: float = UNIFORM_SHARE
    draw: str | Path | None = None
    seed: int = 42
    on_draw: Callable[[Dataset], None] | None = None

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise TrlRealError(f"n={self.n} pairs cannot be drawn for people. Give 1 or more.")
        if self.by not in DRAWS:
            raise TrlRealError(f"Unknown draw {self.by!r}: choose from {', '.join(DRAWS)}.")


class PeopleVerdicts(NamedTuple):
    """
    People's verdicts on the rows of a comparison.

    Args:
        name: Name of the people's judge.
        values: Verdict of each row; a tie for identical completions, NaN where nobody decided. Shape `(N,)`.
        probabilities: Inclusion probability of each row, times the share of the drawn pairs that people decided.
            Shape `(N,)`.
        n_asked: Number of distinct pairs for people.
        n_skipped: Number of these that people skipped.
        n_open: Number of these without a vote yet.
    """

    name: str
    values: np.ndarray
    probabilities: np.ndarray
    n_asked: int
    n_skipped: int
    n_open: int

    def columns(self) -> dict[str, list]:
        """Return the columns of `Comparison.rows`."""
        return {"people": self.values.tolist(), INCLUSION: self.probabilities.tolist()}

    def doubts(self) -> list[Doubt]:
        """Return reasons to doubt the estimate."""
        n_decided, found = self.n_asked - self.n_skipped - self.n_open, []
        if self.n_open:
            words = (
                f"{self.n_open} of {self.n_asked} pairs for people have no vote yet: they count as missing at random"
            )
            found.append(Doubt("open votes", words))
        if n_decided < FEW_VOTES:
            words = f"people decided {n_decided} pairs: with fewer than {FEW_VOTES} the interval is a rough one"
            found.append(Doubt("few votes", words))
        return found


def ask_people(
    people: "People | Judge | str | Path", batches: Batches, preferences: np.ndarray, same: np.ndarray
) -> PeopleVerdicts:
    """
    Draw the pairs for people, and ask for their verdicts.

    Args:
        people: People, or their votes alone.
        batches: Function that yields the batches that the judge got, in order.
        preferences: Verdicts of the judge, NaN for none. Shape `(N,)`.
        same: Whether the two completions of a row are identical. Shape `(N,)`, bool.

    Raises:
        MissingColumnError: If the column of strata is missing.
        TrlRealError: If the votes cannot be read, or `people.draw` holds a draw of other rows or settings.
    """
    people = people if isinstance(people, People) else People(people)
    judge = VotesJudge(people.votes) if isinstance(people.votes, str | Path) else people.votes
    chances, rows_of = _drawn(people, batches, preferences, same)
    columns: dict[str, list] = {name: [value for batch in batches() for value in batch[name]] for name in SHOWN}
    firsts = [rows[0] for rows in rows_of.values()]
    shown = {name: [column[row] for row in firsts] for name, column in columns.items()}
    if people.on_draw is not None:
        drawn = {**shown, "pair": [[0, 1]] * len(firsts), INCLUSION: chances[firsts].tolist()}
        people.on_draw(Dataset.from_dict(drawn))
    verdicts = ask(judge, shown, firsts) if firsts else []
    values = np.where(same, TIE, np.nan)
    for rows, verdict in zip(rows_of.values(), verdicts, strict=True):
        for row in rows:
            swapped = columns["response_a"][row] != columns["response_a"][rows[0]]
            values[row] = 1 - verdict.probability if swapped else verdict.probability
    n_open = sum(verdict.failure == NOT_LABELLED for verdict in verdicts)
    n_skipped = sum(verdict.outcome == "failed" for verdict in verdicts) - n_open
    n_drawn = len(verdicts) - (n_open if people.n is None else 0)  # without a draw, only pairs with a vote were asked
    n_decided = len(verdicts) - n_open - n_skipped
    if verdicts and not n_decided:
        values[:] = np.nan  # identical completions alone say nothing about the others
    # Where people gave no verdict on a drawn pair, the other pairs stand for it.
    chances[~same] *= max(n_decided, 1) / max(n_drawn, 1)
    if people.n is None:
        n_open = 0
    return PeopleVerdicts(name_of(judge), values, chances, n_drawn, n_skipped, n_open)


def people_rates(
    people: PeopleVerdicts, preferences: np.ndarray, prompts: Sequence[Any], same: np.ndarray, **options: Any
) -> dict[str, Any]:
    """
    Return the result of `people_win_rate`, with the judge's accuracy on the pairs that both decided, weighted to stand
    for all pairs (`judge_accuracy`, `judge_accuracy_low`, `judge_accuracy_high`), `n_asked`, `n_skipped` and `n_open`.
    """
    rates = people_win_rate(preferences, people.values, people.probabilities, clusters=prompts, **options)
    decided = ~same & (preferences != TIE) & (people.values != TIE)
    agree = np.where(decided, 1.0 - np.abs(np.sign(preferences - TIE) - np.sign(people.values - TIE)) / 2, np.nan)
    _, groups = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    sample = PeopleSample(np.zeros(len(agree)), agree, people.probabilities, groups)
    found = rectified_mean(sample, weight=0.0)
    low, high, _ = estimate_interval(found, sample, options.get("confidence", 0.95))
    accuracy = {"judge_accuracy": found.mean, "judge_accuracy_low": low, "judge_accuracy_high": high}
    return {**rates, **accuracy, "n_asked": people.n_asked, "n_skipped": people.n_skipped, "n_open": people.n_open}


def _drawn(
    people: People, batches: Batches, preferences: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Return the inclusion probability of each row, shape `(N,)`, and the rows of each pair for people, by name."""
    names, turns, strata, given = _names(people, batches)
    chances = np.ones(len(names))
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(~same).tolist():
        rows_of.setdefault(names[row], []).append(row)
    if people.n is None or not rows_of:
        if given is not None:
            chances[~same] = given[~same]
        return chances, rows_of
    firsts = [rows[0] for rows in rows_of.values()]
    scores = _kept_scores(people, dict(zip(rows_of, DRAWS[people.by](preferences[firsts]).tolist(), strict=True)))
    drawn = draw_rows(
        scores,
        _uniform(people.seed, [turns[row] for row in firsts]),
        people.n,
        uniform_share=people.uniform_share,
        strata=[strata[row] for row in firsts] if strata else None,
    )
    for rows, chance in zip(rows_of.values(), drawn.inclusion_probabilities, strict=True):
        chances[rows] = chance
    by_number = list(rows_of.items())
    return chances, dict(by_number[i] for i in sorted(drawn.rows.tolist()))


def _names(people: People, batches: Batches) -> tuple[list[str], list[str], list[Any], np.ndarray | None]:
    """
    Return each row's name (of its pair, in either order), the text that its number is drawn from, its stratum, and its
    given inclusion probability.

    Numbers are drawn by prompt, so that several models are judged by people on the same prompts; the pairs of one
    prompt are numbered by their names.
    """
    names, prompts, strata, given = [], [], [], []
    for batch in batches():
        if people.strata is not None and people.strata not in batch:
            raise MissingColumnError(people.strata, batch, "Name the column with the source of each prompt.")
        for prompt, a, b in zip(*(batch[name] for name in SHOWN), strict=True):
            names.append(min(pair_key(prompt, a, b), pair_key(prompt, b, a)))
            prompts.append(pair_key(prompt, "", ""))
        strata += batch[people.strata] if people.strata else []
        given += batch.get(INCLUSION, [])
    groups: dict[str, set[str]] = {}
    for prompt, name in zip(prompts, names, strict=True):
        groups.setdefault(prompt, set()).add(name)
    places = {(prompt, name): i for prompt, group in groups.items() for i, name in enumerate(sorted(group))}
    turns = [f"{prompt} {places[prompt, name]}" for prompt, name in zip(prompts, names, strict=True)]
    return names, turns, strata, np.array(given, dtype=float) if given else None


def _kept_scores(people: People, scores: dict[str, float]) -> list[float]:
    """
    Return the scores of the draw: those in the file of an earlier draw, or these, which are then written there.

    Raises:
        TrlRealError: If the file holds a draw of other rows or settings.
    """
    if people.draw is None:
        return list(scores.values())
    file = Path(people.draw)
    kept = ("by", "strata", "uniform_share", "seed")
    settings = {name: getattr(people, name) for name in kept}
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**settings, "scores": scores})
    found = read_json(file)
    for name in kept:
        if found.get(name) != settings[name]:
            raise TrlRealError(
                f"{str(file)!r} keeps a draw with {name}={found.get(name)!r}, not {settings[name]!r}. Use the same "
                "settings, so that the votes count, or another folder."
            )
    if found["scores"].keys() != scores.keys():
        n_new = len(scores.keys() - found["scores"].keys())
        raise TrlRealError(
            f"{str(file)!r} keeps a draw from {len(found['scores'])} other pairs; {n_new} of these {len(scores)} are "
            "new. Give the same rows and completions, or another folder."
        )
    return [found["scores"][name] for name in scores]


def _uniform(seed: int, texts: Sequence[str]) -> np.ndarray:
    """Draw a number in (0, 1) for each text."""
    digests = [int.from_bytes(sha256(seed, "people", text)[:6]) for text in texts]
    return (np.array(digests, dtype=float) + 0.5) / 2**48
