"""Completions of a policy for the prompts of a dataset, as a new column."""

import os
from typing import Any

from datasets import Dataset

from trl_real.errors import TrlRealError, check_columns
from trl_real.models.generate import generate
from trl_real.models.lazy_model import LazyModel


CUT = " (cut)"  # end of the name of the column that says which completions were cut


def is_policy(value: Any) -> bool:
    """Return whether `value` is a policy (loaded model, folder, or id with a slash) and not a column name."""
    return not isinstance(value, str) or os.path.isdir(value) or "/" in value


def add_completions(
    dataset: Dataset, policy: Any, column: str, *, tokenizer: Any = None, prompt: str = "prompt", **generation: Any
) -> Dataset:
    """
    Generate a completion for every row's prompt, as a new column of texts, and a column that says which ones were cut;
    the arguments are those of `compare_columns`.

    Raises:
        MissingColumnError: If the column of prompts is missing.
        TrlRealError: If the policy cannot be loaded, is not a causal LM, or has no tokenizer.
    """
    check_columns(dataset.column_names, [prompt], "Name the column: compare(…, prompt='…').")
    if isinstance(policy, str):
        policy, tokenizer = LazyModel(policy).load()
    if not hasattr(policy, "generate"):
        kind = type(policy).__name__
        raise TrlRealError(
            f"A value of type {kind} is not a policy. Give a column of completions, a path or a loaded causal LM."
        )
    if tokenizer is None:
        raise TrlRealError("A loaded policy needs its tokenizer: compare(…, tokenizer=tokenizer).")
    prompts = dataset.with_format(None)[prompt][:]
    found = generate(policy, tokenizer, prompts, desc=f"Generating ({column})", **generation)
    dataset = dataset.add_column(column, [answers[0] for answers in found.texts])
    return dataset.add_column(column + CUT, [reasons[0] == "length" for reasons in found.finish_reasons])
