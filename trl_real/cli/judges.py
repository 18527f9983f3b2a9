"""Flags that make a judge, for every verb that needs one."""

import argparse
from pathlib import Path
from typing import Any

from trl_real.cli.options import say
from trl_real.errors import TrlRealError


# What each judge takes of the flags below; a flag that was given for another judge is an error.
CHAT = ("template", "orders", "rule", "tie_margin", "calibration", "max_chars", "max_failure_rate", "seed")
SERVER = ("api_key", "cache", "concurrency", "timeout", "deadline", "max_retries", "max_tokens", "price", "max_cost")
SERVER += ("served_as",)
LOCAL = ("revision", "dtype", "device", "batch_tokens")
# Those whose names may mean something else to the verb.
OWN = {"revision": str, "dtype": str, "device": str, "batch_tokens": int, "max_length": int}
OWN |= {"reference": str, "beta": float}
TAKES = {
    "score": ("column", "min_gap", "min_ratio"),
    "reward": ("model", "min_gap", "scale", "max_length", *LOCAL),
    "chat": ("model", "base_url", *CHAT, *SERVER, *LOCAL),
    "votes": ("votes", "aggregation"),
    "implicit_reward": ("model", "reference", "beta", "length_normalize", "min_gap", "max_length", "cache", *LOCAL),
    "panel": ("panel", "pooling", "quorum"),
}
MEANS = {
    "reference": "the model that the policy came from (default: the policy without its adapter)",
    "beta": "scales how sure it is (default 0.1)",
    "max_length": "tokens that are read",
}
FIRST = {"reward": "model", "chat": "model", "implicit_reward": "model", "votes": "votes", "panel": "panel"}
KNOWS_ROWS_ONLY = ("score", "votes")
WHOSE = "of the judge's model"
TABLE = "trl_real.labeling.judges.JUDGES"


def add_judge_flags(parser: argparse.ArgumentParser, model: str = "model") -> None:
    """
    Flags that bear the names of the judges' arguments.

    Args:
        parser: Of the verb.
        model: Name of the flag for the judge's model, where `--model` means something else.
    """
    parser.set_defaults(model_flag=model)
    group = parser.add_argument_group("judge", "who says which response is better; flags of another judge are errors")
    add = group.add_argument
    add("--judge", default="score", help=f"{', '.join(TAKES)} (default: score, from scores in the data)")
    add("--column", help="score: list of scores, one a response (default: scores)")
    add("--min_gap", type=float, help="score, reward, implicit_reward: least difference of scores that decides")
    add("--min_ratio", type=float, help="score: least ratio of scores that decides, such as 1.5")
    of_model = "reward, chat, implicit_reward (the policy): Hub id or path; with --base_url the server's name of it"
    add(f"--{model}", dest="judge_model", help=of_model)
    add("--scale", type=float, help="reward: what differences of scores are divided by")
    add("--base_url", help="chat: an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--template", help="chat: pairwise (default), alpaca_eval, real, or a YAML file")
    add("--orders", help="chat: both (default), or one: half the price, and a position bias that stays")
    add("--rule", help="chat: mean of the two orders (default), or agree")
    add("--tie_margin", type=float, help="chat: verdicts this near to 0.5 are ties")
    add("--calibration", type=float, help="chat: temperature of the probabilities; --check finds it")
    add("--max_chars", type=int, help="chat: characters of each text that are read (default 8000)")
    add("--max_failure_rate", type=float, help="chat: share of failed pairs that stops the run (default 0.2)")
    add("--api_key", help="chat: sent to the server, written nowhere (default: $TRL_REAL_JUDGE_API_KEY)")
    add("--cache", help="chat: file of the answers (default: one for all judges); implicit_reward: of what was read")
    add("--concurrency", type=int, help="chat: questions at a time (default 8)")
    add("--timeout", type=float, help="chat: seconds for a try (default 60)")
    add("--deadline", type=float, help="chat: seconds for a question with all its tries (default 600)")
    add("--max_retries", type=int, help="chat: tries after the first one (default 8)")
    add("--max_tokens", type=int, help="chat: longest answer (default 16)")
    add("--price", type=float, nargs=2, metavar=("INPUT", "OUTPUT"), help="chat: money for a million tokens")
    add("--max_cost", type=float, help="chat: the most that the answers may cost")
    add("--served_as", help="chat: name that the answers bear, where it is not the model's")
    add("--votes", help="votes: file that the page for people wrote")
    add("--aggregation", help="votes: majority (default) or dawid_skene")
    add("--panel", metavar="FILE.yaml", help="panel: a list of judges, each with `judge:` and its arguments")
    add("--pooling", help="panel: mean (default) or majority")
    add("--quorum", type=int, help="panel: judges that must have a verdict (default: more than half)")
    add("--length_normalize", action="store_true", default=None, help="implicit_reward: scores a token")
    for name, kind in OWN.items():
        flag = f"--judge_{name}" if model != "model" else f"--{name}"
        who = ", ".join(judge for judge, takes in TAKES.items() if name in takes)
        add(flag, dest=f"judge_{name}", type=kind, help=f"{who}: {MEANS.get(name, WHOSE)}")
    add("--seed", type=int, help="chat: of the orders and the answers (default 42)")


