"""Pools with bad rows, a selector with a tiny model, and what must be equal between two selections."""

import random

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from support.tiny import tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, TOO_FEW


WORDS = ["tea", "water", "Paris", "rain", "a lock", "poem", "def", "sum", "tin roof", "kettle", "Nice", "four"]

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()


def selector(model=MODEL, **kwargs) -> EmbeddingPairSelector:
    tokenizer = TOKENIZER if isinstance(model, torch.nn.Module) else None
    return EmbeddingPairSelector(model, tokenizer=tokenizer, **kwargs)


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))


def make_rows(n: int, seed: int = 0, same_size: int | None = None) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        responses = [f"{text(rng)} {j}" for j in range(same_size or rng.randint(2, 5))]
        scores = [rng.random() for _ in responses]
        rows.append({"id": i, "prompt": f"question {i}", "responses": responses, "scores": scores})
    return rows


# One row of each reason to have no pair, and the reason.
BAD_ROWS = [
    ([], TOO_FEW),
    (None, TOO_FEW),
    (["alone"], TOO_FEW),
    (["tea", ""], EMPTY),
    (["tea", " \n\t"], EMPTY),
    (["", "   "], EMPTY),
    (["tea", "tea"], IDENTICAL),
    (["tea", " tea\n"], IDENTICAL),
    (["tea", None], MISSING),
    ([None, None], MISSING),
]


def bad_rows() -> list[dict]:
    return [{"id": -i, "prompt": f"bad {i}", "responses": r, "scores": []} for i, (r, _) in enumerate(BAD_ROWS)]


FEATURES = Features(
    {
        "id": Value("int64"),
        "prompt": Value("string"),
        "responses": List(Value("string")),
        "scores": List(Value("float64")),
    }
)


def mixed_pool(n: int = 24) -> Dataset:
    """Good rows with a bad one now and then."""
    rows = make_rows(n)
    for i, bad in enumerate(bad_rows()):
        rows.insert(3 * i, bad)
    return Dataset.from_list(rows, features=FEATURES)


def assert_equal_rows(found, expected) -> None:
    """The same rows and columns; similarity up to the rounding of float32."""
    found, expected = (d.with_format(None)[:] if isinstance(d, Dataset) else d for d in (found, expected))
    assert set(found) == set(expected)
    for name in expected:
        if name == "similarity":
            np.testing.assert_allclose(found[name], expected[name], atol=2e-6)
        else:
            assert found[name] == expected[name], name
