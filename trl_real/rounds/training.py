"""Training of one round: DPO of an adapter, with the base model or the adapter's start as the reference."""

import copy
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PrinterCallback
from transformers.trainer_utils import IntervalStrategy

from trl_real.models.sequences import n_with_control_tokens
from trl_real.training.adapters import with_adapter
from trl_real.training.config import REALDPOConfig
from trl_real.training.resume import last_checkpoint, put_aside_incomplete, train_from
from trl_real.training.trainer import REALDPOTrainer


REFERENCE = "ref"  # TRL's name of the frozen copy of an adapter


class Trained(NamedTuple):
    """Result of the training of a round."""

    policy: PeftModel  # base model with the trained adapter
    n_steps: int
    log: list[dict[str, float]]
    n_tokens: int = 0  # without passes of the reference
    reference: str = ""  # `adapter_digest` of the reference; "" for the base model
    n_with_control_tokens: int = 0  # rows

    def logged(self, name: str) -> list[float]:
        """Return the logged values of a name, in the order of the steps."""
        return [row[name] for row in self.log if name in row]

    @property
    def summary(self) -> dict[str, Any]:
        """
        Steps, last loss, tokens, mean share of doubtful pairs (None without smoothing), digest of the reference, and
        number of rows with control tokens in a response, which TRL trains on as such.
        """
        losses, flagged = map(self.logged, ("loss", "noise/flagged"))
        return {
            "n_steps": self.n_steps,
            "loss": losses[-1] if losses else None,
            "n_tokens": self.n_tokens,
            "flagged": sum(flagged) / len(flagged) if flagged else None,
            "reference": self.reference,
            "n_with_control_tokens": self.n_with_control_tokens,
        }


def round_config(args: REALDPOConfig, folder: Path, seed: int, **changes: Any) -> REALDPOConfig:
    """Return the trainer's configuration for a round: its folder, seed and changes, and no evaluation in training."""
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
    Train an adapter with DPO, from the weights in `start` or from the last checkpoint in the config's folder.

    If the given model has an adapter, TRL uses a frozen copy of it as the reference. To use the base model as the
    reference, the trainer gets the base model, creates a new adapter, and the weights are loaded into it.

    Args:
        peft_config: Configuration of the adapter in `start`, to use the base model as the reference (ActiveDPO). None
            to use the start as the reference (SPA).
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
    put_aside_incomplete(config.output_dir)
    train_from(trainer, last_checkpoint(config.output_dir))
    policy = trainer.accelerator.unwrap_model(trainer.model)
    reference = adapter_digest(get_peft_model_state_dict(policy, adapter_name=REFERENCE)) if own_reference else ""
    n_tokens, n_control = trainer._total_train_tokens, n_with_control_tokens(tokenizer, labels)
    return Trained(policy, trainer.state.global_step, trainer.state.log_history, n_tokens, reference, n_control)


def adapter_digest(weights: dict[str, Tensor]) -> str:
    """Return a digest of an adapter's weights, the same in memory and on disk (with `load_peft_weights`)."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
        digest.update(weights[name].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
