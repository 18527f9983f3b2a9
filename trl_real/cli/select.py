"""Choose the pairs of a pool that are worth a label."""

import argparse
from pathlib import Path
from typing import Any

from trl_real.cli.options import add_common, number, require, result, say
from trl_real.cli.plan import add_plan, print_plan
from trl_real.cli.streaming import add_streaming, write_stream


def register(parser: argparse.ArgumentParser) -> None:
    """Flags bear the names of `EmbeddingPairSelector`'s arguments."""
    add_common(parser)
    parser.add_argument(
        "--source", help="convert from: hh_rlhf, shp, ultrafeedback, ultrafeedback_binarized, alpaca_eval"
    )
    parser.add_argument("--model", help="Hub id or local path of the model that will be aligned")
    parser.add_argument("--strategy", default="easy", help="easy (default), hard, centroid, d_optimal or random")
    parser.add_argument(
        "--budget", type=number, help="share of the rows (0.25) or number of rows (500); all by default"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--context", default="response", help="response (default) or prompt+response")
    parser.add_argument("--layer", type=int, default=-1, help="hidden states to average; -1 (default) is the last")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a response that are read (default 512)")
    parser.add_argument("--batch_tokens", type=int, help="tokens in a forward pass")
    parser.add_argument("--dtype", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument("--center", action="store_true", help="short for --geometry centered")
    parser.add_argument(
        "--geometry", default="raw", help="raw (default), centered, standardized, debiased or whitened"
    )
    parser.add_argument("--responses", default="responses", help="column that holds the list of responses")
    parser.add_argument("--seed", type=int, default=42)
    work = parser.add_argument_group(
        "who works", "finished parts lie in OUTPUT_DIR.shards; run again, it goes on there"
    )
    work.add_argument("--shard_rows", type=int, default=2048, help="rows of a part (default 2048)")
    work.add_argument("--num_proc", type=int, help="worker processes of one map, instead of parts")
    work.add_argument("--num_actors", type=int, help="on Ray, with so many actors at once")
    work.add_argument("--num_cpus", type=float, default=1, help="of a Ray actor (default 1)")
    work.add_argument("--num_gpus", type=float, default=0, help="of a Ray actor (default 0)")
    work.add_argument("--ray_address", help="of the Ray cluster, such as auto (default: one on this machine)")
    add_streaming(parser)
    add_plan(parser)


def run(args: argparse.Namespace) -> None:
    """Select, and write the kept rows with their record."""
    from trl_real.data.files import check_target, load, save
    from trl_real.data.sources import SOURCES
    from trl_real.errors import TrlRealError
    from trl_real.runtime.distributed import init_distributed, rank
    from trl_real.selection.budget import check_budget
    from trl_real.selection.selector import EmbeddingPairSelector

    require(args, "dataset", *(() if args.plan else ("output_dir",)))
    check_budget(args.budget)
    init_distributed()
    if args.source is not None and args.source not in SOURCES:
        raise TrlRealError(f"No source {args.source!r}; there are {', '.join(SOURCES)}.")
    names = ("strategy", "revision", "context", "layer", "max_length", "batch_tokens", "dtype", "device", "center")
    settings = {name: getattr(args, name) for name in (*names, "geometry", "responses", "seed")}
    selector = EmbeddingPairSelector(args.model, **settings)
    if (args.streaming or args.sample is not None) and not args.plan:
        written = write_stream(args, selector)
        return None if rank() else _tell(args, selector.record, written.column_names, n_written=len(written))
    dataset = load(args.dataset, args.split)
    if args.source:
        dataset = SOURCES[args.source](dataset)
    if args.plan:
        return print_plan(args, selector, dataset)
    check_target(dataset, args.output_dir)
    kept = _kept(args, selector, dataset)
    if not rank():
        save(kept, args.output_dir)
        _tell(args, selector.record, kept.column_names)


def _tell(args: argparse.Namespace, record: Any, columns: list[str], **more: int) -> None:
    """Put the record beside the rows that are written, and say what was done and what comes next."""
    folder = str(Path(args.output_dir))
    record.save(folder)
    say(record.summary())
    if record.sampled:
        say(f"{more['n_written']} rows of the stream were kept.")
    verb = "label" if "pair" in columns else "train"
    say(f"Next: trl-real {verb} --dataset {folder} --output_dir …")
    result(args, {"output_dir": folder, **more, **record.to_dict()}, folder)


def _kept(args: argparse.Namespace, selector: Any, dataset: Any) -> Any:
    """The kept rows, found by one map, by the processes of a launcher, or by Ray's actors."""
    if args.num_proc:
        return selector.select(dataset, args.budget, num_proc=args.num_proc)
    settings = {"shards": f"{str(args.output_dir).rstrip('/')}.shards", "shard_rows": args.shard_rows}
    if args.num_actors is None:
        return selector.select(dataset, args.budget, **settings)
    from trl_real.selection.ray_engine import select_on_ray

    asked = {name: getattr(args, name) for name in ("num_actors", "num_cpus", "num_gpus")}
    return select_on_ray(selector, dataset, args.budget, **settings, **asked, address=args.ray_address)
