"""Flags and steps that join people to a judge: votes for a check, pairs for people, and the page."""

import argparse
from typing import Any

from trl_real.cli.judges import judges_in, seed_of
from trl_real.cli.options import number, require, say
from trl_real.errors import TrlRealError


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


def add_routing_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a `RoutedJudge`: who is asked about the pairs of which `--judge` is least certain."""
    group = parser.add_argument_group("routing", "a second judge for the pairs of which --judge is least certain")
    then = (
        "people (the page; votes in --votes), votes (the file --votes), or a YAML file with one judge, as for a panel"
    )
    group.add_argument("--then", metavar="JUDGE", help=then)
    group.add_argument("--budget", type=number, help="pairs for --then: a number, or a share such as 0.2")
    group.add_argument("--random_share", type=float, default=0.2, help="share of --budget for random pairs")


def routed_judge(args: argparse.Namespace, cheap: Any, votes: dict[str, Any]) -> Any:
    """
    Make the judge that asks `cheap` about all pairs and `--then` about some.

    Raises:
        TrlRealError: If `--budget` or the votes are missing, or the file does not describe one judge.
    """
    from trl_real.labeling.people.page_judge import PageJudge
    from trl_real.labeling.people.votes import VotesJudge
    from trl_real.labeling.routed import RoutedJudge

    require(args, "budget")
    if args.then == "people":
        path = votes.get("path", f"{str(args.output_dir).rstrip('/')}.votes.jsonl")
        dear: Any = PageJudge(path, **page_settings(args, path))
    elif args.then == "votes":
        if not votes:
            raise TrlRealError("--then votes needs the file of the votes: --votes votes.jsonl.")
        dear = VotesJudge(**votes)
    else:
        listed = judges_in(args.then)
        if len(listed) != 1:
            raise TrlRealError(f"{args.then!r} lists {len(listed)} judges. List one, or a panel as one.")
        dear = listed[0]
    return RoutedJudge(cheap, dear, args.budget, random_share=args.random_share, seed=seed_of(args))


def page_settings(args: argparse.Namespace, votes: Any) -> dict[str, Any]:
    """Return the settings of the page for people, from the flags."""
    ready = f"(every vote is saved in {votes} at once; after Ctrl+C, the same command continues)"
    return {
        "annotator": args.annotator,
        "guidelines": args.guidelines or "",
        "seed": seed_of(args),
        "port": args.port,
        "on_ready": lambda url: say(f"Label at {url} {ready}"),
    }
