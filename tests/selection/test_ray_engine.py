"""Ray actors compute the same scores, on one machine and on a cluster that loses a node."""

import random
import threading
import time
from pathlib import Path

import pytest
from datasets import Dataset

from support.pools import POOLS, pool_of, stamps, told
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, select_on_ray
from trl_real.errors import TrlRealError
from trl_real.runtime.ray_workers import check_resources


NODE = {"CPU": 4.0, "GPU": 1.0}


class TestWhatFits:
    def test_actors_that_fit_are_accepted(self):
        check_resources([NODE, NODE], 8, {"CPU": 1, "GPU": 0})
        check_resources([NODE, NODE], 2, {"CPU": 2, "GPU": 1})

    @pytest.mark.parametrize(
        ("num_actors", "asked", "words"),
        [
            (9, {"CPU": 1, "GPU": 0}, "9 actors of 1 CPU do not fit.*would wait for the rest. Type num_actors=8."),
            (3, {"CPU": 1, "GPU": 1}, "3 actors of 1 CPU, 1 GPU do not fit.*Type num_actors=2."),
            (1, {"CPU": 5, "GPU": 0}, "1 actors of 5 CPU do not fit: the nodes have 4 CPU.*Ask for less an actor"),
            (0, {"CPU": 1, "GPU": 0}, "num_actors=0 does nothing. Type num_actors=1."),
        ],
    )
    def test_actors_that_do_not_fit_are_refused(self, num_actors, asked, words):
        with pytest.raises(TrlRealError, match=words):
            check_resources([NODE, NODE], num_actors, asked)


ray = pytest.importorskip("ray", reason="the extra trl-real[ray] is not installed")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two CPUs each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    found.add_node(num_cpus=2)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Rows of 16 responses, read from a file."""
    file = tmp_path_factory.mktemp("pool") / "pool.parquet"
    pool_of(120, 16).to_parquet(file)
    return file


def read(file: Path) -> Dataset:
    return Dataset.from_parquet(str(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_two_nodes_select_the_same_as_one_process(name, cluster, model, tmp_path):
    file, shard_rows = tmp_path / "pool.parquet", POOLS[name][1]
    POOLS[name][0]().to_parquet(file)
    alone, spread = (EmbeddingPairSelector(model, geometry="centered") for _ in range(2))
    expected = alone.select(read(file), 0.25, shards=tmp_path / "one", shard_rows=shard_rows)
    kept = select_on_ray(spread, file, 0.25, shards=tmp_path / "ray", shard_rows=shard_rows, num_actors=2)
    assert kept[:] == expected[:] and told(spread.record) == told(alone.record)
    before = stamps(tmp_path / "ray")
    select_on_ray(spread, file, 0.5, shards=tmp_path / "ray", shard_rows=shard_rows, num_actors=1)
    assert stamps(tmp_path / "ray") == before


@pytest.mark.slow
def test_a_mixture_takes_the_same_rows_by_the_same_parts(cluster, model, pool, tmp_path):
    alone, spread = (EmbeddingPairSelector(model, strategy="auto") for _ in range(2))
    expected = alone.select(read(pool), 0.25)
    kept = select_on_ray(spread, pool, 0.25, shards=tmp_path, shard_rows=8, num_actors=2)
    for name in ("prompt", "pair", "response_a", "selected_by"):
        assert kept[name][:] == expected[name][:]
    assert told(spread.record)["settings"] == told(alone.record)["settings"]


@pytest.mark.slow
def test_mistakes_get_a_one_line_error(cluster, model, pool, tmp_path):
    selector = EmbeddingPairSelector(model)
    with pytest.raises(TrlRealError, match="5 actors of 1 CPU do not fit"):
        select_on_ray(selector, pool, shards=tmp_path, num_actors=5)
    loaded = EmbeddingPairSelector(tiny_model(), tokenizer=tiny_tokenizer())
    with pytest.raises(TrlRealError, match="cannot be sent to Ray actors. Give the selector a path"):
        select_on_ray(loaded, pool, shards=tmp_path)
    broken = Dataset.from_list([{"prompt": "p", "responses": "one text"}])
    with pytest.raises(TrlRealError, match="^Column 'responses' holds one str a row"):
        select_on_ray(selector, broken, shards=tmp_path)


@pytest.mark.slow
def test_losing_a_node_at_ten_moments_loses_no_finished_shard(cluster, model, pool, tmp_path):
    alone = EmbeddingPairSelector(model)
    expected = alone.select(read(pool), 0.25, shards=tmp_path / "one", shard_rows=4)
    moments = random.Random(0)
    for trial in range(10):
        folder, n_shards = tmp_path / str(trial), moments.randint(0, 25)
        seen: dict[str, int] = {}
        stop = threading.Thread(target=lose_a_node, args=(cluster, folder, n_shards, seen))
        stop.start()
        spread = EmbeddingPairSelector(model)
        kept = select_on_ray(spread, pool, 0.25, shards=folder, shard_rows=4, num_actors=3)
        stop.join()
        assert kept[:] == expected[:] and told(spread.record) == told(alone.record)
        assert seen.items() <= stamps(folder).items()
        cluster.add_node(num_cpus=2)


def lose_a_node(cluster, folder: Path, n_shards: int, seen: dict[str, int]) -> None:
    """Kill the second node once so many shards are there, and note which ones."""
    while len(list(folder.rglob("*.parquet"))) < n_shards:
        time.sleep(0.02)
    seen.update(stamps(folder))
    cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)
