"""
Metrics for the `evaluate` library, one folder each: `evaluate.load` takes the path of the folder.

`pairwise_win_rate` is `trl_real.functional.statistics.win_rate` in the form of an `evaluate.Metric`. Its folder can be
copied to a Space on the Hub, so its module imports only `datasets`, `evaluate`, `trl_real.errors` and
`trl_real.functional`.
"""
