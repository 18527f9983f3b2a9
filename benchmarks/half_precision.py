"""
How many rows a selection in bfloat16 embeds again in float32, and whether it keeps the rows that float32 keeps.

    python benchmarks/half_precision.py [--model ID] [--pool FILE.parquet] [--rows 300] [--responses 2] [--budget 0.25]
"""

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset

from trl_real import STRATEGIES, EmbeddingPairSelector
from trl_real.demo.model import demo_model
from trl_real.functional.similarity import candidate_similarity


DATA = Path(__file__).parents[2] / "shared" / "data"


def most_orthogonal(embeddings, draws):
    """A user's function."""
    return candidate_similarity(embeddings).abs()


def pool_of(path: Path, n_rows: int, n_responses: int, n_characters: int) -> Dataset:
    """Rows of labelled pairs as two responses, or of a pool cut to `n_responses`."""
    rows = load_dataset("parquet", data_files=str(path), split="train").select(range(n_rows))
    if "chosen" in rows.column_names:
        return rows.select_columns(["chosen", "rejected"])
    texts = [[text[:n_characters] for text in texts[:n_responses]] for texts in rows["responses"]]
    return Dataset.from_dict({"prompt": rows["prompt"][:], "responses": texts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--pool", type=Path, default=DATA / "hh" / "hh_harmless_test.parquet")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--characters", type=int, default=400)
    parser.add_argument("--budget", type=float, default=0.25)
    args = parser.parse_args()
    pool = pool_of(args.pool, args.rows, args.responses, args.characters)
    model = args.model or demo_model()
    exact, half = (EmbeddingPairSelector(model, dtype=dtype) for dtype in ("float32", "bfloat16"))
    print(f"{len(pool)} rows, budget {args.budget}: strategy, same rows and pairs, embedded again, share")
    for name, strategy in {**STRATEGIES, "a function": most_orthogonal}.items():
        if name == "random":
            continue
        exact.strategy = half.strategy = strategy if name == "a function" else name
        expected, found = exact.select(pool, args.budget), half.select(pool, args.budget)
        own = [column for column in ("pair", "prompt", "responses", "chosen") if column in found.column_names]
        same = expected.select_columns(own)[:] == found.select_columns(own)[:]
        again = half.record.n_rescored
        print(f"{name:<12} {same!s:<6} {again:>5} {again / len(pool):.3f}", flush=True)


if __name__ == "__main__":
    main()
