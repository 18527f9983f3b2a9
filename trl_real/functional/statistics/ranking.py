"""Many models on one scale, from comparisons of two at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_real.errors import MissingExtraError, TrlRealError
from trl_real.functional.statistics.inputs import Numbers, as_groups, as_preferences, check_confidence, check_count
from trl_real.functional.statistics.resampling import counts, expanded_percentiles, resamples


if TYPE_CHECKING:
    from scipy.sparse import csr_array


# Elo's scale: 400 points are odds of 10 to 1.
POINTS = 400 / np.log(10)
ANCHOR = 1000.0
MAX_STEPS, TOLERANCE = 10_000, 1e-8


@dataclass
class RankedModel:
    """
    A model's place.

    Args:
        model: Its name.
        rating: On Elo's scale (400 points are odds of 10 to 1), the reference model at 1000. Infinite if no finite
            rating fits (it lost to, or won against, none that connects it to the reference); NaN if it never met it.
        ci_low, ci_high: Bootstrap interval of the rating; both 1000 for the reference.
        win_rate: Predicted, against the reference; ties count half.
        win_rate_ci_low, win_rate_ci_high: The same interval as rates.
        mean_preference: Plain mean of its own comparisons, whoever the opponents were.
        n: Comparisons with a verdict.
        n_failed: Comparisons without one, which are no part of anything else.
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
    Models, best first.

    Args:
        rows: The models; those without a rating last.
        reference: The model that the scale hangs on.
        n_prompts: Prompts with a verdict: what the bootstrap draws.
        rounds: Samples of the bootstrap.
        confidence: Level of the intervals.
        seed: Of the draws.
        notes: What cannot be said, one line each.
    """

    rows: list[RankedModel]
    reference: str
    n_prompts: int
    rounds: int
    confidence: float
    seed: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes None."""
        values = asdict(self)
        values["rows"] = [{name: _finite(value) for name, value in row.items()} for row in values["rows"]]
        return values

    def words(self) -> str:
        """A line a model, and the notes."""
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
    Bradley and Terry's model (1952), `P(i beats j) = s_i / (s_i + s_j)`, by maximum likelihood (`evalica`).

    A preference `p` is a win of weight `p` and a loss of weight `1 - p`, so a tie is half of each. The intervals come
    from drawing prompts, not comparisons: what is asked of many models on one prompt is not independent.

    Args:
        first: Name of one model. Shape `(N,)`.
        second: Name of the other. Shape `(N,)`.
        preferences: Probability in [0, 1] that the first is better; NaN or None not judged. Shape `(N,)`.
        prompts: Prompt of each comparison: hashable ids; without them each row is drawn for itself. Shape `(N,)`.
        reference: Model whose rating is 1000; by default the one with the most verdicts (of several, the first name).
        confidence: Level of the intervals, in (0, 1).
        rounds: Samples of the bootstrap.
        seed: Of the draws.

    Returns:
        The ranking. A model that won, or lost, everything on its way to the reference has no finite rating: it gets
        infinity, and a note; one that never met the reference, not even by way of others, gets NaN, and a note.

    Raises:
        TrlRealError: If inputs do not fit together, a model meets itself, nothing was judged, or `reference` is
            none of the models.
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
    Maximum-likelihood log-strengths, by `evalica`.

    Args:
        wins: Wins of the row's model against the column's, ties and preferences in parts; the models must be strongly
            connected by wins. Shape `(K, K)`.

    Returns:
        Strengths in nats, of mean 0. Shape `(K,)`.
    """
    try:
        from evalica import Winner, bradley_terry
    except ImportError:
        raise MissingExtraError("evalica", "stats") from None

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
    Elo-like ratings. Shape `(K, K)` to `(K,)`.

    A finite maximum exists among models each of which beat each other, by way of others too (Ford 1957): only those
    are fitted. Of the rest, who only beat them is infinitely better, who only lost infinitely worse, others unknown.
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
    """Nodes that can be reached from one. Shape `(K, K)` to indices."""
    from scipy.sparse.csgraph import breadth_first_order

    return breadth_first_order(edges, start, directed=True, return_predecessors=False)


def _interval(
    wins: "csr_array", anchor: int, confidence: float, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the bootstrap intervals. Shapes `(K,)`; NaN with fewer than two prompts."""
    n_prompts, k = wins.shape[0], math.isqrt(wins.shape[1])
    if n_prompts < 2:
        return np.full(k, np.nan), np.full(k, np.nan)
    # Draws go by place: prompts in an order by content make them the same for any order of the rows.
    wins = wins[np.argsort((wins @ np.random.default_rng(0).random(k * k)).round(9), kind="stable")]
    totals = (wins.T @ counts(drawn).T.astype(float) for drawn in resamples(n_prompts, rounds, seed))  # (K * K, b)
    draws = np.stack([_ratings(total.reshape(k, k), anchor) for block in totals for total in block.T])  # (rounds, K)
    ends = np.array([expanded_percentiles(column, n_prompts, confidence) for column in draws.T])
    return ends[:, 0], ends[:, 1]


def _wins_by_prompt(i: np.ndarray, j: np.ndarray, preferences: np.ndarray, groups: np.ndarray, k: int) -> "csr_array":
    """Wins of one model against another on each prompt: prompts by pairs of models. Shape `(G, K * K)`."""
    from scipy.sparse import coo_array

    _, place = np.unique(groups, return_inverse=True)
    wins, pairs = np.concatenate([preferences, 1 - preferences]), np.concatenate([i * k + j, j * k + i])
    return coo_array((wins, (np.tile(place, 2), pairs)), shape=(place.max() + 1, k * k)).tocsr()


def _indices(first: Sequence[str], second: Sequence[str], n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of all models, sorted, and the two of each comparison as indices."""
    for name, column in (("first", first), ("second", second)):
        check_count(column, n, name)
    first, second = [str(name) for name in first], [str(name) for name in second]
    same = [row for row, (a, b) in enumerate(zip(first, second, strict=True)) if a == b]
    if same:
        raise TrlRealError(f"Row {same[0]} compares {first[same[0]]!r} with itself. Leave such rows out.")
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
    said: list[tuple[str, Callable[[float], bool]]] = [
        ("only won, on every way to the reference: no finite rating", lambda r: r == np.inf),
        ("only lost, on every way to the reference: no finite rating", lambda r: r == -np.inf),
        (f"never met {reference}, not even by way of others: no rating", np.isnan),
    ]
    notes = []
    for words, holds in said:
        names = [row.model for row in rows if holds(row.rating)]
        if names:
            notes.append(f"{', '.join(names)}: {words}.")
    return notes


def _rate(rating: float) -> float:
    """Predicted win rate against the reference."""
    from scipy.special import expit

    return float(expit((rating - ANCHOR) / POINTS))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
