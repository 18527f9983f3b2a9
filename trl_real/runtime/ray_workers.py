"""The shards of a map done by Ray's actors, on one machine or a cluster (the extra `trl-real[ray]`)."""

import logging
import os
from typing import Any

import torch
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.runtime.shards import ShardedMap


class ShardWorker:
    """
    An actor of `ray.data.Dataset.map_batches`: shards are done by their numbers, and only the numbers travel.

    Args:
        work: Pickled by reference to the files that its dataset and its model lie in.
        n_threads: Of a forward pass.
    """

    def __init__(self, work: ShardedMap, n_threads: int):
        torch.set_num_threads(n_threads)
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the shards of a batch; a mistake of the user's is told, not raised, since Ray would wrap it up."""
        mistakes = []
        for number in batch["shard"].tolist():
            try:
                self.work.do(number)
                mistakes.append("")
            except TrlRealError as error:
                mistakes.append(str(error))
        return {**batch, "mistake": mistakes}


def connect(address: str | None) -> Any:
    """
    Ray, connected: to the cluster at `address`, else to one that the environment names, else to one begun here.

    Raises:
        TrlRealError: If Ray is not installed, or there is no cluster at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise TrlRealError("Ray is not installed. Type: pip install 'trl-real[ray]'") from error
    if not ray.is_initialized():
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if not address:
            settings["include_dashboard"] = False
        try:
            ray.init(address=address, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise TrlRealError(f"No Ray cluster at {address!r} ({reason}). Type: ray start --head") from error
    return ray


def check_resources(nodes: list[dict[str, float]], num_actors: int, asked: dict[str, float]) -> None:
    """
    Ray waits for what a cluster cannot give, without a word.

    Args:
        nodes: Resources of each node that is alive.
        num_actors: How many actors are to run at once.
        asked: What one actor takes, by resource.

    Raises:
        TrlRealError: If so many actors do not fit, with the number that does.
    """
    if num_actors < 1:
        raise TrlRealError(f"num_actors={num_actors} does nothing. Type num_actors=1.")
    fit = sum(
        min((int(node.get(name, 0) // amount) for name, amount in asked.items() if amount), default=num_actors)
        for node in nodes
    )
    if fit < num_actors:
        each = ", ".join(f"{amount:g} {name}" for name, amount in asked.items() if amount)
        have = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in asked) for node in nodes)
        advice = f"Type num_actors={fit}." if fit else "Ask for less an actor: num_cpus=1, num_gpus=0."
        raise TrlRealError(
            f"{num_actors} actors of {each} do not fit: the nodes have {have}. Ray would wait for the rest. {advice}"
        )


def run_on_ray(
    work: ShardedMap, desc: str, num_actors: int, num_cpus: float, num_gpus: float, address: str | None
) -> None:
    """
    Do the shards that are missing.

    A task whose node is lost is done again on another one; shards that lie in the folder are not.

    Args:
        work: Its dataset, model and folder must be seen by all nodes.
        desc: For the progress bar.
        num_actors: Actors that run at once.
        num_cpus, num_gpus: That one takes.
        address: As in `connect`.

    Raises:
        TrlRealError: If Ray is missing, so many actors do not fit, or a row is at fault.
    """
    ray = connect(address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check_resources(nodes, num_actors, {"CPU": num_cpus, "GPU": num_gpus})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    numbers = work.order()
    done = ray.data.from_items([{"shard": number} for number in numbers]).map_batches(
        ShardWorker,
        fn_constructor_kwargs={"work": work, "n_threads": max(1, int(num_cpus))},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    for row in tqdm(done.iter_rows(), total=len(numbers), desc=desc, unit="shard"):
        if row["mistake"]:
            raise TrlRealError(row["mistake"])
