"""Fine-tune on the chosen responses: --dataset, --split, --model and every flag of TRL's SFTConfig, LoRA's too."""

import argparse
import sys
from contextlib import redirect_stdout

from trl_real.cli.options import add_common, require, result, say
from trl_real.cli.train import PreferenceArguments, last_metrics, load_as_told, on_cpu, own_flags, parsed


# Flags that are not named here are SFTConfig's and ModelConfig's, and so are the settings in the YAML file.
PASSES_FLAGS_ON = True
CONFIG_BY_FLAG = False


def register(parser: argparse.ArgumentParser) -> None:
    """Own flags; the rest goes to TRL."""
    add_common(parser)
    parser.add_argument("--model", help="Hub id or local path of the base model")
    parser.epilog = (
        "Further flags are those of trl.SFTConfig and trl.ModelConfig: --learning_rate 2e-5 --num_train_epochs 1 "
        "--use_peft --lora_r 16 …  An adapter is merged, so that DPO from the saved model has the right reference."
    )


def run(args: argparse.Namespace) -> None:
    """Fine-tune, save the whole model, say how to go on."""
    from transformers import AutoTokenizer
    from trl import ModelConfig, SFTConfig, get_peft_config

    from trl_real.data.files import load
    from trl_real.training.adapters import revision_of
    from trl_real.training.warm_start import warm_start

    argv = on_cpu(own_flags(args, "dataset", "split", "output_dir", "config", "model"))
    data, config, model = parsed((PreferenceArguments, SFTConfig, ModelConfig), argv)
    args.dataset, args.model, args.output_dir = data.dataset, data.model or model.model_name_or_path, config.output_dir
    require(args, "dataset", "model", "output_dir")
    load_as_told(config, model)
    with redirect_stdout(sys.stderr):  # the trainer prints its log; standard output is for the result
        trainer = warm_start(
            args.model,
            load(data.dataset, data.split),
            config,
            processing_class=AutoTokenizer.from_pretrained(args.model, revision=revision_of(config.model_init_kwargs)),
            peft_config=get_peft_config(model),
        )
    say(f"Next: trl-real train --dataset {data.dataset} --model {config.output_dir} --output_dir …")
    result(args, {"output_dir": config.output_dir, **last_metrics(trainer)}, config.output_dir)
