"""
Sampling of responses, with a model in this process (`generate.py`) or on a server (`from_server.py`).

Start with `generate`. `decoding.py` samples many responses at once with a cache of `slots.py`, where a check on the
model shows that this equals one text at a time; else transformers' `generate` runs in batches. `journal.py` keeps
finished responses, so that a killed run continues.

These modules may import the rest of `models`, `data` and `runtime`.
"""
