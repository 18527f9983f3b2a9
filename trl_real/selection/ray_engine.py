"""A selection whose scores are found by Ray's actors, on one machine or a cluster."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features

from trl_real.data.files import load
from trl_real.errors import TrlRealError
from trl_real.runtime.ray_workers import run_on_ray
from trl_real.runtime.shards import SHARD_ROWS, Batch
from trl_real.selection.budget import check_budget
from trl_real.selection.engines import DESCRIPTION, Sharded
from trl_real.selection.pool import DatasetPool, select_rows
from trl_real.selection.selector import EmbeddingPairSelector


@dataclass(frozen=True)
class OnRay(Sharded):
    """
    The shards of a scoring pass, done by Ray's actors (`trl_real.runtime.ray_workers`).

    Args:
        num_actors: Actors that run at once.
        num_cpus, num_gpus: That one takes.
        address: Of the cluster; None for the one that the environment names, or one on this machine.
    """

    num_actors: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    address: str | None = None

    def __call__(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> Dataset:
        """What `scoring` finds, a row a row."""
        work = self.work(scoring, plain, features, name)
        run_on_ray(work, f"{DESCRIPTION} on Ray", self.num_actors, self.num_cpus, self.num_gpus, self.address)
        return work.read()


def select_on_ray(
    selector: EmbeddingPairSelector,
    dataset: Dataset | str | Path,
    budget: float | int | None = None,
    *,
    shards: str | Path,
    num_actors: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_size: int = 512,
) -> Dataset:
    """
    `selector.select` with the embedding done by Ray: the same pairs, the same set, the same record.

    Each actor holds the model once and does whole shards. What travels are numbers of shards: dataset, model and the
    folder of the shards lie where all nodes see them. A node that is lost costs the shards that it was at; a run that
    was killed goes on, on Ray or with `selector.select(shards=…)`.

    Args:
        selector: Its model given by name; `record` is filled in.
        dataset: A pool or labelled pairs, or what `trl_real.data.files.load` reads.
        budget: As in `select`.
        shards: Folder for the scores.
        num_actors: Actors that run at once; with GPUs one a GPU.
        num_cpus, num_gpus: That one takes.
        address: Of the cluster (`"auto"` for the one that this machine is part of); None begins one on this machine,
            unless `RAY_ADDRESS` is set.
        shard_rows: Rows of a shard.
        batch_size: Rows of a batch.

    Returns:
        The kept rows in their old order, with the columns that `map` adds.

    Raises:
        TrlRealError: If Ray is not installed, so many actors do not fit, the model is a loaded one, or `select` would.
    """
    check_budget(budget)
    if selector.encoder is not None and selector.encoder.name is None:
        raise TrlRealError("A loaded model does not travel to Ray's actors. Give the selector a path or a Hub id.")
    dataset = dataset if isinstance(dataset, Dataset) else load(dataset)
    engine = OnRay(Path(shards).resolve(), shard_rows, batch_size, num_actors, num_cpus, num_gpus, address)
    kept, selector.record = select_rows(selector, DatasetPool(selector, dataset, engine), budget)
    return kept
