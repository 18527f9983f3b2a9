"""
How many rows a selection in bfloat16 embeds again in float32, and whether it keeps the rows that float32 keeps.

Every text is embedded once in each precision; the selections then read these embeddings.

    python benchmarks/half_precision.py [--model ID] [--pool FILE.parquet] [--rows 400] [--responses 2] [--budgets B …]
"""

import argparse
from pathlib import Path

import datasets
import torch
from datasets import Dataset, load_dataset

from trl_real import STRATEGIES, EmbeddingPairSelector
from trl_real.demo.model import demo_model
from trl_real.functional.similarity import candidate_similarity
from trl_real.models.embed import Embeddings
from trl_real.models.encoder import Encoder


DATA = Path(__file__).parents[2] / "shared" / "data"


def most_orthogonal(embeddings, draws):
    """A user's function."""
    return candidate_similarity(embeddings).abs()


class Remembering(Encoder):
    """An encoder that embeds a text once in a precision, whichever selection asks."""

    vectors: dict[str, dict[str, torch.Tensor]] = {"float32": {}, "bfloat16": {}}

    def __call__(self, prompts, texts, rank=None):
        known = self.vectors[self.precision]
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            found = super().__call__([None] * len(missing), missing, rank)
            known.update(zip(missing, found.vectors, strict=True))
        return Embeddings(torch.stack([known[text] for text in texts]), torch.zeros(len(texts), dtype=torch.bool))

    def in_float32(self):
        return Remembering(self.name, dtype="float32") if self.dtype != "float32" else None


def pool_of(path: Path, n_rows: int, n_responses: int, n_characters: int) -> Dataset:
    """Rows of labelled pairs as two responses, or of a pool cut to `n_responses`."""
    rows = load_dataset("parquet", data_files=str(path), split="train")
    rows = rows.select(range(min(n_rows, len(rows))))
    if "chosen" in rows.column_names:
        return Dataset.from_dict({name: [t[:n_characters] for t in rows[name]] for name in ("chosen", "rejected")})
    texts = [[text[:n_characters] for text in texts[:n_responses]] for texts in rows["responses"]]
    return Dataset.from_dict({"prompt": rows["prompt"][:], "responses": texts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--pool", type=Path, default=DATA / "hh" / "hh_harmless_test.parquet")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--characters", type=int, default=400)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    args = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    pool = pool_of(args.pool, args.rows, args.responses, args.characters)
    model = args.model or demo_model()
    print(f"{len(pool)} rows: strategy, budget, rows that differ, embedded again, share")
    for name, strategy in {**STRATEGIES, "a function": most_orthogonal}.items():
        for budget in args.budgets if strategy is most_orthogonal or strategy.reads_embeddings else ():
            kept, selectors = [], []
            for dtype in ("float32", "bfloat16"):
                selectors.append(EmbeddingPairSelector(model, strategy=strategy, dtype=dtype))
                selectors[-1].encoder = Remembering(model, dtype=dtype)
                rows = selectors[-1].select(pool.add_column("number", range(len(pool))), budget)
                pairs = rows["pair"] if "pair" in rows.column_names else [None] * len(rows)
                kept.append(set(zip(rows["number"], map(str, pairs), strict=True)))
            again = selectors[1].record.n_rescored
            n_differ = len(kept[0] - kept[1])
            print(f"{name:<12} {budget:<5} {n_differ:>4} {again:>5} {again / len(pool):.3f}", flush=True)


if __name__ == "__main__":
    main()
