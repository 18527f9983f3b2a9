"""Column `label_confidence`: its validation, its collator, and its conversion to flip probabilities."""

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig

from trl_real.errors import TrlRealError


CONFIDENCE = "label_confidence"

# Tolerance at the ends of the range for values that were computed in float32.
ROUNDING = 1e-6


class ConfidenceCollator:
    """Collator that adds `label_confidence` to another's batch, as float32 of shape `(B,)`, if the rows have it."""

    def __init__(self, collator: Callable[[list[dict]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, examples: list[dict]) -> dict[str, Any]:
        if CONFIDENCE not in examples[0]:
            return self.collator(examples)
        values = [_plain(example.get(CONFIDENCE)) for example in examples]
        check_values(values, "the batch")
        batch = self.collator([{k: v for k, v in example.items() if k != CONFIDENCE} for example in examples])
        batch[CONFIDENCE] = torch.tensor(values, dtype=torch.float32)
        return batch


def without_confidence(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the batch without the column, since TRL passes keys that it does not know to the model."""
    return {name: value for name, value in inputs.items() if name != CONFIDENCE}


def reads_soft_labels(args: DPOConfig | None) -> bool:
    """Return whether the loss is DPO's own (TRL's default), the only one that takes flip probabilities."""
    return (
        args is None
        or args.loss_type == ["sigmoid"]
        and args.f_divergence_type == "reverse_kl"
        and not args.use_weighting
    )


def flip_probability(confidence: Tensor, args: DPOConfig) -> Tensor | None:
    """
    Return `e = 1 - confidence`, clamped to [0, 0.5]. Shape `(B,)`; None if all labels are certain.

    Raises:
        TrlRealError: If a label is not certain and the loss ignores that.
    """
    flip = (1 - confidence).clamp(0, 0.5)
    if not flip.any():
        return None
    if not reads_soft_labels(args):
        raise _ignored(args)
    return flip


def check_dataset(dataset: Any, name: str, args: DPOConfig | None) -> None:
    """
    Check, before a model is loaded, that confidences are valid and that the loss does not ignore them. A stream is
    checked batch by batch instead.

    Raises:
        TrlRealError: If a confidence is invalid, with its row number, or would be ignored.
    """
    if not isinstance(dataset, Dataset) or CONFIDENCE not in dataset.column_names:
        return
    values = dataset.with_format(None).select_columns(CONFIDENCE)[:][CONFIDENCE]
    check_values(values, name)
    if not reads_soft_labels(args) and any(value < 1 - ROUNDING for value in values):
        raise _ignored(args)


def check_values(values: Iterable[Any], where: str) -> None:
    """Raise `TrlRealError` with the row number for a value that is not a number in [0.5, 1]."""
    for row, value in enumerate(values):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0.5 - ROUNDING <= value <= 1 + ROUNDING:
            raise TrlRealError(
                f"{CONFIDENCE!r} is {value!r} in row {row} of {where}, not a number in [0.5, 1]: the probability that "
                "'chosen' is the better response. If it is below 0.5, swap 'chosen' and 'rejected' and type 1 - p; "
                f"else drop the row or the column: dataset.remove_columns({CONFIDENCE!r})."
            )


def _plain(value: Any) -> Any:
    """Return the Python number of a value that a dataset's format turned into a tensor."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _ignored(args: DPOConfig) -> TrlRealError:
    return TrlRealError(
        f"{CONFIDENCE!r} is below 1 in the data and would be ignored by loss_type={args.loss_type}, f_divergence_type="
        f"{args.f_divergence_type!r}, use_weighting={args.use_weighting}. Type loss_type='sigmoid' with the other two "
        f"left out, or dataset.remove_columns({CONFIDENCE!r})."
    )
