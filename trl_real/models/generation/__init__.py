"""
Parts of the sampling of responses, which `trl_real.models.generate` does with a model in this process.

`decoding.py` samples many responses at once with a cache of `slots.py`, where a check on the model shows that this
equals one text at a time; `paged.py` leaves greedy decoding on accelerators to transformers. `journal.py` keeps
finished responses, so that a killed run continues. `from_server.py` asks a server for them.

These modules may import the rest of `models`, `data` and `runtime`.
"""
