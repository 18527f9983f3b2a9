"""Data of a study: rows with known labels, a fixed test set, and the labels of pairs."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_real.data.checks.row_check import check_texts
from trl_real.data.columns import is_pool, to_columns
from trl_real.data.conversation import as_messages, is_messages, text_of
from trl_real.data.pairs import Candidates
from trl_real.errors import TrlRealError, check_columns
from trl_real.functional.similarity import candidate_pairs
from trl_real.labeling.judges import ScoreJudge
from trl_real.selection.annotation import gather_candidates, given_vectors


BATCH = 1000
N_TEST, FOLDS = 500, 4  # by default


@dataclass
class StudyPool:
    """
    Rows of a study with their labels; labels are read only for selected pairs.

    Args:
        rows: Candidates of each row.
        scores: Scores of the candidates; 1 and 0 for a labelled pair, NaN for a missing score.
        opinions: Probability, by a second annotator, that the chosen response of each row is better; None without.
        vectors: Embeddings from the dataset, `(K, d)` per row; None without.
        skipped: Number of rows left out, by reason.
    """

    rows: list[Candidates]
    scores: list[np.ndarray]
    opinions: np.ndarray | None = None
    vectors: list[Any] | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | np.ndarray) -> "StudyPool":
        """Return the rows at these indices."""
        return StudyPool(
            [self.rows[i] for i in indices],
            [self.scores[i] for i in indices],
            None if self.opinions is None else self.opinions[list(indices)],
            None if self.vectors is None else [self.vectors[i] for i in indices],
            self.skipped,
        )

    def readable(self) -> "StudyPool":
        """Return the rows with finite embeddings: a model may read no token of a response."""
        if self.vectors is None:
            return self
        return self.take([i for i, vectors in enumerate(self.vectors) if bool(vectors.isfinite().all())])

    def prompt_keys(self) -> list[str]:
        """Return a digest of each row's prompt, or of its responses if it has no prompt."""
        return [_digest(text_of(row.prompt) if row.prompt else "\0".join(row.texts)) for row in self.rows]


def study_pool(
    dataset: Dataset,
    *,
    responses: str = "responses",
    scores: str = "scores",
    second_opinion: str | None = None,
    embeddings: bool = False,
    labels: bool = True,
) -> StudyPool:
    """
    Read the rows of a study from labelled pairs (`chosen`, `rejected`), or from a pool with responses and scores.

    Args:
        dataset, responses, scores, second_opinion: Arguments of `run_study`.
        embeddings: Whether to use the column `embeddings`.
        labels: Whether to read the labels; else all scores are missing.

    Raises:
        MissingColumnError: If the dataset has no labels.
        TrlRealError: If no row has a pair, or a second opinion, which needs labelled pairs, is given for a pool.
    """
    pool = is_pool(dataset.column_names, responses)
    if pool and second_opinion:
        raise TrlRealError(
            f"second_opinion={second_opinion!r} needs labelled pairs, but the dataset is a pool with "
            f"{responses!r}. Leave it out, or give the columns 'chosen' and 'rejected'."
        )
    needed = ([scores] if pool and labels else []) + ([second_opinion] if second_opinion else [])
    fix = "A study needs labels: scores of the responses (--scores), or the columns 'chosen' and 'rejected'."
    check_columns(dataset.column_names, needed, fix)
    check_texts(dataset, (), optional=("prompt", "chosen", "rejected"))
    found = StudyPool([], [], np.zeros(0) if second_opinion else None, [] if embeddings else None)
    for batch in dataset.with_format(None).iter(batch_size=BATCH):
        _add(found, to_columns(batch), pool, responses, scores if labels else None, second_opinion)
    if not found.rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(found.skipped.items()))
        raise TrlRealError(f"None of the {len(dataset)} rows has a pair to study ({reasons or 'no rows'}).")
    return found


def _add(
    found: StudyPool, columns: dict, pool: bool, responses: str, scores: str | None, second_opinion: str | None
) -> None:
    rows = gather_candidates(columns, pool, responses)
    vectors = given_vectors(rows, columns) if found.vectors is not None else None
    for i, row in enumerate(rows):
        if row.skipped:
            found.skipped[row.skipped] += 1
            continue
        given = [None] * (max(row.indices) + 1) if scores is None else columns[scores][i] if pool else [1.0, 0.0]
        if not all(score is None or isinstance(score, int | float) for score in given or ()):
            raise TrlRealError(f"Column {scores!r} holds {given!r}. Give one number per response, None for none.")
        if given is None or len(given) <= max(row.indices):
            raise TrlRealError(
                f"Column {scores!r} has {0 if given is None else len(given)} scores in a row of "
                f"{max(row.indices) + 1} or more responses. Give one score per response, None for a missing one."
            )
        found.rows.append(row)
        found.scores.append(np.array([np.nan if given[j] is None else given[j] for j in row.indices], dtype=float))
        if vectors is not None and found.vectors is not None:
            found.vectors.append(vectors[i])
        if found.opinions is not None:
            found.opinions = np.append(found.opinions, columns[second_opinion][i])


