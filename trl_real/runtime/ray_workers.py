"""Sharded maps on Ray actors, on one machine or a cluster (needs the extra `trl-real[ray]`)."""

import logging
import os
from typing import Any

import torch
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError, needs_extra
from trl_real.runtime.shards import ShardedMap


class ShardWorker:
    """
    Actor for `ray.data.Dataset.map_batches`. It gets shard numbers, not rows, and writes the shards of `work`. The
    pickle of `work` refers to the files of its dataset and model.
    """

    def __init__(self, work: ShardedMap, n_threads: int):
        torch.set_num_threads(n_threads)
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the shards of a batch. User errors are returned as text, because Ray wraps raised errors."""
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
    Connect to the cluster at `address`, else to that of the environment or a new local one, and return the module.

    Raises:
        TrlRealError: If Ray is not installed, or no cluster answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with needs_extra("Ray", "ray"):
        import ray
        import ray.data
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
    Check that the nodes, given by their resources, have room for all actors, given what one of them takes (`asked`).
    Without room, Ray waits forever without a message.

    Raises:
        TrlRealError: If the actors do not fit; names the number that does.
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
    Do the missing shards of `work` on Ray, with `num_actors` actors that take `num_cpus` and `num_gpus` each.

    If a node is lost, Ray runs its unfinished tasks on another node; shards already in the folder are not repeated.
    All nodes must be able to read the dataset and model of `work` and to write its folder.

    Raises:
        TrlRealError: If Ray is not installed, the actors do not fit, or a row is invalid.
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
