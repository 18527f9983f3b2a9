"""Votes of people: what a vote is, how a file of votes is read, and the judge that it makes."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.verdicts import TIE, Verdict
from trl_real.runtime.journal import Journal


VERDICTS: dict[str, float] = {"a": 1.0, "tie": TIE, "b": 0.0, "skip": math.nan}

OWN_LINES = ("verdict", "undo", "opened")

Aggregation = Callable[[np.ndarray], np.ndarray]


def pair_key(prompt: Any, response_a: Any, response_b: Any) -> str:
    """
    A short name of a pair, made of what it says and nothing else: the same in every file, split and process.

    Args:
        prompt: Text or messages.
        response_a: Text or messages.
        response_b: Text or messages; with the two the other way round it is another key.

    Returns:
        32 hexadecimal digits of a SHA-256.
    """
    from trl_real.data.conversation import is_messages, text_of

    said = [[[m.get("role"), text_of([m])] for m in prompt] if is_messages(prompt) else prompt]
    said += [text_of(response) if is_messages(response) else response for response in (response_a, response_b)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Vote:
    """
    What one person said of one pair; a line of the votes file.

    Args:
        key: Of the pair, by `pair_key`.
        mirror: The key that it has with its responses swapped; empty if not told.
        row: Of the pair in the dataset that was shown, for a person who looks for it.
        annotator: Who voted.
        verdict: One of `VERDICTS`, told of `response_a` and `response_b` and not of the sides of the page.
        shown_first: `"a"` or `"b"`: the response on the left (or on top).
        seconds: From the pair's appearance to the vote.
        time: Of the vote; UTC, ISO 8601.
        seed: That drew the order and the sides.
    """

    key: str
    mirror: str
    row: int
    annotator: str
    verdict: str
    shown_first: str
    seconds: float
    time: str
    seed: int

    def to_line(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)

    @property
    def probability(self) -> float:
        """That `response_a` is better; NaN for a skip."""
        return VERDICTS[self.verdict]


class VoteBook:
    """
    The votes in force: undone ones are out, and of two by one annotator on one pair the later one counts.

    Args:
        lines: Of a votes file, in order. Lines that say neither a vote nor an undo may stand between them.

    Raises:
        TrlRealError: If a vote lacks something.
    """

    def __init__(self, lines: Iterable[dict[str, Any]] = ()):
        self.n_undone: dict[str, int] = {}
        self._keys: dict[
            str, tuple[str, bool]
        ] = {}  # key -> the key that the pair first had, and whether it is flipped
        self._votes: dict[str, dict[str, Vote]] = {}
        for number, line in enumerate(lines, 1):
            self.add(line, number)

    @classmethod
    def read(cls, path: str | Path) -> "VoteBook":
        """
        The votes of a file.

        Raises:
            TrlRealError: If there is no such file, or a line of it is no vote.
        """
        if not Path(path).is_file():
            raise TrlRealError(f"No votes at {str(path)!r}. Collect some: trl-real label --human …")
        lines = Journal(path).read()
        if lines and not any(name in line for line in lines for name in OWN_LINES):
            raise TrlRealError(f"{str(path)!r} holds other lines than votes. Give the file that the page wrote.")
        return cls(lines)

    def add(self, line: dict[str, Any], number: int = 0) -> None:
        """Take in a line; `number` is for the error."""
        if "undo" in line:
            key = self._keys.get(line["undo"], (line["undo"], False))[0]
            who = line.get("annotator", "")
            if self._votes.get(who, {}).pop(key, None):
                self.n_undone[who] = self.n_undone.get(who, 0) + 1
        elif "verdict" in line:
            vote = _vote(line, number)
            key, flipped = self._keys.setdefault(vote.key, (vote.key, False))
            if vote.mirror:
                self._keys.setdefault(vote.mirror, (key, not flipped))
            votes = self._votes.setdefault(vote.annotator, {})
            votes.pop(key, None)  # a vote given again is the last one, and the first to be undone
            votes[key] = vote

    @property
    def annotators(self) -> list[str]:
        """Who has votes in force, by name."""
        return sorted(who for who, votes in self._votes.items() if votes)

    def votes(self, annotator: str) -> list[Vote]:
        """Those in force, in the order in which they were given."""
        return list(self._votes.get(annotator, {}).values())

    def find(self, key: str) -> tuple[str, bool] | None:
        """The key under which a pair is kept, and whether its responses are swapped there; None if nobody saw it."""
        return self._keys.get(key)

    def matrix(self) -> tuple[list[str], list[str], np.ndarray]:
        """
        The votes in force as numbers.

        Returns:
            The annotators (R), the keys of the pairs (P), and the votes, shape `(R, P)`: 1 for `response_a`, 0.5 for a
            tie, 0 for `response_b`, NaN for a skip or no vote. A pair and its mirror share one column, under the key
            that was voted on first.
        """
        annotators = self.annotators
        keys = list(dict.fromkeys(self._keys[vote.key][0] for who in annotators for vote in self.votes(who)))
        place = {key: i for i, key in enumerate(keys)}
        votes = np.full((len(annotators), len(keys)), np.nan)  # (R, P)
        for rater, _, vote, key, flipped in self.in_force():
            votes[rater, place[key]] = 1 - vote.probability if flipped else vote.probability
        return annotators, keys, votes

    def in_force(self) -> Iterator[tuple[int, str, Vote, str, bool]]:
        """Each vote with its rater's number and name, the pair's key, and whether the vote tells of its mirror."""
        for rater, who in enumerate(self.annotators):
            for vote in self.votes(who):
                yield rater, who, vote, *self._keys[vote.key]


class VotesJudge(VerdictJudge):
    """
    People as a judge: looks the pairs up among the votes that were given. A pair that nobody voted on, or that all
    skipped, is a failure.

    Args:
        path: A votes file, as the page writes it.
        aggregation: How several annotators make one verdict: a name in
            `trl_real.functional.statistics.crowd.AGGREGATIONS` (`"majority"`: the share of the votes;
            `"dawid_skene"`: weighted by how reliable each one is),
            or a function of an `(R, P)` array of votes that returns `P` probabilities.
        annotators: Whose votes count; all by default.

    Raises:
        TrlRealError: If there is no such file, aggregation or annotator.
    """

    def __init__(
        self, path: str | Path, aggregation: str | Aggregation = "majority", annotators: list[str] | None = None
    ):
        book = VoteBook.read(path)
        names, keys, votes = book.matrix()
        if unknown := sorted(set(annotators or ()) - set(names)):
            raise TrlRealError(f"No votes by {', '.join(unknown)} in {str(path)!r}; there are {', '.join(names)}.")
        kept = [i for i, name in enumerate(names) if annotators is None or name in annotators]
        self.annotators = [names[i] for i in kept]
        self._book, self._votes = book, votes[kept]  # (R, P)
        self._place = {key: i for i, key in enumerate(keys)}
        self._shown_first = self._orders(names, keys)[kept]
        said = getattr(aggregation, "__name__", str(aggregation))
        self._verdict = _aggregation(aggregation)(self._votes) if self._votes.size else np.full(len(keys), np.nan)
        self.name = f"votes:{said}"
        digest = hashlib.sha256(repr((keys, self.annotators, self._votes.tolist())).encode("utf-8", "surrogatepass"))
        self.identity = {"name": self.name, "votes": digest.hexdigest()[:32]}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """The verdicts on a batch of pairs; `members` are the annotators in the order of `annotators`."""
        rows = zip(batch["prompt"], batch["response_a"], batch["response_b"], strict=True)
        return [self._look_up(prompt, a, b) for prompt, a, b in rows]

    def _look_up(self, prompt: Any, a: Any, b: Any) -> Verdict:
        nobody = (math.nan,) * len(self.annotators)
        found = self._book.find(pair_key(prompt, a, b))
        swapped = found is None
        found = self._book.find(pair_key(prompt, b, a)) if swapped else found
        place = self._place.get(found[0]) if found else None
        if place is None or not (self._shown_first[:, place] != 0).any():
            return Verdict(math.nan, failure="not labelled", source=self.name, members=nobody)
        flip = swapped != bool(found and found[1])
        p = float(self._verdict[place])
        votes = self._votes[:, place]
        left = _mean(votes[self._shown_first[:, place] > 0]), _mean(votes[self._shown_first[:, place] < 0])
        first, second = (1 - left[1], 1 - left[0]) if flip else left
        return Verdict(
            probability=1 - p if flip else p,
            a_first=first,
            b_first=second,
            failure="skipped" if math.isnan(p) else "",
            source=self.name,
            n_cached=int((~np.isnan(votes)).sum()),
            members=tuple((1 - votes if flip else votes).tolist()),
        )

    def _orders(self, names: list[str], keys: list[str]) -> np.ndarray:
        """`(R, P)`: 1 where the column's first response was shown first, -1 where the second, 0 where none was."""
        orders = np.zeros((len(names), len(keys)), dtype=np.int8)
        for rater, _, vote, key, flipped in self._book.in_force():
            orders[rater, self._place[key]] = 1 if (vote.shown_first == "a") != flipped else -1
        return orders


