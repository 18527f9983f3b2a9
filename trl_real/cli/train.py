"""Train on labels: a policy by DPO or KTO, or a reward model. Takes all flags of TRL's config and of LoRA."""

import argparse
from dataclasses import dataclass, field, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from trl_real.cli.checks import TRAINERS, one_of
from trl_real.cli.options import add_chat, add_common, locked, read_settings, require, result, say
from trl_real.cli.parser import Parser, did_you_mean
from trl_real.errors import TrlRealError


# Other flags, and names in the YAML file, are those of the trainer's config and ModelConfig.
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
    """Arguments for the evaluation data, and the trainer."""

    eval_dataset: str | None = field(default=None, metadata={"help": "Preferences to evaluate on"})
    trainer: str = field(default="dpo", metadata={"help": "What learns from the labels: dpo, reward or kto"})


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's own flags; TRL parses the others."""
    add_common(parser)
    add_chat(parser)
    parser.add_argument("--eval_dataset", help="preferences to evaluate on")
    parser.add_argument("--model", help="Hub id or local path of the model to align")
    about = "what learns from the labels: dpo (default), kto, or a reward model"
    parser.add_argument("--trainer", type=one_of("trainer", TRAINERS), help=about)
    parser.add_argument("--plan", action="store_true", help="print the cost of this training and stop")
    parser.add_argument("--hardware", default="cpu", help="for --plan: cpu (this machine, measured; default), h100, …")
    parser.add_argument("--n_devices", type=int, default=1, help="for --plan: number of devices (default: 1)")
    parser.epilog = (
        "Other flags are those of trl_real.REALDPOConfig (with --trainer reward or kto, of trl.RewardConfig or "
        "trl.KTOConfig) and trl.ModelConfig: --selection_strategy easy --selection_budget 0.25 --learning_rate 1e-5 "
        "--num_train_epochs 1 --use_peft --lora_r 16 …"
    )


def run(args: argparse.Namespace) -> None:
    """Train, save the model with its card, and print the last metrics; with `--plan` only print the cost."""
    from trl_real.training import trainers

    settings = _settings_in(["--config", args.config]) if args.config else {}
    args.trainer = args.trainer or str(settings.get("trainer") or "dpo")
    if args.trainer not in TRAINERS:
        raise TrlRealError(f"No trainer {args.trainer!r}; there are {', '.join(TRAINERS)}.")
    _refuse_others(args, settings)
    _train(args, *training_settings(args, EvalArguments, trainers.TRAINERS[args.trainer].config))


def _refuse_others(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Refuse flags and settings that belong to another trainer, and the plan, which is of DPO's step."""
    from trl_real.training import trainers

    if args.plan and args.trainer != "dpo":
        raise TrlRealError(f"--plan estimates the cost of --trainer dpo, not of {args.trainer}. Leave it out.")
    names = {trainer: {field.name for field in fields(spec.config)} for trainer, spec in trainers.TRAINERS.items()}
    for given in (*(flag.partition("=")[0].removeprefix("--") for flag in args.rest if flag[:2] == "--"), *settings):
        owners = [trainer for trainer, known in names.items() if given in known]
        if owners and args.trainer not in owners:
            raise TrlRealError(
                f"--{given} belongs to --trainer {' and '.join(owners)}, not to {args.trainer}. Leave it out."
            )


@locked
def _train(args: argparse.Namespace, data: Any, held_out: Any, config: Any, model: Any) -> None:
    from trl import get_peft_config

    from trl_real.data.images import IMAGE_COLUMNS
    from trl_real.errors import without_remote_code
    from trl_real.selection.record import RECORD_FILE, SelectionRecord
    from trl_real.training import trainers
    from trl_real.training.adapters import as_full_model, load_tokenizer
    from trl_real.training.resume import checkpoint_of_run, train_from

    preferences, eval_dataset = _read(args, data, held_out, config)
    spec = trainers.TRAINERS[args.trainer]
    if peft_config := get_peft_config(model):
        peft_config.task_type = spec.task
    if args.plan:
        return _print_plan(args, preferences, config, peft_config)
    args.model = as_full_model(args.model, config.output_dir, config.model_init_kwargs)
    rows = trainers.rows_for(preferences, args.trainer)
    sees = bool({*IMAGE_COLUMNS} & {*rows.column_names})
    resume_from = config.resume_from_checkpoint or checkpoint_of_run(config, args.model, rows, peft_config)
    config.resume_from_checkpoint = resume_from
    with without_remote_code(args.model):
        trainer = spec.trainer(
            args.model,
            args=config,
            train_dataset=rows,
            eval_dataset=eval_dataset and trainers.rows_for(eval_dataset, args.trainer),
            processing_class=load_tokenizer(args.model, config.model_init_kwargs, config.trust_remote_code, sees),
            peft_config=peft_config,
        )
    if (Path(data.dataset) / RECORD_FILE).exists() and args.trainer == "dpo":
        trainer.earlier_selection = SelectionRecord.load(data.dataset)
    record = getattr(trainer, "selection_record", None)
    if record is not None:
        say(record.summary())
    n_control = tell_control_tokens(trainer, preferences)
    train_from(trainer, resume_from)
    trainer.save_model()
    trainer.create_model_card(model_name=Path(config.output_dir).name)
    if args.trainer == "reward":
        say(f"Next: trl-real win-rate --judge reward --judge_model {config.output_dir} --dataset …")
    counts = {"n_with_control_tokens": n_control, **last_metrics(trainer)}
    result(args, {"output_dir": config.output_dir, **counts}, config.output_dir)


def _read(args: argparse.Namespace, data: Any, held_out: Any, config: Any) -> tuple[Any, Any]:
    """Load the labels to train on, and those to evaluate on or None."""
    from trl_real import as_chat

    preferences = labelled(data.dataset, data.split)
    if not len(preferences):
        raise TrlRealError(
            f"{data.dataset!r} holds no preferences; perhaps all labels are ties. Select or label more pairs."
        )
    eval_dataset = labelled(held_out.eval_dataset) if held_out.eval_dataset else None
    if eval_dataset is None and config.eval_strategy != "no":
        raise TrlRealError(f"--eval_strategy {config.eval_strategy.value} needs --eval_dataset: labelled pairs.")
    if args.chat and args.trainer != "dpo":  # the configuration of DPO has a setting for it
        preferences, eval_dataset = as_chat(preferences), eval_dataset and as_chat(eval_dataset)
    return preferences, eval_dataset


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
    own = ("dataset", "split", "output_dir", "config", "eval_dataset", "model", "trainer")
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
    from trl_real.training.config import ONE

    if accelerator() is None and "--use_cpu" not in argv:
        argv = [*argv, "--use_cpu", "True"]
    if ("--selection_budget", "1") in pairwise(part for flag in argv for part in flag.split("=", 1)):
        raise TrlRealError(ONE)  # TRL's parser would read it as 1.0
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
