"""Votes of people: the format of a vote, the votes file, and the judge that reads it."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.verdicts import TIE, VOTES, Verdict
from trl_real.runtime.digests import sha256
from trl_real.runtime.journal import Journal


VERDICTS: dict[str, float] = {"a": 1.0, "tie": TIE, "b": 0.0, "skip": math.nan}

OWN_LINES = ("verdict", "undo", "opened")

Aggregation = Callable[[np.ndarray], np.ndarray]


def pair_key(prompt: Any, response_a: Any, response_b: Any) -> str:
    """
    Return 32 hexadecimal digits of a SHA-256 digest of a pair, the same in every file, split and process.

    Each argument is a text or messages. Swapping the responses gives another key.
    """
    from trl_real.data.conversation import is_messages, text_of
    from trl_real.data.message import message_text

    texts = [[[m.get("role"), message_text(m, role=False)] for m in prompt] if is_messages(prompt) else prompt]
    texts += [text_of(response) if is_messages(response) else response for response in (response_a, response_b)]
    return sha256(json.dumps(texts)).hex()[:32]


def row_keys(batch: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, str]]:
    """Yield the `pair_key` of each row, and the one with its responses swapped; images of a row are part of both."""
    from trl_real.data.images import digests_of, images_of

    rows = zip(batch["prompt"], batch["response_a"], batch["response_b"], images_of(batch), strict=True)
    for prompt, a, b, images in rows:
        seen = [pair_key(prompt, "", ""), *digests_of(images)] if images else prompt
        yield pair_key(seen, a, b), pair_key(seen, b, a)


@dataclass(frozen=True)
class Vote:
    """
    Vote of one annotator on one pair; a line of the votes file.

    Args:
        key: `pair_key` of the pair.
        mirror: `pair_key` with the responses swapped; empty if unknown.
        row: Row number of the pair in the dataset, for reference.
        annotator: Name of the annotator.
        verdict: Verdict in `VERDICTS`, about `response_a` and `response_b`, not about the sides of the page.
        shown_first: `"a"` or `"b"`: the response on the left (or on top).
        seconds: Time from showing the pair to the vote, in seconds.
        time: Time of the vote; UTC, ISO 8601.
        seed: Seed that drew the order and the sides.
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

    @property
    def probability(self) -> float:
        """Probability that `response_a` is better; NaN for a skip."""
        return VERDICTS[self.verdict]


class VoteBook:
    """
    Valid votes: undone ones are left out, and of two votes by one annotator on one pair the later one counts. An undo
    with a `source` (an annotation on a server) undoes the vote of that source only.

    Args:
        lines: Lines of a votes file, in order. Lines other than votes and undos are ignored.

    Raises:
        TrlRealError: If a vote is incomplete.
    """

    def __init__(self, lines: Iterable[dict[str, Any]] = ()):
        self.n_undone: dict[str, int] = {}
        self._keys: dict[str, tuple[str, bool]] = {}  # key -> first key of the pair, and whether it is swapped
        self._votes: dict[str, dict[str, Vote]] = {}
        self._sources: dict[tuple[str, str], str | None] = {}  # (annotator, key) -> annotation on a server
        for number, line in enumerate(lines, 1):
            self.add(line, number)

    @classmethod
    def read(cls, path: str | Path) -> "VoteBook":
        """
        Read a votes file.

        Raises:
            TrlRealError: If the file is missing, or a line is not a valid vote.
        """
        if not Path(path).is_file():
            raise TrlRealError(f"No votes file at {str(path)!r}. Collect votes: trl-real label --human …")
        lines = Journal(path).read()
        if lines and not any(name in line for line in lines for name in OWN_LINES):
            raise TrlRealError(f"{str(path)!r} is not a votes file. Give the file that the page wrote.")
        try:
            return cls(lines)
        except TrlRealError as error:
            raise TrlRealError(f"{str(path)!r}: {error}") from error

    def add(self, line: dict[str, Any], number: int = 0) -> None:
        """Add a line; `number` is for the error message."""
        if "undo" in line:
            undone, who = str(line["undo"]), str(line.get("annotator", ""))
            key = self._keys.get(undone, (undone, False))[0]
            votes, source = self._votes.get(who, {}), line.get("source")
            if key in votes and source in (None, self._sources.get((who, key))):
                del votes[key]
                self.n_undone[who] = self.n_undone.get(who, 0) + 1
        elif "verdict" in line:
            vote = _vote(line, number)
            key, flipped = self._keys.setdefault(vote.key, (vote.key, False))
            if vote.mirror:
                self._keys.setdefault(vote.mirror, (key, not flipped))
            votes = self._votes.setdefault(vote.annotator, {})
            votes.pop(key, None)  # a repeated vote becomes the last one, the first to undo
            votes[key] = vote
            self._sources[vote.annotator, key] = line.get("source")

    @property
    def annotators(self) -> list[str]:
        """Names of the annotators with valid votes, sorted."""
        return sorted(who for who, votes in self._votes.items() if votes)

    def votes(self, annotator: str) -> list[Vote]:
        """Return the valid votes of an annotator, in order."""
        return list(self._votes.get(annotator, {}).values())

    def find(self, key: str) -> tuple[str, bool] | None:
        """Return the key that stores a pair, and whether its responses are swapped there; None if nobody saw it."""
        return self._keys.get(key)

    def matrix(self) -> tuple[list[str], list[str], np.ndarray]:
        """
        Return the valid votes as numbers.

        Returns:
            Names of the annotators (R), keys of the pairs (P), and votes, shape `(R, P)`: 1 for `response_a`, 0.5 for
            a tie, 0 for `response_b`, NaN for a skip or no vote. A pair and its mirror share one column, under the key
            that was voted on first.
        """
        annotators = self.annotators
        keys = list(dict.fromkeys(self._keys[vote.key][0] for who in annotators for vote in self.votes(who)))
        place = {key: i for i, key in enumerate(keys)}
        votes = np.full((len(annotators), len(keys)), np.nan)  # (R, P)
        for rater, _, vote, key, flipped in self.valid_votes():
            votes[rater, place[key]] = 1 - vote.probability if flipped else vote.probability
        return annotators, keys, votes

    def valid_votes(self) -> Iterator[tuple[int, str, Vote, str, bool]]:
        """Yield number and name of the annotator, vote, key of the pair, and whether the pair is swapped."""
        for rater, who in enumerate(self.annotators):
            for vote in self.votes(who):
                yield rater, who, vote, *self._keys[vote.key]


