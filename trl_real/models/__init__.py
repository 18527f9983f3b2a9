"""
Everything that runs a model: embeddings, gradients, log-probabilities, rewards, label choices and generation.

Start with `lazy_model.LazyModel`, a model given by name or loaded, and `reader.ModelReader`, the base of the readers
in `embed`, `gradients`, `log_probs`, `choice` and `reward`. `packing`, `passes`, `prefixes` and `read_once` put many
sequences into one forward pass, `attention` and `block_mask` compute who attends to whom in it, and `exactness` checks
that this changes nothing; `generate` samples responses, with its parts in `generation`; `memory` makes batches
smaller.

Modules here may import `data`, `functional`, `runtime` and `errors`, and nothing above.
"""
