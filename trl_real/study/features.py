"""Embeddings of a study's responses, stored part by part in its run folder."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from trl_real.data.pairs import Candidates
from trl_real.models.encoder import Encoder
from trl_real.study.grid import write_arrays


# Responses per part: the most work that a kill can lose, and enough to sort by length.
PART = 512


def embed_rows(rows: list[Candidates], encoder: Encoder, folder: Path) -> list[Tensor]:
    """
    Embed the candidates of the rows, which are always in the same order, or read the parts that are already in the
    folder. Return one `(K, d)` tensor per row, float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [row.prompt for row in rows for _ in row.texts]
    texts = [text for row in rows for text in row.texts]
    parts = []
    for start in tqdm(range(0, len(texts), PART), desc="Embedding", unit="part", leave=False):
        file = folder / f"{start:09d}.npz"
        if not file.exists():
            end = start + PART
            write_arrays(file, {"vectors": encoder(prompts[start:end], texts[start:end]).vectors.numpy()})
        with np.load(file) as arrays:
            parts.append(torch.from_numpy(arrays["vectors"]))
    return list(torch.cat(parts).split([len(row.texts) for row in rows]))
