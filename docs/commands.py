"""
Write reference/commands.md, the page with every verb and flag, from the parsers of the command line.

    python docs/commands.py

A test compares the page with what this prints, so a new flag fails it until the page is written again.
"""

import argparse
import html
import re
from importlib import import_module
from pathlib import Path

from trl_real.cli.main import VERBS
from trl_real.cli.parser import Parser


PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """# Commands

Every verb of `trl-real` and every flag, written from the parsers by `python docs/commands.py`. Dashes and underscores
are the same in a flag's name. `--config file.yaml` takes flags from a file, one `name: value` per line.

"""
PASSED_ON = {
    "train": "[`REALDPOConfig`](training.md), TRL's `DPOConfig` and TRL's `ModelConfig`",
    "sft": "TRL's `SFTConfig` and TRL's `ModelConfig`",
    "active": "[`REALDPOConfig`](training.md) and TRL's `ModelConfig`",
    "self-annotate": "[`REALDPOConfig`](training.md) and TRL's `ModelConfig`",
    "study": "with `--engine dpo`: [`REALDPOConfig`](training.md) and TRL's `ModelConfig`",
}


def parser_of(verb: str) -> tuple[Parser, bool]:
    """The parser of a verb, and whether the verb passes other flags on to a trainer."""
    module = import_module(f"trl_real.cli.{verb.replace('-', '_')}")
    parser = Parser(verb, description=module.__doc__)
    module.register(parser)
    return parser, getattr(module, "PASSES_FLAGS_ON", False)


def page() -> str:
    """The whole page: one section a verb, one table a group of flags."""
    shown = [f"- [`trl-real {verb}`](#trl-real-{verb}): {what}" for verb, what in VERBS.items()]
    return HEAD + "\n".join(shown) + "\n" + "".join(map(_section, VERBS))


def _section(verb: str) -> str:
    parser, passes_on = parser_of(verb)
    text = f"\n## trl-real {verb}\n\n{_cell(parser.description or '')}\n"
    if passes_on:
        text += f"\nOther flags go to the trainer: {PASSED_ON[verb]}.\n"
    for group in parser._action_groups:
        actions = [
            action for action in group._group_actions if action.help != argparse.SUPPRESS and action.dest != "help"
        ]
        if actions:
            title = f"\n**{group.title}**" + (f": {_cell(group.description)}" if group.description else "") + "\n"
            text += (title if group.title != "options" else "") + "\n| flag | |\n|---|---|\n"
            text += "".join(f"| `{_usage(action)}` | {_cell(_about(parser, action))} |\n" for action in actions)
    return text


def _usage(action: argparse.Action) -> str:
    """The flag as it is typed, with its choices or the kind of its value."""
    flags = [flag for flag in action.option_strings if flag.startswith("--")]
    if action.nargs == 0:
        return " / ".join(flags)
    kind = getattr(action.type, "__name__", "")
    kind = {"int": "N", "float": "X"}.get(kind, action.dest.upper() if action.metavar is None else "")
    value = action.metavar or (" or ".join(map(str, action.choices)) if action.choices else kind)
    if isinstance(action.nargs, int):
        value = " ".join([value] * action.nargs)
    return f"{flags[0]} {value}{' …' if action.nargs in ('+', '*') else ''}"


def _about(parser: Parser, action: argparse.Action) -> str:
    about = parser._get_formatter()._expand_help(action) if action.help else ""
    if "default" not in about and action.default not in (None, False, argparse.SUPPRESS, "==SUPPRESS=="):
        about += f" (default: {action.default})"
    return about


def _cell(text: str) -> str:
    """One line that a Markdown table shows as it is."""
    text = " ".join(html.escape(text, quote=False).split())
    return re.sub(r"([|*_\[\]])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
