"""
Publishing on the Hugging Face Hub: `push` uploads a subset as one config of a dataset repository, `card` writes its
section of the dataset card.

Start with `push.push_subset`. These modules import `selection.record` and `trl_real.errors`, and nothing else of the
package.
"""
