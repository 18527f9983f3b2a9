"""
Self-annotation beside two plain forward passes a response, interleaved (A B C A B C …), medians of the rounds.

    python benchmarks/self_annotation.py --model MODEL --dataset PREFERENCES.parquet --n_pairs 24 --rounds 3

The policy is LoRA of rank 8 on all linear layers with a small random B, the reference the same model without it.
Plain is what one would write: every response after its prompt, tokenized beforehand, through the policy and through
the reference, and the log-softmax of the response's tokens; one at a time, and sorted by length in padded batches of
the fastest size. Self-annotation is everything from the dataset of texts to the dataset of labels, with a judge that
knows nothing yet. `--dataset` holds `prompt`, `chosen` and `rejected`, or full dialogues. Seconds are those of the
processor, so that a busy machine matters less; on a GPU they are the clock's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_real.data.files import load
from trl_real.data.sources import from_hh_rlhf
from trl_real.labeling.implicit_reward import ImplicitRewardJudge
from trl_real.labeling.self_annotate import self_annotate
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.models.sequences import Sequence, tokenize_pairs


BATCH_SIZES = (1, 2, 4, 8, 16)
MAX_LENGTH = 512


class Plain:
    """Two forward passes a response."""

    def __init__(self, model: Any, tokenizer: Any, pool: Dataset):
        prompts, responses = [p for p in pool["prompt"] for _ in range(2)], sum(pool["responses"], [])
        self.model, found = model, tokenize_pairs(tokenizer, prompts, responses, MAX_LENGTH)
        self.order = sorted(range(len(found)), key=lambda i: len(found[i].prompt) + len(found[i].response))
        self.sequences = [found[i] for i in self.order]
        self.n_tokens = 2 * sum(len(s.prompt) + len(s.response) for s in found)

    @torch.inference_mode()
    def __call__(self, batch_size: int, sequences: list[Sequence] | None = None) -> list[float]:
        """The implicit rewards, in the order of the lengths."""
        rewards = []
        sequences = self.sequences if sequences is None else sequences
        for start in range(0, len(sequences), batch_size):
            batch = sequences[start : start + batch_size]
            policy = self._sums(batch)
            with self.model.disable_adapter():
                rewards += (policy - self._sums(batch)).tolist()
        return rewards

    def _sums(self, batch: list[Sequence]) -> torch.Tensor:
        texts = [s.prompt + s.response for s in batch]
        tokens, mask, scored = (torch.zeros(len(batch), max(map(len, texts)), dtype=torch.long) for _ in range(3))
        for i, (text, sequence) in enumerate(zip(texts, batch, strict=True)):
            tokens[i, : len(text)] = torch.tensor(text)
            mask[i, : len(text)] = 1
            scored[i, len(sequence.prompt) : len(text)] = 1
        tokens, mask, scored = (x.to(self.model.device) for x in (tokens, mask, scored[:, 1:].bool()))
        logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1][scored]
        found = logits.float().log_softmax(-1).gather(1, tokens[:, 1:][scored][:, None])[:, 0]
        rows = scored.nonzero()[:, 0]
        return torch.zeros(len(batch), device=found.device).index_add_(0, rows, found)

    def best_batch_size(self, n: int = 16) -> int:
        """The fastest on neighbours in length from the middle."""
        middle = max(0, len(self.sequences) // 2 - n // 2)
        sample = self.sequences[middle : middle + n]
        self(1, sample[:1])
        seconds = {size: timed(lambda size=size: self(size, sample))[0] for size in BATCH_SIZES}
        print("plain, s a response by batch size:", {k: round(s / len(sample), 3) for k, s in seconds.items()})
        return min(seconds, key=seconds.get)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    result = function()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start, result


def pool_of(dataset: str, n: int) -> Dataset:
    """The first `n` pairs as prompts with two responses."""
    rows = load(dataset, None)
    rows = rows if "prompt" in rows.column_names else from_hh_rlhf(rows)
    rows = rows.select(range(min(n, len(rows))))
    responses = [list(pair) for pair in zip(rows["chosen"], rows["rejected"], strict=True)]
    return Dataset.from_dict({"prompt": rows["prompt"][:], "responses": responses})


def adapted(path: str, dtype: str) -> tuple[Any, Any]:
    """A policy that has moved away from its base a little, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.01)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), AutoTokenizer.from_pretrained(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="Anthropic/hh-rlhf")
    parser.add_argument("--n_pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_size", type=int, default=None, help="of the plain batches; by default they are tried")
    args = parser.parse_args()
    model, tokenizer = adapted(args.model, args.dtype)
    pool = pool_of(args.dataset, args.n_pairs)
    plain = Plain(model, tokenizer, pool)
    size = args.batch_size or plain.best_batch_size()
    report = SelfAnnotationReport()

    def ours() -> Dataset:
        nonlocal report
        report = SelfAnnotationReport()
        judge = ImplicitRewardJudge(model, tokenizer=tokenizer, max_length=MAX_LENGTH)
        return self_annotate(pool, judge, report=report)

    methods = {"one by one": lambda: plain(1), "batches": lambda: plain(size), "self-annotation": ours}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found = {}
    for _ in tqdm(range(args.rounds)):
        for name, method in methods.items():
            took, found[name] = timed(method)
            seconds[name].append(took)
            tqdm.write(f"{name}: {took:.1f} s")
    tell(seconds, plain, size, report, found)


def tell(seconds: dict[str, list[float]], plain: Plain, size: int, report: SelfAnnotationReport, found: dict) -> None:
    """Print the medians, the ratios, and how far the rewards are apart."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{report.n_prompts} pairs, {plain.n_tokens} tokens in two passes a response, {report.n_tokens} read by us")
    print(f"{torch.get_num_threads()} threads, padded batches of {size}")
    for name, values in seconds.items():
        told = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name}: {medians[name]:.1f} s ({told}), {medians[name] / report.n_prompts * 1000:.0f} ms a pair")
    for name in ("one by one", "batches"):
        ratios = [ours / theirs for ours, theirs in zip(seconds["self-annotation"], seconds[name], strict=True)]
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"self-annotation / {name}: {medians['self-annotation'] / medians[name]:.2f} (by round: {told})")
    alone, batched = (dict(zip(plain.order, found[name], strict=True)) for name in ("one by one", "batches"))
    print(f"rewards alone and in batches: {max(abs(alone[i] - batched[i]) for i in alone):.1e} nats apart at most")
    gaps = sorted(abs(alone[2 * i] - alone[2 * i + 1]) for i in range(len(alone) // 2))
    labels = found["self-annotation"]
    ours = sorted(best - worst for best, worst in zip(labels["score_chosen"], labels["score_rejected"], strict=True))
    if len(ours) == len(gaps):
        apart = max(abs(a - b) for a, b in zip(ours, gaps, strict=True))
        print(f"gaps of the pairs, {gaps[0]:.3f} to {gaps[-1]:.3f} nats: ours and plain {apart:.1e} apart at most")
    print(report.words())


if __name__ == "__main__":
    main()
