"""What a head learns from a history: the labels as they are, those that count, and draws of its own in each round."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from trl_real.functional.bayesian_head import ACQUISITIONS
from trl_real.selection.active.head import HeadPairSelector


N, K, D = 12, 3, 4


def pool(seed: int = 0) -> Dataset:
    """Return responses whose quality is the first coordinate of their embeddings."""
    vectors = np.random.default_rng(seed).normal(size=(N, K, D)).tolist()
    texts = [[f"response {i} {j}" for j in range(K)] for i in range(N)]
    return Dataset.from_dict({"prompt": [f"p{i}" for i in range(N)], "responses": texts, "embeddings": vectors})


def history(data: Dataset, rows=range(6), **changes) -> Dataset:
    """Return labels of the first two responses of some rows: the better one by the first coordinate was chosen."""
    made = []
    for row in data.select(rows):
        better = int(row["embeddings"][1][0] > row["embeddings"][0][0])
        made.append({"prompt": row["prompt"], "chosen": row["responses"][better], "label_confidence": 1.0,
                     "rejected": row["responses"][1 - better], **changes})  # fmt: skip
    return Dataset.from_list(made)


class Seen:
    """An acquisition function that keeps what it gets and picks the first pair of each row."""

    def __init__(self):
        self.means = self.covariances = self.draws = None

    def __call__(self, means, covariances, draws):
        self.means, self.covariances, self.draws = means, covariances, draws
        return torch.arange(3.0).repeat(len(means), 1)


def seen(data: Dataset, labels: Dataset | None, **settings) -> tuple[Seen, dict]:
    acquire = Seen()
    selector = HeadPairSelector(acquisition=acquire, ridge=1.0, geometry="raw", **settings)
    selector.select(data, 2, history=labels)
    return acquire, selector.record.settings


def test_better_responses_get_higher_utilities():
    data = pool()
    found, settings = seen(data, history(data))
    assert settings["n_fitted"] == settings["n_history"] == 6 and settings["history_unread"] == 0
    quality = np.array(data["embeddings"][:])[:, :, 0]
    learned = found.means.numpy()
    assert np.corrcoef((quality - quality.mean(1, keepdims=True)).ravel(),
                       (learned - learned.mean(1, keepdims=True)).ravel())[0, 1] > 0.6  # fmt: skip
    turned = history(data).rename_columns({"chosen": "rejected", "rejected": "chosen"})
    assert torch.allclose(seen(data, turned)[0].means, -found.means, atol=1e-6)


def test_less_confident_labels_teach_less():
    data = pool()
    sizes = [float(seen(data, history(data, label_confidence=p))[0].means.abs().sum()) for p in (0.5, 0.7, 0.9, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < 1e-4 < 0.1 < sizes[1]
    plain = seen(data, history(data).remove_columns("label_confidence"))[0]
    assert torch.equal(plain.means, seen(data, history(data))[0].means)
    unknown = Dataset.from_list([*history(data, range(5)), {**history(data)[5], "label_confidence": None}])
    assert torch.equal(plain.means, seen(data, unknown)[0].means)


@pytest.mark.parametrize("gone", [{"chosen": None}, {"rejected": ""}, {"chosen": "same", "rejected": "same"}])
def test_a_row_without_a_verdict_is_no_label_but_is_counted(gone):
    data = pool()
    labels = Dataset.from_list([*history(data, range(5)), {**history(data)[5], **gone}])
    found, settings = seen(data, labels)
    assert (settings["n_history"], settings["history_unread"], settings["n_fitted"]) == (5, 1, 5)
    assert torch.equal(found.means, seen(data, history(data, range(5)))[0].means)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_label_of_a_response_without_a_finite_embedding_is_left_out(side):
    data, labels = pool(), history(pool())
    rows = list(data)
    rows[5]["embeddings"][rows[5]["responses"].index(labels[5][side])][1] = float("nan")
    broken = Dataset.from_list(rows)
    found, settings = seen(broken, labels)
    assert (settings["n_history"], settings["n_fitted"]) == (6, 5) and found.means.isfinite().all()
    assert torch.allclose(found.means, seen(broken, labels.select(range(5)))[0].means)


def test_draws_change_with_the_labels_the_seed_and_the_content_and_with_nothing_else():
    data = pool()
    draws = {n: seen(data, history(data, range(n)))[0].draws for n in (1, 2, 3)}
    again = seen(data, history(data, range(1, 3)))[0].draws
    assert torch.equal(draws[2], again)  # two labels, though others
    other = [draws[1], draws[2], draws[3], seen(data, history(data, range(1)), seed=7)[0].draws]
    assert all(not torch.equal(a, b) for i, a in enumerate(other) for b in other[:i])
    order = np.random.default_rng(1).permutation(N)
    assert torch.equal(seen(data.select(order), history(data, range(2)))[0].draws, draws[2][order])
    assert len({tuple(row.flatten().tolist()) for row in draws[1]}) == N


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_labelled_pairs_are_not_picked_again(name):
    data, labels = pool(), history(pool(), range(9))
    kept = HeadPairSelector(acquisition=name, ridge=1.0).select(data, N, history=labels)
    assert sorted(kept["prompt"][:]) == sorted(data["prompt"][:])
    asked = {(row["prompt"], *sorted((row["response_a"], row["response_b"]))) for row in kept}
    assert not asked & {(row["prompt"], *sorted((row["chosen"], row["rejected"]))) for row in labels}
