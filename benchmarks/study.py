"""
Seconds of an efficiency study on frozen features: 4 strategies x 6 budgets x 10 seeds on 3,000 pairs, after embedding.

    python benchmarks/study.py

The features are made up, as wide and as correlated as those of a small language model; labels follow them weakly.
"""

import argparse
import tempfile
import time

import numpy as np
from datasets import Dataset

from trl_real.study.run import run_study


def pairs(n: int, d: int, seed: int = 0) -> Dataset:
    """Labelled pairs with embeddings: a common direction, a spectrum that falls, labels with noise."""
    generator = np.random.default_rng(seed)
    spread = np.arange(1, d + 1) ** -0.7
    vectors = generator.normal(size=(n, 2, d)) * spread + 3 * generator.normal(size=d) * spread
    reward = (vectors / spread) @ generator.normal(size=d) * 0.06
    first = generator.random(n) < 1 / (1 + np.exp(reward[:, 1] - reward[:, 0]))
    ordered = np.where(first[:, None, None], vectors, vectors[:, ::-1]).astype(np.float32)
    texts = {name: [f"{name} {i}" for i in range(n)] for name in ("prompt", "chosen", "rejected")}
    return Dataset.from_dict({**texts, "embeddings": ordered.tolist()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3500, help="500 of them are the test set")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    dataset = pairs(args.pairs, args.width)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        study = run_study(
            dataset, None, folder, arms=["random", "easy", "hard", "easy@centered"], seeds=range(args.seeds),
            pool_share=1.0,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    each = seconds / study.n_cells
    print(f"{study.n_cells} cells on {study.n_pool:.0f} pairs: {seconds:.0f} s, {each:.2f} s a cell")


if __name__ == "__main__":
    main()
