"""Advise, before labels are bought: which rule, how many labels, what to expect, and how sure that is."""

import argparse

from trl_real.cli.checks import whole
from trl_real.cli.options import add_common, add_embedding, add_source, require, result


def register(parser: argparse.ArgumentParser) -> None:
    """Add flags with the names of the arguments of `advise`."""
    add_common(parser, output=False)
    add_source(parser)
    parser.add_argument("--pilot", help="labelled pairs, best drawn at random from the pool: Hub id, folder or file")
    parser.add_argument("--model", help="Hub id or local path of the embedding model")
    add_embedding(parser)
    parser.add_argument("--responses", default="responses", help="column with the list of responses")
    parser.add_argument("--scores", default="scores", help="column with the scores of a pilot that is a pool")
    parser.add_argument("--seeds", type=whole(1), default=5, help="number of seeds of the simulation (default 5)")


def run(args: argparse.Namespace) -> None:
    """Print the advice as one paragraph, or with `--json` all of it."""
    from trl_real.data.files import load
    from trl_real.data.sources import converter
    from trl_real.study.advice.advise import advise

    require(args, "dataset")
    convert = converter(args.source)
    names = ("context", "layer", "max_length", "batch_tokens", "dtype", "device", "responses", "scores", "seeds")
    found = advise(
        convert(load(args.dataset, args.split)),
        args.model,
        pilot=load(args.pilot) if args.pilot else None,
        **{name: getattr(args, name) for name in names},
    )
    result(args, found.to_dict(), found.words())
