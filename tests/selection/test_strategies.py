"""Every strategy satisfies `support/claims.py` and equals a naive implementation of the paper."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import chisquare, kstest

from support import claims
from support.claims import candidates, chosen, naive_similarity, random_embeddings, subset
from trl_real import EmbeddingPairSelector, TrlRealError
from trl_real.data.pairs import Candidates
from trl_real.functional.similarity import candidate_similarity
from trl_real.selection.annotation import _draws, choose
from trl_real.selection.budget import lowest_rows
from trl_real.selection.strategies import STRATEGIES, as_strategy, centroid, d_optimal, easy, hard, lowest, uniform


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products: more threads only wait for each other where the cores are shared."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def most_orthogonal(embeddings, draws):
    """A user's own strategy, from the documentation."""
    return candidate_similarity(embeddings).abs()


# Ties of `first` go by index, so only the other two tie rules can follow a shuffle of three responses.
ALL = {**STRATEGIES, "my_own": most_orthogonal, "farthest": partial(centroid, tie="farthest")}
every_strategy = pytest.mark.parametrize("name", ALL)
sizes = pytest.mark.parametrize("k", [2, 3, 4, 7, 13])


class TestClaims:
    @every_strategy
    @sizes
    def test_rows_may_be_shuffled(self, name, k):
        claims.assert_row_permutation_equivariant(ALL[name], k)

    @pytest.mark.parametrize("name", [*sorted(set(ALL) - {"centroid"}), "random_ties"])
    @sizes
    def test_responses_may_be_shuffled(self, name, k):
        strategy = ALL.get(name, partial(centroid, tie="random"))
        claims.assert_response_permutation_equivariant(strategy, k)

    @pytest.mark.parametrize("k", [2, 5, 6, 7])
    def test_responses_may_be_shuffled_for_centroid_where_nothing_ties(self, k):
        """A cluster of two ties always; these seeds have none."""
        embeddings = random_embeddings(2, 60, k)
        first = chosen(centroid, embeddings).pairs
        same = (first == chosen(partial(centroid, tie="farthest"), embeddings).pairs).all(1)
        order = np.random.default_rng(0).permutation(k)
        after = np.sort(order[chosen(centroid, embeddings[:, order]).pairs], axis=1)
        assert same.any()
        both = same & (after == chosen(partial(centroid, tie="farthest"), embeddings).pairs).all(1)
        np.testing.assert_array_equal(after[both], first[both])

    @every_strategy
    @sizes
    def test_embeddings_may_be_scaled(self, name, k):
        claims.assert_scale_invariant(ALL[name], k)

    @every_strategy
    @sizes
    def test_batches_do_not_matter(self, name, k):
        claims.assert_batch_independent(ALL[name], k)

    @every_strategy
    @sizes
    def test_randomness_comes_only_from_the_seed(self, name, k):
        claims.assert_same_with_the_same_seed(ALL[name], k)

    @every_strategy
    def test_rows_may_have_different_numbers_of_responses(self, name):
        claims.assert_mixed_sizes(ALL[name])

    @every_strategy
    @sizes
    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_pairs_are_valid_for_identical_embeddings(self, name, k, value):
        claims.assert_valid_pairs(ALL[name], torch.full((5, k, 4), value))

    @every_strategy
    @sizes
    def test_pairs_are_valid(self, name, k):
        claims.assert_valid_pairs(ALL[name], random_embeddings(0, 50, k))

    @every_strategy
    def test_two_responses_leave_no_choice(self, name):
        assert (chosen(ALL[name], random_embeddings(0, 20, 2)).pairs == [0, 1]).all()


