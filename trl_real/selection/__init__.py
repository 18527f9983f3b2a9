"""
Selection of the rows and pairs that are most worth a label.

Start with `selector.EmbeddingPairSelector` (on `scorer.PairScorer`), which ranks pairs with a function of
`strategies` and keeps the rows in a `budget`. `pool` runs a selection on a dataset, `streaming` on a stream, with an
engine of `engines` or `ray_engine`; `half_precision` embeds doubtful rows again; `record` says how rows were selected.
`active` has selectors that learn from labels, and `planning` estimates the cost before a run.

This folder imports from data, models, functional and runtime, and not from labeling, training or evaluation.
"""
