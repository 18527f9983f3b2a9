"""
What each strategy takes out of a real pool: counts, similarities, and how its labels would agree with the score order.

    python benchmarks/pools.py --model MODEL --dataset POOL.parquet --prompts 80 --budget 0.5

The pool is embedded once. Where it has `scores`, each strategy's pairs are labelled by score, and two things are told
at several least gaps: the share of pairs that the scores decide, and the agreement that a noisy annotator would have
with the score order, whose errors follow Bradley-Terry with the score as a probability of winning: a score `s` in
[1, 2] (AlpacaEval's preference) is the probability `s - 1` of beating a baseline.
"""

import argparse
import time

import numpy as np
from datasets import Dataset
from scipy.special import expit, logit
from tqdm.auto import tqdm

from trl_real import EmbeddingPairSelector
from trl_real.data.files import load
from trl_real.models.embed import EmbedderOptions
from trl_real.models.encoder import Encoder


GAPS = (0.0, 0.01, 0.05, 0.1, 0.2)
STRATEGIES = ("easy", "centroid", "random", "hard")


def embed(rows: Dataset, encoder: Encoder) -> tuple[Dataset, float, int]:
    """The rows with a column `embeddings`; tokens a second and responses that were cut."""
    texts = [text or "" for responses in rows["responses"] for text in responses]
    blank = [not text.strip() for text in texts]
    chunk, vectors, n_tokens, n_cut, start = 256, [], 0, 0, time.perf_counter()
    for at in tqdm(range(0, len(texts), chunk), desc="Embedding"):
        part = ["." if empty else text for text, empty in zip(texts[at:], blank[at:], strict=True)][:chunk]
        found = encoder([None] * len(part), part)
        vectors.append(found.vectors.numpy())
        n_tokens, n_cut = n_tokens + found.n_tokens, n_cut + int(found.truncated.sum())
    rate = n_tokens / (time.perf_counter() - start)
    ends = np.cumsum([len(responses) for responses in rows["responses"]])[:-1]
    return rows.add_column("embeddings", [v.tolist() for v in np.split(np.concatenate(vectors), ends)]), rate, n_cut


def agreement(pairs: Dataset) -> str:
    """Share decided and expected agreement at each least gap."""
    two = np.array([[scores[i] for i in pair] for scores, pair in zip(pairs["scores"], pairs["pair"], strict=True)])
    two = two.astype(float)
    two = two[np.isfinite(two).all(1)]
    gap = np.abs(two[:, 0] - two[:, 1])
    strength = logit(np.clip(two - 1, 1e-3, 1 - 1e-3))
    agrees = expit(np.abs(strength[:, 0] - strength[:, 1]))
    cells = []
    for least in GAPS:
        decided = (gap > 0) & (gap >= least)
        cells.append(f"{decided.mean():.2f} / {agrees[decided].mean():.3f}" if decided.any() else "0.00 / -")
    return f"{len(two)} | " + " | ".join(cells)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--prompts", type=int, help="a seeded sample of so many prompts")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max_length", type=int, default=512)
    args = parser.parse_args()
    rows = load(args.dataset)
    if args.prompts and args.prompts < len(rows):
        rows = rows.shuffle(seed=42).select(range(args.prompts))
    pool = "responses" in rows.column_names
    encoder = Encoder(args.model, dtype=args.dtype, options=EmbedderOptions(max_length=args.max_length))
    if not pool:
        rows = rows.map(lambda row: {"responses": [row["chosen"], row["rejected"]]})
    rows, rate, n_cut = embed(rows, encoder)
    print(f"{len(rows)} rows, {sum(map(len, rows['responses']))} responses, {n_cut} cut; {rate:.0f} tokens/s")
    print("| strategy | kept | not chosen | skipped | similarity p05 / median / p95 kept | median pool |")
    print("|---|---|---|---|---|---|")
    kept = {}
    for strategy in STRATEGIES:
        selector = EmbeddingPairSelector(strategy=strategy)
        kept[strategy] = selector.select(rows, args.budget)
        r, q = selector.record, selector.record.similarity_kept
        known = f"{q['p05']:.3f} / {q['median']:.3f} / {q['p95']:.3f} | {r.similarity['median']:.3f}" if q else "- | -"
        print(f"| {strategy} | {r.n_kept} | {r.n_not_chosen} | {r.skipped or 0} | {known} |")
    if "scores" in rows.column_names:
        print("\nshare of pairs decided / expected agreement of a noisy annotator, by least score gap")
        print("| strategy | pairs with scores | " + " | ".join(f"gap {gap:g}" for gap in GAPS) + " |")
        print("|---" * (len(GAPS) + 2) + "|")
        for strategy, pairs in kept.items():
            print(f"| {strategy} | {agreement(pairs)} |")


if __name__ == "__main__":
    main()
