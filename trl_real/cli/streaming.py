"""`trl-real select --streaming`: a pool that is read row by row, and never lies on the disk."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import IterableDataset

    from trl_real.selection.selector import EmbeddingPairSelector


def add_streaming(parser: argparse.ArgumentParser) -> None:
    """`--streaming` and `--sample`."""
    parser.add_argument("--streaming", action="store_true", help="read the pool twice, row by row, and never keep it")
    parser.add_argument(
        "--sample", type=int, help="with --streaming: read it once, and cut at a threshold from so many rows (1000)"
    )


def write_stream(args: argparse.Namespace, selector: "EmbeddingPairSelector") -> Any:
    """
    Select from a stream, and write the kept rows as they come.

    Returns:
        The rows that are written; None in all processes but the first.

    Raises:
        TrlRealError: If a flag does not go with streams.
    """
    from datasets import Dataset

    from trl_real.data.files import check_target, load_stream, save
    from trl_real.runtime.distributed import rank

    _check(args)
    check_target(Dataset.from_dict({}), args.output_dir)
    output = Path(args.output_dir).expanduser().resolve()
    way = {"sample": args.sample} if args.sample is not None else {"shards": f"{output}.shards"}
    stream = load_stream(args.dataset, args.split)
    kept = selector.select(stream, args.budget, shard_rows=args.shard_rows, **way)
    if rank():
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        written = Dataset.from_generator(Again(kept), features=kept.features, cache_dir=folder)
        save(written, args.output_dir)
    return written


class Again:
    """
    A stream as a function that gives its rows.

    Args:
        stream: To read.
    """

    def __init__(self, stream: "IterableDataset"):
        self.stream = stream

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The rows."""
        yield from self.stream


def _check(args: argparse.Namespace) -> None:
    from trl_real.errors import TrlRealError

    if not args.streaming:
        raise TrlRealError(f"--sample {args.sample} is for streams. Type --streaming as well, or leave it out.")
    if args.source:
        raise TrlRealError("--source converts a whole dataset. Convert it first, or leave --streaming out.")
    if args.num_proc or args.num_actors:
        raise TrlRealError("--num_proc and --num_actors share out a whole dataset. With --streaming type: torchrun …")