class VotesJudge(VerdictJudge):
    """
    Judge that looks up the pairs in a file of votes. A pair that nobody voted on, or that all skipped, is a failure.

    Args:
        path: Path of the votes file that the page wrote.
        aggregation: Rule that combines several annotators: `"majority"` (share of the votes) or `"dawid_skene"`
            (weighted by the reliability of each annotator). A name in
            `trl_real.functional.statistics.crowd.AGGREGATIONS`, or a function of an `(R, P)` array of votes that
            returns `P` probabilities.
        annotators: Names of the annotators that count; all by default.

    Raises:
        TrlRealError: If the file is missing, or the aggregation or an annotator is unknown.
    """

    def __init__(
        self, path: str | Path, aggregation: str | Aggregation = "majority", annotators: list[str] | None = None
    ):
        self.path, book = Path(path), VoteBook.read(path)
        names, keys, votes = book.matrix()
        if unknown := sorted(set(annotators or ()) - set(names)):
            raise TrlRealError(f"No votes by {', '.join(unknown)} in {str(path)!r}, only by {', '.join(names)}.")
        kept = [i for i, name in enumerate(names) if annotators is None or name in annotators]
        self.annotators = [names[i] for i in kept]
        self._book, self._votes = book, votes[kept]  # (R, P)
        self._place = {key: i for i, key in enumerate(keys)}
        self._shown_first = self._orders(names, keys)[kept]
        rule = getattr(aggregation, "__name__", str(aggregation))
        self._verdict = _aggregation(aggregation)(self._votes) if self._votes.size else np.full(len(keys), np.nan)
        self.name = f"{VOTES}{rule}"
        digest = sha256((keys, self.annotators, self._votes.tolist()))
        self.identity = {"name": self.name, "votes": digest.hex()[:32]}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """Return the verdicts on a batch; `members` follows the order of `annotators`."""
        return [self._look_up(key, mirror) for key, mirror in row_keys(batch)]

    def _look_up(self, key: str, mirror: str) -> Verdict:
        nobody = (math.nan,) * len(self.annotators)
        found = self._book.find(key)
        swapped = found is None
        found = self._book.find(mirror) if swapped else found
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
        """Return `(R, P)`: 1 if the first response of the pair was shown first, -1 if the second, 0 if neither."""
        orders = np.zeros((len(names), len(keys)), dtype=np.int8)
        for rater, _, vote, key, flipped in self._book.valid_votes():
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
        raise TrlRealError(f"Unknown aggregation {aggregation!r}: choose from {', '.join(AGGREGATIONS)}.")
    return AGGREGATIONS[aggregation]


def _vote(line: dict[str, Any], number: int) -> Vote:
    try:
        vote = Vote(
            key=str(line["key"]),
            mirror=str(line.get("mirror", "")),
            row=int(line.get("row", -1)),
            annotator=str(line["annotator"]),
            verdict=str(line["verdict"]),
            shown_first=line["shown_first"],
            seconds=float(line.get("seconds", math.nan)),
            time=str(line.get("time", "")),
            seed=int(line.get("seed", -1)),
        )
    except (KeyError, TypeError, ValueError):
        vote = None
    if vote is None or vote.verdict not in VERDICTS or vote.shown_first not in ("a", "b"):
        raise TrlRealError(
            f"Line {number} of the votes is not valid: it needs key, annotator, verdict ({', '.join(VERDICTS)}) and "
            "shown_first (a, b). Fix it, or remove it."
        )
    return vote
