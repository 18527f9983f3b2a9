"""Small studies on embeddings with a known quality."""

import numpy as np
from datasets import Dataset

from trl_real.study.run import run_study


GRID = {"arms": ["random", "easy", "hard@centered"], "budgets": [0.25, 1.0], "seeds": [0, 1], "n_test": 40}


def rows(n: int = 160, d: int = 6, seed: int = 0, k: int = 2) -> dict[str, list]:
    """Responses with a quality that is linear in their embeddings; two rows share a prompt."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(n, k, d)) + 2
    quality = vectors @ generator.normal(size=d) + generator.logistic(size=(n, k))
    found = {"prompt": [f"prompt {i // 2}" for i in range(n)], "embeddings": []}
    if k == 2:
        better = quality[:, 0] > quality[:, 1]
        found["chosen"] = [f"good {i} {seed}" for i in range(n)]
        found["rejected"] = [f"bad {i} {seed}" for i in range(n)]
        found["embeddings"] = [v.tolist() if b else v[::-1].tolist() for v, b in zip(vectors, better, strict=True)]
        return found
    found["responses"] = [[f"response {i} {j}" for j in range(k)] for i in range(n)]
    return {**found, "scores": quality.round(1).tolist(), "embeddings": vectors.tolist()}


def study(folder, dataset=None, **changes):
    return run_study(dataset or Dataset.from_dict(rows()), None, folder, **{**GRID, **changes})