class TestPaper:
    def test_a_hand_made_table(self):
        """S1: unit vectors at 0, 10, 90 and 180 degrees from the first response, one row each."""
        angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 180.0]))
        row = torch.stack([angles.cos(), angles.sin()], dim=1)
        assert chosen(easy, row[None]).pairs.tolist() == [[0, 3]]
        assert chosen(hard, row[None]).pairs.tolist() == [[0, 1]]
        pool = torch.stack([torch.stack([row[0], row[i]]) for i in (2, 0, 3, 1)])
        assert subset(easy, pool, 2) == {0, 2} and subset(hard, pool, 2) == {1, 3}

    def test_easy_and_hard_halves_are_disjoint(self):
        for n, budget in ((40, 20), (41, 20)):
            pool = random_embeddings(1, n, 2)
            halves = subset(easy, pool, budget), subset(hard, pool, budget)
            assert [len(half) for half in halves] == [budget, budget] and not halves[0] & halves[1]

    def test_mean_similarity_is_lowest_for_easy_and_highest_for_hard(self):
        pool = random_embeddings(2, 400, 4)
        mean = {name: chosen(strategy, pool).similarity.mean() for name, strategy in STRATEGIES.items()}
        assert mean["easy"] < mean["random"] < mean["hard"] and mean["easy"] <= mean["centroid"]

    def test_every_prompt_gives_one_pair(self):
        for strategy in ALL.values():
            assert len(chosen(strategy, random_embeddings(3, 17, 5)).pairs) == 17

    @pytest.mark.parametrize("k", [2, 3, 5, 9])
    def test_equals_a_naive_implementation(self, k):
        embeddings = random_embeddings(40 + k, 30, k)
        cosine = naive_similarity(embeddings)
        pairs = list(combinations(range(k), 2))
        assert chosen(easy, embeddings).pairs.tolist() == [list(pairs[row.argmin()]) for row in cosine]
        assert chosen(hard, embeddings).pairs.tolist() == [list(pairs[row.argmax()]) for row in cosine]
        assert subset(easy, embeddings, 9) == set(np.argsort(cosine.min(1))[:9].tolist())
        assert subset(hard, embeddings, 9) == set(np.argsort(-cosine.max(1))[:9].tolist())
        np.testing.assert_allclose(chosen(easy, embeddings).similarity, cosine.min(1), atol=1e-7)

    @pytest.mark.parametrize("k", [3, 4, 6])
    @pytest.mark.parametrize("tie", ["first", "farthest", "random"])
    def test_centroid_equals_a_naive_implementation(self, k, tie):
        embeddings = random_embeddings(50 + k, 40, k, 5)
        pairs, generator = list(combinations(range(k), 2)), torch.Generator().manual_seed(k)
        draws = torch.rand(40, len(pairs), generator=generator, dtype=torch.float64)
        got = [pairs[i] for i in lowest(centroid(embeddings, draws, tie)).tolist()]
        for row, pair, drawn in zip(embeddings.double().numpy(), got, draws.tolist(), strict=True):
            units = row / np.linalg.norm(row, axis=1, keepdims=True)
            splits = [
                (list(part), [i for i in range(k) if i not in part])
                for size in range(1, k)
                for part in combinations(range(k), size)
                if 0 in part
            ]
            within = [sum(((units[c] - units[c].mean(0)) ** 2).sum() for c in split) for split in splits]
            ends = []
            for cluster in splits[int(np.argmin(within))]:
                distance = ((units[cluster] - units[cluster].mean(0)) ** 2).sum(1)
                ends.append([i for i, d in zip(cluster, distance, strict=True) if d <= distance.min() + 1e-6])
            options = [tuple(sorted((i, j))) for i in ends[0] for j in ends[1]]
            order = {
                "first": lambda p: p,
                "farthest": lambda p: units[p[0]] @ units[p[1]],  # noqa: B023
                "random": lambda p: drawn[pairs.index(p)],  # noqa: B023
            }[tie]
            assert pair == min(options, key=order)

    def test_centroid_budget_takes_the_least_similar_centroid_pairs(self):
        result = chosen(centroid, random_embeddings(4, 50, 5))
        assert subset(centroid, random_embeddings(4, 50, 5), 10) == set(np.argsort(result.similarity)[:10].tolist())

    def test_equal_scores_go_to_the_lower_row(self):
        pool = random_embeddings(5, 1, 3).expand(12, 3, 16)
        for strategy in (easy, hard, centroid):
            assert subset(strategy, pool, 5) == {0, 1, 2, 3, 4}


