"""Greedy design against the explicit inverse, and the properties that ActiveDPO needs (T7-T11)."""

import pytest
import torch

from support.claims import random_embeddings, uncertainty
from trl_real.errors import TrlRealError
from trl_real.functional import greedy_design as greedy
from trl_real.functional.design import NORMALIZATIONS, greedy_design, pair_features
from trl_real.functional.similarity import candidate_pairs, pair_similarity
from trl_real.selection.strategies import STRATEGIES, lowest


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def brute_force(features, k, ridge=1.0, history=None, allowed=None, prompts=None, max_per_prompt=None):
    """`V^-1` inverted again for every pick. Returns picks, scores and log det."""
    features = features.double()
    v = ridge * torch.eye(features.shape[1], dtype=torch.float64)
    if history is not None:
        v += history.double().T @ history.double()
    allowed = torch.ones(len(features), dtype=torch.bool) if allowed is None else allowed.clone()
    picks, scores = [], []
    for _ in range(k):
        score = ((features @ torch.linalg.inv(v)) * features).sum(1).masked_fill(~allowed, -1.0)
        best = int((score >= score.max() * (1 - 1e-6)).int().argmax())
        picks.append(best)
        scores.append(float(score[best]))
        allowed[best] = False
        if max_per_prompt and (prompts[picks] == prompts[best]).sum() >= max_per_prompt:
            allowed[prompts == prompts[best]] = False
        v += torch.outer(features[best], features[best])
    return picks, torch.tensor(scores, dtype=torch.float64), float(torch.linalg.slogdet(v / ridge).logabsdet)


@pytest.fixture(params=[("one pool", None), ("a small pool", 0.3), ("a small pool", 1.0)], ids=str)
def pool_size(request, monkeypatch):
    """So small that picks leave the pool, blocks are many, drift is checked often, and all are swept or never."""
    if request.param[0] == "a small pool":
        small = {"POOL": 16, "BLOCK": 24, "PART": 7, "AHEAD": 4, "CHECK_EVERY": 7, "SWEEP": request.param[1]}
        for name, value in small.items():
            monkeypatch.setattr(greedy, name, value)


CASES = {
    "T7": (200, 60, 15, 30),
    "no history": (200, 60, 0, 50),
    "a Cholesky factor from the start": (150, 12, 40, 60),
    "picks pass d on the way": (120, 10, 3, 100),
    "every candidate": (60, 90, 5, 60),
}


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_t7_picks_equal_those_of_the_explicit_inverse(case, unit, pool_size):
    n, d, h, k = CASES[case]
    features, history = normal(n, d), normal(h, d, 1) if h else None
    features = features / features.norm(dim=1, keepdim=True) if unit else features
    design = greedy_design(features, k, ridge=0.5, history=history)
    picks, scores, log_det = brute_force(features, k, 0.5, history)
    assert design.indices.tolist() == picks
    torch.testing.assert_close(design.scores, scores, rtol=1e-9, atol=1e-11)
    assert design.log_det == pytest.approx(log_det, rel=1e-10)
    assert (design.scores.diff() <= 1e-9).all()  # scores only fall


def test_in_float32_the_same_information_is_gained(pool_size):
    features, history = normal(400, 40, dtype=torch.float32), normal(20, 40, 1, torch.float32)
    design = greedy_design(features, 80, history=history)
    _, scores, log_det = brute_force(features, 80, history=history)
    assert design.log_det == pytest.approx(log_det, rel=1e-5)
    torch.testing.assert_close(design.scores, scores, rtol=1e-3, atol=1e-5)


def test_each_step_takes_the_largest_gain_in_log_det():
    features = normal(40, 8)
    design, v = greedy_design(features, 10), torch.eye(8, dtype=torch.float64)
    left = list(range(40))
    for best, gain in zip(design.indices.tolist(), design.gains, strict=True):
        gains = {i: torch.logdet(v + torch.outer(features[i], features[i])) - torch.logdet(v) for i in left}
        assert max(gains, key=gains.get) == best and gains[best] == pytest.approx(float(gain))
        v += torch.outer(features[best], features[best])
        left.remove(best)


