"""Active selectors with tiny models, and pools for them."""

import random

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.labeling.annotate import annotate
from trl_real.labeling.judges import ScoreJudge
from trl_real.selection.active.gradient import GradientPairSelector
from trl_real.selection.active.head import HeadPairSelector
from trl_real.selection.active.margin import MarginPairSelector


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


def margin(strategy, model=None, **settings):
    model = adapted() if model is None else model
    return MarginPairSelector(model, strategy=strategy, tokenizer=tiny_tokenizer(), **settings)


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


def shuffled(pool, seed=0):
    rng, rows = random.Random(seed), list(pool)
    for row in rows:
        order = rng.sample(range(len(row["responses"])), len(row["responses"]))
        row["responses"], row["scores"] = ([row[name][i] for i in order] for name in ("responses", "scores"))
    rng.shuffle(rows)
    return Dataset.from_list(rows)


def labels(kept):
    return annotate(kept, ScoreJudge("scores"))
