"""Cosine similarity, the best partition by two-means, and the proven properties of the centroid pair."""

from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
import torch

from support.claims import naive_similarity, random_embeddings
from trl_real.functional.clustering import two_means, two_means_gap
from trl_real.functional.similarity import candidate_pairs, candidate_similarity, normalize, pair_similarity
from trl_real.selection.strategies import centroid, easy, hard, lowest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products: more threads only wait for each other where the cores are shared."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def scatter(points: np.ndarray, second: np.ndarray) -> float:
    """`sum_k sum_{i in C_k} |u_i - c_k|^2`, by the definition."""
    return sum(((points[part] - points[part].mean(0)) ** 2).sum() for part in (second, ~second) if part.any())


def best_by_brute_force(points: np.ndarray) -> float:
    splits = (np.array((False, *bits)) for bits in product((False, True), repeat=len(points) - 1))
    return min(scatter(points, split) for split in splits if split.any())


def unit(seed: int, n: int, k: int, d: int) -> torch.Tensor:
    return normalize(random_embeddings(seed, n, k, d))


class TestSimilarity:
    def test_is_the_cosine(self):
        embeddings = random_embeddings(0, 20, 6)
        np.testing.assert_allclose(candidate_similarity(embeddings).numpy(), naive_similarity(embeddings), atol=1e-14)

    def test_similarity_of_two_equals_that_of_all(self):
        embeddings = random_embeddings(1, 20, 5)
        first, second = candidate_pairs(5)
        expected = candidate_similarity(embeddings)
        torch.testing.assert_close(pair_similarity(embeddings[:, first], embeddings[:, second]), expected)

    def test_candidate_pairs_are_lexicographic(self):
        assert candidate_pairs(5).T.tolist() == [list(pair) for pair in combinations(range(5), 2)]

    def test_pairs_1e_5_apart_keep_their_order(self):
        angles = torch.arccos(torch.linspace(0.8, 0.9, 10_001, dtype=torch.float64))
        first = torch.tensor([1.0, 0.0]).expand(len(angles), 2)
        second = torch.stack([angles.cos(), angles.sin()], dim=1).float()
        assert (pair_similarity(first, second).diff() > 0).all()

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_does_not_overflow_or_vanish(self, scale):
        first, second = random_embeddings(2, 1, 2)[0]
        torch.testing.assert_close(pair_similarity(first * scale, second), pair_similarity(first, second))

    def test_similarity_of_a_zero_vector_is_zero_and_not_nan(self):
        assert pair_similarity(torch.zeros(4), torch.ones(4)) == 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_is_computed_in_float64_from_any_precision(self, dtype):
        assert candidate_similarity(random_embeddings(3, 2, 3).to(dtype)).dtype == torch.float64


