"""Digests of datasets, for settings that are compared later."""

import hashlib
import json

from datasets import Dataset

from trl_real.data.convert import iterate


def told(dataset: Dataset) -> str:
    """A dataset as a setting: by what its rows hold, in whichever format and library's version they are read."""
    digest = hashlib.blake2b(digest_size=8)
    for row in iterate(dataset):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"{len(dataset)} rows, {digest.hexdigest()}"
