"""
TRL's other trainers on the same labels: the rows that each reads, and the trainers of `trl-real train --trainer`.

A table holds the function that makes a trainer's rows of what `annotate` returns, a second one the trainers that the
command line runs.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Value
from peft import PeftModel
from trl import KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.data_utils import maybe_extract_prompt, unpair_preference_dataset

from trl_real.data.checks.row_check import check_texts
from trl_real.data.conversation import TEMPLATE_COLUMNS
from trl_real.data.images import IMAGE_COLUMNS
from trl_real.errors import TrlRealError, check_columns
from trl_real.training.config import REALDPOConfig
from trl_real.training.noise.label_confidence import CONFIDENCE, check_values
from trl_real.training.preparation import told_preparation
from trl_real.training.trainer import REALDPOTrainer


PAIR = ("prompt", "chosen", "rejected")
ALONGSIDE = (*TEMPLATE_COLUMNS, *IMAGE_COLUMNS)  # columns that TRL's trainers read next to the texts


def rows_for(dataset: Dataset, trainer: str) -> Dataset:
    """
    Return the rows that one of TRL's trainers reads, made of labelled pairs.

    | trainer | rows | `label_confidence` |
    |---|---|---|
    | `"dpo"` | the labels as they are | soft labels of `REALDPOTrainer` |
    | `"reward"` | pairs with `margin` | `margin = -2 (1 - label_confidence)` |
    | `"kto"` | each response with `label`, by TRL's `unpair_preference_dataset` | not read |
    | `"cpo"`, `"orpo"` | pairs with an explicit prompt | not read |
    | `"grpo"` | each prompt once; the reward comes from `reward_funcs` | not read |

    `RewardTrainer` subtracts the margin from the difference of the two rewards. A certain label has the margin 0, so
    that certain labels are TRL's plain loss; one that may as well be wrong has -1, which asks for less. These are
    Llama 2's margins of 1 to 0 by how sure the annotators were (arXiv 2307.09288, section 3.2.2), less 1. A column
    `margin` of your own is kept.

    Args:
        dataset: Labels, as `annotate` returns them; the prompt may be implicit.
        trainer: Key of `TRAINER_ROWS`.

    Returns:
        Dataset with the columns that the trainer reads, `tools`, `chat_template_kwargs` and images among them.

    Raises:
        MissingColumnError: If `chosen` or `rejected` is missing.
        TrlRealError: If the trainer is unknown, or a `label_confidence` is not a number in [0.5, 1].
    """
    if trainer not in TRAINER_ROWS:
        raise TrlRealError(f"No rows for the trainer {trainer!r}; there are {', '.join(TRAINER_ROWS)}.")
    check_columns(dataset.column_names, ("chosen", "rejected"), "Label the pairs first, or rename the column.")
    return TRAINER_ROWS[trainer](dataset.with_format(None))


def _explicit(labels: Dataset, *more: str) -> Dataset:
    """Return pairs with an explicit prompt, and the other columns that a trainer reads."""
    if "prompt" not in labels.column_names:
        check_texts(labels, ("chosen", "rejected"))
        labels = labels.map(maybe_extract_prompt, desc="Extracting prompts")
    return labels.select_columns([name for name in (*PAIR, *ALONGSIDE, *more) if name in labels.column_names])


def _with_margin(labels: Dataset) -> Dataset:
    if CONFIDENCE in labels.column_names and "margin" not in labels.column_names:
        values = labels.select_columns(CONFIDENCE)[:][CONFIDENCE]
        check_values(values, "the labels")
        margin = 2.0 * np.array(values, dtype=np.float32) - 2.0
        labels = labels.add_column("margin", margin, feature=Value("float32"))
    return _explicit(labels, "margin")


def _unpaired(labels: Dataset) -> Dataset:
    return unpair_preference_dataset(_explicit(labels), desc="Unpairing labels")


def _prompts(labels: Dataset) -> Dataset:
    rows = _explicit(labels).remove_columns(["chosen", "rejected"])
    batches = rows.with_format("arrow").iter(1000) if len(rows) else ()  # Arrow's values: no image is decoded
    first: dict[str, int] = {}
    for i, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches)):
        first.setdefault(repr(row), i)
    return rows.select(list(first.values()))


TRAINER_ROWS: dict[str, Callable[[Dataset], Dataset]] = {
    "dpo": lambda labels: labels,
    "reward": _with_margin,
    "kto": _unpaired,
    "cpo": _explicit,
    "orpo": _explicit,
    "grpo": _prompts,
}


class _Told:
    """Trainer of TRL's without telemetry, whose preparation tells of the rows that it drops or cannot read."""

    too_long = "prompt fills max_length"

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        prepare = partial(super()._prepare_dataset, dataset, processing_class, args, dataset_name)  # type: ignore[misc]
        return told_preparation(prepare, dataset, dataset_name, args.max_length, self.too_long)

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report the run here."""


class RewardModelTrainer(_Told, RewardTrainer):
    """
    [`~trl.RewardTrainer`] whose model `RewardModelJudge` reads as it was trained: the saved tokenizer of a model that
    learned from texts has no chat template, and an adapter is merged, since the judge needs the head as well.
    """

    too_long = "pair is longer than max_length"

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if isinstance(dataset, Dataset) and isinstance(dataset.features.get("chosen"), Value):
            processing_class.chat_template = None
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; after the training, with the adapter merged into it."""
        model = self.accelerator.unwrap_model(self.model)
        if _internal_call or not isinstance(model, PeftModel):
            super().save_model(output_dir, _internal_call=_internal_call)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            model.merge_and_unload().save_pretrained(folder)
            self.processing_class.save_pretrained(folder)


class UnpairedTrainer(_Told, KTOTrainer):
    """[`~trl.KTOTrainer`] without telemetry, and with this library's messages."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        pairs = isinstance(dataset, Dataset) and "chosen" in dataset.column_names
        rows = rows_for(dataset, "kto") if pairs else dataset
        return super()._prepare_dataset(rows, processing_class, args, dataset_name)


class TrainerSpec(NamedTuple):
    """
    Args:
        config: Class of the settings.
        trainer: Class of the trainer.
        task: PEFT's name of the task.
    """

    config: type
    trainer: type
    task: str = "CAUSAL_LM"


TRAINERS = {
    "dpo": TrainerSpec(REALDPOConfig, REALDPOTrainer),
    "reward": TrainerSpec(RewardConfig, RewardModelTrainer, "SEQ_CLS"),
    "kto": TrainerSpec(KTOConfig, UnpairedTrainer),
}
