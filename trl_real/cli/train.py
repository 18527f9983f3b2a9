"""Train with REALDPOTrainer: --dataset, --split, --model and every flag of TRL's DPO, LoRA's too."""

import argparse
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field

from trl_real.cli.options import add_common, require, result, say


# Flags that are not named here are DPOConfig's and ModelConfig's, and so are the settings in the YAML file.
PASSES_FLAGS_ON = True
CONFIG_BY_FLAG = False


@dataclass
class DataArguments:
    """What to train on, by the names that the other verbs use."""

    dataset: str | None = field(default=None, metadata={"help": "Preferences: Hub id, folder or file"})
    split: str | None = field(default=None, metadata={"help": "Split, or a part of it"})
    eval_dataset: str | None = field(default=None, metadata={"help": "Preferences to evaluate on"})
    model: str | None = field(default=None, metadata={"help": "Hub id or local path of the model to align"})


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
    import torch
    from transformers import AutoTokenizer
    from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

    from trl_real.data.files import load
    from trl_real.errors import TrlRealError
    from trl_real.training.config import REALDPOConfig
    from trl_real.training.trainer import REALDPOTrainer

    argv = list(args.rest)
    for name in ("dataset", "split", "output_dir", "config", "eval_dataset", "model"):
        argv += [f"--{name}", getattr(args, name)] if getattr(args, name) is not None else []
    if not torch.cuda.is_available() and "--use_cpu" not in argv:
        argv += ["--use_cpu", "True"]
    data, config, model = TrlParser((DataArguments, REALDPOConfig, ModelConfig)).parse_args_and_config(argv)
    args.dataset, args.model, args.output_dir = data.dataset, data.model or model.model_name_or_path, config.output_dir
    require(args, "dataset", "model", "output_dir")
    preferences = load(data.dataset, data.split)
    if not len(preferences):
        raise TrlRealError(f"{data.dataset!r} holds no preferences. Were all its labels ties? Select or label more.")
    if (quantization := get_quantization_config(model)) is not None:
        config.model_init_kwargs = {**(config.model_init_kwargs or {}), "quantization_config": quantization}
    trainer = REALDPOTrainer(
        args.model,
        args=config,
        train_dataset=preferences,
        eval_dataset=load(data.eval_dataset) if data.eval_dataset else None,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=get_peft_config(model),
    )
    if trainer.selection_record is not None:
        say(trainer.selection_record.summary())
    with redirect_stdout(sys.stderr):  # the trainer prints its log; standard output is for the result
        trainer.train()
    trainer.save_model()
    metrics = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    result(args, {"output_dir": config.output_dir, **metrics}, config.output_dir)
