"""
Selectors that learn from the labels so far: `select(pool, budget, history=labelled)`, round after round.

Start with `base.ActiveSelector`, which reads the pool, checks the budget and makes the record. Its subclasses rank the
candidate pairs: `gradient` by policy gradients, `head` by a Bayesian head on embeddings, `margin` by implicit rewards.
`pool` lists the candidate and labelled pairs; `gradient_shards` saves gradients on disk.

The subclasses do not import each other.
"""
