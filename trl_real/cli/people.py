"""Flags and steps that join people to a judge: votes for a check, pairs for people, and the page."""

import argparse
from typing import Any


def take_votes(args: argparse.Namespace) -> dict[str, Any]:
    """
    Take `--votes` and `--aggregation` out of the flags, for the people next to a judge other than `votes`.

    Returns:
        Arguments of `VotesJudge`: `path` and, if given, `aggregation`; empty without `--votes`.
    """
    if args.judge == "votes" or args.votes is None:
        return {}
    found = {"path": args.votes, **({"aggregation": args.aggregation} if args.aggregation else {})}
    args.votes = args.aggregation = None
    return found
