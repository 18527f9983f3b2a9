"""Common parts of the verbs that run in rounds: flags, trainer settings, win rates, and the report."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trl_real.cli.checks import whole
from trl_real.cli.judges import add_judge_flags, judge_from, judge_settings, reading_judge
from trl_real.cli.options import TimeLeft, add_chat, locked, result, rows_of, say
from trl_real.cli.train import labelled, parsed, set_model_init_kwargs
from trl_real.errors import TrlRealError, check_columns


def add_rounds_flags(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the flags of a run in rounds (`rounds` of them by default), including those of the judge."""
    add = parser.add_argument
    add("--model", help="Hub id or local path of the model before alignment")
    add_chat(parser)
    add("--seeds", nargs="+", type=int, help="seeds; each seed is a run of its own (default: 0)")
    about = f"number of rounds (default {rounds}); a larger one continues a run"
    add("--rounds", type=whole(1), default=rounds, help=about)
    add("--eval_dataset", help="labelled pairs to test every round on: Hub id, folder or file")
    add("--eval_prompts", help="prompts on which the judge compares each round's policy with the start model")
    add(
        "--eval_tokens", type=whole(1), default=128, help="with --eval_prompts: maximum length in tokens (default 128)"
    )
    add("--human", action="store_true", help="let people label: each round serves a page until all pairs have votes")
    add("--guidelines", metavar="FILE.md", help="with --human: file of the guidelines to show on the page")
    add("--port", type=int, help="with --human: port of the page")
    add_judge_flags(parser, model="judge_model")
    parser.epilog = "Other flags are those of `trl-real train`: --use_peft --lora_r 16 --learning_rate 1e-4 …"


def shared_settings(args: argparse.Namespace, defaults: Sequence[str] = ()) -> dict[str, Any]:
    """
    Return the settings that all runs in rounds share: model, trainer, adapter and tests.

    The user's flags have priority over `defaults`, the default flags of the trainer.
    """
    from trl import get_peft_config

    from trl_real.training.config import REALDPOConfig

    config, model = parsed((REALDPOConfig,), [*defaults, *args.rest, "--output_dir", args.output_dir])
    if model.load_in_8bit:
        raise TrlRealError("In 8 bits a response's values depend on its batch. Type --load_in_4bit instead.")
    set_model_init_kwargs(config, model)
    config.as_messages = config.as_messages or args.chat
    config.disable_tqdm = True
    return {
        "model": args.model,
        "args": config,
        "peft_config": get_peft_config(model),
        "eval_dataset": labelled(args.eval_dataset) if args.eval_dataset else None,
        "evaluate": _win_rate(args) if args.eval_prompts else None,
    }


def refuse_flags_of_no_use(args: argparse.Namespace, judged: bool) -> None:
    """
    Refuse flags that would have no effect on the run; `judged` is whether a judge or people have anything to do.

    Raises:
        TrlRealError: If a flag has no effect; names the flag and the fix.
    """
    settings = judge_settings(args)
    if settings.pop("seed", None) is not None and args.judge != "chat":
        raise TrlRealError("--seed is a flag of the chat judge. Use --seeds for the seeds of the runs.")
    alone = [name for name in ("guidelines", "port") if getattr(args, name) is not None and not args.human]
    if alone:
        raise TrlRealError(f"--{alone[0]} needs --human. Give --human, or remove the flag.")
    if args.human:
        settings.pop("votes", None)  # the page's file
    described = bool(settings) or args.judge != "score"
    if described and args.human and not args.eval_prompts:
        raise TrlRealError("With --human people judge, and the judge's flags have no effect. Remove them.")
    if not judged and (args.human or described):
        given = "--human" if args.human else f"--{next(iter(settings))}" if settings else "--judge"
        raise TrlRealError(f"{given} has nothing to judge here: give --relabel or --eval_prompts, or remove the flag.")


def judge_or_page(args: argparse.Namespace, new_texts: str = "") -> Any:
    """
    Return a judge that asks people if `--human` is given, else the judge that the flags describe.

    `new_texts` is the flag that makes the run generate new texts, if any: the judge must then read the texts.
    """
    if not args.human:
        return reading_judge(args, new_texts) if new_texts else judge_from(args)
    from trl_real.labeling.people.page_judge import PageJudge

    votes = Path(args.votes or Path(args.output_dir) / "votes.jsonl")
    ready: dict[str, Any] = {
        "on_ready": lambda url: say(f"Label at {url}; the run continues when all pairs have votes")
    }
    return PageJudge(votes, guidelines=args.guidelines or "", port=args.port, **ready)


@locked
def run_arms(args: argparse.Namespace, arms: Sequence[str], one: Callable[..., Any], kind: Any, facts: dict) -> None:
    """
    Do a run for each arm and seed, in its own folder, and write a report on all runs.

    `one` takes an arm, a seed and a folder, and returns an object with `run(rounds)`. The report has the kind `kind`
    and shows `facts`.
    """
    from trl_real.reports.render import check_extras
    from trl_real.rounds.report import Arms, write_rounds_report

    check_extras()
    found: dict[str, list[list[dict[str, Any]]]] = {}
    runs = [(arm, seed) for seed in args.seeds or (0,) for arm in arms]
    progress = TimeLeft(len(runs) * args.rounds)
    for number, (arm, seed) in enumerate(runs):
        title = f"{arm}, seed {seed} (run {number + 1} of {len(runs)})"

        def on_round(this: int, title: str = title, before: int = number * args.rounds) -> None:
            progress.tell(f"{title}, round {this} of {args.rounds}", before + this - 1)

        run = one(arm, seed, Path(args.output_dir) / f"{arm}-{seed}").run(args.rounds, on_round)
        found.setdefault(arm, []).append(run.rounds)
    report = write_rounds_report(args.output_dir, found, kind=kind, facts={"model": args.model, **facts})
    say(f"Report: {report}")
    result(args, {"report": str(report), "runs": found}, _table(Arms(found, kind)))


def _win_rate(args: argparse.Namespace) -> Any:
    from trl_real.data.files import load
    from trl_real.rounds.win_rate import WinRateAgainstStart

    rows = rows_of(args, load(args.eval_prompts))
    check_columns(rows.column_names, ["prompt"], "Give --eval_prompts a file with prompts.")
    settings = {"max_new_tokens": args.eval_tokens}
    judge = reading_judge(args, "--eval_prompts")
    return WinRateAgainstStart(rows["prompt"][:], judge, Path(args.output_dir) / "start", **settings)


def _table(arms: Any) -> str:
    """Return a table of the last round of each arm."""
    import numpy as np

    from trl_real.rounds.report import race_in_words

    names = arms.metrics
    lines = [f"{'arm':<12} {'pairs':>6} " + " ".join(f"{name:>10}" for name in names)]
    for name in arms.runs:
        points = [arms.curve(name, metric) for metric in names]
        last = np.mean([run[-1][arms.kind.x] for run in arms.runs[name]])
        pairs = f"{next((curve[-1].x for curve in points if curve), last):.0f}"
        values = " ".join(f"{curve[-1].mean:>10.3f}" if curve else f"{'–':>10}" for curve in points)
        lines.append(f"{name:<12} {pairs:>6} {values}")
    for name, runs in arms.runs.items():
        last = [(i, run[-1]["race"]) for i, run in enumerate(runs) if run[-1].get("race")]
        lines += [f"{name}, run {i}: {race_in_words(race)}" for i, race in last]
    return "\n".join(lines)
