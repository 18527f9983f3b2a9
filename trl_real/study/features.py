"""Embeddings of a study's responses, kept part by part in its run folder."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from trl_real.data.pairs import Candidates
from trl_real.models.encoder import Encoder
from trl_real.study.grid import write_arrays


# Responses in a part: what a kill can cost, and enough to sort by length.
PART = 512


def embed_rows(rows: list[Candidates], encoder: Encoder, folder: Path) -> list[Tensor]:
    """
    Embeddings of the rows' candidates; parts that the folder has are read.

    Args:
        rows: Of one study, always in the same order.
        encoder: The model.
        folder: For the parts; of this study only.

    Returns:
        One `(K, d)` tensor a row, float32.
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
