"""Digest of a dataset, for settings that a later run is compared with."""

import hashlib
import json

from datasets import Dataset

from trl_real.data.convert import iterate


def dataset_digest(dataset: Dataset) -> str:
    """Return the number of rows and a digest of their content, independent of the dataset's format and fingerprint."""
    digest = hashlib.blake2b(digest_size=8)
    for row in iterate(dataset):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"{len(dataset)} rows, {digest.hexdigest()}"
