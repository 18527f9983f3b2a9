"""Selection by margins and by a Bayesian head: what they pick."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from support.active_selectors import adapted, head, labels, margin, picked, pool_of, shuffled
from support.tiny import tiny_model, tiny_tokenizer
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.functional.bayesian_head import fit_head
from trl_real.models.embed import EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.selection.active.head import HeadPairSelector


pytestmark = pytest.mark.usefixtures("one_thread")


def test_margins_are_those_of_the_implicit_reward():
    pool, model = pool_of(), adapted()
    prompts = [row["prompt"] for row in pool for _ in row["responses"]]
    texts = [text for row in pool for text in row["responses"]]
    rewards = ResponseLogProbs(model, tiny_tokenizer())(prompts, texts).sums
    rewards -= ResponseLogProbs(tiny_model(), tiny_tokenizer())(prompts, texts).sums
    known = dict(zip(zip(prompts, texts, strict=True), rewards.tolist(), strict=True))
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    kept = margin("certainty", model.train()).select(pool, 18)
    assert needed == {name: p.requires_grad for name, p in model.named_parameters()} and model.training
    found = [known[row["prompt"], row["response_a"]] - known[row["prompt"], row["response_b"]] for row in kept]
    np.testing.assert_allclose(np.abs(found), -np.array(kept["uncertainty"][:]), rtol=1e-4, atol=1e-4)
    assert np.all(np.diff(np.abs(found)) < 2e-3)
    assert picked(margin("uncertainty", model).select(pool, 18))[::-1] == picked(kept)


def test_fresh_adapter_picks_by_seed_and_content():
    pool, fresh = pool_of(30, 2), adapted(init_lora_weights=True)
    kept = margin("certainty", fresh).select(pool, 10)
    assert (np.array(kept["uncertainty"][:]) == 0).all()
    assert picked(kept) == picked(margin("uncertainty", fresh).select(shuffled(pool), 10))
    assert picked(kept) != picked(margin("certainty", fresh, seed=1).select(pool, 10))
    assert kept["prompt"][:] != pool["prompt"][:10]


def test_infomax_takes_the_rows_and_pairs_with_the_largest_variance():
    pool, selector = pool_of(), head(ridge=2.0)
    history = labels(selector.select(pool, 3))
    kept = selector.select(pool, 4, history=history)
    encoder = Encoder(tiny_model(), tiny_tokenizer(), options=EmbedderOptions("prompt+response"))
    vectors = {row["prompt"]: encoder([row["prompt"]] * 3, row["responses"]).vectors.double() for row in pool}
    spread = torch.cat([v - v.mean(0) for v in vectors.values()]).std(0)
    f = {
        (row["prompt"], t): v / spread
        for row in pool
        for t, v in zip(row["responses"], vectors[row["prompt"]], strict=True)
    }
    sides = [torch.stack([f[row["prompt"], row[side]] for row in history]) for side in ("chosen", "rejected")]
    posterior = fit_head(*sides, ridge=2.0)
    best = {}
    for row in pool:
        for i, a in enumerate(row["responses"]):
            for b in row["responses"][:i]:
                key = (row["prompt"], frozenset((a, b)))
                if key not in {(r["prompt"], frozenset((r["chosen"], r["rejected"]))) for r in history}:
                    value = float(posterior.differences(f[row["prompt"], a][None], f[row["prompt"], b][None])[1])
                    best[row["prompt"]] = max(best.get(row["prompt"], (0, None)), (value, key), key=lambda x: x[0])
    expected = sorted(best.values(), key=lambda x: -x[0])[:4]
    assert [key for _, key in expected] == picked(kept)
    np.testing.assert_allclose([value for value, _ in expected], kept["uncertainty"][:], rtol=1e-3)


def test_the_head_runs_the_model_once_and_takes_a_function_and_confidences():
    selector, pool = head(), pool_of()
    history = labels(selector.select(pool, 3))
    assert selector.record.tokens > 0 and selector.record.settings["context"] == "prompt+response"
    selector.select(pool, 3, history=history)
    assert selector.record.tokens == 0
    seen = []

    def own(means, covariances, draws):
        seen.append(means)
        return covariances.new_zeros(len(means), 3)

    assert len(head(own).select(pool, 2, history=history)) == 2
    doubtful = history.remove_columns("label_confidence").add_column("label_confidence", [0.5] * 3)
    head(own).select(pool, 2, history=doubtful)
    assert seen[0].abs().max() > 1e-4 > seen[1].abs().max()  # a coin teaches nothing
    with pytest.raises(TrlRealError, match="must return a tensor"):
        head(lambda means, covariances, draws: means).select(pool_of(3, 4), 2)


def test_the_head_takes_embeddings_as_they_come():
    generator = np.random.default_rng(0)
    pool = pool_of().add_column("embeddings", list(generator.normal(size=(6, 3, 5)).tolist()))
    selector = HeadPairSelector(ridge=1.0)
    kept = selector.select(pool, 3)
    history = labels(kept)
    more = selector.select(pool.with_format("numpy"), 3, history=history)
    assert not set(picked(kept)) & set(picked(more)) and selector.record.model == "column 'embeddings'"
    foreign = Dataset.from_list([{"prompt": "new", "chosen": "a", "rejected": "b"}])
    with pytest.raises(TrlRealError, match="2 responses in the history"):
        HeadPairSelector().select(pool, 1, history=foreign)
    with pytest.raises(MissingColumnError, match="Give HeadPairSelector a model"):
        HeadPairSelector().select(pool_of(), 1)
    rows = list(pool)
    rows[0]["embeddings"][1][2] = float("nan")
    rows[1]["embeddings"] = None
    selector = HeadPairSelector()
    assert len(selector.select(Dataset.from_list(rows), 1.0)) == 5
    assert selector.record.skipped == {"embedding not finite": 1}
