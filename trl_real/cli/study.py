"""Measure label savings: several strategies, budgets and seeds on one pool, one fixed test set, one report."""

import argparse
from typing import Any

from trl_real.cli.checks import ARM, budget, real, whole
from trl_real.cli.options import add_chat, add_common, add_embedding, add_source, locked, require, result, rows_of, say
from trl_real.cli.train import parsed, set_model_init_kwargs
from trl_real.errors import TrlRealError


# With --engine dpo, other flags are those of REALDPOConfig and ModelConfig; YAML settings have the same names.
PASSES_FLAGS_ON = True
RENAMED = {"max_length": "embed_length"}


def register(parser: argparse.ArgumentParser) -> None:
    """Add flags with the names of the arguments of `run_study`."""
    add_common(parser)
    add_source(parser)
    add_chat(parser)
    parser.add_argument("--model", help="Hub id or local path of the model that will be aligned")
    parser.add_argument(
        "--engine",
        default="frozen",
        choices=("frozen", "dpo"),
        help="frozen (default): a Bradley-Terry model on embeddings, seconds per cell; dpo: train the model",
    )
    arms = "strategies, such as random easy@centered auto easy+random infomax auto_in_rounds"
    parser.add_argument("--arms", nargs="+", type=ARM, help=arms)
    parser.add_argument("--budgets", nargs="+", type=budget, help="shares (0.1 0.35 1.0) or numbers of labels")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds of the cells (default: 0 to 9; dpo: 0 to 2)")
    parser.add_argument("--n_test", type=whole(1), help="number of test rows of a single split (default: 500)")
    parser.add_argument(
        "--n_folds", type=whole(1), help="splits that test each prompt once (default: 1; 4 below 1,000 rows)"
    )
    parser.add_argument("--pool_share", type=float, default=0.9, help="share of the pool that a seed may select from")
    parser.add_argument("--min_gap", type=real(0), default=0.0, help="minimum score difference that decides a label")
    add_embedding(parser, "--embed_length")
    parser.add_argument("--responses", default="responses", help="column with the list of responses")
    parser.add_argument("--scores", default="scores", help="column with the scores of the responses")
    parser.add_argument("--second_opinion", help="column with another annotator's probability that chosen is better")
    parser.add_argument("--title", help="title of the report (default: the dataset's name)")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, help="dpo: rates tried per cell (default: 1e-5 1e-4)"
    )
    parser.add_argument(
        "--n_validation", type=whole(0), default=100, help="dpo: pairs that choose learning rate and step"
    )
    parser.add_argument("--n_evaluations", type=whole(1), default=4, help="dpo: evaluations during each training")
    parser.epilog = "--engine dpo also accepts the flags of `trl-real train`: --use_peft --beta 0.1 …"


@locked
def run(args: argparse.Namespace) -> None:
    """Run the missing cells, write the report, and print the savings."""
    from trl_real.data.files import load
    from trl_real.data.sources import converter
    from trl_real.reports.render import check_extras
    from trl_real.study import run as defaults
    from trl_real.study.run import run_study

    require(args, "dataset", "output_dir")
    if args.engine == "frozen" and args.rest:
        raise TrlRealError(f"Unknown flags {' '.join(args.rest)}. Flags of the trainer need --engine dpo.")
    convert = converter(args.source)
    refuse_one_of_many(args.rest)
    check_extras()
    dataset = rows_of(args, convert(load(args.dataset, args.split)), responses=args.responses)
    names = ("n_test", "n_folds", "pool_share", "min_gap", "context", "layer", "batch_tokens", "dtype", "device")
    more = ("responses", "scores", "second_opinion", "n_validation")
    trainer = _dpo_cells(args) if args.engine == "dpo" else None
    study = run_study(
        dataset,
        args.model,
        args.output_dir,
        arms=args.arms or defaults.ARMS,
        budgets=args.budgets or defaults.BUDGETS,
        seeds=args.seeds or (range(3) if args.engine == "dpo" else defaults.SEEDS),
        max_length=args.embed_length,
        title=args.title or f"Label efficiency on {args.dataset.rstrip('/').split('/')[-1]}",
        revision=trainer and trainer.revision,
        trainer=trainer,
        **{name: getattr(args, name) for name in (*names, *more)},
    )
    write_and_tell(args, study, args.output_dir)


def refuse_one_of_many(flags: list[str]) -> None:
    """Refuse the trainer's flags for values that a study has several of; the error names the flag to type."""
    for flag in ("--seed", "--learning_rate"):
        if flag in [part.partition("=")[0] for part in flags]:
            raise TrlRealError(f"{flag} is for a single training. For a study type {flag}s.")


def write_and_tell(args: argparse.Namespace, study, folder: str) -> None:
    """Write the report to a folder, and print the savings and the path of the report."""
    from trl_real.study.report import write_study_report

    report = write_study_report(folder, study)
    say(f"Report: {report}")
    savings = {arm: [s._asdict() for s in found] for arm, found in study.savings.get("loss", {}).items()}
    found = {"report": str(report), "savings": savings, "worse_than_random": worse_than_random(study)}
    result(args, found, savings_table(study) + f"\nreport: {report}")


def worse_than_random(study) -> list[dict[str, Any]]:
    """Return every arm and budget with a test loss above random's by the whole paired interval."""
    return [
        {"arm": arm, "budget": budget, **difference._asdict()}
        for arm, found in study.differences.get("loss", {}).items()
        for budget, difference in zip(study.budgets, found, strict=True)
        if difference.low > 0
    ]


def savings_table(study) -> str:
    """Return a text table of the labels saved at each level of the random curve."""
    from trl_real.study.report import in_words

    found = study.savings.get("loss", {})
    if not found:
        return "No savings: they need a random arm and a seed with at least two finished budgets."
    if not any(found.values()):
        return "No savings: random selection learned nothing measurable from the labels of this pool."
    levels = [saving.level for saving in next(iter(found.values()))]
    width = max(map(len, found)) + 2
    head = f"{'arm':<{width}}" + "".join(f"{f'level of {level:.0%}':<28}" for level in levels)
    lines = [
        f"{arm:<{width}}" + "".join(f"{in_words(saving):<28}" for saving in savings) for arm, savings in found.items()
    ]
    title = "Labels saved compared with random, by test loss:"
    return "\n".join([title, head.rstrip(), *(line.rstrip() for line in lines)])


def _dpo_cells(args: argparse.Namespace):
    """Build the DPO trainer of the study from the flags."""
    from trl import get_peft_config

    from trl_real.study.dpo import DPOCells
    from trl_real.training.config import REALDPOConfig

    require(args, "model")
    config, model = parsed((REALDPOConfig,), [*args.rest, "--output_dir", args.output_dir])
    set_model_init_kwargs(config, model)
    rates = args.learning_rates or (1e-5, 1e-4)
    return DPOCells(args.model, config, get_peft_config(model), rates, args.n_evaluations, given=args.rest)
