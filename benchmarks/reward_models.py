"""
What a reward model of a few labels is worth: its accuracy on held-back pairs beside those of a Bradley-Terry head on
frozen embeddings and of DPO's implicit reward, all from the same labels.

    python benchmarks/reward_models.py --data ../shared/data --model MODEL --output_dir FOLDER

Pairs of HH-RLHF's single-turn split that fit `--max_length`, one a prompt, drawn and split by their content. Margins
and checkpoints are kept: a second run continues. No text of the set is printed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from public_sets import SETS, key_of, pairs
from transformers import AutoTokenizer
from trl import RewardConfig

from trl_real import ImplicitRewardJudge, REALDPOConfig, REALDPOTrainer, RewardModelJudge, rows_for
from trl_real.data.pairs import Candidates
from trl_real.functional.bradley_terry import tune_bradley_terry
from trl_real.functional.statistics.intervals import mean_interval
from trl_real.functional.statistics.paired import paired_comparison
from trl_real.models.embed import EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.study.features import embed_rows
from trl_real.study.grid import write_arrays
from trl_real.training.resume import checkpoint_of_run, train_from
from trl_real.training.trainers import RewardModelTrainer


SET = "hh_single_turn"


def drawn_pairs(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Return the labels and the held-back pairs: `prompt`, `chosen`, `rejected`; no prompt is in both."""
    import pandas as pd

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = {
        key_of(args.seed, prompt): {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, (chosen, rejected), _ in pairs(pd.read_parquet(args.data / SETS[SET].file))
        if chosen.strip() and rejected.strip() and chosen != rejected
    }
    kept = []
    for key in sorted(rows):
        whole = [rows[key]["prompt"] + rows[key][side] for side in ("chosen", "rejected")]
        if max(map(len, tokenizer(whole)["input_ids"])) < args.max_length:  # an end is appended
            kept.append(rows[key])
        if len(kept) == args.n_labels + args.n_test:
            break
    return Dataset.from_list(kept[: args.n_labels]), Dataset.from_list(kept[args.n_labels :])


def head(labels: Dataset, test: Dataset, args: argparse.Namespace) -> np.ndarray:
    """Margins of a Bradley-Terry head on frozen embeddings of the responses."""
    encoder = Encoder(args.model, options=EmbedderOptions(max_length=args.max_length))

    def differences(rows: Dataset, name: str) -> torch.Tensor:
        texts = [Candidates(row["prompt"], [row["chosen"], row["rejected"]], [0, 1]) for row in rows]
        vectors = torch.stack(embed_rows(texts, encoder, args.output_dir / name)).double()
        return vectors[:, 0] - vectors[:, 1]

    known = differences(labels, "label_vectors")
    scale = known.std(0)
    fit, _ = tune_bradley_terry(known / scale)
    return (differences(test, "test_vectors") / scale @ fit.weights).numpy()


def trained(labels: Dataset, args: argparse.Namespace, kind: type, trainer: type, task: str) -> str:
    """Train an adapter on the labels, or continue, and return its folder."""
    folder = args.output_dir / kind.__name__
    config = kind(
        str(folder), max_length=args.max_length, per_device_train_batch_size=8, num_train_epochs=1, seed=args.seed,
        learning_rate=args.learning_rate, warmup_steps=5, use_cpu=True, bf16=args.bf16, report_to="none",
        gradient_checkpointing=False, save_steps=10, save_total_limit=1, logging_steps=5,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)
    checkpoint = checkpoint_of_run(config, args.model, labels, lora)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    made = trainer(args.model, args=config, train_dataset=labels, processing_class=tokenizer, peft_config=lora)
    train_from(made, checkpoint)
    made.save_model()
    return str(folder)


def reward_model(labels: Dataset, test: Dataset, args: argparse.Namespace) -> np.ndarray:
    """Margins of a reward model that `RewardTrainer` made."""
    folder = trained(rows_for(labels, "reward"), args, RewardConfig, RewardModelTrainer, "SEQ_CLS")
    judge = RewardModelJudge(folder)
    better, worse = (np.array(judge.score(test["prompt"][:], test[side][:])) for side in ("chosen", "rejected"))
    return better - worse


def implicit_reward(labels: Dataset, test: Dataset, args: argparse.Namespace) -> np.ndarray:
    """Margins of the implicit reward of a policy that DPO made, in nats."""
    folder = trained(labels, args, REALDPOConfig, REALDPOTrainer, "CAUSAL_LM")
    judge = ImplicitRewardJudge(folder)
    better, worse = (np.array(judge.score(test["prompt"][:], test[side][:])) for side in ("chosen", "rejected"))
    return better - worse


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "Bradley-Terry head, frozen embeddings": head,
    "reward model (`RewardTrainer`)": reward_model,
    "DPO's implicit reward": implicit_reward,
}


def kept(name: str, labels: Dataset, test: Dataset, args: argparse.Namespace) -> np.ndarray:
    """Compute the margins of a method, or read those of an earlier run."""
    file = args.output_dir / f"{METHODS[name].__name__}.npz"
    if not file.exists():
        write_arrays(file, {"margins": METHODS[name](labels, test, args)})
    with np.load(file) as arrays:
        return arrays["margins"]


def table(margins: dict[str, np.ndarray]) -> list[str]:
    """Return lines of Markdown: accuracy, its interval, and the paired difference to the first method."""
    lines, rows = ["| | accuracy | minus the head |", "|---|---|---|"], np.arange(len(next(iter(margins.values()))))
    right = {name: np.where(values == 0, 0.5, values > 0).astype(float) for name, values in margins.items()}
    first = next(iter(right.values()))
    for name, hits in right.items():
        low, high, _ = mean_interval(hits, rows)
        difference = ""
        if hits is not first:
            found = paired_comparison(hits, first)
            difference = f"{found.difference:+.3f} [{found.ci_low:+.3f}, {found.ci_high:+.3f}]"
        lines.append(f"| {name} | {hits.mean():.3f} [{low:.3f}, {high:.3f}] | {difference} |")
    return lines


def main() -> None:
    """Train, test and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--n_labels", type=int, default=400)
    parser.add_argument("--n_test", type=int, default=300)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    labels, test = drawn_pairs(args)
    print(f"{len(labels)} labels, {len(test)} held-back pairs", flush=True)
    margins = {}
    for name in METHODS:
        margins[name] = kept(name, labels, test, args)
        print(f"{name}: done", flush=True)
    print("\n".join(table(margins)))


if __name__ == "__main__":
    main()
