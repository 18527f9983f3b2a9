"""
Real preference data: the selector's pairs are those of a naive reference that reads one response at a time.

The text is offensive in places: assertions compare numbers only, so that a failure prints none of it.
"""

from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.families import family
from support.shared_data import DATA, needs_data
from support.tiny import tiny_tokenizer
from trl_real import EmbeddingPairSelector


TIE = 2e-5


def pool(file: str, n_rows: int, n_responses: int | None = None) -> Dataset:
    rows = Dataset.from_parquet(str(DATA / file)).shuffle(seed=1).select(range(n_rows))
    if "responses" not in rows.column_names:
        return rows.select_columns(["prompt", "chosen", "rejected"])
    rows = rows.select_columns(["prompt", "responses"])
    return rows.map(lambda row: {"responses": row["responses"][:n_responses]})


def naive_similarities(model, tokenizer, texts: list[str], max_length: int) -> np.ndarray:
    """Cosines between mean last hidden states, one response at a time, from the definition."""
    means = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_length]
        with torch.no_grad():
            output = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        means.append(output.hidden_states[-1][0].float().mean(0).double().numpy())
    unit = np.stack(means) / np.linalg.norm(means, axis=1, keepdims=True)
    return unit @ unit.T


def naive_centroid(similarity: np.ndarray) -> set[tuple[int, int]]:
    """Every pair that two-means by brute force allows, in terms of cosines of unit vectors."""
    n = len(similarity)
    splits = [set(part) for size in range(1, n) for part in combinations(range(n), size) if 0 in part]
    value = [within(similarity, a) + within(similarity, set(range(n)) - a) for a in splits]
    allowed = set()
    for a, v in zip(splits, value, strict=True):
        if v >= max(value) - TIE:
            nearest = [closest(similarity, part) for part in (a, set(range(n)) - a)]
            allowed |= {tuple(sorted((i, j))) for i in nearest[0] for j in nearest[1]}
    return allowed


def within(similarity: np.ndarray, part: set[int]) -> float:
    rows = sorted(part)
    return similarity[np.ix_(rows, rows)].sum() / len(rows)


def closest(similarity: np.ndarray, part: set[int]) -> list[int]:
    rows = sorted(part)
    to_centre = similarity[np.ix_(rows, rows)].mean(1)
    return [row for row, value in zip(rows, to_centre, strict=True) if value >= to_centre.max() - TIE]


def assert_pairs_are_naive(model, tokenizer, rows: Dataset, max_length: int) -> None:
    references = [
        naive_similarities(model, tokenizer, texts, max_length) if all(t.strip() for t in texts) else None
        for texts in rows["responses"]
    ]
    for strategy, best in (("easy", min), ("hard", max), ("centroid", None)):
        selector = EmbeddingPairSelector(model, tokenizer=tokenizer, strategy=strategy, max_length=max_length)
        found = rows.map(selector, **selector.map_kwargs())
        for pair, value, similarity in zip(found["pair"], found["similarity"], references, strict=True):
            if similarity is None or pair[0] < 0:
                continue
            i, j = pair
            assert abs(value - similarity[i, j]) < 1e-4
            if best is None:
                assert (i, j) in naive_centroid(similarity)
            else:
                upper = similarity[np.triu_indices(len(similarity), 1)]
                assert abs(similarity[i, j] - best(upper)) < TIE


@needs_data()
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi", "opt", "qwen3", "gpt2", "falcon"])
def test_pairs_equal_one_response_at_a_time(name):
    rows = pool("bon16/tulu2_13b_bon16.parquet", 8, 7)
    assert_pairs_are_naive(family(name), tiny_tokenizer(), rows, max_length=160)


@needs_data()
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_budget_on_hh_keeps_the_halves_of_a_naive_selection(name):
    rows, model, tokenizer = pool("hh/hh_harmless_test.parquet", 60), family(name), tiny_tokenizer()
    both = [[c, r] for c, r in zip(rows["chosen"], rows["rejected"], strict=True)]
    similar = np.array([
        naive_similarities(model, tokenizer, two, 160)[0, 1] if all(t.strip() for t in two) else np.nan for two in both
    ])  # fmt: skip
    size = int(np.isfinite(similar).sum()) // 2
    order = np.argsort(np.where(np.isfinite(similar), similar, np.inf), kind="stable")
    numbered = rows.add_column("row", list(range(len(rows))))
    for strategy, expected in (("easy", order[:size]), ("hard", order[np.isfinite(similar[order])][-size:])):
        selector = EmbeddingPairSelector(model, tokenizer=tokenizer, strategy=strategy, max_length=160)
        kept = selector.select(numbered, size)["row"][:]
        cut = similar[expected].max() if strategy == "easy" else similar[expected].min()
        assert all(abs(similar[row] - cut) < TIE for row in set(kept) ^ set(expected.tolist()))


@pytest.mark.slow
@needs_data()
def test_pairs_of_a_real_model_equal_one_response_at_a_time():
    from trl_real.demo.model import demo_model

    name = demo_model()
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    rows = pool("bon16/tulu2_13b_bon16.parquet", 6, 5)
    assert_pairs_are_naive(model, AutoTokenizer.from_pretrained(name), rows, max_length=256)


@pytest.mark.slow
@needs_data()
def test_half_precision_keeps_the_same_rows_as_float32():
    from trl_real.demo.model import demo_model

    rows = pool("hh/hh_helpful_test.parquet", 200).add_column("row", list(range(200)))
    exact, half = (EmbeddingPairSelector(demo_model(), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert exact.select(rows, 0.3)["row"][:] == half.select(rows, 0.3)["row"][:]
    assert half.record.n_rescored < 100
