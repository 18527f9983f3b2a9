"""Flags that describe a judge, for every verb that needs one."""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from trl_real.cli.options import result, say
from trl_real.cli.parser import did_you_mean
from trl_real.errors import TrlRealError
from trl_real.labeling.judges import JUDGES, JudgeSpec, load_class


# Settings with the flag `--judge_NAME` in verbs where `--NAME` belongs to the verb or the trainer.
PREFIXED = ("model", "reference", "beta", "max_length", "revision", "dtype", "device", "batch_tokens")
# Settings of judges that change no verdict, or that no file may hold.
NOT_RECORDED = (
    "api_key", "base_url", "cache", "concurrency", "timeout", "deadline", "max_retries", "price", "max_cost",
    "max_failure_rate", "batch_tokens", "device", "votes",
)  # fmt: skip
NO_DEFAULT = (None, 0, inspect.Parameter.empty)


def key_value(text: str) -> tuple[str, Any]:
    """Parse `key=value`; the value is JSON, such as `null` or `0.5`, or else a text."""
    key, mark, value = text.partition("=")
    if not (mark and key):
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value, such as reasoning_effort=low")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


# Type of an argument -> how `argparse` parses its flag. An argument without such a type has no flag.
PARSING: dict[str, dict[str, Any]] = {
    "bool": {"action": "store_true", "default": None},
    "tuple[float, float]": {"type": float, "nargs": 2},
    "dict[str, typing.Any]": {"type": key_value, "nargs": "+", "action": "extend", "metavar": "KEY=VALUE"},
    **{kind.__name__: {"type": kind} for kind in (str, int, float)},
}


def add_judge_flags(parser: argparse.ArgumentParser, model: str = "model") -> None:
    """
    Add `--judge`, and a flag for every setting of the judges.

    The judge's model has the flag `model`: `judge_model` where `--model` means something else.
    """
    parser.set_defaults(model_flag=model)
    group = parser.add_argument_group("judge", "which response is better; settings of other judges are errors")
    judges = "; ".join(f"{name}: {spec.about}" for name, spec in JUDGES.items())
    group.add_argument("--judge", default="score", help=f"{judges} (default: score)")
    flags: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {}
    for judge, spec in JUDGES.items():
        for name, (parsing, about) in settings_of(spec).items():
            flags.setdefault(name, (parsing, {}))[1].setdefault(about, []).append(judge)
    for name, (parsing, meanings) in flags.items():
        flag = "option" if name == "options" else name if model == "model" else _dest(name)
        about = "; ".join(f"{', '.join(judges)}: {about}" for about, judges in meanings.items()).replace("%", "%%")
        group.add_argument(f"--{flag}", dest=_dest(name), help=about, **parsing)


def settings_of(spec: JudgeSpec, given: Container[str] | None = None) -> dict[str, tuple[dict[str, Any], str]]:
    """
    Return the settings of a judge that can be typed, from the signatures and docstrings of its classes.

    Each name has the `argparse` arguments that parse the setting, and the first sentence about it. The settings in
    `given` select the backend; None returns the settings of all backends.
    """
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for home in (spec.home, *(spec.backends if given is None else spec.backends["base_url" in given :][:1])):
        cls = load_class(home)
        sentences = _sentences(cls)
        for position, (name, parameter) in enumerate(inspect.signature(cls).parameters.items()):
            is_first = bool(spec.first) and position == 0
            kinds = ["str"] if is_first else inspect.formatannotation(parameter.annotation).strip("'").split(" | ")
            parsing = next((PARSING[kind] for kind in kinds if kind in PARSING), None)
            if parsing:
                default = f" (default: {parameter.default})" if parameter.default not in NO_DEFAULT else ""
                found.setdefault(spec.first if is_first else name, (parsing, sentences.get(name, "") + default))
    return found


