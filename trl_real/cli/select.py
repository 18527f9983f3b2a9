"""Choose the pairs of a pool that are worth a label."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_real.cli.checks import GEOMETRIES, STRATEGY, budget, one_of, real, whole
from trl_real.cli.options import (
    add_chat,
    add_common,
    add_embedding,
    add_source,
    check_output,
    keep_settings,
    locked,
    require,
    result,
    rows_of,
    say,
)
from trl_real.errors import TrlRealError


PRICES = ("hardware", "n_devices", "price", "price_per_label")


def register(parser: argparse.ArgumentParser) -> None:
    """Add flags with the names of `EmbeddingPairSelector`'s arguments."""
    add_common(parser)
    add_source(parser)
    add_chat(parser)
    parser.add_argument("--model", help="Hub id or local path of the model that will be aligned")
    parser.add_argument(
        "--strategy",
        type=STRATEGY,
        default="easy",
        help="easy (default), hard, centroid, d_optimal, i_optimal, random, auto, or several as in easy+random",
    )
    parser.add_argument("--budget", type=budget, help="share (0.25) or number (500) of the rows; default: all")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--load_in_4bit", action="store_true", help="load the model in 4 bits (NF4), as QLoRA does")
    add_embedding(parser)
    parser.add_argument(
        "--geometry",
        type=one_of("geometry", GEOMETRIES),
        default="raw",
        help="raw (default), centered, standardized, debiased or whitened",
    )
    parser.add_argument("--responses", default="responses", help="column with the list of responses")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--streaming", action="store_true", help="read the pool row by row, twice, without storing it")
    parser.add_argument(
        "--sample", type=whole(1), help="with --streaming: rows for a threshold, to read the pool once"
    )
    _add_workers(parser.add_argument_group("workers", "scores are saved in OUTPUT_DIR.shards; a second run continues"))
    _add_plan(parser.add_argument_group("cost"))


def _add_workers(group: Any) -> None:
    group.add_argument("--shard_rows", type=whole(1), default=2048, help="rows per shard (default: 2048)")
    group.add_argument("--num_proc", type=whole(1), help="worker processes of one map, instead of shards")
    group.add_argument("--num_actors", type=whole(1), help="run on Ray, with this many actors at once")
    group.add_argument("--num_cpus", type=real(0), default=1, help="CPUs per Ray actor (default: 1)")
    group.add_argument("--num_gpus", type=real(0), default=0, help="GPUs per Ray actor (default: 0)")
    group.add_argument("--ray_address", help="address of the Ray cluster, such as auto (default: a local one)")


def _add_plan(group: Any) -> None:
    group.add_argument("--plan", action="store_true", help="print the cost of this selection and stop")
    group.add_argument(
        "--hardware", default="cpu", help="cpu (this machine, measured; default), l4, rtx4090, a100, h100 or h200"
    )
    group.add_argument("--n_devices", type=whole(1), default=1, help="number of devices (default: 1)")
    group.add_argument("--price", type=real(0), help="USD per device and hour (default: an assumption)")
    group.add_argument("--price_per_label", type=real(0), help="USD per label")


@locked
def run(args: argparse.Namespace) -> None:
    """Select, and write the kept rows with their record; with `--plan` only print the cost."""
    from trl_real.data.files import check_target, load, save
    from trl_real.data.sources import converter
    from trl_real.errors import check_budget
    from trl_real.runtime.distributed import init_distributed, rank

    require(args, "dataset", *(() if args.plan else ("output_dir",)))
    names = ("strategy", "revision", "context", "layer", "max_length", "batch_tokens", "dtype", "device", "geometry")
    if not args.plan:
        recorded = [name for name in names if name not in ("batch_tokens", "device")]
        own = ("dataset", "split", "source", "model", "budget", "responses", "seed", "sample")
        switches = {name: getattr(args, name) or None for name in ("chat", "load_in_4bit")}
        kept_settings = check_output(args, "selection", *own, *recorded, **switches)
    is_stream = (args.streaming or args.sample is not None) and not args.plan
    if is_stream:
        _check_stream(args)
    else:
        dataset = rows_of(args, converter(args.source)(load(args.dataset, args.split)), responses=args.responses)
        check_budget(args.budget, len(dataset))
    from trl_real.selection.selector import EmbeddingPairSelector

    init_distributed()
    settings = {name: getattr(args, name) for name in (*names, "responses", "seed")}
    settings |= _in_4_bits(args) if args.load_in_4bit else {"model": args.model}
    selector = EmbeddingPairSelector(**settings)
    if is_stream:
        written = _write_stream(args, selector)
        if not rank():
            keep_settings(args, kept_settings)
            _report(args, selector.record, written.column_names, n_written=len(written))
        return
    if args.plan:
        return _print_plan(args, selector, dataset)
    check_target(dataset, args.output_dir)
    kept = _select(args, selector, dataset)
    if not rank():
        save(kept, args.output_dir)
        keep_settings(args, kept_settings)
        _report(args, selector.record, kept.column_names)