def _mean(votes: np.ndarray) -> float:
    votes = votes[~np.isnan(votes)]
    return float(votes.mean()) if len(votes) else math.nan


def _aggregation(aggregation: str | Aggregation) -> Aggregation:
    if callable(aggregation):
        return aggregation
    from trl_real.functional.statistics.crowd import AGGREGATIONS

    if aggregation not in AGGREGATIONS:
        raise TrlRealError(f"No aggregation {aggregation!r}; there are {', '.join(AGGREGATIONS)}.")
    return AGGREGATIONS[aggregation]


def _vote(line: dict[str, Any], number: int) -> Vote:
    try:
        vote = Vote(
            key=str(line["key"]),
            mirror=str(line.get("mirror", "")),
            row=int(line.get("row", -1)),
            annotator=str(line["annotator"]),
            verdict=line["verdict"],
            shown_first=line["shown_first"],
            seconds=float(line.get("seconds", math.nan)),
            time=str(line.get("time", "")),
            seed=int(line.get("seed", -1)),
        )
    except (KeyError, TypeError, ValueError):
        vote = None
    if vote is None or vote.verdict not in VERDICTS or vote.shown_first not in ("a", "b"):
        raise TrlRealError(
            f"Line {number} of the votes is no vote: it needs key, annotator, verdict ({', '.join(VERDICTS)}) and "
            "shown_first (a, b). Mend it, or remove it."
        )
    return vote
