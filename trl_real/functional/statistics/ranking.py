"""Ranking of several models on one scale, from pairwise comparisons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_real.errors import TrlRealError, needs_extra
from trl_real.functional.statistics.inputs import Numbers, as_groups, as_preferences, check_confidence, check_count
from trl_real.functional.statistics.resampling import counts, expanded_percentiles, resamples


if TYPE_CHECKING:
    from scipy.sparse import csr_array


# Elo scale: 400 points are odds of 10 to 1.
POINTS = 400 / np.log(10)
ANCHOR = 1000.0
MAX_STEPS, TOLERANCE = 10_000, 1e-8


@dataclass
class RankedModel:
    """
    Result of one model in a ranking.

    Args:
        model: Name of the model.
        rating: Rating on the Elo scale (400 points are odds of 10 to 1), with the reference model at 1000. Infinite if
            no finite rating fits (it only won, or only lost, against models that connect it to the reference); NaN if
            it never met the reference.
        ci_low, ci_high: Bootstrap interval of the rating; both 1000 for the reference.
        win_rate: Predicted win rate against the reference; ties count half.
        win_rate_ci_low, win_rate_ci_high: The interval of the rating as win rates.
        mean_preference: Plain mean of the model's comparisons, against any opponent.
        n: Number of comparisons with a verdict.
        n_failed: Number of comparisons without a verdict; they count nowhere else.
    """

    model: str
    rating: float
    ci_low: float
    ci_high: float
    win_rate: float
    win_rate_ci_low: float
    win_rate_ci_high: float
    mean_preference: float
    n: int
    n_failed: int


@dataclass
class Ranking:
    """
    Ranking of models, best first.

    Args:
        rows: Results of the models; those without a rating last.
        reference: Model with the rating 1000.
        n_prompts: Number of prompts with a verdict, which the bootstrap draws from.
        rounds: Number of bootstrap samples.
        confidence: Confidence level of the intervals.
        seed: Seed of the bootstrap.
        notes: Limits of the ranking, one line each.
    """

    rows: list[RankedModel]
    reference: str
    n_prompts: int
    rounds: int
    confidence: float
    seed: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; values that are not finite become None."""
        values = asdict(self)
        values["rows"] = [{name: _finite(value) for name, value in row.items()} for row in values["rows"]]
        return values

    def words(self) -> str:
        """Return one line per model, and the notes."""
        width = max((len(row.model) for row in self.rows), default=0)
        lines = [
            f"{row.model:<{width}}  {row.rating:7.0f} [{row.ci_low:.0f}, {row.ci_high:.0f}]  "
            f"{row.win_rate:.2f} against {self.reference} (n={row.n})"
            for row in self.rows
        ]
        return "\n".join(lines + self.notes)


def bradley_terry_ranking(
    first: Sequence[str],
    second: Sequence[str],
    preferences: Numbers,
    *,
    prompts: Sequence[Any] | None = None,
    reference: str | None = None,
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 42,
) -> Ranking:
    r"""
    Fit Bradley and Terry's model (1952), `P(i beats j) = s_i / (s_i + s_j)`, by maximum likelihood (`evalica`).

    A preference `p` is a win of weight `p` and a loss of weight `1 - p`, so a tie is half of each. The bootstrap draws
    prompts, not comparisons, because comparisons on the same prompt are not independent.

    Args:
        first: Name of the first model of each comparison. Shape `(N,)`.
        second: Name of the second model. Shape `(N,)`.
        preferences: Probability in [0, 1] that the first is better; NaN or None not judged. Shape `(N,)`.
        prompts: Prompt of each comparison, as hashable ids; by default each row is its own prompt. Shape `(N,)`.
        reference: Model with the rating 1000; by default the one with the most verdicts (of several, the first name).
        confidence: Confidence level of the intervals, in (0, 1).
        rounds: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        The ranking. A model that won, or lost, all comparisons that connect it to the reference has an infinite rating
        and a note; a model without such a connection has a rating of NaN and a note.

    Raises:
        TrlRealError: If inputs do not match, a model meets itself, nothing was judged, or `reference` is not one of
            the models.
        MissingExtraError: If evalica is not installed.
    """
    check_confidence(confidence)
    preferences = as_preferences(preferences)
    models, i, j = _indices(first, second, len(preferences))
    judged = ~np.isnan(preferences)
    if not judged.any():
        raise TrlRealError("No comparison was judged. Give at least one preference that is a number.")
    groups = as_groups(prompts, len(preferences), "prompts")
    n = np.bincount(np.concatenate([i[judged], j[judged]]), minlength=len(models))
    anchor = _reference(models, n, reference)
    k = len(models)
    wins = _wins_by_prompt(i[judged], j[judged], preferences[judged], groups[judged], k)
    total = np.asarray(wins.sum(0)).reshape(k, k)
    ratings = _ratings(total, anchor)
    low, high = _interval(wins, anchor, confidence, rounds, seed)
    failed = np.bincount(np.concatenate([i[~judged], j[~judged]]), minlength=len(models))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = total.sum(1) / n
    columns = [column.tolist() for column in (ratings, low, high, means, n, failed)]
    rows = [
        RankedModel(name, *ends, *map(_rate, ends), *rest)
        for name, *ends, rest in zip(models, *columns[:3], zip(*columns[3:], strict=True), strict=True)
    ]
    rows.sort(key=lambda row: (np.isnan(row.rating), -row.rating if row.rating == row.rating else 0.0, row.model))
    return Ranking(rows, models[anchor], wins.shape[0], rounds, confidence, seed, _notes(rows, models[anchor]))


