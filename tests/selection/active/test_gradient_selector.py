"""Selection by gradients: what it picks (T7, T8 of the list)."""

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset

from support.active_selectors import RIDGE, adapted, gradient, labels, margin, picked, pool_of, words
from support.tiny import tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.functional.design import greedy_design, pair_features
from trl_real.hub.card import render_section
from trl_real.models.adapters import adapter_parameters
from trl_real.selection.active.gradient import PairRows


pytestmark = pytest.mark.usefixtures("one_thread")


def naive_gradients(model, pool):
    """Whole normalised gradients of every response, by autograd."""
    tokenizer, named, found = tiny_tokenizer(), adapter_parameters(model), {}
    for parameter in named.values():
        parameter.requires_grad_(True)
    for row in pool:
        for text in row["responses"]:
            ids = tokenizer(row["prompt"] + text + tokenizer.eos_token)["input_ids"]
            start = len(tokenizer(row["prompt"])["input_ids"])
            table = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            value = sum(table[t - 1, ids[t]] for t in range(start, len(ids)))
            flat = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(named.values()))])
            found[row["prompt"], text] = flat.double() / flat.double().norm()
    return found


def test_t7_picks_equal_an_explicit_inverse_on_autograd_gradients():
    pool, model = pool_of(), adapted()
    selector = gradient(model, projection_dim=None, projection=None)
    history = labels(selector.select(pool, 4))
    kept = selector.select(pool, 6, history=history)
    g = naive_gradients(model, pool)
    prompts = [row["prompt"] for row in pool]
    candidates = {
        (row["prompt"], frozenset((a, b))): g[row["prompt"], a] - g[row["prompt"], b]
        for row in pool for i, a in enumerate(row["responses"]) for b in row["responses"][:i]
    }  # fmt: skip
    v = RIDGE * torch.eye(len(next(iter(g.values()))), dtype=torch.float64)
    for row in history:
        assert row["prompt"] in prompts
        phi = candidates.pop((row["prompt"], frozenset((row["chosen"], row["rejected"]))))
        v += torch.outer(phi, phi)
    for row in kept:
        inverse = torch.linalg.inv(v)
        scores = {key: float(phi @ inverse @ phi) for key, phi in candidates.items()}
        best = max(scores, key=scores.get)
        assert best == (row["prompt"], frozenset((row["response_a"], row["response_b"])))
        assert row["uncertainty"] == pytest.approx(scores[best], rel=1e-3)
        a, b = (g[row["prompt"], row[side]] for side in ("response_a", "response_b"))
        assert row["similarity"] == pytest.approx(float(a @ b), abs=1e-3)
        phi = candidates.pop(best)
        v += torch.outer(phi, phi)


def test_t8_copies_of_a_candidate_are_not_picked_again():
    pool = pool_of(12, 2)
    fivefold = Dataset.from_list([row for row in pool for _ in range(5)])
    selector = gradient(projection_dim=None, projection=None, ridge=0.05)
    kept = selector.select(fivefold, 10)
    assert len(set(picked(kept))) == 10
    assert kept["uncertainty"][0] == max(kept["uncertainty"]) and np.all(np.diff(kept["uncertainty"][:]) <= 1e-6)
    first = {
        key: selector.select(Dataset.from_list([row]), 1)["uncertainty"][0]
        for key, row in zip(map(str, range(12)), pool, strict=True)
    }
    best_two = sorted(first.values())[-2:]
    assert sum(value >= best_two[0] for value in first.values() for _ in range(5)) == 10  # what one look would pick


@pytest.mark.parametrize("normalize", ["pair", None])
def test_pair_and_response_differences_pick_the_same(normalize):
    pool = pool_of(8, 2)
    selector = gradient(normalize=normalize)
    whole = selector.select(pool, 5)
    assert np.isnan(whole["similarity"][:]).all()
    selector._pairs_are_cheaper = lambda pool: False
    apart = selector.select(pool, 5)
    assert picked(whole) == picked(apart)
    np.testing.assert_allclose(whole["uncertainty"][:], apart["uncertainty"][:], rtol=1e-4)
    history = labels(whole)
    del selector._pairs_are_cheaper
    assert not set(picked(selector.select(pool, 3, history=history))) & set(picked(whole))


def test_t11_responses_truncated_to_the_same_text_come_last():
    rows = list(pool_of(3, 2)) + [{"prompt": "p", "responses": ["the same start A", "the same start B"]}]
    kept = gradient(max_length=3).select(Dataset.from_list(rows), 1.0)
    assert kept["prompt"][-1] == "p" and kept["uncertainty"][-1] == 0 and min(kept["uncertainty"][:3]) > 0


