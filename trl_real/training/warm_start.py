"""Supervised fine-tuning on chosen responses: the start, and the reference, of DPO in the papers."""

import copy
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer
from trl.data_utils import maybe_extract_prompt
from trl.trainer.utils import get_config_model_id

from trl_real.data.chat import as_chat
from trl_real.data.row_check import check_texts
from trl_real.errors import TrlRealError, check_columns, without_remote_code
from trl_real.reports.model_card import complete_card
from trl_real.runtime.run_lock import run_lock
from trl_real.training.preparation import check_ends
from trl_real.training.resume import checkpoint_of_run, train_from


class QuietSFTTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`] without telemetry, whose card says where a model in a local folder comes from."""

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write TRL's model card, with the origin of a model in a local folder."""
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if self.is_world_process_zero():
            complete_card(self.args.output_dir, get_config_model_id(self.model.config))

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report the run here."""


def demonstrations(dataset: Dataset) -> Dataset:
    """
    Return the chosen response of each preference as a completion to learn from, without duplicates.

    Args:
        dataset: Preferences with an explicit or implicit prompt, as text or messages.

    Returns:
        Dataset with columns `prompt` and `completion`, in the order of the rows.

    Raises:
        MissingColumnError: If `chosen` is missing, or both `prompt` and `rejected`, which an implicit prompt needs.
        TrlRealError: If the dataset has no rows.
    """
    needed = ("chosen",) if "prompt" in dataset.column_names else ("chosen", "rejected")
    check_columns(dataset.column_names, needed, "Label the pairs first, or rename the column.")
    if not len(dataset):
        raise TrlRealError("The dataset has no preferences to learn from. If all labels are ties, label more pairs.")
    columns = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]
    check_texts(dataset, needed if "prompt" not in columns else ("prompt", "chosen"), alike=True)
    rows = dataset.with_format(None).select_columns(columns).map(maybe_extract_prompt)
    rows = rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(repr((row["prompt"], row["completion"])), i)
    return rows.select(list(first.values())) if len(first) < len(rows) else rows


def warm_start(
    model: str,
    dataset: Dataset,
    args: SFTConfig,
    *,
    processing_class: Any = None,
    peft_config: Any = None,
    as_messages: bool = False,
) -> SFTTrainer:
    """
    Fine-tune a model on chosen responses with TRL's SFT, with the loss on completions only, and save the full model.

    REAL fine-tunes on the chosen responses of the full training split, and starts alignment from there with every
    subset (arXiv 2409.17169, section 5.2). An adapter is merged before the model is saved: DPO then starts from plain
    weights, and `REALDPOTrainer(args.output_dir, …)` uses the same weights as its reference. An interrupted run
    resumes from its last checkpoint.

    Args:
        model: Hub id or path of the base model.
        dataset: Preferences; `rejected` is used only to find an implicit prompt.
        args: Arguments of the trainer; the model is saved in `output_dir`.
        processing_class: Tokenizer; the model's by default.
        peft_config: Configuration of an adapter to train instead of all weights.
        as_messages: Whether text prompts and responses become messages, for chat models (`trl_real.as_chat`).

    Returns:
        Trainer after training.

    Raises:
        MissingColumnError: If the chosen responses are missing.
        TrlRealError: If the dataset has no rows, or `output_dir` has a run with other settings.
    """
    rows = demonstrations(as_chat(dataset) if as_messages else dataset)
    with run_lock(args.output_dir):
        return _warm_start(model, rows, args, processing_class, peft_config)


def _warm_start(model: str, rows: Dataset, args: SFTConfig, processing_class: Any, peft_config: Any) -> SFTTrainer:
    checkpoint = checkpoint_of_run(args, model, rows, peft_config)
    with without_remote_code(model):
        trainer = QuietSFTTrainer(
            model,
            args=args,
            train_dataset=rows,
            processing_class=processing_class,
            peft_config=copy.deepcopy(peft_config),  # PEFT changes it in place
        )
    check_ends(trainer.model, trainer.processing_class, rows)
    train_from(trainer, checkpoint)
    if isinstance(trainer.model, PeftModel) and trainer.is_world_process_zero():
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.save_pretrained(args.output_dir)
        trainer.processing_class.save_pretrained(args.output_dir)
    elif not isinstance(trainer.model, PeftModel):
        trainer.save_model()
    trainer.create_model_card(model_name=Path(args.output_dir).name)
    return trainer
