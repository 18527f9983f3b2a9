"""Train with REALDPOTrainer: --dataset, --split, --model and every flag of TRL's DPO, LoRA's too."""

import argparse
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from trl_real.cli.options import add_common, require, result, say


# Flags that are not named here are DPOConfig's and ModelConfig's, and so are the settings in the YAML file.
PASSES_FLAGS_ON = True
CONFIG_BY_FLAG = False


@dataclass
class PreferenceArguments:
    """What to train on, by the names that the other verbs use."""

    dataset: str | None = field(default=None, metadata={"help": "Preferences: Hub id, folder or file"})
    split: str | None = field(default=None, metadata={"help": "Split, or a part of it"})
    model: str | None = field(default=None, metadata={"help": "Hub id or local path of the model to align"})


@dataclass
class EvalArguments:
    """What to evaluate on."""

    eval_dataset: str | None = field(default=None, metadata={"help": "Preferences to evaluate on"})


def register(parser: argparse.ArgumentParser) -> None:
    """Own flags; the rest goes to TRL."""
    add_common(parser)
    parser.add_argument("--eval_dataset", help="preferences to evaluate on")
    parser.add_argument("--model", help="Hub id or local path of the model to align")
    parser.epilog = (
        "Further flags are those of trl_real.REALDPOConfig and trl.ModelConfig: --selection_strategy easy "
        "--selection_budget 0.25 --learning_rate 1e-5 --num_train_epochs 1 --use_peft --lora_r 16 …"
    )


def run(args: argparse.Namespace) -> None:
    """Train, save the model with its card, print the last metrics."""
    from transformers import AutoTokenizer
    from trl import ModelConfig, get_peft_config

    from trl_real.errors import TrlRealError
    from trl_real.training.adapters import revision_of
    from trl_real.training.config import REALDPOConfig
    from trl_real.training.resume import checkpoint_of_run, train_from
    from trl_real.training.trainer import REALDPOTrainer

    argv = on_cpu(own_flags(args, "dataset", "split", "output_dir", "config", "eval_dataset", "model"))
    classes = (PreferenceArguments, EvalArguments, REALDPOConfig, ModelConfig)
    data, held_out, config, model = parsed(classes, argv)
    args.dataset, args.model, args.output_dir = data.dataset, data.model or model.model_name_or_path, config.output_dir
    require(args, "dataset", "model", "output_dir")
    preferences = labelled(data.dataset, data.split)
    if not len(preferences):
        raise TrlRealError(f"{data.dataset!r} holds no preferences. Were all its labels ties? Select or label more.")
    eval_dataset = labelled(held_out.eval_dataset) if held_out.eval_dataset else None
    if eval_dataset is None and config.eval_strategy != "no":
        raise TrlRealError(f"--eval_strategy {config.eval_strategy.value} needs --eval_dataset: labelled pairs.")
    load_as_told(config, model)
    peft_config = get_peft_config(model)
    resume_from = config.resume_from_checkpoint or checkpoint_of_run(config, args.model, preferences, peft_config)
    config.resume_from_checkpoint = resume_from
    trainer = REALDPOTrainer(
        args.model,
        args=config,
        train_dataset=preferences,
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(args.model, revision=revision_of(config.model_init_kwargs)),
        peft_config=peft_config,
    )
    if trainer.selection_record is not None:
        say(trainer.selection_record.summary())
    with redirect_stdout(sys.stderr):  # the trainer prints its log; standard output is for the result
        train_from(trainer, resume_from)
    trainer.save_model()
    result(args, {"output_dir": config.output_dir, **last_metrics(trainer)}, config.output_dir)


def parsed(classes: tuple[type, ...], argv: list[str]) -> tuple[Any, ...]:
    """
    Flags, and settings of a `--config` among them, as TRL's parser reads them.

    Raises:
        TrlRealError: If there is no such file or setting, or a value is out of range.
    """
    from trl import TrlParser

    from trl_real.errors import TrlRealError

    try:
        return TrlParser(classes).parse_args_and_config(argv)
    except (OSError, ValueError, TypeError) as error:
        raise TrlRealError(" ".join(str(error).split())) from error


def labelled(path: str, split: str | None = None) -> Any:
    """
    Preferences.

    Raises:
        MissingColumnError: If they are no labelled pairs.
    """
    from trl_real.data.files import load
    from trl_real.errors import MissingColumnError

    rows = load(path, split)
    for name in ("chosen", "rejected"):
        if name not in rows.column_names:
            fix = f"Label its pairs first: trl-real label --dataset {path} --output_dir …"
            raise MissingColumnError(name, rows.column_names, fix)
    return rows


def load_as_told(config: Any, model: Any) -> None:
    """
    Have TRL's trainer load the model as `trl.ModelConfig` says; the trainer's own `model_init_kwargs` go first.

    Args:
        config: Of the trainer; its `model_init_kwargs` are set.
        model: A `trl.ModelConfig`: `model_revision`, `dtype`, `attn_implementation` and quantization.
    """
    from trl import ModelConfig, get_quantization_config

    names = {"model_revision": "revision", "dtype": "dtype", "attn_implementation": "attn_implementation"}
    plain = ModelConfig()
    told = {key: getattr(model, name) for name, key in names.items() if getattr(model, name) != getattr(plain, name)}
    if (quantization := get_quantization_config(model)) is not None:
        told["quantization_config"] = quantization
    if told:
        config.model_init_kwargs = {**told, **(config.model_init_kwargs or {})}


def own_flags(args: argparse.Namespace, *names: str) -> list[str]:
    """All flags for TRL's parser: the verb's own by their names, and the rest."""
    given = [(name, getattr(args, name)) for name in names if getattr(args, name) is not None]
    return [*args.rest, *(part for name, value in given for part in (f"--{name}", value))]


def last_metrics(trainer) -> dict:
    """The last value that was logged of each metric."""
    return {name: value for entry in trainer.state.log_history for name, value in entry.items()}


def on_cpu(argv: list[str]) -> list[str]:
    """Flags of a trainer, with those it needs where there is no accelerator."""
    import torch

    return argv if torch.cuda.is_available() or "--use_cpu" in argv else [*argv, "--use_cpu", "True"]