def _sentences(cls: type) -> dict[str, str]:
    """Return the first sentence about each argument in a class docstring."""
    section = (inspect.getdoc(cls) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w[^:\n]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    plain = {names: re.sub(r"[`\"]", "", " ".join(text.split())) for names, text in entries}
    return {name: re.split(r"\.(?:\s|$)", text)[0] for names, text in plain.items() for name in names.split(", ")}


def _dest(name: str) -> str:
    return f"judge_{name}" if name in PREFIXED else name


def judge_from(args: argparse.Namespace) -> Any:
    """
    Make the judge that the flags describe.

    Raises:
        TrlRealError: If the judge is unknown, or a flag belongs to another judge.
    """
    return make_judge(args.judge, judge_settings(args), args.model_flag)


def recorded_judge(args: argparse.Namespace) -> dict[str, Any]:
    """Return the judge and those of its settings that verdicts hang on, and no key."""
    return {"judge": args.judge} | {k: v for k, v in judge_settings(args).items() if k not in NOT_RECORDED}


def judge_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of judges that were given, by argument name."""
    names = dict.fromkeys(name for spec in JUDGES.values() for name in settings_of(spec))
    found = {name: getattr(args, _dest(name)) for name in names}
    found |= {"options": dict(found["options"])} if found.get("options") else {}
    return {name: value for name, value in found.items() if value is not None}


def reading_judge(args: argparse.Namespace, why: str) -> Any:
    """
    Make the judge that the flags describe, if it can compare new texts; `why` is the flag that generates them.

    Raises:
        TrlRealError: If the judge only knows the rows of the data; also as in `judge_from`.
    """
    reading = [name for name, spec in JUDGES.items() if spec.reads_new_texts]
    judge = judge_from(args) if args.judge in reading else None
    names = [member.name.partition(":")[0] for member in getattr(judge, "judges", ())] or [args.judge]
    for name in names:
        if name in JUDGES and name not in reading:
            raise TrlRealError(
                f"{why} needs a judge that reads new texts, not {name!r}: give --judge {', '.join(reading)}."
            )
    return judge


def make_judge(kind: str, settings: dict[str, Any], model_flag: str = "model") -> Any:
    """
    Make a judge of `JUDGES` from its settings by name.

    Raises:
        TrlRealError: If the judge is unknown, or a setting is missing or belongs to another judge.
    """
    if kind not in JUDGES:
        raise TrlRealError(f"Unknown judge {kind!r}: choose from {', '.join(JUDGES)}.{did_you_mean(kind, JUDGES)}")
    spec = JUDGES[kind]
    known = settings_of(spec, settings)
    wrong = [name for name in settings if name not in known and name != "seed"]
    if wrong:
        where = f" {'with' if 'base_url' in settings else 'without'} --base_url" if spec.backends else ""
        raise TrlRealError(f"--{wrong[0]} is not a setting of the judge {kind!r}{where}. Leave it out, or see --help.")
    settings = {name: value for name, value in settings.items() if name in known}
    if not spec.first:
        return spec(**settings)
    if spec.first not in settings:
        raise TrlRealError(f"The judge {kind!r} needs --{model_flag if spec.first == 'model' else spec.first}.")
    value = settings.pop(spec.first)
    return spec(judges_in(value) if kind == "panel" else value, **settings)


def tell_price(args: argparse.Namespace, judge: Any, batch: Callable[[], Any]) -> bool:
    """Print the estimate of a judge that asks questions; return whether `--plan` ends the run here."""
    estimate: dict[str, float] = {}
    words = f"{judge.name} asks no questions"
    if hasattr(judge, "estimate"):
        estimate = judge.estimate(batch())
        price = f", at most about {estimate['cost']:.4g} in money" if estimate["cost"] else ""
        words = (
            f"{judge.name}: {estimate['n_asked']} questions to ask, {estimate['n_cached']} answered before; about "
            f"{estimate['input_tokens']} tokens to read{price}"
        )
    if estimate and (args.json or not args.plan):
        say(words)
    if args.plan:
        result(args, estimate, words)
    return args.plan


def seed_of(args: argparse.Namespace) -> int:
    """Return the value of `--seed`; 42 by default."""
    return 42 if args.seed is None else args.seed


def judges_in(path: str) -> list[Any]:
    """Make the judges that a YAML file lists, such as those of a panel."""
    import yaml

    try:
        panel = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        described = [dict(judge) for judge in panel]
        kinds = [judge.pop("judge") for judge in described]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise TrlRealError(
            f"{path!r} is not a list of judges. Write for each judge: '- judge: chat', and below it 'model: …'."
        ) from error
    return [make_judge(kind, settings) for kind, settings in zip(kinds, described, strict=True)]
