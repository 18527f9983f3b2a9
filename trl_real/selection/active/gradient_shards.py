"""Gradient features in shards on disk, computed by all processes together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from trl_real.models.gradients import GradientFeatures, Gradients
from trl_real.runtime.shards import ShardedMap


SHARD_RESPONSES = 256
COLUMNS = Features(
    {
        "vector": List(Value("float32")),
        "n_scored": Value("int32"),
        "truncated": Value("bool"),
        "n_tokens": Value("int64"),
        "seconds": Value("float64"),
    }
)


class GradientPass:
    """
    Map over responses that adds their gradient features.

    Args:
        features: Features of the current policy.
        identity: Digest of the weights and settings, as JSON values.
    """

    def __init__(self, features: GradientFeatures, identity: dict[str, Any]):
        self.features, self.identity = features, identity

    def __call__(self, rows: dict[str, list], row_ids: list[int]) -> dict[str, list]:
        """Return the vectors of a batch; the first row has the cost of the batch."""
        found = self.features(list(map(json.loads, rows["prompt"])), rows["response"], progress=False)
        rest = [0] * (len(row_ids) - 1)
        return {
            "vector": list(found.vectors.float().numpy()),
            "n_scored": found.n_scored.tolist(),
            "truncated": found.truncated.tolist(),
            "n_tokens": [found.n_tokens, *rest],
            "seconds": [found.seconds, *rest],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {"identity": self.identity}


def gradients_in_shards(
    features: GradientFeatures, identity: dict[str, Any], prompts: list[Any], texts: list[str], folder: str | Path
) -> Gradients:
    """
    Compute `features(prompts, texts)` in shards (`trl_real.runtime.shards`); a restarted run reads finished shards.

    Args:
        features, identity: As in `GradientPass`.
        prompts: Prompt of each response; equal prompts next to each other are read once.
        texts: Responses.
        folder: Folder of the shards.
    """
    rows = {"prompt": [json.dumps(prompt) for prompt in prompts], "response": texts}
    sizes = {"shard_rows": SHARD_RESPONSES, "batch_size": SHARD_RESPONSES}
    work = ShardedMap(GradientPass(features, identity), Dataset.from_dict(rows), COLUMNS, folder, **sizes)
    found = work.run("Gradients").with_format("numpy")
    vectors = torch.zeros(len(texts), features.projection.dim)
    for start in range(0, len(texts), SHARD_RESPONSES):
        block = found[start : start + SHARD_RESPONSES]["vector"]
        vectors[start : start + len(block)] = torch.from_numpy(np.stack(list(block)))
    columns = {name: torch.as_tensor(np.asarray(found[name][:])) for name in COLUMNS if name != "vector"}
    return Gradients(
        vectors,
        vectors.norm(dim=1),
        columns["n_scored"].long(),
        columns["truncated"].bool(),
        features.projection.fingerprint,
        int(columns["n_tokens"].sum()),
        float(columns["seconds"].sum()),
    )