def test_history_equals_having_picked_it():
    features = normal(100, 30)
    at_once = greedy_design(features, 25)
    first = greedy_design(features, 10)
    taken = torch.zeros(100, dtype=torch.bool).index_fill(0, first.indices, True)
    then = greedy_design(features, 15, history=features[first.indices], exclude=taken)
    assert at_once.indices.tolist() == [*first.indices.tolist(), *then.indices.tolist()]
    assert then.log_det == pytest.approx(at_once.log_det)


def test_t8_copies_of_a_candidate_are_not_picked_again():
    groups = normal(12, 40)
    features = (groups / groups.norm(dim=1, keepdim=True)).repeat_interleave(5, dim=0)
    assert len(set((greedy_design(features, 10).indices // 5).tolist())) == 10
    at_once = uncertainty(features * torch.linspace(1.1, 1, 60, dtype=torch.float64)[:, None]).topk(10).indices
    assert len(set((at_once // 5).tolist())) == 2  # without an update after each pick


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_t9_swapping_the_responses_changes_nothing(normalize):
    first, second = normal(80, 20), normal(80, 20, 1)
    one = greedy_design(pair_features(first, second, normalize), 20)
    other = greedy_design(pair_features(second, first, normalize), 20)
    assert torch.equal(one.indices, other.indices) and torch.allclose(one.scores, other.scores)


@pytest.mark.parametrize("normalize", ["response", "pair"])
def test_t10_beta_cancels_where_features_are_normalised(normalize):
    first, second = normal(80, 20), normal(80, 20, 1)
    one = greedy_design(pair_features(first, second, normalize), 20)
    other = greedy_design(pair_features(0.1 * first, 0.1 * second, normalize), 20)
    assert torch.equal(one.indices, other.indices)


def test_t10_without_normalisation_beta_scales_the_ridge():
    phi = pair_features(normal(80, 20), normal(80, 20, 1), None)
    one, other = greedy_design(0.1 * phi, 20, ridge=2.0), greedy_design(phi, 20, ridge=200.0)
    assert torch.equal(one.indices, other.indices) and torch.allclose(one.scores, other.scores)


def test_t11_identical_responses_score_zero_and_come_last():
    first, second = normal(10, 20), normal(10, 20, 1)
    second[3] = first[3]
    design = greedy_design(pair_features(first, second), 10)
    assert design.indices[-1] == 3 and design.scores[-1] == 0 and (design.scores[:-1] > 0).all()


def test_t12_zero_vector_causes_no_division_by_zero():
    first, second = torch.zeros(2, 4), torch.eye(4)[:2]
    for normalize in NORMALIZATIONS:
        assert torch.equal(pair_features(first, second, normalize), -second)
        assert torch.equal(pair_features(first, first, normalize), first)


def test_first_round_on_embeddings_equals_easy_of_real():
    embeddings = random_embeddings(0, 50, 2)
    phi = pair_features(embeddings[:, 0].double(), embeddings[:, 1].double())
    easy = STRATEGIES["easy"](embeddings, torch.zeros(50, 1))[:, 0].argsort(stable=True)
    assert torch.equal(uncertainty(phi).argsort(descending=True, stable=True), easy)
    assert greedy_design(phi, 1).indices[0] == easy[0]
    torch.testing.assert_close(uncertainty(phi), 2 - 2 * pair_similarity(embeddings[:, 0], embeddings[:, 1]))


@pytest.mark.parametrize("k", [2, 5])
def test_one_pick_per_prompt_equals_easy_of_real(k):
    """REAL's choice within a prompt, and each prompt's first round with no label yet."""
    embeddings = random_embeddings(1, 30, k).double()
    first, second = candidate_pairs(k)
    easy = lowest(STRATEGIES["easy"](embeddings, torch.zeros(30, first.shape[0])))
    for row, pair in zip(embeddings, easy, strict=True):
        assert greedy_design(pair_features(row[first], row[second]), 1).indices.tolist() == [int(pair)]


def test_ties_go_to_the_first_and_order_does_not_matter():
    assert greedy_design(torch.eye(6).repeat(2, 1), 6).indices.tolist() == [0, 1, 2, 3, 4, 5]
    nearly = torch.eye(6) * (1 + 1e-8 * torch.arange(6.0, dtype=torch.float64))[:, None]
    assert greedy_design(nearly, 6).indices.tolist() == [0, 1, 2, 3, 4, 5]
    features, order = normal(90, 25), torch.randperm(90, generator=torch.Generator().manual_seed(0))
    one, other = greedy_design(features, 30), greedy_design(features[order], 30)
    assert torch.equal(order[other.indices], one.indices)


def test_ties_outside_the_pool_go_to_the_first_too(monkeypatch):
    monkeypatch.setattr(greedy, "POOL", 3)
    assert greedy_design(torch.eye(9, dtype=torch.float64), 9).indices.tolist() == list(range(9))


@pytest.mark.parametrize("limit", [1, 2])
def test_a_prompt_is_not_picked_more_often_than_allowed(limit, pool_size):
    features, prompts = normal(90, 20), torch.arange(90) // 3
    exclude = torch.arange(90) % 7 == 0
    design = greedy_design(features, 25, prompts=prompts, max_per_prompt=limit, exclude=exclude)
    expected = brute_force(features, 25, allowed=~exclude, prompts=prompts, max_per_prompt=limit)[0]
    assert design.indices.tolist() == expected
    assert prompts[design.indices].bincount().max() <= limit and not exclude[design.indices].any()


def test_numerical_drift_is_detected_and_corrected(monkeypatch):
    monkeypatch.setattr(greedy, "CHECK_EVERY", 5)
    features, spoiled = normal(60, 40), []
    add = greedy.Inverse.add

    def spoil(self, phi):
        add(self, phi)
        if self.n_picks == 8:
            self.q[: self.n_q] *= 0.9
            spoiled.append(True)

    monkeypatch.setattr(greedy.Inverse, "add", spoil)
    design = greedy_design(features, 30)
    assert spoiled and design.log_det != brute_force(features, 30)[2]
    search = greedy.Search(features, greedy.Inverse(40, 1.0, features[design.indices]), torch.ones(60, dtype=bool))
    search.scores = search.scores + 0.5
    search._check_drift()
    torch.testing.assert_close(search.scores, uncertainty(features, history=features[design.indices])[search.ids])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ridge": 0.0}, "ridge"),
        ({"k": 6}, "at most 5"),
        ({"k": 3, "exclude": torch.tensor([1, 1, 1, 0, 0]).bool()}, "at most 2"),
        ({"max_per_prompt": 1}, "prompt"),
        ({"k": 3, "max_per_prompt": 1, "prompts": torch.tensor([0, 0, 0, 1, 1])}, "at most 2"),
        ({"history": torch.ones(2, 4)}, "4 features"),
        ({"history": torch.full((1, 3), torch.nan)}, "history"),
    ],
)
def test_impossible_arguments_are_refused(settings, words):
    with pytest.raises(TrlRealError, match=words):
        greedy_design(torch.ones(5, 3), **{"k": 2, **settings})


def test_features_that_are_not_finite_are_refused():
    for dtype, large in ((torch.float32, 1e30), (torch.float64, 1e200)):
        for bad in (torch.inf, torch.nan, large):
            features = torch.tensor([[1.0, 2.0], [0.0, bad]], dtype=dtype)
            with pytest.raises(TrlRealError, match="The features contain NaN, infinity or values whose squares"):
                greedy_design(features, 1)
            with pytest.raises(TrlRealError, match="The history contain"):
                greedy_design(torch.ones(2, 2, dtype=dtype), 1, history=features)
    with pytest.raises(TrlRealError, match="normalisation"):
        pair_features(torch.ones(1, 2), torch.ones(1, 2), "length")
