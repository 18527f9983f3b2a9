"""Queue of the pairs that one annotator has not voted on yet, in that annotator's order."""

import math
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from datasets import Dataset

from trl_real.data.images import IMAGE_COLUMNS, data_url, images_of
from trl_real.data.pairs import ready_pairs
from trl_real.errors import TrlRealError, check_columns
from trl_real.labeling.people.votes import VERDICTS, Vote, VoteBook, row_keys
from trl_real.runtime.digests import sha256
from trl_real.runtime.journal import Journal


LONGEST = 24 * 3600.0
LONGEST_NAME = 80


@dataclass(frozen=True)
class Pair:
    """
    Pair as an annotator sees it.

    Args:
        key: `pair_key` of the row.
        row: Row number in the dataset.
        prompt: Text or messages.
        first, second: Responses on the left and on the right.
        shown_first: `"a"` if `first` is `response_a`, `"b"` if it is `response_b`.
        images: Images of the row as `data:` URLs, so that the page fetches nothing.
    """

    key: str
    row: int
    prompt: Any
    first: str
    second: str
    shown_first: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """
    Progress of an annotator.

    Args:
        total: Number of pairs.
        counts: Number of pairs by verdict.
        left, right: Number of pairs for which the first and the second shown response was preferred.
        median_seconds: Median time from showing a pair to the vote, in seconds; NaN before the first vote.
    """

    total: int
    counts: dict[str, int]
    left: int
    right: int
    median_seconds: float

    @property
    def done(self) -> int:
        """Number of pairs that were voted on, skipped ones included."""
        return sum(self.counts.values())

    @property
    def skipped(self) -> int:
        """Number of skipped pairs."""
        return self.counts["skip"]

    @property
    def pairs_per_hour(self) -> float:
        """Number of pairs per hour at the median pace; NaN before the first vote."""
        return 3600 / self.median_seconds if self.median_seconds > 0 else math.nan


class Deck:
    """
    Distinct pairs of a dataset; a pair with its responses swapped is the same pair. Rows without a pair are left out.

    Args:
        dataset: Output of a selector's `select` or `map`: `prompt`, `pair`, `response_a`, `response_b`.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If no row has a pair.
    """

    def __init__(self, dataset: Dataset):
        fix = "Select pairs first: EmbeddingPairSelector(…).select(dataset)"
        check_columns(dataset.column_names, ("prompt", "response_a", "response_b"), fix)
        dataset = ready_pairs(dataset)
        read = ("prompt", "response_a", "response_b", "pair", *IMAGE_COLUMNS)
        shown = [name for name in read if name in dataset.column_names]
        self._dataset = dataset.with_format(None).select_columns(shown)
        self._pairs: dict[str, tuple[str, str, int]] = {}  # min(key, mirror) -> key, mirror, row
        for row, columns in enumerate(self._dataset):
            if "pair" in columns and columns["pair"][0] < 0:
                continue
            ((key, mirror),) = row_keys({name: [value] for name, value in columns.items()})
            name = min(key, mirror)
            if name not in self._pairs or key < self._pairs[name][0]:
                self._pairs[name] = (key, mirror, row)
        if not self._pairs:
            raise TrlRealError(f"None of the {len(dataset)} rows has a pair, so there is nothing to vote on.")

    def __len__(self) -> int:
        return len(self._pairs)

    def order(self, seed: int, annotator: str) -> list[str]:
        """Return the names of all pairs in an annotator's order, which depends on seed, annotator and content only."""
        return sorted(self._pairs, key=lambda name: sha256(seed, annotator, "order", name))

    def keys(self, name: str) -> tuple[str, str]:
        """Return the key of a pair, and the key with its responses swapped."""
        return self._pairs[name][:2]

    def show(self, name: str, seed: int, annotator: str) -> Pair:
        """Return a pair with its sides drawn; swapping the responses of the row does not change the sides."""
        key, mirror, row = self._pairs[name]
        swapped = bool(sha256(seed, annotator, "side", name)[0] & 1) != (key > mirror)
        columns = self._dataset[row]
        texts = columns["response_a"], columns["response_b"]
        first, second = reversed(texts) if swapped else texts
        (images,) = images_of({name: [value] for name, value in columns.items()})
        shown = tuple(map(data_url, images))
        return Pair(key, row, columns["prompt"], first, second, "b" if swapped else "a", shown)


