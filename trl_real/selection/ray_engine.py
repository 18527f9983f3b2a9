"""Selection with the scoring pass on Ray actors, on one machine or a cluster."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features

from trl_real.data.files import load
from trl_real.data.pairs import ready_pairs
from trl_real.errors import TrlRealError
from trl_real.runtime.ray_workers import run_on_ray
from trl_real.runtime.run_lock import run_lock
from trl_real.runtime.shards import SHARD_ROWS, Batch
from trl_real.selection.budget import check_budget
from trl_real.selection.engines import DESCRIPTION, Sharded
from trl_real.selection.pool import DatasetPool, select_rows
from trl_real.selection.selector import EmbeddingPairSelector


@dataclass(frozen=True)
class OnRay(Sharded):
    """
    Scoring pass in shards on Ray actors (`trl_real.runtime.ray_workers`); arguments as in `select_on_ray`.
    """

    num_actors: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    address: str | None = None

    def __call__(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> Dataset:
        work = self.work(scoring, plain, features, name)
        with run_lock(work.shards.folder):
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
    Run `selector.select` on Ray actors, with the same rows, pairs and record as result.

    Each actor loads the model once and scores whole shards. Only shard numbers are sent: all nodes must read the
    dataset, the model and the folder. A lost node costs its current shards; a killed run continues on Ray or with
    `selector.select(shards=…)`.

    Args:
        selector: Selector with a model given by name; the function sets its `record`.
        dataset: Pool or labelled pairs, or a name or path that `trl_real.data.files.load` reads.
        budget, shards, shard_rows, batch_size: As in `EmbeddingPairSelector.select`.
        num_actors: Number of actors at once; with GPUs one per GPU.
        num_cpus, num_gpus: CPUs and GPUs per actor.
        address: Address of the cluster (`"auto"` for the cluster of this machine); None starts a local one unless
            `RAY_ADDRESS` is set.

    Returns:
        The kept rows in the order of the pool, with the columns that `map` adds.

    Raises:
        TrlRealError: If Ray is not installed, the actors do not fit, the model is a loaded one, or as in `select`.
    """
    check_budget(budget)
    if selector.encoder is not None and selector.encoder.name is None:
        raise TrlRealError("A loaded model cannot be sent to Ray actors. Give the selector a path or a Hub id.")
    dataset = ready_pairs(dataset if isinstance(dataset, Dataset) else load(dataset), selector.responses)
    engine = OnRay(Path(shards).resolve(), shard_rows, batch_size, num_actors, num_cpus, num_gpus, address)
    kept, selector.record = select_rows(selector, DatasetPool(selector, dataset, engine), budget)
    return kept
