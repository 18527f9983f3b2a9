"""
Active rounds with people: each round chooses pairs, serves a page on 127.0.0.1 until they have votes, and trains.

    python examples/people_in_the_loop.py --selector gradient --rounds 2 --budget 6

Votes are in votes.jsonl one by one. Killed and started again, the run goes on where it stood and asks for none twice.
"""

import argparse

import torch
from datasets import load_dataset

from trl_real import PageJudge, REALDPOConfig, active_rounds


def main() -> None:
    """Run the rounds and print what each came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--pool", default="examples/pool.jsonl")
    parser.add_argument(
        "--n_prompts", type=int, help="prompts of the pool that a round may choose from (default: all)"
    )
    parser.add_argument(
        "--test", default="examples/held_out.jsonl", help="labelled pairs that each round is tested on"
    )
    parser.add_argument("--selector", default="gradient", help="gradient, infomax, certainty, easy, random …")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=6, help="labels a round")
    parser.add_argument("--guidelines", default="examples/guidelines.md", help="shown beside the pairs")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--output_dir", default="runs/people")
    args = parser.parse_args()

    pool = load_dataset("json", data_files=args.pool, split="train").select_columns(["prompt", "responses"])
    votes = f"{args.output_dir}.votes.jsonl"
    people = PageJudge(votes, guidelines=args.guidelines, on_ready=lambda url: print(f"Label at {url}", flush=True))
    config = REALDPOConfig(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=2e-4,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
    )
    run = active_rounds(
        pool,
        people,
        model=args.model,
        args=config,
        output_dir=args.output_dir,
        selector=args.selector,
        budget=args.budget,
        n_prompts=args.n_prompts,
        rounds=args.rounds,
        eval_dataset=load_dataset("json", data_files=args.test, split="train"),
    )
    for row in run.rounds:
        print(
            f"round {row['round']}: {row['n_labels']} labels of {row['n_asked']} pairs, accuracy {row['accuracy']:.2f}"
        )


if __name__ == "__main__":
    main()
