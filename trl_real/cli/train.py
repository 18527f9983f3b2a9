"""Train with REALDPOTrainer. Takes --dataset, --split, --model and all flags of TRL's DPOConfig and LoRA."""

import argparse
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from trl_real.cli.options import add_chat, add_common, locked, read_settings, require, result, say
from trl_real.cli.parser import Parser, did_you_mean
from trl_real.errors import TrlRealError


# Other flags, and names in the YAML file, are those of REALDPOConfig and ModelConfig.
PASSES_FLAGS_ON = True
CONFIG_BY_FLAG = False


@dataclass
class PreferenceArguments:
    """Arguments for the training data and model, with the names that other verbs use."""

    dataset: str | None = field(default=None, metadata={"help": "Preferences: Hub id, folder or file"})
    split: str | None = field(default=None, metadata={"help": "Split, or a part of it"})
    model: str | None = field(default=None, metadata={"help": "Hub id or local path of the model to align"})


@dataclass
class EvalArguments:
    """Arguments for the evaluation data."""

    eval_dataset: str | None = field(default=None, metadata={"help": "Preferences to evaluate on"})


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's own flags; TRL parses the others."""
    add_common(parser)
    add_chat(parser)
    parser.add_argument("--eval_dataset", help="preferences to evaluate on")
    parser.add_argument("--model", help="Hub id or local path of the model to align")
    parser.add_argument("--plan", action="store_true", help="print the cost of this training and stop")
    parser.add_argument("--hardware", default="cpu", help="for --plan: cpu (this machine, measured; default), h100, …")
    parser.add_argument("--n_devices", type=int, default=1, help="for --plan: number of devices (default: 1)")
    parser.epilog = (
        "Other flags are those of trl_real.REALDPOConfig and trl.ModelConfig: --selection_strategy easy "
        "--selection_budget 0.25 --learning_rate 1e-5 --num_train_epochs 1 --use_peft --lora_r 16 …"
    )


def run(args: argparse.Namespace) -> None:
    """Train, save the model with its card, and print the last metrics; with `--plan` only print the cost."""
    from trl_real.training.config import REALDPOConfig

    _train(args, *training_settings(args, EvalArguments, REALDPOConfig))


@locked
def _train(args: argparse.Namespace, data: Any, held_out: Any, config: Any, model: Any) -> None:
    from trl import get_peft_config

    from trl_real.errors import without_remote_code
    from trl_real.selection.record import RECORD_FILE, SelectionRecord
    from trl_real.training.adapters import as_full_model, load_tokenizer
    from trl_real.training.resume import checkpoint_of_run, train_from
    from trl_real.training.trainer import REALDPOTrainer

    preferences = labelled(data.dataset, data.split)
    if not len(preferences):
        raise TrlRealError(
            f"{data.dataset!r} holds no preferences; perhaps all labels are ties. Select or label more pairs."
        )
    eval_dataset = labelled(held_out.eval_dataset) if held_out.eval_dataset else None
    if eval_dataset is None and config.eval_strategy != "no":
        raise TrlRealError(f"--eval_strategy {config.eval_strategy.value} needs --eval_dataset: labelled pairs.")
    peft_config = get_peft_config(model)
    if args.plan:
        return _print_plan(args, preferences, config, peft_config)
    args.model = as_full_model(args.model, config.output_dir, config.model_init_kwargs)
    resume_from = config.resume_from_checkpoint or checkpoint_of_run(config, args.model, preferences, peft_config)
    config.resume_from_checkpoint = resume_from
    with without_remote_code(args.model):
        trainer = REALDPOTrainer(
            args.model,
            args=config,
            train_dataset=preferences,
            eval_dataset=eval_dataset,
            processing_class=load_tokenizer(args.model, config.model_init_kwargs, config.trust_remote_code),
            peft_config=peft_config,
        )
    if (Path(data.dataset) / RECORD_FILE).exists():
        trainer.earlier_selection = SelectionRecord.load(data.dataset)
    if trainer.selection_record is not None:
        say(trainer.selection_record.summary())
    n_control = tell_control_tokens(trainer, preferences)
    train_from(trainer, resume_from)
    trainer.save_model()
    trainer.create_model_card(model_name=Path(config.output_dir).name)
    counts = {"n_with_control_tokens": n_control, **last_metrics(trainer)}
    result(args, {"output_dir": config.output_dir, **counts}, config.output_dir)


def tell_control_tokens(trainer: Any, rows: Any) -> int:
    """Say how many rows hold control tokens in a response, and return the number."""
    from trl_real.models.sequences import n_with_control_tokens

    n_control = n_with_control_tokens(trainer.processing_class, rows)
    if n_control:
        say(f"{n_control} of {len(rows)} rows hold control tokens in a response; TRL trains on them as such.")
    return n_control


