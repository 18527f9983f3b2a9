"""The training of one round: an adapter on labels, from given weights, against the base model or those weights."""

import copy
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import PrinterCallback
from transformers.trainer_utils import IntervalStrategy

from trl_real.training.adapters import with_adapter
from trl_real.training.config import REALDPOConfig
from trl_real.training.resume import last_checkpoint, train_from
from trl_real.training.trainer import REALDPOTrainer


REFERENCE = "ref"  # TRL's name of the frozen copy of an adapter


class Trained(NamedTuple):
    """
    Args:
        policy: The base with its adapter.
        n_steps: Optimizer steps.
        log: What the trainer logged.
        reference: `adapter_digest` of the reference; "" for the base.
    """

    policy: PeftModel
    n_steps: int
    log: list[dict[str, float]]
    reference: str = ""

    def logged(self, name: str) -> list[float]:
        """The values of a name, in the order of the steps."""
        return [row[name] for row in self.log if name in row]

    @property
    def told(self) -> dict[str, Any]:
        """
        In short: steps, the last loss, tokens (the reference's passes apart), the mean share of pairs that were found
        doubtful (None without smoothing), and the reference.
        """
        losses, tokens, flagged = map(self.logged, ("loss", "num_tokens", "noise/flagged"))
        return {
            "n_steps": self.n_steps,
            "loss": losses[-1] if losses else None,
            "n_tokens": int(tokens[-1]) if tokens else 0,
            "flagged": sum(flagged) / len(flagged) if flagged else None,
            "reference": self.reference,
        }


def round_config(args: REALDPOConfig, folder: Path, seed: int, **changes: Any) -> REALDPOConfig:
    """
    The trainer's settings for a round: its folder and seed, no evaluation on the way.

    Args:
        args: Of the run.
        folder: For checkpoints, which a killed round goes on from.
        seed: Of the data's order and of what is drawn.
        **changes: Of single settings.
    """
    config = copy.copy(args)
    config.output_dir, config.seed, config.data_seed = str(folder), seed, seed
    config.eval_strategy, config.load_best_model_at_end = IntervalStrategy.NO, False
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def train_adapter(
    base: Any,
    tokenizer: Any,
    labels: Dataset,
    start: Path,
    config: REALDPOConfig,
    peft_config: PeftConfig | None = None,
) -> Trained:
    """
    DPO from an adapter's weights on; from the last checkpoint in the config's folder, if there is one.

    TRL takes a policy that comes with an adapter as its own reference, in a frozen copy. For the base as the
    reference the trainer makes a new adapter, into which the weights are put.

    Args:
        base: Model before alignment.
        tokenizer: Its tokenizer.
        labels: Preferences.
        start: Folder of an adapter.
        config: Of the trainer.
        peft_config: Of the adapter at `start`: the reference is the base, whatever the start (ActiveDPO). None for
            the start as the reference (SPA).
    """
    own_reference = peft_config is None
    trainer = REALDPOTrainer(
        with_adapter(base, start, trainable=True) if own_reference else base,
        args=config,
        train_dataset=labels,
        processing_class=tokenizer,
        peft_config=copy.deepcopy(peft_config),
    )
    trainer.remove_callback(PrinterCallback)
    if not own_reference:
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(start)))
    train_from(trainer, last_checkpoint(config.output_dir))
    policy = trainer.accelerator.unwrap_model(trainer.model)
    reference = adapter_digest(get_peft_model_state_dict(policy, adapter_name=REFERENCE)) if own_reference else ""
    return Trained(policy, trainer.state.global_step, trainer.state.log_history, reference)


def adapter_digest(weights: dict[str, Tensor]) -> str:
    """
    Of an adapter's weights: the same in memory and, by `load_peft_weights`, on disk.

    Args:
        weights: By name.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
        digest.update(weights[name].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
