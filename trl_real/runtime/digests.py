"""SHA-256 of texts, for keys of caches and for draws that depend on the content only."""

import hashlib
from typing import Any


def sha256(*parts: Any) -> bytes:
    """Return the SHA-256 of the parts as text, joined by NUL characters."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
