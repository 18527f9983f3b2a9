"""Resume an interrupted training run, if its data and settings are the same."""

import json
import logging
import shutil
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_real.data.digest import dataset_digest
from trl_real.models.load import resolve_revision
from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.runtime.run_folder import check_settings
from trl_real.training.adapters import adapter_settings, revision_of


logger = logging.getLogger(__name__)

SETTINGS_FILE, TOKEN_COUNT = "run_settings.json", "trl_real_token_count"
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
    """Return the last complete checkpoint in a trainer's folder, or None. A kill may leave an incomplete one."""
    return next((str(found) for found in _checkpoints(folder) if _is_complete(found)), None)


def put_aside_incomplete(folder: str | Path) -> None:
    """
    Rename the checkpoints that a kill or a full disk left incomplete to `incomplete-checkpoint-N`, with a warning.

    The caller holds the folder's lock: a checkpoint that is being written is incomplete, too.
    """
    for found in _checkpoints(folder):
        if not _is_complete(found):
            aside = found.with_name(f"incomplete-{found.name}")
            shutil.rmtree(aside, ignore_errors=True)
            found.rename(aside)
            logger.warning("%s is incomplete: its run was stopped while it was written. Moved to %s.", found, aside)


def _checkpoints(folder: str | Path) -> list[Path]:
    """Return the folders of checkpoints, the last one first."""
    found = (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir())
    numbered = {int(path.name.rpartition("-")[2]): path for path in found if path.name.rpartition("-")[2].isdecimal()}
    return [numbered[number] for number in sorted(numbered, reverse=True)]


def _is_complete(checkpoint: Path) -> bool:
    """Return whether the state, which is written last, and all weights can be read to their end."""
    try:
        step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        for file in checkpoint.rglob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError):
        return False
    tensors = (file for pattern in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(pattern))
    return checkpoint.name == f"{PREFIX_CHECKPOINT_DIR}-{step}" and all(map(zipfile.is_zipfile, tensors))


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
    if args.process_index == 0:
        put_aside_incomplete(args.output_dir)
    checkpoint, file = last_checkpoint(args.output_dir), Path(args.output_dir) / SETTINGS_FILE
    settings = _settings(args) | adapter_settings(peft_config)
    settings |= {"model": model, "weights": weights_of(model, args), "dataset": dataset_digest(dataset)}
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


def weights_of(model: str, args: TrainingArguments) -> str:
    """Return the commit or digest of the weights that the trainer loads for this name or path."""
    return resolve_revision(model, revision_of(getattr(args, "model_init_kwargs", None)))


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
    trainer.add_callback(_TokenCount(trainer))
    if checkpoint is None:
        trainer.train()
        return
    logger.info("Resuming from %s. To start afresh, give another output_dir.", checkpoint)
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    trainer._total_train_tokens = _n_tokens(state)
    if state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    logger.info("The run has already reached its last step, %d: nothing to train.", state.max_steps)
    trainer._load_from_checkpoint(checkpoint)
    state.log_history.append({"num_tokens": trainer._total_train_tokens, "step": state.global_step})
    trainer.state = state


class _TokenCount(TrainerCallback):
    """Callback that keeps TRL's number of tokens in the trainer's state, which a checkpoint saves: TRL forgets it."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Note the number so far."""
        count = {"args": {}, "attributes": {"n_tokens": self.trainer._total_train_tokens}}
        cast(dict[str, Any], state.stateful_callbacks)[TOKEN_COUNT] = count


def _n_tokens(state: TrainerState) -> int:
    """Return the number of tokens up to a checkpoint: as counted there, else as last logged."""
    logged = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
    counted = cast(dict[str, Any], state.stateful_callbacks).get(TOKEN_COUNT, {}).get("attributes", {})
    return int(counted.get("n_tokens", logged[-1] if logged else 0))
