"""Supervised fine-tuning on the chosen responses: where the papers' DPO starts, and its reference."""

import copy
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer
from trl.data_utils import maybe_extract_prompt

from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.training.resume import checkpoint_of_run, train_from


class QuietSFTTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`] that reports nothing to its makers."""

    def _send_telemetry(self) -> None:
        """TRL would report here; nothing leaves the machine."""


def demonstrations(dataset: Dataset) -> Dataset:
    """
    The chosen response of each preference as a completion to learn from, equal ones once.

    Args:
        dataset: Preferences, with an explicit or an implied prompt, text or messages.

    Returns:
        Columns `prompt` and `completion`, in the order of the rows.

    Raises:
        MissingColumnError: If there is no `chosen`, or neither `prompt` nor `rejected` to tell the prompt by.
        TrlRealError: If it has no rows.
    """
    needed = ("chosen",) if "prompt" in dataset.column_names else ("chosen", "rejected")
    for name in needed:
        if name not in dataset.column_names:
            raise MissingColumnError(name, dataset.column_names, "Label the pairs first, or rename the column.")
    if not len(dataset):
        raise TrlRealError("There are no preferences to learn from. Were all labels ties? Select or label more.")
    kept = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]
    rows = dataset.with_format(None).select_columns(kept).map(maybe_extract_prompt)
    rows = rows.remove_columns([name for name in ("rejected",) if name in rows.column_names])
    rows = rows.rename_column("chosen", "completion")
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(repr((row["prompt"], row["completion"])), i)
    return rows.select(list(first.values())) if len(first) < len(rows) else rows


def warm_start(
    model: str, dataset: Dataset, args: SFTConfig, *, processing_class: Any = None, peft_config: Any = None
) -> SFTTrainer:
    """
    Fine-tune a model on the chosen responses with TRL's SFT, loss on the completions only, and save it whole.

    REAL fine-tunes on the chosen responses of the full training split, and aligns from there with every subset
    (arXiv 2409.17169, section 5.2). An adapter is merged before it is saved: DPO then starts from plain weights, and
    `REALDPOTrainer(args.output_dir, …)` takes the same weights as its reference. A run that was broken off goes on
    from its last checkpoint.

    Args:
        model: Hub id or path of the base model.
        dataset: Preferences; their `rejected` is not looked at.
        args: Of the trainer; the model is written to `output_dir`.
        processing_class: Tokenizer, by default the model's.
        peft_config: Of an adapter to train in place of all weights.

    Returns:
        The trainer, done.

    Raises:
        MissingColumnError: If there are no chosen responses.
        TrlRealError: If there are no rows, or `output_dir` holds a training that was begun with other settings.
    """
    rows = demonstrations(dataset)
    checkpoint = checkpoint_of_run(args, model, rows, peft_config)
    trainer = QuietSFTTrainer(
        model,
        args=args,
        train_dataset=rows,
        processing_class=processing_class,
        peft_config=copy.deepcopy(peft_config),  # PEFT writes into it
    )
    train_from(trainer, checkpoint)
    if isinstance(trainer.model, PeftModel) and trainer.is_world_process_zero():
        whole = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        whole.save_pretrained(args.output_dir)
        trainer.processing_class.save_pretrained(args.output_dir)
    elif not isinstance(trainer.model, PeftModel):
        trainer.save_model()
    return trainer
