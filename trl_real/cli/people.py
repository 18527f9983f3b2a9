"""Flags and steps that join people to a judge: votes for a check, pairs for people, and the page."""

import argparse
import os
from pathlib import Path
from typing import Any

from trl_real.cli.checks import budget, real
from trl_real.cli.judges import judges_in, seed_of
from trl_real.cli.options import require, say
from trl_real.errors import TrlRealError


PAIRS_FILE, DRAW_FILE = "people_pairs.parquet", "people_draw.json"


def add_page_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the page about labels."""
    group = parser.add_argument_group("page", "report.html about the labels: pace, agreement, cost, what is left")
    group.add_argument("--price_per_vote", type=real(0), metavar="X", help="price of one vote of a person")
    group.add_argument("--currency", default="USD", help="currency of all prices (default: USD)")


def write_page(args: argparse.Namespace, folder: str | Path, labels: dict[str, Any], **data: Any) -> Path:
    """Write the page about labels, with `data` for `write_label_page`, and return its path."""
    from trl_real.labeling.people.label_page import write_label_page

    title = f"Labels of {Path(str(args.dataset)).name}"
    prices = {"price_per_vote": args.price_per_vote, "currency": args.currency}
    return write_label_page(folder, labels, title=title, **prices, **data)


def votes_behind(judge: Any) -> Path | None:
    """Return the votes file that a judge reads, also as the second judge of a `RoutedJudge`; None for other judges."""
    from trl_real.labeling.people.page_judge import PageJudge
    from trl_real.labeling.people.votes import VotesJudge

    people = getattr(judge, "dear", judge)
    return people.votes if isinstance(people, PageJudge) else people.path if isinstance(people, VotesJudge) else None


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
    group.add_argument("--budget", type=budget, help="pairs for --then: a number, or a share such as 0.2")
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
        dear: Any = PageJudge(path, **page_settings(args, {**votes, "path": path}))
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


def add_people_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `win-rate` for people who judge some of the pairs."""
    group = parser.add_argument_group("people", "people judge some pairs, and the rate is theirs")
    add = group.add_argument
    add("--people", type=int, metavar="N", help="draw N pairs for people, and collect their votes in --votes")
    add("--people_by", default="uncertainty", help="draw by the judge's uncertainty (default), or uniform")
    add("--strata", metavar="COLUMN", help="draw from each source of prompts in this column its share")
    add("--no_page", action="store_true", help="open no page: write the pairs, and use the votes that are there")
    add("--annotator", help="name of the annotator (default: the page asks)")
    add("--guidelines", metavar="FILE.md", help="guidelines shown next to the pairs")
    add("--port", type=int, help="port of the page (default: a free one)")
    add("--people_verdicts", metavar="COLUMN", help="with --preferences: people's verdicts, empty if not asked")
    about = "with --people_verdicts: column with the probability with which each row was drawn for people"
    add("--inclusion_probabilities", metavar="COLUMN", help=about)


def people_from(args: argparse.Namespace, votes: dict[str, Any]) -> Any:
    """
    Return the people that the flags describe; None without `--people`.

    Raises:
        TrlRealError: If the number or the kind of draw is out of range, or `--output_dir` is missing.
    """
    from trl_real.evaluation.people import People
    from trl_real.labeling.people.page_judge import PageJudge
    from trl_real.labeling.people.votes import VotesJudge

    if args.people is None:
        return None
    require(args, "output_dir")
    folder = Path(args.output_dir)
    path = Path(votes.get("path", folder / "votes.jsonl"))
    judge: Any = PageJudge(path, **page_settings(args, {**votes, "path": path}))
    if args.no_page:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # no vote yet
        judge = VotesJudge(**{**votes, "path": path})
    pairs = folder / PAIRS_FILE

    def write(drawn: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        drawn.to_parquet(str(pairs.with_suffix(".partial")))
        os.replace(pairs.with_suffix(".partial"), pairs)

    draw = {"n": args.people, "by": args.people_by, "strata": args.strata, "seed": seed_of(args)}
    return People(judge, **draw, draw=folder / DRAW_FILE, on_draw=write)


def say_what_is_open(args: argparse.Namespace, votes: dict[str, Any], n_open: int) -> None:
    """Print how to collect the votes that are missing."""
    if not n_open:
        return
    folder = Path(args.output_dir)
    path, pairs = votes.get("path", folder / "votes.jsonl"), folder / PAIRS_FILE
    say(f"{n_open} pairs wait for people. Type one of these, and then this command again:")
    say(f"  trl-real label --human --dataset {pairs} --votes {path}")
    say(f"  trl-real label --label_studio URL --push --dataset {pairs}")
    say(f"  trl-real label --label_studio URL --pull --project NUMBER --votes {path}")


def page_settings(args: argparse.Namespace, votes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `PageJudge` from the flags and the arguments of `VotesJudge`."""
    ready = f"(every vote is saved in {votes['path']} at once; after Ctrl+C, the same command continues)"
    return {
        "annotator": args.annotator,
        "guidelines": args.guidelines or "",
        "seed": seed_of(args),
        "port": args.port,
        "aggregation": votes.get("aggregation", "majority"),
        "on_ready": lambda url: say(f"Label at {url} {ready}"),
    }
