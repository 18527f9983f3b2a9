"""A policy's answers to the prompts of a dataset, as a column."""

import os
from typing import Any

from datasets import Dataset

from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.models.generate import generate_responses
from trl_real.models.lazy_model import LazyModel


def is_policy(value: Any) -> bool:
    """Whether `value` is a policy rather than a column's name: a loaded model, a folder or an id with a slash."""
    return not isinstance(value, str) or os.path.isdir(value) or "/" in value


def add_completions(
    dataset: Dataset, policy: Any, column: str, *, tokenizer: Any = None, prompt: str = "prompt", **generation: Any
) -> Dataset:
    """
    Let a policy answer every row's prompt.

    Args:
        dataset: Rows with a prompt, text or messages.
        policy: Hub id or path of a causal LM, or a loaded one.
        column: Name of the new column.
        tokenizer: For a loaded policy.
        prompt: Column of the prompts.
        generation: For `generate`: `max_new_tokens`, `temperature`, `seed`, ….

    Returns:
        The dataset with the completions as texts.

    Raises:
        MissingColumnError: If there are no prompts.
        TrlRealError: If the policy cannot be loaded, is no causal LM, or comes without a tokenizer.
    """
    if prompt not in dataset.column_names:
        raise MissingColumnError(prompt, dataset.column_names, "Name the column: compare(…, prompt='…').")
    if isinstance(policy, str):
        policy, tokenizer = LazyModel(policy).load()
    if not hasattr(policy, "generate"):
        kind = type(policy).__name__
        raise TrlRealError(
            f"A value of type {kind} is no policy. Give a column of completions, a path or a loaded causal LM."
        )
    if tokenizer is None:
        raise TrlRealError("A loaded policy needs its tokenizer: compare(…, tokenizer=tokenizer).")
    prompts = dataset.with_format(None)[prompt][:]
    texts = generate_responses(policy, tokenizer, prompts, desc=f"Generating ({column})", **generation)
    return dataset.add_column(column, [answers[0] for answers in texts])
