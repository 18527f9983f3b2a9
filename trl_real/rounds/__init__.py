"""
Training in rounds: ActiveDPO (`active.py`) and SPA's self-annotation (`self_annotation.py`).

Start with `active_rounds` or `self_annotation_rounds`. Their classes extend `Rounds` in `base.py`: each round has a
folder, each finished step is saved, and a killed run continues from there. `selectors.py` has the selectors of a
round, `training.py` trains its adapter, `testing.py` tests it, `win_rate.py` compares it with the start, and
`report.py` writes the report.

This package may import every package except `cli`, `demo` and `study`.
"""
