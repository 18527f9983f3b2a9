"""A run that was broken off goes on where it stood, and only that run."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from trl_real.data.shards import told
from trl_real.data.whole import check_settings, read_json, write_json


logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
# Of all trainers' settings those that what is learned hangs on, and of a method's own those that it does not.
LEARNING = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
)
LEARNING += ("optim", "optim_args", "weight_decay", "max_grad_norm", "seed", "data_seed")
NOT_LEARNING = ("dataset_num_proc", "precompute_ref_batch_size", "precompute_ref_log_probs", "use_liger_kernel")


def last_checkpoint(folder: str | Path) -> str | None:
    """The last checkpoint in a trainer's folder; None if there is none."""
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


def checkpoint_of_run(args: TrainingArguments, model: str, dataset: Dataset, peft_config: Any = None) -> str | None:
    """
    The last checkpoint in `output_dir`, if what is there was begun with the same data and settings.

    Args:
        args: Of the trainer. Batch sizes, evaluation, saving and logging may change between two starts of a run.
        model: Hub id or path.
        dataset: To train on; what its rows hold counts, not where they lie.
        peft_config: Of the adapter.

    Raises:
        TrlRealError: If it was begun with others, naming the first that differs.
    """
    own = {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}
    names = {*LEARNING, *own} - {*NOT_LEARNING}
    settings = {name: value for name, value in args.to_dict().items() if name in names}
    settings |= {"model": model, "dataset": told(dataset), "adapter": peft_config and peft_config.to_dict()}
    settings = json.loads(json.dumps(settings, default=_plain))
    checkpoint, file = last_checkpoint(args.output_dir), Path(args.output_dir) / SETTINGS_FILE
    if checkpoint is not None and file.exists():
        found = read_json(file)
        both = found.keys() & settings.keys()  # another version of a library may know other settings
        check_settings(*({name: of[name] for name in both} for of in (found, settings)), args.output_dir, "training")
    elif args.process_index == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    return checkpoint


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


def train_from(trainer: Trainer, checkpoint: str | None) -> None:
    """
    Train from a checkpoint, or from the start.

    A run that had reached its last step is not trained further: `Trainer.train` would take one step more, when the
    steps end within an epoch.

    Args:
        trainer: Ready to train.
        checkpoint: Folder of the checkpoint; None to start.
    """
    if checkpoint is None:
        trainer.train()
        return
    logger.info("Going on from %s. To start afresh, give another output_dir.", checkpoint)
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    logger.info("It had reached its last step, %d: nothing is trained again.", state.max_steps)
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