def test_pair_rows_act_as_a_feature_tensor():
    generator = torch.Generator().manual_seed(0)
    vectors, ends = torch.randn(40, 16, generator=generator), torch.randint(40, (9000, 2), generator=generator)
    for normalize in ("response", "pair", None):
        dense = pair_features(vectors[ends[:, 0]], vectors[ends[:, 1]], normalize)
        lazy = PairRows(vectors, ends, normalize)
        assert torch.equal(torch.cat(list(lazy.split(4096))), dense) and torch.equal(lazy[7], dense[7])
        for k in (12, 40):  # beyond d, too
            found, expected = greedy_design(lazy, k, history=dense[:3]), greedy_design(dense, k, history=dense[:3])
            assert torch.equal(found.indices, expected.indices) and torch.equal(found.scores, expected.scores)


def test_prompt_gives_at_most_the_allowed_pairs():
    pool = pool_of(4, 4)
    twice = Dataset.from_list([*pool, *pool.select([0])])  # a prompt of two rows
    for make in (gradient, lambda **k: margin("certainty", **k)):
        kept = make(max_per_prompt=1).select(twice, 4)
        assert len(set(kept["prompt"])) == 4
        with pytest.raises(TrlRealError, match="4 can be picked with 1 a prompt at most. Type budget=4."):
            make(max_per_prompt=1).select(twice, 5)
        assert len(make().select(twice, 20)) == 20
        with pytest.raises(TrlRealError, match="max_per_prompt=0"):
            make(max_per_prompt=0)


def test_rows_of_one_prompt_share_its_cap():
    pool = pool_of(8, 3)
    rows = [{**row, "prompt": "one for many" if i < 5 else row["prompt"]} for i, row in enumerate(pool)]
    kept = gradient(max_per_prompt=2).select(Dataset.from_list(rows), 8)
    assert sorted(Counter(kept["prompt"]).values()) == [2, 2, 2, 2]


@pytest.mark.parametrize("normalize", ["response", "pair", None])
def test_a_response_whose_gradient_is_not_finite_is_in_no_pair_and_in_no_history(normalize):
    rows = list(pool_of(5, 3))
    rows[1]["responses"][2] += " ©"
    rows[4]["responses"][0] += " ©"
    model = adapted()
    bad = tiny_tokenizer()(" ©", add_special_tokens=False)["input_ids"]
    clean = {i for row in pool_of(5, 3) for text in row["responses"] for i in tiny_tokenizer()(text)["input_ids"]}
    with torch.no_grad():
        model.get_input_embeddings().weight[next(i for i in bad if i not in clean)] = float("nan")
    selector = gradient(model, normalize=normalize)
    pool = Dataset.from_list(rows)
    kept = selector.select(pool, 11)  # 3 of 3 rows, and the pair that is left in the two others
    assert not any("©" in row[side] for row in kept for side in ("response_a", "response_b"))
    assert np.isfinite(kept["uncertainty"][:]).all()
    with pytest.raises(TrlRealError, match="11 can be picked"):
        selector.select(pool, 12)
    first, second = pool[1]["responses"][2], pool[1]["responses"][0]
    history = Dataset.from_list([{"prompt": pool[1]["prompt"], "chosen": first, "rejected": second}])
    assert picked(selector.select(pool, 4, history=history)) == picked(selector.select(pool, 4))


def test_long_responses_have_long_gradients_and_the_record_shows_it():
    rows = [{"prompt": f"Q{i}", "responses": [words(f"{i}{j}", 4 + 2 * i) for j in range(3)]} for i in range(10)]
    pool = Dataset.from_list(rows)
    meter, fair = gradient(normalize=None), gradient()
    meter.select(pool, 6)
    fair.select(pool, 6)
    raw, normalised = (s.record.settings["lengths"] for s in (meter, fair))
    assert raw["picked"]["mean"] > 1.2 * raw["pool"]["mean"] and raw["pool"] == normalised["pool"]
    assert normalised["picked"]["mean"] < raw["picked"]["mean"]
    told = f"median {raw['picked']['median']:.0f} picked, {raw['pool']['median']:.0f} pool"
    assert told in meter.record.summary() and "pairs: 6 of 30 picked" in meter.record.summary()
    assert "pairs picked in the kept rows" in render_section(meter.record, "raw", "user/subset", {"train": 6})