def _in_4_bits(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model, quantized as TRL's flags of the same names do it, and its tokenizer."""
    from transformers import BitsAndBytesConfig

    from trl_real.training.adapters import load_base

    if args.plan or args.num_actors or not args.model:
        raise TrlRealError("--load_in_4bit needs --model, and does not go with --plan or --num_actors. Leave it out.")
    dtype = args.dtype or "float32"
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    init = {"dtype": dtype, "revision": args.revision, "quantization_config": how}
    model, tokenizer = load_base(args.model, init, args.device == "cpu")
    return {"model": model.to(args.device) if args.device else model, "tokenizer": tokenizer}


def _print_plan(args: argparse.Namespace, selector: Any, dataset: Any) -> None:
    """Print the plan; write nothing and load no weights."""
    from trl_real.selection.planning.plan import plan_selection

    plan = plan_selection(selector, dataset, args.budget, **{name: getattr(args, name) for name in PRICES})
    result(args, plan.to_dict(), plan.summary())


def _select(args: argparse.Namespace, selector: Any, dataset: Any) -> Any:
    """Return the kept rows, scored by one map, by the processes of a launcher, or by Ray actors."""
    if args.num_proc:
        return selector.select(dataset, args.budget, num_proc=args.num_proc)
    settings = {"shards": f"{str(args.output_dir).rstrip('/')}.shards", "shard_rows": args.shard_rows}
    if args.num_actors is None:
        return selector.select(dataset, args.budget, **settings)
    from trl_real.selection.ray_engine import select_on_ray

    actors = {name: getattr(args, name) for name in ("num_actors", "num_cpus", "num_gpus")}
    return select_on_ray(selector, dataset, args.budget, **settings, **actors, address=args.ray_address)


def _write_stream(args: argparse.Namespace, selector: Any) -> Any:
    """Select from a stream; write the kept rows and return them (None in all processes but the first)."""
    from datasets import Dataset

    from trl_real.data.files import check_target, load_stream, save
    from trl_real.runtime.distributed import rank

    check_target(Dataset.from_dict({}), args.output_dir)
    output = Path(args.output_dir).expanduser().resolve()
    mode = {"sample": args.sample} if args.sample is not None else {"shards": f"{output}.shards"}
    stream = rows_of(args, load_stream(args.dataset, args.split), responses=args.responses)
    kept = selector.select(stream, args.budget, shard_rows=args.shard_rows, **mode)
    if rank():
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    with scratch as folder:
        if next(iter(kept), None) is None:
            raise TrlRealError(f"No row of {args.dataset!r} was kept: it holds none, or none with a pair.")
        written = Dataset.from_generator(_RowsOf(kept), features=kept.features, cache_dir=folder)
        save(written, args.output_dir)
    return written


class _RowsOf:
    """Generator function over a stream, in a form that `datasets` can pickle."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __call__(self) -> Iterator[dict[str, Any]]:
        yield from self.stream


def _check_stream(args: argparse.Namespace) -> None:
    if not args.streaming:
        raise TrlRealError(f"--sample {args.sample} is for streams. Type --streaming as well, or leave it out.")
    if args.source:
        raise TrlRealError("--source converts a whole dataset. Convert it first, or leave --streaming out.")
    if args.num_proc or args.num_actors:
        raise TrlRealError("--num_proc and --num_actors need a whole dataset. With --streaming type: torchrun …")


def _report(args: argparse.Namespace, record: Any, columns: list[str], **more: int) -> None:
    """Save the record next to the written rows, and print the result and the next command."""
    folder = str(Path(args.output_dir))
    record.save(folder)
    say(record.summary())
    if record.sampled:
        say(f"{more['n_written']} rows of the stream were kept.")
    verb = "label" if "pair" in columns else "train"
    say(f"Next: trl-real {verb} --dataset {folder} --output_dir …")
    result(args, {"output_dir": folder, **more, **record.to_dict()}, folder)