class VoteQueue:
    """
    Queue of one annotator: the next pair, the votes so far, and undo.

    The state is in the journal: a new queue on the same journal continues after a crash. Queues of several annotators
    may share a journal, within one thread at a time.

    Args:
        dataset: Selected pairs, or a `Deck` that several queues share.
        journal: Journal of the votes; each vote is on disk before the next pair is returned.
        annotator: Name of the annotator.
        seed: Seed of the order and the sides, combined with the name and the texts.

    Raises:
        TrlRealError: If the name is empty, or no row has a pair.
    """

    def __init__(self, dataset: Dataset | Deck, journal: Journal, annotator: str, seed: int = 42):
        self.annotator = " ".join(annotator.split())
        if not self.annotator or len(self.annotator) > LONGEST_NAME:
            raise TrlRealError(
                f"The annotator's name has {len(self.annotator)} characters; give 1 to {LONGEST_NAME}, such as 'ann'."
            )
        self.seed = seed
        self._deck = dataset if isinstance(dataset, Deck) else Deck(dataset)
        self._journal = journal
        self._order = self._deck.order(seed, self.annotator)
        self._name = {key: name for name in self._order for key in self._deck.keys(name)}
        self._done: dict[str, Vote] = {}
        for vote in VoteBook(journal.read()).votes(self.annotator):
            if vote.key in self._name:
                self._done[self._name[vote.key]] = vote

    def next(self) -> Pair | None:
        """Return the first pair without a vote, or None if no pair is left."""
        name = next((name for name in self._order if name not in self._done), None)
        return None if name is None else self._deck.show(name, self.seed, self.annotator)

    def vote(self, verdict: str, seconds: float, key: str | None = None) -> bool:
        """
        Vote on the next pair.

        Args:
            verdict: Verdict in `VERDICTS`, about `response_a` and `response_b`.
            seconds: Time from showing the pair to the vote, in seconds.
            key: Key of the pair that the annotator saw; if another pair is next, the vote is rejected.

        Returns:
            Whether the vote was accepted; if so, it is on disk.

        Raises:
            TrlRealError: If the verdict is unknown, or the file cannot be written.
        """
        if verdict not in VERDICTS:
            raise TrlRealError(f"Unknown verdict {verdict!r}: choose from {', '.join(VERDICTS)}.")
        pair = self.next()
        if pair is None or (key is not None and key != pair.key):
            return False
        name = self._name[pair.key]
        vote = Vote(
            key=pair.key,
            mirror=self._deck.keys(name)[1],
            row=pair.row,
            annotator=self.annotator,
            verdict=verdict,
            shown_first=pair.shown_first,
            seconds=round(min(max(float(seconds), 0.0), LONGEST), 3) if math.isfinite(seconds) else 0.0,
            time=_now(),
            seed=self.seed,
        )
        self._journal.append(asdict(vote))
        self._done[name] = vote
        return True

    def vote_side(self, side: str, seconds: float, key: str | None = None) -> bool:
        """Vote by the side of the page: `"left"`, `"tie"`, `"right"` or `"skip"`; otherwise as `vote`."""
        pair = self.next()
        if pair is None:
            return False
        other = "b" if pair.shown_first == "a" else "a"
        return self.vote({"left": pair.shown_first, "right": other}.get(side, side), seconds, key)

    def undo(self, key: str | None = None) -> bool:
        """
        Undo the last vote, so that its pair is next again. The vote stays in the file, followed by a line that undoes
        it.

        Args:
            key: Key of the pair that the annotator saw, `""` at the end; if another pair is next, nothing happens.

        Returns:
            Whether a vote was undone.
        """
        pair = self.next() if key is not None else None
        if not self._done or (key is not None and key != (pair.key if pair else "")):
            return False
        name, vote = next(reversed(self._done.items()))
        self._journal.append({"undo": vote.key, "annotator": self.annotator, "time": _now()})
        del self._done[name]
        return True

    @property
    def progress(self) -> Progress:
        """Counts and pace of this annotator on these pairs."""
        votes = list(self._done.values())
        counts = {verdict: sum(vote.verdict == verdict for vote in votes) for verdict in VERDICTS}
        left = sum(vote.verdict == vote.shown_first for vote in votes)
        seconds = [vote.seconds for vote in votes if math.isfinite(vote.seconds)]
        return Progress(
            total=len(self._order),
            counts=counts,
            left=left,
            right=counts["a"] + counts["b"] - left,
            median_seconds=statistics.median(seconds) if seconds else math.nan,
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
