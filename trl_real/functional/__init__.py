"""
Pure functions on tensors and arrays: the methods of the papers, without models, data sets or files.

Start with `preference` (losses and metrics), `similarity`, `geometry` and `clustering` (similarity of responses),
`design` and `bayesian_head` (active selection), or `projection` (random projections of gradients). `statistics/` holds
win rates and everything else that needs no tensors.

These modules import `trl_real.errors` and each other, and nothing else of the package.
"""
