"""Push a subset to the Hub: a dataset repository with one config per selection and the recipe in its card."""

import argparse
from pathlib import Path

from trl_real.cli.label import REPORT_FILE
from trl_real.cli.options import add_common, require, result, say


STATED = ("title", "license", "language", "currency")


def register(parser: argparse.ArgumentParser) -> None:
    """Add flags with the names of the arguments of `push_subset`."""
    add_common(parser, output=False, split="name of the split on the Hub (default: train)")
    parser.add_argument("--repo_id", help="repository on the Hub, such as user/my-pairs")
    parser.add_argument("--config_name", help="config in the repository (default: strategy and budget)")
    private = argparse.BooleanOptionalAction
    parser.add_argument("--private", action=private, help="create a private (or public) repository")
    parser.add_argument("--revision", help="branch to push to")
    parser.add_argument("--commit_message")
    card = parser.add_argument_group("card", "what only you know about the data")
    card.add_argument("--title", help="title of the dataset (default: the name of the repository)")
    card.add_argument("--license", help="licence by the Hub's names, such as cc-by-4.0")
    card.add_argument("--language", nargs="+", help="languages of the texts, such as en")
    card.add_argument("--currency", help="currency of the judge's prices, such as USD")


def run(args: argparse.Namespace) -> None:
    """Push the rows and the record from `trl-real select` or `trl-real label`."""
    from trl_real.data.files import load
    from trl_real.hub.push import push_subset
    from trl_real.runtime.atomic_files import read_json
    from trl_real.selection.record import SelectionRecord

    require(args, "dataset", "repo_id")
    record = SelectionRecord.load(args.dataset)
    url = push_subset(
        load(args.dataset),
        args.repo_id,
        record=record,
        config_name=args.config_name,
        split=args.split or "train",
        private=args.private,
        revision=args.revision,
        commit_message=args.commit_message,
        labels=read_json(report) if (report := Path(args.dataset) / REPORT_FILE).exists() else None,
        **{name: getattr(args, name) for name in STATED},
    )
    say("Pushed. The card shows how to load the subset with load_dataset.")
    if open_ := [f"--{name}" for name in ("license", "language") if not getattr(args, name)]:
        say(f"Only you know these, and the card states none that you did not: {', '.join(open_)}.")
    result(args, {"url": url}, url)
