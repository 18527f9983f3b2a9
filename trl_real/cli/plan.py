"""`--plan`: what a selection will cost, before anything runs."""

import argparse
from typing import Any

from trl_real.cli.options import result


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


def print_plan(args: argparse.Namespace, selector: Any, dataset: Any) -> None:
    """Print the plan; nothing is written and no weights are loaded."""
    from trl_real.selection.planning.plan import plan_selection

    prices = {name: getattr(args, name) for name in ("hardware", "n_devices", "price", "price_per_label")}
    plan = plan_selection(selector, dataset, args.budget, **prices)
    result(args, plan.to_dict(), plan.summary())