def bradley_terry_strengths(wins: np.ndarray) -> np.ndarray:
    """
    Return the maximum-likelihood log-strengths, by `evalica`.

    Args:
        wins: Wins of the row's model against the column's, ties and preferences as fractions; the models must be
            strongly connected by wins. Shape `(K, K)`.

    Returns:
        Strengths in nats, with mean 0. Shape `(K,)`.
    """
    with needs_extra("evalica", "stats"):
        from evalica import Winner, bradley_terry

    if len(wins) == 1:
        return np.zeros(1)
    i, j = np.nonzero(wins)
    fit = bradley_terry(
        i.tolist(),
        j.tolist(),
        [Winner.X] * len(i),
        weights=wins[i, j].tolist(),
        tolerance=TOLERANCE,
        limit=MAX_STEPS,
    )
    strengths = np.log(fit.scores.reindex(range(len(wins))).to_numpy())
    return strengths - strengths.mean()


def _ratings(wins: np.ndarray, anchor: int) -> np.ndarray:
    """
    Compute Elo-like ratings. Shape `(K, K)` to `(K,)`.

    A finite maximum exists only for models strongly connected by wins (Ford 1957): those connected with the anchor are
    fitted. Of the others, a model that only beat them gets infinity, one that only lost minus infinity, the rest NaN.
    """
    from scipy.sparse.csgraph import connected_components

    _, part = connected_components(wins > 0, directed=True, connection="strong")
    fitted = np.flatnonzero(part == part[anchor])
    above, below = _reachable(wins.T > 0, anchor), _reachable(wins > 0, anchor)
    ratings = np.full(len(wins), np.nan)
    ratings[above], ratings[below] = np.inf, -np.inf
    strengths = bradley_terry_strengths(wins[np.ix_(fitted, fitted)])
    ratings[fitted] = ANCHOR + POINTS * (strengths - strengths[fitted == anchor])
    return ratings


def _reachable(edges: np.ndarray, start: int) -> np.ndarray:
    """Return the nodes that can be reached from one. Shape `(K, K)` to indices."""
    from scipy.sparse.csgraph import breadth_first_order

    return breadth_first_order(edges, start, directed=True, return_predecessors=False)


def _interval(
    wins: "csr_array", anchor: int, confidence: float, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the bootstrap intervals. Shapes `(K,)`; NaN with fewer than two prompts."""
    n_prompts, k = wins.shape[0], math.isqrt(wins.shape[1])
    if n_prompts < 2:
        return np.full(k, np.nan), np.full(k, np.nan)
    # Draws are by position: prompts sorted by content give the same draws for any order of the rows.
    wins = wins[np.argsort((wins @ np.random.default_rng(0).random(k * k)).round(9), kind="stable")]
    totals = (wins.T @ counts(drawn).T.astype(float) for drawn in resamples(n_prompts, rounds, seed))  # (K * K, b)
    draws = np.stack([_ratings(total.reshape(k, k), anchor) for block in totals for total in block.T])  # (rounds, K)
    ends = np.array([expanded_percentiles(column, n_prompts, confidence) for column in draws.T])
    return ends[:, 0], ends[:, 1]


def _wins_by_prompt(i: np.ndarray, j: np.ndarray, preferences: np.ndarray, groups: np.ndarray, k: int) -> "csr_array":
    """Return the wins of each model against each other on each prompt. Shape `(G, K * K)`."""
    from scipy.sparse import coo_array

    _, place = np.unique(groups, return_inverse=True)
    wins, pairs = np.concatenate([preferences, 1 - preferences]), np.concatenate([i * k + j, j * k + i])
    return coo_array((wins, (np.tile(place, 2), pairs)), shape=(place.max() + 1, k * k)).tocsr()


def _indices(first: Sequence[str], second: Sequence[str], n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the sorted names of all models, and the two models of each comparison as indices."""
    for name, column in (("first", first), ("second", second)):
        check_count(column, n, name)
    first, second = [str(name) for name in first], [str(name) for name in second]
    same = [row for row, (a, b) in enumerate(zip(first, second, strict=True)) if a == b]
    if same:
        raise TrlRealError(f"Row {same[0]} compares {first[same[0]]!r} with itself. Remove such rows.")
    models = sorted({*first, *second})
    number = {name: place for place, name in enumerate(models)}
    return models, np.array([number[a] for a in first], dtype=int), np.array([number[b] for b in second], dtype=int)


def _reference(models: list[str], n: np.ndarray, reference: str | None) -> int:
    if reference is None:
        return int(np.argmax(n))
    if reference not in models:
        raise TrlRealError(f"reference is {reference!r}, which is not among the models {', '.join(models)}.")
    return models.index(reference)


def _notes(rows: list[RankedModel], reference: str) -> list[str]:
    cases: list[tuple[str, Callable[[float], bool]]] = [
        ("won all comparisons that connect it to the reference: no finite rating", lambda r: r == np.inf),
        ("lost all comparisons that connect it to the reference: no finite rating", lambda r: r == -np.inf),
        (f"never met {reference}, not even through other models: no rating", np.isnan),
    ]
    notes = []
    for words, holds in cases:
        names = [row.model for row in rows if holds(row.rating)]
        if names:
            notes.append(f"{', '.join(names)}: {words}.")
    return notes


def _rate(rating: float) -> float:
    """Return the predicted win rate against the reference."""
    from scipy.special import expit

    return float(expit((rating - ANCHOR) / POINTS))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