class TestDOptimal:
    def test_its_pairs_and_its_first_row_are_those_of_easy(self):
        pool = random_embeddings(6, 50, 4)
        np.testing.assert_array_equal(chosen(d_optimal, pool).pairs, chosen(easy, pool).pairs)
        assert subset(d_optimal, pool, 1) == subset(easy, pool, 1)

    @pytest.mark.parametrize("k", [2, 4])
    def test_budget_takes_rows_greedily_as_adpo_does(self, k):
        pool, d = random_embeddings(7, 60, k, 12).double(), 12
        unit = (pool / pool.norm(dim=-1, keepdim=True)).numpy()
        pairs = chosen(d_optimal, pool).pairs
        phi = np.stack([row[i] - row[j] for row, (i, j) in zip(unit, pairs, strict=True)])
        v, left = np.eye(d), list(range(60))
        for size in range(1, 20):
            best = max(left, key=lambda i: phi[i] @ np.linalg.solve(v, phi[i]))
            left.remove(best)
            v += np.outer(phi[best], phi[best])
            assert subset(d_optimal, pool, size) == set(range(60)) - set(left)

    def test_rows_similar_to_a_taken_row_score_lower(self):
        same = torch.tensor([[[1.0, 0, 0], [-1, 0, 0]]]).repeat(5, 1, 1)
        other = torch.tensor([[[0.0, 1, 0], [0, 0, 1]]])
        pool = torch.cat([same, other])
        assert subset(d_optimal, pool, 2) == {0, 5} and subset(easy, pool, 2) == {0, 1}


class TestUniform:
    @pytest.mark.parametrize("k", [3, 4, 7])
    def test_every_pair_is_as_likely_as_any_other(self, k):
        pairs = chosen(uniform, torch.zeros(4000, k, 0)).pairs
        _, counts = np.unique(pairs, axis=0, return_counts=True)
        assert len(counts) == k * (k - 1) // 2 and chisquare(counts).pvalue > 1e-3

    @pytest.mark.parametrize("budget", [0.1, 0.5])
    def test_every_row_is_as_likely_as_any_other_whatever_its_number_of_responses(self, budget):
        sizes = [2, 3, 4, 7, 10]
        rows = [candidates(torch.zeros(1, sizes[i % 5], 0), start=i)[0] for i in range(5000)]
        vectors = [torch.zeros(len(row.texts), 0) for row in rows]
        kept = np.argsort(choose(rows, vectors, uniform, 7).scores)[: int(5000 * budget)]
        assert chisquare(np.bincount(kept % 5, minlength=5)).pvalue > 1e-3

    def test_scores_are_uniform(self):
        for k in (2, 3, 8):
            assert kstest(chosen(uniform, torch.zeros(2000, k, 0)).scores, "uniform").pvalue > 1e-3

    def test_pair_and_row_selection_are_independent(self):
        result = chosen(uniform, torch.zeros(6000, 3, 0))
        kept = np.argsort(result.scores)[:2000]
        _, counts = np.unique(result.pairs[kept], axis=0, return_counts=True)
        assert chisquare(counts).pvalue > 1e-3

    def test_another_seed_draws_other_pairs_and_rows(self):
        pool = torch.zeros(200, 4, 0)
        assert (chosen(uniform, pool, seed=1).pairs != chosen(uniform, pool, seed=2).pairs).any()
        overlap = len(subset(uniform, pool, 100, seed=1) & subset(uniform, pool, 100, seed=2))
        assert 30 < overlap < 70

    @pytest.mark.parametrize("seed", [0, -1, 2**62])
    def test_any_seed_is_accepted(self, seed):
        assert len(subset(uniform, torch.zeros(9, 3, 0), 4, seed=seed)) == 4

    def test_draw_depends_on_the_pair_and_not_on_other_candidates(self):
        """The draw belongs to a pair's content, not to its place among the candidates."""
        few = Candidates("p", ["a", "b"], [0, 1])
        many = Candidates("p", ["c", "b", "a"], [0, 1, 2])
        rule = as_strategy(uniform)
        assert _draws([few], rule, 1)[0, 0] == _draws([many], rule, 1)[0, 2]


class TestOwnFunction:
    ROWS = [{"responses": ["a", "b", "c"], "embeddings": np.eye(3).tolist()} for _ in range(4)]

    def test_function_is_accepted_as_strategy(self):
        kept = EmbeddingPairSelector(strategy=most_orthogonal).select(Dataset.from_list(self.ROWS), 2)
        assert len(kept) == 2

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_scores_must_be_finite(self, bad):
        def broken(embeddings, draws):
            return torch.full((embeddings.shape[0], draws.shape[1]), bad)

        with pytest.raises(TrlRealError, match="broken.*finite"):
            EmbeddingPairSelector(strategy=broken).select(Dataset.from_list(self.ROWS), 2)

    def test_scores_must_have_one_column_a_pair(self):
        def per_row(embeddings, draws):
            return embeddings.sum((1, 2))

        with pytest.raises(TrlRealError, match=r"per_row.*\(4, 3\)"):
            EmbeddingPairSelector(strategy=per_row).select(Dataset.from_list(self.ROWS), 2)

    def test_unknown_strategy_name(self):
        with pytest.raises(
            TrlRealError, match="No strategy 'eazy'; there are easy, hard, centroid, d_optimal, i_optimal, random"
        ):
            EmbeddingPairSelector(strategy="eazy")


