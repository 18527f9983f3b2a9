"""
Statistics on NumPy arrays: win rates, intervals, rankings, paired tests, rater agreement and label savings.

Start with `win_rate`; `intervals` has its confidence intervals, `length_control` its length-controlled rates, and
`paired` and `ranking` compare two or more models. `inputs` checks what users pass in, `resampling` is the bootstrap
that the other modules share.

These modules import `trl_real.errors` and each other, and nothing else of the package.
"""
