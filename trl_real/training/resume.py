"""Resume an interrupted training run, if its data and settings are the same."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from trl_real.data.digest import dataset_digest
from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.runtime.run_folder import check_settings
from trl_real.training.adapters import adapter_settings


logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
# Settings of every trainer that change what is learned, and settings of single methods that do not.
LEARNING = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs",
    "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm",
    "label_smoothing_factor", "neftune_noise_alpha", "seed", "data_seed",
)  # fmt: skip
NOT_LEARNING = (
    "dataset_num_proc", "precompute_ref_batch_size", "precompute_ref_log_probs", "use_liger_kernel",
    "activation_offloading", "eval_packing", "pad_to_multiple_of", "trust_remote_code", "shared_prompts",
)  # fmt: skip


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the last checkpoint in a trainer's folder, or None."""
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


def checkpoint_of_run(args: TrainingArguments, model: str, dataset: Dataset, peft_config: Any = None) -> str | None:
    """
    Return the last checkpoint in `output_dir`, after a check that its run has the same data and settings.

    Args:
        args: Arguments of the trainer. A resumed run may change batch sizes, evaluation, saving and logging.
        model: Hub id or path of the model.
        dataset: Training set, compared by the values of its rows.
        peft_config: Configuration of the adapter.

    Raises:
        TrlRealError: If the run has other data or settings; the message names the first difference.
    """
    checkpoint, file = last_checkpoint(args.output_dir), Path(args.output_dir) / SETTINGS_FILE
    settings = _settings(args) | {"model": model, "dataset": dataset_digest(dataset)} | adapter_settings(peft_config)
    if checkpoint is None and args.process_index == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    elif checkpoint is not None and file.exists():
        found = read_json(file)
        adapters = {name for name in found.keys() | settings.keys() if name.startswith("adapter")}
        names = found.keys() & settings.keys() | adapters  # another version of a library may have other settings
        before, now = ({name: of.get(name) for name in names} for of in (found, settings))
        check_settings(before, now, args.output_dir, "training")
    elif checkpoint is not None:
        logger.warning("The data and settings of %s are unknown: its folder has no %s.", checkpoint, SETTINGS_FILE)
    return checkpoint


def _settings(args: TrainingArguments) -> dict[str, Any]:
    own = {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}
    found = {name: getattr(args, name) for name in {*LEARNING, *own} - {*NOT_LEARNING}}
    loading = found.get("model_init_kwargs") or {}
    found["model_init_kwargs"] = {name: value for name, value in loading.items() if name != "token"}
    return json.loads(json.dumps(found, default=str))


def train_from(trainer: Trainer, checkpoint: str | None) -> None:
    """
    Train from the folder of a checkpoint, or from the start.

    A run that has reached its last step is not trained further: `Trainer.train` would add a step if the last one is
    not at the end of an epoch.
    """
    if checkpoint is None:
        trainer.train()
        return
    logger.info("Resuming from %s. To start afresh, give another output_dir.", checkpoint)
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    logger.info("The run has already reached its last step, %d: nothing to train.", state.max_steps)
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