def judge_from(args: argparse.Namespace) -> Any:
    """
    The judge that the flags describe.

    Raises:
        TrlRealError: If there is no such judge, or a flag is of another one.
    """
    return make_judge(args.judge, judge_settings(args), args.model_flag)


def judge_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The judges' settings that were given, by the names of their arguments."""
    values = {**vars(args), **{name: getattr(args, f"judge_{name}") for name in ("model", *OWN)}}
    names = dict.fromkeys(name for takes in TAKES.values() for name in takes)
    return {name: values[name] for name in names if values.get(name) is not None}


def reading_judge(args: argparse.Namespace, why: str) -> Any:
    """
    The judge that the flags describe, if it can judge texts that nobody has seen before.

    Args:
        args: Of the verb.
        why: What it is for, such as a flag.

    Raises:
        TrlRealError: If it cannot, or as of `judge_from`.
    """
    judge = judge_from(args) if args.judge not in KNOWS_ROWS_ONLY else None
    names = [member.name.partition(":")[0] for member in getattr(judge, "judges", ())] or [args.judge]
    for name in names:
        if name in KNOWS_ROWS_ONLY:
            reading = ", ".join(name for name in TAKES if name not in KNOWS_ROWS_ONLY)
            raise TrlRealError(f"{why} needs a judge that reads new texts, not {name!r}: give --judge {reading}.")
    return judge


def make_judge(kind: str, settings: dict[str, Any], model_flag: str = "model") -> Any:
    """
    A judge of the table, from its arguments by name.

    Raises:
        TrlRealError: If there is no such judge, or an argument is missing or of another one.
    """
    from trl_real.labeling.judges import JUDGES

    if kind not in TAKES:
        raise TrlRealError(f"No judge {kind!r}; there are {', '.join(TAKES)}.")
    wrong = [name for name in settings if name not in TAKES[kind] and name != "seed"]
    if kind == "chat":
        remote = "base_url" in settings
        wrong += [name for name in settings if name in (LOCAL if remote else SERVER)]
    if wrong:
        where = "" if kind != "chat" else " behind a server" if "base_url" in settings else " in this process"
        raise TrlRealError(f"--{wrong[0]} is no setting of the judge {kind!r}{where}. Leave it out, or see --help.")
    settings = {name: value for name, value in settings.items() if name in TAKES[kind]}
    first = FIRST.get(kind)
    if first is None:
        return JUDGES[kind](**settings)
    if first not in settings:
        raise TrlRealError(f"The judge {kind!r} needs --{model_flag if first == 'model' else first}.")
    value = settings.pop(first)
    return JUDGES[kind](_members(value) if kind == "panel" else value, **settings)


def tell_price(judge: Any, batch: Any) -> dict[str, float] | None:
    """Say what judging would take, before it is spent; None of judges that ask nobody."""
    if not hasattr(judge, "estimate"):
        return None
    estimate = judge.estimate(batch)
    price = f", at most about {estimate['cost']:.4g} in money" if estimate["cost"] else ""
    say(
        f"{judge.name}: {estimate['n_asked']} questions to ask, {estimate['n_cached']} answered before; about "
        f"{estimate['input_tokens']} tokens to read{price}"
    )
    return estimate


def _members(path: str) -> list[Any]:
    """The judges of a panel's file."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        described = [dict(one) for one in found]
        kinds = [one.pop("judge") for one in described]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise TrlRealError(
            f"{path!r} is no list of judges. Write for each: '- judge: chat', and below it 'model: …'."
        ) from error
    return [make_judge(kind, settings) for kind, settings in zip(kinds, described, strict=True)]
