"""Parser of a verb's flags: every mistake is one line with what was found and what to type."""

import argparse
import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from trl_real.errors import TrlRealError


QUOTES = "'\""
KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """
    Parser that raises `TrlRealError` instead of exiting, and takes dashes for the underscores in a flag's name.

    Args:
        verb: Verb of `trl-real`, for messages.
        **settings: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, verb: str = "", **settings: Any):
        super().__init__(prog=f"trl-real {verb}".strip(), allow_abbrev=False, **settings)
        self.verb = verb

    def parse_known_args(self, args=None, namespace=None):
        """Parse flags, and return the others with underscores in their names."""
        given = None if args is None else [underscored(arg) for arg in args]
        return super().parse_known_args(given, namespace)

    def flags(self) -> list[str]:
        """Return all flags of the verb."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def flag_of(self) -> dict[str, str]:
        """Return the name of the flag of each argument, by the flag's name and by the argument's."""
        named = {flag[2:]: flag[2:] for flag in self.flags()}
        # The last one of a switch with two is the one that turns it off.
        return named | {
            flag.dest: name[2:] for name, flag in reversed(self._option_string_actions.items()) if name[2:]
        }

    def error(self, message: str) -> NoReturn:
        """Raise a one-line error for a mistake that `argparse` found."""
        message = re.sub(r"^(--\w+)/--[\w-]+", r"\1", message.removeprefix("argument "))
        if found := re.match(r"(--\w+): invalid (\w+) value: (.*)", message):
            flag, kind, value = found.groups()
            message = f"{flag} is {value}, not {KINDS.get(kind, f'a valid {kind}')}."
        elif found := re.match(r"(--\w+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            flag, value, choices = found.groups()
            names = re.findall(r"[\w@.-]+", choices)
            message = f"{flag}: invalid choice: {value!r}; there are {', '.join(names)}.{did_you_mean(value, names)}"
        elif found := re.match(r"(--\w+): expected (.*)", message):
            message = f"{found[1]} has no value: it takes {found[2].removeprefix('at least ')}."
        raise TrlRealError(message)

    def refuse(self, unknown: list[str], others: Iterable[str] = ()) -> NoReturn:
        """Raise for flags that the verb does not have; `others` are flags that it passes on."""
        flag = next((arg.partition("=")[0] for arg in unknown if arg.startswith("--")), None)
        if flag is None:
            value = f"{unknown[0]!r} follows no flag"
            raise TrlRealError(f"{value}. Type: trl-real {self.verb} --help, or put texts with blanks in quotes.")
        meant = did_you_mean(flag, [*self.flags(), *others]) or f" Type: trl-real {self.verb} --help"
        raise TrlRealError(f"{self.verb} has no flag {flag}.{meant}")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a sentence with the known name that is most like a name, or the empty text."""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
    return f" Did you mean {lower[near[0]]}?" if near else ""


def underscored(arg: str) -> str:
    """Replace dashes in the name of a flag; values stay."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg[2:].partition("=")
    # `argparse` itself writes --no-NAME.
    name = re.sub(r"^no_(?=private$)", "no-", name.replace("-", "_"))
    return f"--{name}{equals}{value}"


def in_flags(message: str, flag_of: Mapping[str, str]) -> str:
    """
    Write a hint for Python as one for the shell: `--split train` for `split='train'`.

    Args:
        message: Message of an error.
        flag_of: Flag, without dashes, of each argument.
    """
    if not flag_of:
        return message
    names = "|".join(sorted(map(re.escape, flag_of), key=len, reverse=True))
    value = r"(?P<value>'[^']*'|\"[^\"]*\"|\[[^]]*\]|[^\s,;:()]*[^\s,;:().])"
    alone = r"(?<![\w./'\"=-])"

    def written(found: re.Match) -> str:
        flag, text = flag_of[found["name"]], found["value"]
        if text == "True":
            return f"--{flag}"
        if text.startswith("["):
            text = " ".join(part.strip(" '\"") for part in text[1:-1].split(","))
        return f"--{flag} {text if ' ' in text else text.strip(QUOTES)}"

    message = re.sub(
        rf"\b(?:Type|Give) (?P<name>{names})=None", lambda f: f"Leave --{flag_of[f['name']]} out", message
    )
    message = re.sub(rf"{alone}(?P<name>{names})={value}", written, message)
    message = re.sub(r"((?:Type|type|Give|give) --\w+ \S+),? or None\b", r"\1, or leave it out", message)
    words = "|".join(name for name in names.split("|") if "_" in name) or "(?!)"
    return re.sub(rf"{alone}({words})(?![\w/'\"=]|\.\w)", lambda found: f"--{flag_of[found[1]]}", message)
