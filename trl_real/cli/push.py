"""Push a subset to the Hub: a dataset repository with one config per selection and the recipe in its card."""

import argparse

from trl_real.cli.options import add_common, require, result, say


def register(parser: argparse.ArgumentParser) -> None:
    """Add flags with the names of the arguments of `push_subset`."""
    add_common(parser, output=False, split="name of the split on the Hub (default: train)")
    parser.add_argument("--repo_id", help="repository on the Hub, such as user/my-pairs")
    parser.add_argument("--config_name", help="config in the repository (default: strategy and budget)")
    private = argparse.BooleanOptionalAction
    parser.add_argument("--private", action=private, help="create a private (or public) repository")
    parser.add_argument("--revision", help="branch to push to")
    parser.add_argument("--commit_message")


def run(args: argparse.Namespace) -> None:
    """Push the rows and the record from `trl-real select` or `trl-real label`."""
    from trl_real.data.files import load
    from trl_real.hub.push import push_subset
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
    )
    say("Pushed. The card shows how to load the subset with load_dataset.")
    result(args, {"url": url}, url)
