"""A run that was broken off goes on where it stood."""

from pathlib import Path

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint


def last_checkpoint(folder: str | Path) -> str | None:
    """The last checkpoint in a trainer's folder; None if there is none."""
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


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
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
