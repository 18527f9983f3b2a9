"""Active selectors with tiny models, and pools for them."""

import random

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.selection.active.gradient import GradientPairSelector
from trl_real.selection.active.head import HeadPairSelector


RIDGE = 0.5


def adapted(seed=0, model=None, **lora):
    settings = {"r": 3, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **lora}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model or tiny_model(), LoraConfig(**settings)).eval()


def gradient(model=None, **settings):
    settings = {"projection_dim": 256, "tokenizer": tiny_tokenizer(), "ridge": RIDGE, **settings}
    return GradientPairSelector(adapted() if model is None else model, **settings)


def head(acquisition="infomax", model=None, **settings):
    model = tiny_model() if model is None else model
    return HeadPairSelector(model, acquisition=acquisition, tokenizer=tiny_tokenizer(), **settings)


def words(seed, n):
    return " ".join(random.Random(seed).choices(" ".join(SENTENCES).split(), k=n))


def pool_of(n=6, k=3):
    rows = []
    for i in range(n):
        responses = [words(f"{i} {j}", 3 + (5 * i + 3 * j) % 9) for j in range(k)]
        rows.append({"prompt": words(f"p {i}", 6), "responses": responses, "scores": [float(j) for j in range(k)]})
    return Dataset.from_list(rows)


def picked(kept):
    return [(str(row["prompt"]), frozenset((row["response_a"], row["response_b"]))) for row in kept.with_format(None)]
