"""Choose, label and train in rounds (ActiveDPO), beside baselines: one run a selector and seed, one report."""

import argparse
from pathlib import Path
from typing import Any

from trl_real.cli.judges import add_judge_flags, judge_from
from trl_real.cli.options import add_common, require, result, say
from trl_real.cli.train import on_cpu


# Flags that are not named here are REALDPOConfig's and ModelConfig's; YAML settings are by flag.
PASSES_FLAGS_ON = True


def register(parser: argparse.ArgumentParser) -> None:
    """Flags bear the names of `ActiveRounds`' arguments."""
    add_common(parser)
    add = parser.add_argument
    add("--source", help="convert from: hh_rlhf, shp, ultrafeedback, ultrafeedback_binarized, alpaca_eval")
    add("--model", help="Hub id or local path of the model before alignment")
    add(
        "--selectors",
        nargs="+",
        help="gradient, certainty, uncertainty, infomax, dts, delta_ucb, drts, easy, random …",
    )
    add("--seeds", nargs="+", type=int, help="a run each (default: 0)")
    add("--rounds", type=int, default=5, help="rounds in all (default 5); more of them go on with a run")
    add("--budget", type=int, default=50, help="labels a round (default 50)")
    add("--continue", dest="restart", action="store_false", help="train on from the last adapter, on the new labels")
    add("--eval_dataset", help="labelled pairs that every round is tested on")
    add("--generate", type=int, metavar="N", help="each round's policy writes N responses a prompt")
    add("--max_new_tokens", type=int, default=128, help="with --generate: longest response")
    add("--n_prompts", type=int, help="prompts that a round may choose from (default: all)")
    add("--responses", default="responses", help="column that holds the list of responses")
    add("--human", action="store_true", help="people label: each round serves a page until its pairs have votes")
    add("--guidelines", metavar="FILE.md", help="with --human: shown on the page")
    add("--port", type=int, help="with --human: of the page")
    add_judge_flags(parser, model="judge_model")
    parser.epilog = "Further flags are those of `trl-real train`: --use_peft --lora_r 16 --learning_rate 1e-4 …"


def run(args: argparse.Namespace) -> None:
    """Do the rounds that are missing, write the report, print the last round of each arm."""
    from trl_real.data.files import load
    from trl_real.data.sources import SOURCES
    from trl_real.errors import TrlRealError
    from trl_real.evaluation.active_report import Arms, write_active_report
    from trl_real.evaluation.report import check_extras

    require(args, "dataset", "model", "output_dir")
    if args.source is not None and args.source not in SOURCES:
        raise TrlRealError(f"No source {args.source!r}; there are {', '.join(SOURCES)}.")
    check_extras()
    pool = load(args.dataset, args.split)
    pool = _as_pool(SOURCES[args.source](pool) if args.source else pool, args.responses)
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for selector in args.selectors or ("gradient", "random"):
        for seed in args.seeds or (0,):
            say(f"{selector}, seed {seed}")
            found.setdefault(selector, []).append(_one(args, pool, selector, seed))
    facts = {"model": args.model, "labels a round": args.budget, "pool": f"{len(pool)} rows"}
    report = write_active_report(args.output_dir, found, facts=facts)
    say(f"Report: {report}")
    result(args, {"report": str(report), "runs": found}, _table(Arms(found)))


def _one(args: argparse.Namespace, pool: Any, selector: str, seed: int) -> list[dict[str, Any]]:
    """One selector and seed, in a folder of its own."""
    from trl import ModelConfig, TrlParser, get_peft_config

    from trl_real.data.files import load
    from trl_real.training.active_rounds import ActiveRounds
    from trl_real.training.config import REALDPOConfig

    argv = on_cpu([*args.rest, "--output_dir", args.output_dir])
    config, model = TrlParser((REALDPOConfig, ModelConfig)).parse_args_and_config(argv)
    config.disable_tqdm = True
    generation = {"n": args.generate, "max_new_tokens": args.max_new_tokens} if args.generate else None
    rounds = ActiveRounds(
        pool=pool,
        judge=_page(args) if args.human else judge_from(args),
        model=args.model,
        args=config,
        output_dir=Path(args.output_dir) / f"{selector}-{seed}",
        selector=selector,
        budget=args.budget,
        peft_config=get_peft_config(model),
        restart=args.restart,
        eval_dataset=load(args.eval_dataset) if args.eval_dataset else None,
        generation=generation,
        n_prompts=args.n_prompts,
        responses=args.responses,
        seed=seed,
    )
    return rounds.run(args.rounds).rounds


def _page(args: argparse.Namespace) -> Any:
    from trl_real.labeling.page_judge import PageJudge

    votes = Path(args.votes or Path(args.output_dir) / "votes.jsonl")
    ready = {"on_ready": lambda url: say(f"Label at {url}; the run goes on when all pairs have votes")}
    return PageJudge(votes, guidelines=args.guidelines or "", port=args.port, **ready)


def _as_pool(dataset: Any, responses: str) -> Any:
    """Labelled pairs as a pool of two responses with scores 1 and 0, the chosen one on a side that its text draws."""
    if responses in dataset.column_names or "chosen" not in dataset.column_names:
        return dataset
    from trl_real.data.pairs import preference_candidates
    from trl_real.data.rows import from_rows, iterate

    rows = []
    for row in iterate(dataset):
        pair = preference_candidates(row.get("prompt"), row["chosen"], row["rejected"])
        if not pair.skipped:
            two = sorted(zip(pair.texts, (1.0, 0.0), strict=True))
            texts, scores = map(list, zip(*two, strict=True))
            rows.append({"prompt": pair.prompt, responses: texts, "scores": scores})
    from datasets import Dataset

    return Dataset.from_list(rows) if rows else from_rows(rows, {})


def _table(arms: Any) -> str:
    """The last round of each arm."""
    names = arms.metrics
    lines = [f"{'arm':<12} {'labels':>6} " + " ".join(f"{name:>10}" for name in names)]
    for name in arms.runs:
        points = [arms.curve(name, metric) for metric in names]
        labels = next((f"{curve[-1].n_asked:.0f}" for curve in points if curve), "–")
        values = " ".join(f"{curve[-1].mean:>10.3f}" if curve else f"{'–':>10}" for curve in points)
        lines.append(f"{name:<12} {labels:>6} {values}")
    return "\n".join(lines)
