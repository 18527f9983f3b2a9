"""Turn selected pairs into preferences: by scores, a reward model, a chat model, a panel, or people."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from trl_real.cli.judges import add_judge_flags, judge_from, recorded_judge, seed_of, tell_price
from trl_real.cli.options import (
    add_chat,
    add_common,
    check_output,
    keep_settings,
    locked,
    require,
    result,
    rows_of,
    say,
)
from trl_real.cli.people import add_page_flags, add_routing_flags, routed_judge, take_votes, votes_behind, write_page
from trl_real.errors import MissingExtraError, TrlRealError


REPORT_FILE = "labels.json"
STUDIO_KEY = "LABEL_STUDIO_API_KEY"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the flags, named as the arguments of `annotate` and of the judges."""
    add_common(parser)
    add_chat(parser)
    parser.add_argument("--responses", default="responses", help="column with the list of responses")
    parser.add_argument("--gold", metavar="COLUMN", help="column with the true scores, to report the agreement")
    parser.add_argument("--plan", action="store_true", help="print the estimated cost, and stop")
    parser.add_argument("--check", metavar="DATASET", help="measure the judge on labelled pairs, and stop")
    about = "--check with --votes of several people: advantage granted to the judge (0.1 crowd to 0.2 experts)"
    parser.add_argument("--epsilon", type=float, default=0.1, help=about)
    add_routing_flags(parser)
    people = parser.add_argument_group("people", "serve a page on 127.0.0.1 and collect votes in --votes")
    people.add_argument("--human", action="store_true", help="serve the page instead of asking a judge")
    people.add_argument("--annotator", help="name of the annotator (default: the page asks)")
    people.add_argument("--guidelines", metavar="FILE.md", help="guidelines shown next to the pairs")
    people.add_argument("--port", type=int, help="port of the page (default: a free one)")
    people.add_argument("--label_studio", metavar="URL", help="Label Studio server that collects the votes instead")
    people.add_argument("--push", action="store_true", help=f"send the pairs; the key is --api_key or ${STUDIO_KEY}")
    people.add_argument("--pull", action="store_true", help="write the votes of --project to --votes")
    people.add_argument("--project", type=int, help="number of the project (default with --push: a new one)")
    add_judge_flags(parser)
    add_page_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Serve the page, check the judge, print the estimate, or label and write the preferences."""
    from trl_real.data.pairs import ready_pairs
    from trl_real.labeling.selected_pairs import paired_rows

    others = [name for name in ("human", "label_studio", "push", "pull", "check") if getattr(args, name)]
    if args.plan and others:
        raise TrlRealError(f"--plan tells what a judge would cost, without --{others[0]}. Leave one of the two out.")
    if args.human:
        return _serve(args)
    if args.label_studio or args.push or args.pull:
        return _label_studio(args)
    votes = take_votes(args) if args.check or args.then else {}
    judge = judge_from(args)
    if args.check:
        return _check(args, judge, votes)
    require(args, "dataset", *(() if args.plan else ("output_dir",)))
    dataset = ready_pairs(_rows(args, args.dataset), args.responses)
    paired = paired_rows(dataset, args.responses).select_columns(["prompt", "response_a", "response_b"])
    if not tell_price(args, judge, lambda: paired[:]):
        _label(args, dataset, routed_judge(args, judge, votes) if args.then else judge)


def _rows(args: argparse.Namespace, path: str) -> Any:
    from trl_real.data.files import load

    return rows_of(args, load(path, args.split), responses=args.responses)


def _check(args: argparse.Namespace, judge: Any, votes: dict[str, Any]) -> None:
    from trl_real.labeling.check import check_judge
    from trl_real.labeling.people.votes import VotesJudge

    options = {"people": VotesJudge(**votes), "epsilon": args.epsilon} if votes else {}
    found = check_judge(_rows(args, args.check), judge, **options)
    result(args, found.to_dict(), found.words())


@locked
def _label(args: argparse.Namespace, dataset: Any, judge: Any) -> None:
    from trl_real.data.files import check_target, save
    from trl_real.labeling.annotate import LabelReport, annotate
    from trl_real.labeling.judges import ScoreJudge
    from trl_real.runtime.distributed import init_distributed, rank
    from trl_real.selection.record import RECORD_FILE

    check_target(dataset, args.output_dir)
    settings = check_output(
        args, "labelling", "dataset", "split", "responses", "gold", **recorded_judge(args), chat=args.chat or None
    )
    init_distributed()
    report = LabelReport()
    preferences = annotate(
        dataset,
        judge,
        responses=args.responses,
        journal=f"{str(args.output_dir).rstrip('/')}.verdicts.jsonl",
        gold=ScoreJudge(args.gold) if args.gold else None,
        report=report,
        all_processes=True,
    )
    if rank():
        return
    if not len(preferences):
        raise TrlRealError(f"No pair was labelled, so nothing is written. {' | '.join(report.words().splitlines())}")
    folder = save(preferences, args.output_dir)
    if (Path(args.dataset) / RECORD_FILE).exists():
        shutil.copy(Path(args.dataset) / RECORD_FILE, folder)
    keep_settings(args, settings)
    _write_report(args, folder, report, votes=votes_behind(judge), preferences=preferences)
    say(f"Next: trl-real train --dataset {folder} --model … --output_dir …")
    result(args, {"output_dir": str(folder), **report.to_dict()}, str(folder))


def _write_report(args: argparse.Namespace, folder: Path, report: Any, **data: Any) -> None:
    """Write the report as JSON, and as a page if the extra for pages is installed."""
    from trl_real.labeling.people.report import vote_report

    votes = {"votes": vote_report(args.votes).to_dict()} if args.judge == "votes" else {}
    (folder / REPORT_FILE).write_text(json.dumps(report.to_dict() | votes, indent=1), encoding="utf-8")
    try:
        say(f"Page: {write_page(args, folder, report.to_dict(), **data)}")
    except MissingExtraError as error:
        say(f"No page: {error}")


def _serve(args: argparse.Namespace) -> None:
    from trl_real.labeling.people.page import serve_page

    require(args, "dataset", "votes")
    serve_page(
        _rows(args, args.dataset),
        args.votes,
        annotator=args.annotator,
        guidelines=args.guidelines or "",
        seed=seed_of(args),
        port=args.port,
        on_ready=lambda url: say(f"Label at {url} (stop with Ctrl+C; every vote is saved in {args.votes} at once)"),
    )
    _print_votes(args)


def _label_studio(args: argparse.Namespace) -> None:
    from trl_real.labeling.people.label_studio import LabelStudio, pull_votes, push_pairs

    require(args, "label_studio", *(("dataset",) if args.push else ("votes", "project")))
    if args.push == args.pull:
        raise TrlRealError("Give either --push or --pull with --label_studio.")
    if args.chat and args.pull:
        raise TrlRealError("--chat is for prompts and responses; --pull reads votes only. Remove --chat.")
    key = args.api_key or os.environ.get(STUDIO_KEY)
    if not key:
        raise TrlRealError(f"Label Studio needs a key. Give --api_key, or set {STUDIO_KEY}.")
    server = LabelStudio(args.label_studio, key)
    if args.pull:
        n = pull_votes(server, args.project, args.votes)
        say(f"{n} new lines in {args.votes}")
        return _print_votes(args)
    guidelines = Path(args.guidelines).read_text(encoding="utf-8") if args.guidelines else ""
    dataset = _rows(args, args.dataset)
    project, n = push_pairs(dataset, server, project=args.project, guidelines=guidelines, seed=seed_of(args))
    say(f"Next: trl-real label --label_studio {args.label_studio} --pull --project {project} --votes votes.jsonl")
    result(args, {"project": project, "sent": n}, f"project {project}: {n} pairs sent")


def _print_votes(args: argparse.Namespace) -> None:
    from trl_real.labeling.people.report import vote_report

    report = vote_report(args.votes)
    say(f"Next: trl-real label --judge votes --votes {args.votes} --dataset … --output_dir …")
    result(args, report.to_dict(), report.words())
