"""The column that says how sure a label is: checked, carried past TRL's collator, made a flip probability."""

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig

from trl_real.errors import TrlRealError


CONFIDENCE = "label_confidence"

# Half a unit of float32 at 1, with room for a value that was computed in it.
ROUNDING = 1e-6


class ConfidenceCollator:
    """
    A collator that also passes on `label_confidence`, as float32 of shape `(B,)`, where the rows have it.

    Args:
        collator: TRL's or the user's own; it never sees the column.
    """

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
    """The batch as TRL's own methods take it, which hand every key that they do not know to the model."""
    return {name: value for name, value in inputs.items() if name != CONFIDENCE}


def reads_soft_labels(args: DPOConfig | None) -> bool:
    """Whether the loss is DPO's own, TRL's default and the only one that a flip probability can be added to."""
    return (
        args is None
        or args.loss_type == ["sigmoid"]
        and args.f_divergence_type == "reverse_kl"
        and not args.use_weighting
    )


def flip_probability(confidence: Tensor, args: DPOConfig) -> Tensor | None:
    """
    `e = 1 - confidence`, with the rounding above 1 and below 0.5 cut off. Shape `(B,)`; None if all are sure.

    Raises:
        TrlRealError: If a label is not sure and the loss cannot read that.
    """
    flip = (1 - confidence).clamp(0, 0.5)
    if not flip.any():
        return None
    if not reads_soft_labels(args):
        raise _unread(args)
    return flip


def check_dataset(dataset: Any, name: str, args: DPOConfig | None) -> None:
    """
    Refuse, before a model is loaded, confidences that are none and those that the loss would ignore.

    Args:
        dataset: A training or evaluation set; a stream is checked batch by batch instead.
        name: What the message calls it.
        args: What TRL trains with; None for its defaults.

    Raises:
        TrlRealError: About the first such row, by its number in the dataset.
    """
    if not isinstance(dataset, Dataset) or CONFIDENCE not in dataset.column_names:
        return
    values = dataset.with_format(None).select_columns(CONFIDENCE)[:][CONFIDENCE]
    check_values(values, name)
    if not reads_soft_labels(args) and any(value < 1 - ROUNDING for value in values):
        raise _unread(args)


def check_values(values: Iterable[Any], where: str) -> None:
    """
    Raises:
        TrlRealError: If a value is not a number in [0.5, 1].
    """
    for row, value in enumerate(values):
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not 0.5 - ROUNDING <= value <= 1 + ROUNDING:
            raise TrlRealError(
                f"{CONFIDENCE!r} is {value!r} in row {row} of {where}, not a number in [0.5, 1]: the probability that "
                "'chosen' is the better response. Swap 'chosen' and 'rejected' and type 1 - p where it is below 0.5, "
                f"drop the row, or drop the column: dataset.remove_columns({CONFIDENCE!r})."
            )


def _plain(value: Any) -> Any:
    """A Python number of a row that a dataset's format made a tensor or an array of."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _unread(args: DPOConfig) -> TrlRealError:
    return TrlRealError(
        f"{CONFIDENCE!r} is below 1 in the data and would be ignored by loss_type={args.loss_type}, f_divergence_type="
        f"{args.f_divergence_type!r}, use_weighting={args.use_weighting}. Type loss_type='sigmoid' with the other two "
        f"left out, or dataset.remove_columns({CONFIDENCE!r})."
    )
