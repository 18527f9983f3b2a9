"""`--plan`: what a selection will cost, before anything runs."""

import argparse

from trl_real.cli.options import require, result


SETTINGS = ("strategy", "revision", "context", "layer", "max_length", "batch_tokens", "dtype", "device", "center")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """`--plan` and what it reckons with."""
    plan = parser.add_argument_group("what it will cost")
    plan.add_argument("--plan", action="store_true", help="print what this selection will cost, and stop")
    plan.add_argument(
        "--hardware", default="cpu", help="cpu (this machine's, measured; default), l4, rtx4090, a100, h100 or h200"
    )
    plan.add_argument("--n_devices", type=int, default=1, help="how many of them (default 1)")
    plan.add_argument("--price", type=float, help="USD for one of them an hour; an assumption by default")
    plan.add_argument("--price_per_label", type=float, help="USD for a label")


def run_plan(args: argparse.Namespace) -> None:
    """Print the plan; nothing is written and no weights are loaded."""
    from trl_real.data.files import load
    from trl_real.data.sources import SOURCES
    from trl_real.errors import TrlRealError
    from trl_real.functional.hardware import hardware_named
    from trl_real.selection.plan import plan_selection
    from trl_real.selection.selector import EmbeddingPairSelector

    require(args, "dataset")
    hardware_named(args.hardware)
    if args.source is not None and args.source not in SOURCES:
        raise TrlRealError(f"No source {args.source!r}; there are {', '.join(SOURCES)}.")
    settings = {name: getattr(args, name) for name in (*SETTINGS, "geometry", "responses", "seed")}
    selector = EmbeddingPairSelector(args.model, **settings)
    dataset = load(args.dataset, args.split)
    if args.source:
        dataset = SOURCES[args.source](dataset)
    prices = {name: getattr(args, name) for name in ("hardware", "n_devices", "price", "price_per_label")}
    plan = plan_selection(selector, dataset, args.budget, **prices)
    result(args, plan.to_dict(), plan.summary())