def test_difference_below_a_millionth_is_a_tie_relative_above_one():
    for scale in (1e-9, 1.0, 1e6):
        scores = scale * torch.tensor([[1 + 5e-7, 1.0], [1 + 5e-6, 1.0]], dtype=torch.float64)
        assert lowest(scores).tolist() == [0, 0 if scale < 1e-6 else 1]
        assert lowest_rows(scores[1].numpy(), 1).tolist() == [0 if scale < 1e-6 else 1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_record_is_complete(name):
    record = STRATEGIES[name]
    assert record.help and record.help[0].islower() and "\n" not in record.help
    assert [other for other in STRATEGIES.values() if other.color == record.color] == [record]
    assert as_strategy(name) is as_strategy(record) is as_strategy(record.score) is record


@pytest.mark.parametrize("name", STRATEGIES)
def test_records_tell_what_a_strategy_reads(name):
    """Without draws, or without embeddings, a strategy that does not need them says the same."""
    record, embeddings = STRATEGIES[name], random_embeddings(3, 20, 4)
    draws = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(record(embeddings, draws), record(embeddings, draws.flip(0))) is not record.needs_draws
    assert torch.equal(record(embeddings, draws), record(embeddings.flip(0), draws)) is not record.reads_embeddings


@pytest.mark.parametrize("name", [name for name, record in STRATEGIES.items() if record.reads_embeddings])
def test_rounding_moves_scores_as_the_record_says(name):
    record, embeddings = STRATEGIES[name], random_embeddings(4, 200, 2)
    moved, draws = embeddings + 0.01 * random_embeddings(5, 200, 2), torch.zeros(200, 1)
    error = (candidate_similarity(moved) - candidate_similarity(embeddings)).abs()
    found = (record(moved, draws) - record(embeddings, draws)).abs()
    torch.testing.assert_close(found, record.rounding * error)


@pytest.mark.parametrize("name", [name for name, record in STRATEGIES.items() if record.margins])
@pytest.mark.parametrize("size", [1, 7, 30])
def test_a_set_budget_takes_the_rows_with_the_lowest_scores_in_the_set(name, size):
    differences = random_embeddings(6, 40, 1)[:, 0].double()
    found = STRATEGIES[name].budget(differences, size)
    scores = STRATEGIES[name].margins(differences, found)
    outside = torch.ones(40, dtype=bool)
    outside[found.indices] = False
    assert len(found.indices) == size and scores[found.indices].max() <= scores[outside].min()


def test_a_set_budget_has_margins_or_reads_in_float32():
    """Without margins nothing says which rows half precision leaves in doubt."""
    assert all(record.margins or record.exact for record in STRATEGIES.values() if record.budget)


@pytest.mark.parametrize("name", [name for name, record in STRATEGIES.items() if record.reads_embeddings])
@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_zero_vectors_give_scores_and_are_at_right_angles_to_all_others(name, zeros):
    """As `similarity` says: never NaN, which would drop the row or come first in a sort."""
    embeddings, draws = random_embeddings(7, 6, 3), torch.zeros(6, 3)
    embeddings[0, :zeros] = 0
    scores = STRATEGIES[name](embeddings, draws)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[1:], STRATEGIES[name](embeddings[1:], draws[1:]))
    if name in ("easy", "hard"):
        sign = 1 if name == "easy" else -1
        torch.testing.assert_close(sign * scores[0], candidate_similarity(embeddings)[0])
    if STRATEGIES[name].budget:
        taken = STRATEGIES[name].budget(torch.cat([torch.zeros(1, 16), random_embeddings(8, 5, 1)[:, 0]]).double(), 5)
        assert sorted(taken.indices.tolist()) == [1, 2, 3, 4, 5]
