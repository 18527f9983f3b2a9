"""Measure what choosing saves: one pool, several strategies, budgets and seeds, one fixed test set, one report."""

import argparse

from trl_real.cli.options import add_common, number, require, result, say
from trl_real.cli.train import on_cpu, parsed, set_model_init_kwargs
from trl_real.errors import TrlRealError


# Flags that are not named here are REALDPOConfig's and ModelConfig's, with --engine dpo; YAML settings are by flag.
PASSES_FLAGS_ON = True


def register(parser: argparse.ArgumentParser) -> None:
    """Flags bear the names of `run_study`'s arguments."""
    add_common(parser)
    parser.add_argument("--source", help="convert from: hh_rlhf, shp, ultrafeedback, ultrafeedback_binarized, …")
    parser.add_argument("--model", help="Hub id or local path of the model that will be aligned")
    parser.add_argument(
        "--engine",
        default="frozen",
        choices=("frozen", "dpo"),
        help="frozen (default): a Bradley-Terry model on embeddings, seconds a cell; dpo: train the model",
    )
    parser.add_argument("--arms", nargs="+", help="strategies, such as: random easy easy@centered hard centroid")
    parser.add_argument("--budgets", nargs="+", type=number, help="shares (0.1 0.35 1.0), or numbers of labels")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds of the cells (default: 0 to 9; dpo 0 to 2)")
    parser.add_argument("--n_test", type=int, default=500, help="test rows (default 500)")
    parser.add_argument("--n_folds", type=int, default=1, help="splits that test each prompt once (default 1: n_test)")
    parser.add_argument("--pool_share", type=float, default=0.9, help="share of the pool that a seed may choose from")
    parser.add_argument("--min_gap", type=float, default=0.0, help="least difference of scores that decides a label")
    parser.add_argument("--context", default="response", help="response (default) or prompt+response")
    parser.add_argument("--layer", type=int, default=-1, help="hidden states to average; -1 (default) is the last")
    parser.add_argument("--embed_length", type=int, default=512, help="tokens of a response that are embedded")
    parser.add_argument("--batch_tokens", type=int, help="tokens in a forward pass of the embedder")
    parser.add_argument("--dtype", help="float32 (default), bfloat16 or float16, of the embeddings")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument("--responses", default="responses", help="column that holds the list of responses")
    parser.add_argument("--scores", default="scores", help="column that holds their scores")
    parser.add_argument("--second_opinion", help="column: another annotator's probability that chosen is better")
    parser.add_argument("--title", help="of the report; by default the dataset's name")
    parser.add_argument("--learning_rates", nargs="+", type=float, help="dpo: tried in every cell (1e-5 1e-4)")
    parser.add_argument("--n_validation", type=int, default=100, help="dpo: pairs that choose learning rate and step")
    parser.add_argument("--n_evaluations", type=int, default=4, help="dpo: evaluations along each training")
    parser.epilog = "With --engine dpo further flags are those of `trl-real train`: --use_peft --beta 0.1 …"


def run(args: argparse.Namespace) -> None:
    """Run the cells that are missing, write the report, print the savings."""
    from trl_real.data.files import load
    from trl_real.data.sources import SOURCES
    from trl_real.reports.render import check_extras
    from trl_real.study import run as defaults
    from trl_real.study.run import run_study

    require(args, "dataset", "output_dir")
    if args.engine == "frozen" and args.rest:
        raise TrlRealError(f"Unknown flags {' '.join(args.rest)}. Flags of the trainer need --engine dpo.")
    if args.source is not None and args.source not in SOURCES:
        raise TrlRealError(f"No source {args.source!r}; there are {', '.join(SOURCES)}.")
    refuse_one_of_many(args.rest)
    check_extras()
    dataset = load(args.dataset, args.split)
    dataset = SOURCES[args.source](dataset) if args.source else dataset
    names = (
        "n_test",
        "n_folds",
        "pool_share",
        "min_gap",
        "context",
        "layer",
        "batch_tokens",
        "dtype",
        "device",
        "responses",
    )
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
        n_validation=args.n_validation,
        **{name: getattr(args, name) for name in (*names, "scores", "second_opinion")},
    )
    write_and_tell(args, study, args.output_dir)


def refuse_one_of_many(flags: list[str]) -> None:
    """
    Refuse the trainer's flags for what a study has several of.

    Raises:
        TrlRealError: Naming the flag to type.
    """
    for flag in ("--seed", "--learning_rate"):
        if flag in [part.partition("=")[0] for part in flags]:
            raise TrlRealError(f"A study has several cells: type {flag}s, in place of {flag}.")


def write_and_tell(args: argparse.Namespace, study, folder: str) -> None:
    """Write the report into a folder, and print the savings and where it is."""
    from trl_real.study.report import write_study_report

    report = write_study_report(folder, study)
    say(f"Report: {report}")
    savings = {arm: [s._asdict() for s in found] for arm, found in study.savings.get("loss", {}).items()}
    result(args, {"report": str(report), "savings": savings}, savings_table(study) + f"\nreport: {report}")


def savings_table(study) -> str:
    """Labels saved at each level of the random curve, as text."""
    from trl_real.study.report import in_words

    found = study.savings.get("loss", {})
    if not found:
        return "No savings: they need a random arm and at least two budgets of a whole seed."
    if not any(found.values()):
        return "No savings: with the labels of this pool, a random choice learned nothing measurable."
    levels = [saving.level for saving in next(iter(found.values()))]
    width = max(map(len, found)) + 2
    head = f"{'arm':<{width}}" + "".join(f"{f'level of {level:.0%}':<28}" for level in levels)
    lines = [
        f"{arm:<{width}}" + "".join(f"{in_words(saving):<28}" for saving in savings) for arm, savings in found.items()
    ]
    return "\n".join(["Labels saved against random, by test loss:", head.rstrip(), *(line.rstrip() for line in lines)])


def _dpo_cells(args: argparse.Namespace):
    """The training room's part of the study."""
    from trl import ModelConfig, get_peft_config

    from trl_real.study.dpo import DPOCells
    from trl_real.training.config import REALDPOConfig

    require(args, "model")
    argv = on_cpu([*args.rest, "--output_dir", args.output_dir])
    config, model = parsed((REALDPOConfig, ModelConfig), argv)
    set_model_init_kwargs(config, model)
    rates = args.learning_rates or (1e-5, 1e-4)
    return DPOCells(args.model, config, get_peft_config(model), rates, args.n_evaluations, given=args.rest)