class TestTwoMeans:
    @pytest.mark.parametrize("k", range(2, 9))
    def test_finds_the_optimum(self, k):
        points = unit(k, 40, k, 3)
        for row, second in zip(points.numpy(), two_means(points).numpy(), strict=True):
            assert not second[0] and second.any()
            assert scatter(row, second) == pytest.approx(best_by_brute_force(row), rel=1e-7)

    @pytest.mark.parametrize("k", [9, 12])
    def test_blocks_do_not_matter(self, k, monkeypatch):
        points = unit(k, 30, k, 4)
        expected = two_means(points)
        monkeypatch.setattr("trl_real.functional.clustering.MAX_ELEMENTS", 1)
        assert torch.equal(two_means(points), expected)

    @pytest.mark.parametrize(("k", "d"), [(13, 3), (16, 16), (30, 8), (60, 64)])
    def test_many_points_are_split_as_well_as_by_sklearn_with_twenty_starts(self, k, d):
        kmeans = pytest.importorskip("sklearn.cluster").KMeans
        points = unit(k, 12, k, d)
        ratios = []
        for row, second in zip(points.numpy(), two_means(points).numpy(), strict=True):
            theirs = kmeans(n_clusters=2, n_init=20, random_state=0).fit(row).inertia_
            ratios.append(scatter(row, second) / theirs)
        assert max(ratios) < 1.01 and np.mean(ratios) < 1.0005

    @pytest.mark.parametrize("k", [13, 25])
    def test_many_points_in_two_clusters_are_separated(self, k):
        heap = torch.arange(k) % 3 == 0
        centre = torch.where(heap[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        points = normalize(centre + 0.05 * random_embeddings(k, 1, k, 2)[0])
        assert torch.equal(two_means(points[None])[0], heap ^ heap[0])

    @pytest.mark.parametrize("k", [3, 4, 6])
    def test_points_within_the_gap_keep_their_partition(self, k):
        """Inner products of unit vectors that move by less than half the gap change no cluster."""
        points = normalize(random_embeddings(11, 300, k, 4))
        moved = normalize(points + 0.02 * random_embeddings(12, 300, k, 4))
        error = (points @ points.mT - moved @ moved.mT).abs().amax((1, 2))
        safe = two_means_gap(points) > 2 * error
        assert 20 < safe.sum() < 300 and (~safe).any()
        assert torch.equal(two_means(points)[safe], two_means(moved)[safe])

    def test_no_other_partition_of_two_points(self):
        assert two_means_gap(normalize(random_embeddings(1, 5, 2, 3))).isinf().all()

    @pytest.mark.parametrize("k", [2, 3, 8, 13, 40])
    def test_identical_points_still_make_two_clusters(self, k):
        second = two_means(torch.ones(2, k, 4) / 2)
        assert second.any(-1).all() and not second[:, 0].any()

    def test_zero_points_still_make_two_clusters(self):
        assert two_means(torch.zeros(1, 4, 3)).any() and two_means(torch.zeros(1, 14, 3)).any()


class TestCentroid:
    def test_centroid_pair_of_three_is_never_the_hard_pair(self):
        for d in (2, 3, 64):
            embeddings = random_embeddings(d, 500, 3, d)
            assert not (lowest(centroid(embeddings, None)) == lowest(hard(embeddings, None))).any()

    def test_centroid_pair_of_three_is_the_easy_or_the_middle_pair(self):
        embeddings = random_embeddings(7, 500, 3)
        similarity = candidate_similarity(embeddings)
        picked = similarity.gather(1, lowest(centroid(embeddings, None))[:, None])[:, 0]
        assert (picked <= similarity.sort(dim=1).values[:, 1]).all()

    @pytest.mark.parametrize("k", [3, 4, 6, 13])
    def test_is_at_least_as_similar_as_the_easy_pair(self, k):
        similarity = candidate_similarity(embeddings := random_embeddings(k, 50, k))
        picked = similarity.gather(1, lowest(centroid(embeddings, None))[:, None])
        assert (picked[:, 0] >= similarity.amin(1)).all()

    @pytest.mark.parametrize("k", [2, 3, 4, 7, 13])
    def test_members_nearest_to_their_centres(self, k):
        """Against loops: each of the two is of its own cluster and none of that is nearer (up to ties)."""
        embeddings = random_embeddings(20 + k, 40, k, 5)
        units, clusters = normalize(embeddings).numpy(), two_means(normalize(embeddings)).numpy()
        pairs = candidate_pairs(k).T[lowest(centroid(embeddings, None))].tolist()
        for points, second, pair in zip(units, clusters, pairs, strict=True):
            assert second[pair[0]] != second[pair[1]]
            for i in pair:
                members = np.flatnonzero(second == second[i])
                distance = ((points[members] - points[members].mean(0)) ** 2).sum(1)
                assert ((points[i] - points[members].mean(0)) ** 2).sum() <= distance.min() + 1e-5

    @pytest.mark.parametrize("k", [2, 3, 5, 13])
    def test_takes_two_distinct_responses_even_if_all_embeddings_are_identical(self, k):
        pair = candidate_pairs(k).T[lowest(centroid(torch.ones(1, k, 4), None))[0]].tolist()
        assert pair == [0, 1]

    @pytest.mark.parametrize("k", [4, 5, 8, 13])
    def test_follows_its_responses_when_they_are_shuffled(self, k):
        embeddings = random_embeddings(30 + k, 30, k, 6)

        def pairs(x):
            return candidate_pairs(k).T[lowest(centroid(x, None, tie="farthest"))]

        expected = pairs(embeddings)
        for trial in range(20):
            order = torch.randperm(k, generator=torch.Generator().manual_seed(trial))
            assert torch.equal(order[pairs(embeddings[:, order])].sort(1).values, expected)

    def test_farthest_of_three_is_the_easy_pair(self):
        embeddings = random_embeddings(8, 500, 3)
        farthest = centroid(embeddings, None, tie="farthest")
        assert torch.equal(lowest(farthest), lowest(easy(embeddings, None)))

    def test_first_of_three_takes_the_lowest_index_of_the_tied(self):
        embeddings = random_embeddings(9, 500, 3)
        closest = candidate_pairs(3).T[lowest(hard(embeddings, None))]
        alone = 3 - closest.sum(1)
        expected = torch.stack([alone, closest.amin(1)], dim=1).sort(1).values
        assert torch.equal(candidate_pairs(3).T[lowest(centroid(embeddings, None))], expected)

    def test_random_of_three_takes_either_of_the_tied_equally_often(self):
        embeddings = random_embeddings(10, 2000, 3)
        draws = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scores = partial(centroid, tie="random")(embeddings, draws)
        share = (lowest(scores) == lowest(easy(embeddings, None))).double().mean()
        assert 0.46 < share < 0.54
        assert not (lowest(scores) == lowest(hard(embeddings, None))).any()
