"""
Self-annotation (SPA) from 100 labels: the policy writes responses to new prompts, labels them itself, and learns.

    python examples/self_annotation.py --rounds 2

The 100 labels are pairs of the pool that its scores decide; prompts.jsonl has the prompts that nobody has labelled.
"""

import argparse
from itertools import combinations

import torch
from datasets import Dataset, load_dataset

from trl_real import EmbeddingPairSelector, REALDPOConfig, ScoreJudge, annotate, self_annotation_rounds


def main() -> None:
    """Learn from the labels, then from the policy's own, and print what each round came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--pool", default="examples/pool.jsonl")
    parser.add_argument("--prompts", default="examples/prompts.jsonl")
    parser.add_argument(
        "--test", default="examples/held_out.jsonl", help="labelled pairs that each round is tested on"
    )
    parser.add_argument("--n_labels", type=int, default=100)
    parser.add_argument("--n_prompts", type=int, default=12, help="prompts a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max_new_tokens", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--output_dir", default="runs/self_annotation")
    args = parser.parse_args()

    seed_labels = labelled(load_dataset("json", data_files=args.pool, split="train"), args.n_labels)
    print(f"{len(seed_labels)} labels to begin with")
    config = REALDPOConfig(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
    )
    run = self_annotation_rounds(
        seed_labels,
        load_dataset("json", data_files=args.prompts, split="train"),
        args.model,
        config,
        output_dir=args.output_dir,
        n_prompts=args.n_prompts,
        rounds=args.rounds,
        generation={"max_new_tokens": args.max_new_tokens},
        eval_dataset=load_dataset("json", data_files=args.test, split="train"),
    )
    for row in run.rounds:
        print(f"{row['stage']}: {row['n_pairs']} pairs learned from, accuracy {row['accuracy']:.2f}")


def labelled(pool: Dataset, n: int) -> Dataset:
    """The first `n` pairs of responses that the scores decide."""
    rows = [
        {
            "prompt": row["prompt"],
            "responses": [row["responses"][i] for i in two],
            "scores": [row["scores"][i] for i in two],
        }
        for row in pool
        for two in combinations(range(len(row["responses"])), 2)
    ]
    pairs = EmbeddingPairSelector(strategy="random").select(Dataset.from_list(rows))  # the only pair of each row
    return annotate(pairs, ScoreJudge("scores", min_gap=0.05)).select(range(n))


if __name__ == "__main__":
    main()
