"""Fine-tune on the chosen responses. Takes --dataset, --split, --model and all flags of TRL's SFT."""

import argparse

from trl_real.cli.options import add_chat, add_common, result, say
from trl_real.cli.train import last_metrics, tell_control_tokens, training_settings


# Other flags, and names in the YAML file, are those of SFTConfig and ModelConfig.
PASSES_FLAGS_ON = True
CONFIG_BY_FLAG = False


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's own flags; TRL parses the others."""
    add_common(parser)
    add_chat(parser)
    parser.add_argument("--model", help="Hub id or local path of the base model")
    parser.epilog = (
        "Other flags are those of trl.SFTConfig and trl.ModelConfig: --learning_rate 2e-5 --num_train_epochs 1 "
        "--use_peft --lora_r 16 …  Adapters are merged: the saved model is the reference for DPO."
    )


def run(args: argparse.Namespace) -> None:
    """Fine-tune, save the full model, and print the next command."""
    from trl import SFTConfig, get_peft_config

    from trl_real.data.files import load
    from trl_real.training.adapters import as_full_model, load_tokenizer
    from trl_real.training.warm_start import warm_start

    data, config, model = training_settings(args, SFTConfig)
    args.model = as_full_model(args.model, config.output_dir, config.model_init_kwargs)
    rows = load(data.dataset, data.split)
    trainer = warm_start(
        args.model,
        rows,
        config,
        processing_class=load_tokenizer(args.model, config.model_init_kwargs, config.trust_remote_code),
        peft_config=get_peft_config(model),
        as_messages=args.chat,
    )
    counts = {"n_with_control_tokens": tell_control_tokens(trainer, rows.select_columns("chosen"))}
    chat = " --chat" if args.chat else ""
    say(f"Next: trl-real train{chat} --dataset {data.dataset} --model {config.output_dir} --output_dir …")
    result(args, {"output_dir": config.output_dir, **counts, **last_metrics(trainer)}, config.output_dir)
