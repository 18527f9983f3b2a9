"""
Attention between the tokens of sequences that lie end to end in one row.

`segments` holds the ways to compute it, `block_mask` who attends to whom, and `exactness` the check that on this model
packed sequences give what each gives alone.
"""
