"""Choose, label and train in rounds (ActiveDPO): one run for each selector and seed, one report with all runs."""

import argparse
from pathlib import Path
from typing import Any

from trl_real.cli.checks import whole
from trl_real.cli.options import add_common, add_source, require
from trl_real.cli.rounds import add_rounds_flags, judge_or_page, refuse_flags_of_no_use, run_arms, shared_settings


# Other flags are those of REALDPOConfig and ModelConfig; names in the YAML file are flags.
PASSES_FLAGS_ON = True


def register(parser: argparse.ArgumentParser) -> None:
    """Add the flags; they have the names of `active_rounds`' arguments."""
    add_common(parser)
    add = parser.add_argument
    add_source(parser)
    add(
        "--selectors",
        nargs="+",
        help="selectors to compare (default: gradient random): gradient, certainty, uncertainty, infomax, dts, "
        "delta_ucb, drts, easy, random …; auto races its rules by the labels",
    )
    add("--budget", type=whole(1), default=50, help="number of labels in a round (default 50)")
    add("--continue", dest="restart", action="store_false", help="continue from the last adapter, with the new labels")
    add("--generate", type=whole(2), metavar="N", help="let the policy of each round generate N responses per prompt")
    add("--max_new_tokens", type=whole(1), default=128, help="with --generate: maximum length of a response in tokens")
    add("--n_prompts", type=whole(1), help="number of prompts that a round may choose from (default: all)")
    add("--responses", default="responses", help="column with the list of responses (default: responses)")
    add_rounds_flags(parser, rounds=5)


def run(args: argparse.Namespace) -> None:
    """Do the missing rounds, write the report, and print the last round of each arm."""
    from trl_real.data.files import load
    from trl_real.data.sources import converter
    from trl_real.rounds.report import ACTIVE

    require(args, "dataset", "model", "output_dir")
    refuse_flags_of_no_use(args, judged=True)
    convert = converter(args.source)
    pool = _as_pool(convert(load(args.dataset, args.split)), args.responses)

    def one(selector: str, seed: int, folder: Path) -> Any:
        return _rounds(args, pool, selector, seed, folder)

    facts = {"labels a round": args.budget, "pool": f"{len(pool)} rows"}
    run_arms(args, args.selectors or ("gradient", "random"), one, ACTIVE, facts)


def _rounds(args: argparse.Namespace, pool: Any, selector: str, seed: int, folder: Path) -> Any:
    from trl_real.rounds.active import ActiveRounds

    return ActiveRounds(
        pool=pool,
        judge=judge_or_page(args, "--generate" if args.generate else ""),
        output_dir=folder,
        selector=selector,
        budget=args.budget,
        restart=args.restart,
        generation={"n": args.generate, "max_new_tokens": args.max_new_tokens} if args.generate else None,
        n_prompts=args.n_prompts,
        responses=args.responses,
        seed=seed,
        **shared_settings(args),
    )


def _as_pool(dataset: Any, responses: str) -> Any:
    """Convert labelled pairs to a pool of two responses with scores 1 and 0, in alphabetical order."""
    if responses in dataset.column_names or "chosen" not in dataset.column_names:
        return dataset
    from trl_real.data.checks.row_check import check_texts
    from trl_real.data.convert import from_rows, iterate
    from trl_real.data.pairs import preference_candidates

    check_texts(dataset, (), optional=("prompt", "chosen", "rejected"), alike=True)
    rows = []
    for row in iterate(dataset):
        pair = preference_candidates(row.get("prompt"), row["chosen"], row["rejected"])
        if not pair.skipped:
            two = sorted(zip(pair.texts, (1.0, 0.0), strict=True))
            texts, scores = map(list, zip(*two, strict=True))
            rows.append({"prompt": pair.prompt, responses: texts, "scores": scores})
    from datasets import Dataset

    return Dataset.from_list(rows) if rows else from_rows(rows, {})