def _print_plan(args: argparse.Namespace, preferences: Any, config: Any, peft_config: Any) -> None:
    """Print the plan; write nothing and load no weights."""
    from trl_real.training.plan import plan_training

    device = {"hardware": args.hardware, "n_devices": args.n_devices}
    plan = plan_training(args.model, preferences, config, peft_config, **device)
    result(args, plan.to_dict(), plan.summary())


def training_settings(args: argparse.Namespace, *classes: type) -> tuple[Any, ...]:
    """
    Parse all flags of a training verb, and check the required ones, which may also be in the file of `--config`.

    Returns:
        `PreferenceArguments`, the given classes (last the trainer's config), and `trl.ModelConfig`.
    """
    own = ("dataset", "split", "output_dir", "config", "eval_dataset", "model")
    given = [(f"--{name}", getattr(args, name)) for name in own if getattr(args, name, None) is not None]
    data, *others, config, model = parsed((PreferenceArguments, *classes), [*args.rest, *chain(*given)])
    if args.chat and hasattr(config, "as_messages"):
        config.as_messages = True
    args.dataset, args.model, args.output_dir = data.dataset, data.model or model.model_name_or_path, config.output_dir
    require(args, "dataset", "model", *(() if getattr(args, "plan", False) else ("output_dir",)))
    set_model_init_kwargs(config, model)
    return data, *others, config, model


def parsed(classes: tuple[type, ...], argv: list[str]) -> tuple[Any, ...]:
    """
    Parse flags, and the settings in the file of `--config`, with TRL's parser. Training is on the accelerator, if any,
    and in float32 where there are no instructions for bfloat16.

    Returns:
        The given dataclasses, and `trl.ModelConfig`.

    Raises:
        TrlRealError: If the file cannot be read, a setting is unknown, or a value is out of range.
    """
    from trl import ModelConfig, TrlParser

    from trl_real.runtime.devices import accelerator, bfloat16_is_fast

    if accelerator() is None and "--use_cpu" not in argv:
        argv = [*argv, "--use_cpu", "True"]
    settings = _settings_in(argv)
    if not bfloat16_is_fast() and not _sets_precision(argv, settings):
        argv = [*argv, "--bf16", "False"]
    parser = TrlParser((*classes, ModelConfig))
    parser.error = Parser.error.__get__(parser)
    known = {"--config", *(flag for flag in parser._option_string_actions if "-" not in flag[2:])}
    unknown = [flag for flag in argv if flag.startswith("--") and flag.partition("=")[0] not in known]
    if unknown:
        raise TrlRealError(f"There is no flag {unknown[0]}.{did_you_mean(unknown[0], known)}")
    try:
        return parser.parse_args_and_config(argv)
    except TrlRealError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise TrlRealError(" ".join(str(error).split())) from error


def _sets_precision(argv: list[str], settings: dict[str, Any]) -> bool:
    """Return whether flags or settings name a precision."""
    names = (*settings, *(flag for flag in argv if flag.startswith("--")))
    return any(name in str(given) for name in ("bf16", "fp16") for given in names)


def _settings_in(argv: list[str]) -> dict[str, Any]:
    """Return the settings in the file of `--config`; refuse environment variables, which TRL's parser would set."""
    found: dict[str, Any] = {}
    for path in (after for flag, after in pairwise(argv) if flag == "--config"):
        found |= read_settings(path)
        if "env" in found:
            raise TrlRealError(f"{path!r} sets 'env'. Set environment variables in the shell: NAME=value trl-real …")
    return found


def labelled(path: str, split: str | None = None) -> Any:
    """Load preferences; raise `MissingColumnError` if the rows are not labelled pairs."""
    from trl_real.data.files import load
    from trl_real.data.row_check import check_texts
    from trl_real.errors import check_columns

    rows = load(path, split)
    fix = f"Label its pairs first: trl-real label --dataset {path} --output_dir …"
    check_columns(rows.column_names, ("chosen", "rejected"), fix)
    check_texts(rows, ("chosen", "rejected", "prompt"), alike=True)
    return rows


def set_model_init_kwargs(config: Any, model: Any) -> None:
    """Set `model_init_kwargs` of a trainer's config from a `trl.ModelConfig`; values already set have priority."""
    from trl import ModelConfig, get_quantization_config

    names = {"model_revision": "revision", "dtype": "dtype", "attn_implementation": "attn_implementation"}
    default = ModelConfig()
    given = {k: getattr(model, name) for name, k in names.items() if getattr(model, name) != getattr(default, name)}
    if (quantization := get_quantization_config(model)) is not None:
        given["quantization_config"] = quantization
    if given:
        config.model_init_kwargs = {**given, **(config.model_init_kwargs or {})}


def last_metrics(trainer) -> dict:
    """Return the last logged value of each metric."""
    return {name: value for entry in trainer.state.log_history for name, value in entry.items()}
