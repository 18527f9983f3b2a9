"""The training of one round: an adapter on labels, from given weights, against the base model."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_real.training.config import REALDPOConfig
from trl_real.training.trainer import REALDPOTrainer



class Trained(NamedTuple):
    """
    Args:
        policy: The base with its adapter.
        loss: Of the last step that was logged.
        n_steps: Optimizer steps.
        n_tokens: Tokens that were trained on, the reference's passes apart.
    """

    policy: PeftModel
    loss: float | None
    n_steps: int
    n_tokens: int


def round_config(args: REALDPOConfig, folder: Path, seed: int) -> REALDPOConfig:
    """The trainer's settings for a round: its folder and seed, no evaluation on the way, nothing saved."""
    config = copy.copy(args)
    config.output_dir, config.seed, config.data_seed = str(folder), seed, seed
    config.eval_strategy, config.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    config.load_best_model_at_end = False
    return config


def train_adapter(
    base: Any,
    tokenizer: Any,
    labels: Dataset,
    start: Path,
    config: REALDPOConfig,
    peft_config: PeftConfig,
) -> Trained:
    """
    DPO from an adapter's weights on; the reference is the base without an adapter, whatever the start.

    TRL takes a policy that comes with an adapter as its own reference. So the trainer makes a new adapter, for which
    the base is the reference, and the weights are put into it.

    Args:
        base: Model before alignment.
        tokenizer: Its tokenizer.
        labels: Preferences.
        start: Folder of an adapter of the same shape.
        config: Of the trainer.
        peft_config: Of the adapter.
    """
    trainer = REALDPOTrainer(
        base,
        args=config,
        train_dataset=labels,
        processing_class=tokenizer,
        peft_config=copy.deepcopy(peft_config),
    )
    trainer.remove_callback(PrinterCallback)
    set_peft_model_state_dict(trainer.model, load_peft_weights(str(start)))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    tokens = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    return Trained(
        policy=trainer.accelerator.unwrap_model(trainer.model),
        loss=losses[-1] if losses else None,
        n_steps=trainer.state.global_step,
        n_tokens=int(tokens[-1]) if tokens else 0,
    )
