"""
Traces of agents as pools: `pool.py` groups the attempts at a task, `formats.py` reads the sessions of each program.

Start with `from_traces` in `pool.py`; a new format is a function of a session's events and a row in `FORMATS`. Imports
what `data` may import.
"""
