"""Claims that hold for every strategy; each takes `(embeddings, draws) -> scores` and raises on failure."""

import numpy as np
import torch
from torch import Tensor

from trl_real.data.pairs import Candidates
from trl_real.functional.similarity import candidate_pairs
from trl_real.selection.annotation import Choice, choose
from trl_real.selection.budget import budget_rows


def random_embeddings(seed: int, n: int, k: int, d: int = 16) -> Tensor:
    """Return independent normal embeddings, float32. Shape `(N, K, d)`."""
    return torch.randn(n, k, d, generator=torch.Generator().manual_seed(seed))


def candidates(embeddings: Tensor, start: int = 0) -> list[Candidates]:
    """Return one row per prompt, each with its own texts, numbered from `start`."""
    n, k, _ = embeddings.shape
    return [
        Candidates(f"prompt {start + i}", [f"answer {start + i}/{j}" for j in range(k)], list(range(k)))
        for i in range(n)
    ]


def chosen(strategy, embeddings: Tensor, rows: list[Candidates] | None = None, seed: int = 42) -> Choice:
    """Return the result of `choose` on a pool with these embeddings."""
    return choose(rows or candidates(embeddings), list(embeddings), strategy, seed)


def kept(strategy, choice: Choice, budget: int) -> np.ndarray:
    """Return the rows that a budget takes, in ascending order."""
    return budget_rows(strategy, choice.scores, choice.differences, budget)[0]


def subset(strategy, embeddings: Tensor, budget: int, **kwargs) -> set[int]:
    """Return the rows that a budget takes."""
    return set(kept(strategy, chosen(strategy, embeddings, **kwargs), budget).tolist())


def assert_row_permutation_equivariant(strategy, n_responses: int) -> None:
    """Shuffled rows get the same pairs, and a budget takes the same rows (S2)."""
    embeddings = random_embeddings(1, 60, n_responses)
    rows = candidates(embeddings)
    order = np.random.default_rng(0).permutation(len(rows))
    before, after = chosen(strategy, embeddings, rows), chosen(strategy, embeddings[order], [rows[i] for i in order])
    np.testing.assert_array_equal(before.pairs[order], after.pairs)
    np.testing.assert_allclose(before.similarity[order], after.similarity, atol=1e-6)
    for budget in (1, 15, 30, 60):
        rows_after = {int(order[i]) for i in kept(strategy, after, budget)}
        assert rows_after == set(kept(strategy, before, budget).tolist())


def assert_response_permutation_equivariant(strategy, n_responses: int) -> None:
    """Shuffled responses give the same unordered pairs, and the same rows under a budget (trap 1)."""
    embeddings = random_embeddings(2, 40, n_responses)
    rows = candidates(embeddings)
    before = chosen(strategy, embeddings, rows)
    for trial in range(20):
        order = np.random.default_rng(trial).permutation(n_responses)
        shuffled = [Candidates(r.prompt, [r.texts[j] for j in order], list(range(n_responses))) for r in rows]
        after = chosen(strategy, embeddings[:, order], shuffled)
        np.testing.assert_array_equal(np.sort(order[after.pairs], axis=1), before.pairs)
        np.testing.assert_array_equal(kept(strategy, after, 10), kept(strategy, before, 10))


def assert_scale_invariant(strategy, n_responses: int) -> None:
    """Scaling each embedding by its own positive number changes nothing (S3)."""
    embeddings = random_embeddings(3, 40, n_responses)
    factors = 10 ** torch.empty(40, n_responses, 1).uniform_(-3, 3, generator=torch.Generator().manual_seed(0))
    before, after = chosen(strategy, embeddings), chosen(strategy, embeddings * factors)
    np.testing.assert_array_equal(before.pairs, after.pairs)
    np.testing.assert_array_equal(kept(strategy, before, 13), kept(strategy, after, 13))


def assert_batch_independent(strategy, n_responses: int) -> None:
    """One row at a time gives the same as all at once."""
    embeddings = random_embeddings(4, 25, n_responses)
    rows = candidates(embeddings)
    together = chosen(strategy, embeddings, rows)
    for i, row in enumerate(rows):
        alone = chosen(strategy, embeddings[i : i + 1], [row])
        np.testing.assert_array_equal(alone.pairs[0], together.pairs[i])
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=0, atol=1e-12)


def assert_valid_pairs(strategy, embeddings: Tensor) -> None:
    """Two distinct responses, lower index first, in every row, for any embeddings."""
    pairs = chosen(strategy, embeddings).pairs
    assert (0 <= pairs[:, 0]).all() and (pairs[:, 0] < pairs[:, 1]).all() and (pairs[:, 1] < embeddings.shape[1]).all()


def assert_same_with_the_same_seed(strategy, n_responses: int) -> None:
    """The seed and the content decide; the global state of torch and NumPy does not, and stays unchanged."""
    embeddings = random_embeddings(5, 30, n_responses)
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = chosen(strategy, embeddings)
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    torch.manual_seed(2)
    np.random.seed(2)
    second = chosen(strategy, embeddings)
    np.testing.assert_array_equal(first.pairs, second.pairs)
    np.testing.assert_array_equal(first.scores, second.scores)


def assert_mixed_sizes(strategy) -> None:
    """Rows of different sizes in one batch, some skipped, give the same as each row alone."""
    tensors = [random_embeddings(10 + i, 1, k)[0] for i, k in enumerate([2, 5, 3, 2, 14, 3, 1, 4])]
    rows = [candidates(t[None], start=i)[0] for i, t in enumerate(tensors)]
    rows[6] = Candidates("prompt", [], [], "fewer than two responses")
    tensors[6] = torch.zeros(0, 16)
    together = choose(rows, tensors, strategy, 42)
    assert together.pairs[6].tolist() == [-1, -1] and np.isnan(together.scores[6])
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(together.pairs[i], choose([row], [tensors[i]], strategy, 42).pairs[0])


def naive_similarity(embeddings: Tensor) -> np.ndarray:
    """Cosines of the candidate pairs, by the definition, in float64. Shape `(N, P)`."""
    values = embeddings.double().numpy()
    pairs = candidate_pairs(values.shape[1]).T.tolist()
    cosine = [
        [row[i] @ row[j] / (np.sqrt(row[i] @ row[i]) * np.sqrt(row[j] @ row[j])) for i, j in pairs] for row in values
    ]
    return np.array(cosine)


def uncertainty(features, history=None):
    """`phi^T V^-1 phi` from the explicit inverse, with ridge 1."""
    v = torch.eye(features.shape[1], dtype=features.dtype)
    if history is not None:
        v = v + history.T @ history
    return ((features @ torch.linalg.inv(v)) * features).sum(1)