def split_by_size(pool: StudyPool, n_test: int | None, n_folds: int | None) -> tuple[int, int]:
    """Return the number of test rows and of splits: as given, else folds if a test set would take half of a pool."""
    if n_test is None and n_folds is None and len(pool) < 2 * N_TEST:
        return N_TEST, min(FOLDS, len(set(pool.prompt_keys())))
    return n_test or N_TEST, n_folds or 1


def split_by_prompt(pool: StudyPool, n_test: int, n_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Split rows into a pool and a test set without common prompts, or into `n_folds` splits that test each prompt once.
    The split depends only on the seed and the content of the prompts. The rows of a prompt stay together, so that
    `n_test` is approximate.

    Returns:
        Ascending indices of the pool's and of the test set's rows, for each split.

    Raises:
        TrlRealError: If a pool or a test set would be empty.
    """
    keys = pool.prompt_keys()
    order = sorted(set(keys), key=lambda key: _digest(f"{seed}|{key}"))
    if len(order) < 2:
        raise TrlRealError(
            f"Found {len(order)} prompts, but a study tests on other prompts than it selects from. Give two or more."
        )
    size = n_test if n_folds == 1 else len(keys) / n_folds
    counts, total, fold_of = Counter(keys), 0, {}
    for key in order:
        fold_of[key] = int(total // size)
        total += counts[key]
    folds = np.array([min(fold_of[key], n_folds - 1) if n_folds > 1 else fold_of[key] for key in keys])
    splits = [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(n_folds)]
    if any(not len(part) for split in splits for part in split):
        asked = f"n_test={n_test}" if n_folds == 1 else f"n_folds={n_folds}"
        raise TrlRealError(
            f"{asked} of {len(pool)} rows ({len(order)} prompts) leaves the pool or the test set empty. "
            f"Type n_folds={min(4, len(order))}."
        )
    return splits


def decided(
    pool: StudyPool, places: np.ndarray, pairs: np.ndarray, min_gap: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the pairs that the labels decide, the better response first; ties and missing scores are left out.

    Args:
        places, pairs: Row index, shape `(n,)`, and two candidates (not responses), shape `(n, 2)`, of each pair.
        min_gap: Minimum difference of scores that decides a label.
    """
    judge = ScoreJudge("scores", min_gap)
    labels = np.array(judge({"scores": [pool.scores[i].tolist() for i in places], "pair": pairs.tolist()}))
    better_first = np.where((labels == 0)[:, None], pairs[:, ::-1], pairs)
    known = (labels == 1) | (labels == 0)
    return places[known], better_first[known]


def decided_pairs(pool: StudyPool, min_gap: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of all rows that the labels decide, as `decided` does."""
    found = [(np.zeros(0, dtype=int), np.zeros((0, 2), dtype=int))]
    for i, row in enumerate(pool.rows):
        pairs = candidate_pairs(len(row.texts)).T.numpy()
        found.append(decided(pool, np.full(len(pairs), i), pairs, min_gap))
    return np.concatenate([places for places, _ in found]), np.concatenate([pairs for _, pairs in found])


def pairs_to_test(
    pool: StudyPool, min_gap: float = 0.0, one_per_row: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return all decided pairs, or the first of each row, and the number of each pair's prompt. Shape `(n,)`.

    Raises:
        TrlRealError: If no pair is decided.
    """
    places, pairs = decided_pairs(pool, min_gap)
    if not len(pairs):
        raise TrlRealError("No test pair has a label. Give more test rows (n_test), or a smaller min_gap.")
    if one_per_row:
        _, first = np.unique(places, return_index=True)
        places, pairs = places[first], pairs[first]
    keys = pool.prompt_keys()
    _, prompts = np.unique([keys[i] for i in places], return_inverse=True)
    return places, pairs, prompts


def pair_vectors(vectors: list[Tensor], places: np.ndarray, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the vectors of the first and of the second candidate of each pair. Shape `(n, d)` each."""
    both = list(zip(places.tolist(), pairs.tolist(), strict=True))
    first, second = (torch.stack([vectors[i][pair[side]] for i, pair in both]) for side in (0, 1))
    return first, second


def preferences(pool: StudyPool, places: np.ndarray, pairs: np.ndarray) -> Dataset:
    """
    Convert labelled pairs, as `decided` returns them, to TRL's preference format.

    Returns:
        Dataset with the columns `prompt`, `chosen`, `rejected`; responses are messages if the prompts are. A row
        without a prompt gets an empty one: the empty text, or an empty user turn.
    """
    chats = any(is_messages(row.prompt) for row in pool.rows)
    nothing = [{"role": "user", "content": ""}] if chats else ""
    rows = []
    for place, (better, worse) in zip(places.tolist(), pairs.tolist(), strict=True):
        row = pool.rows[place]
        chosen, rejected = (as_messages(row.texts[k]) if chats else row.texts[k] for k in (better, worse))
        rows.append({"prompt": row.prompt or nothing, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
