"""
The cost model against the clock: seconds that it predicts for real responses on this CPU, and seconds that they take.

    python benchmarks/cost_check.py --model MODEL --dataset PREFERENCES.parquet --n_responses 200

One thread and seconds of the processor, so that a busy machine matters less. The device is this machine's own matrix
products and reads, measured before each job; the shares of them are those of `HARDWARE["cpu"]`. `--dataset` holds
`prompt`, `chosen` and `rejected`. Embedding and gradients have run once on a row or two before the clock starts: the
checks on the model that come first are paid once.
"""

import argparse
import time
from datetime import date

import torch
from cost_model import GradientTokens, Writing, generation_seconds, gradient_flops, mean_context, read_rate
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_real.data.files import load
from trl_real.models.embed import Embedder
from trl_real.models.generate import generate
from trl_real.models.gradients import GradientFeatures
from trl_real.models.sequences import tokenize_pairs
from trl_real.selection.planning.cost import forward_flops, seconds_of
from trl_real.selection.planning.model_shape import empty_model, model_shape, this_cpu


RANK = 8
DTYPE = "float32"


class Check:
    """Predicted and measured seconds of each job, on the same rows."""

    def __init__(self, name: str, rows: dict[str, list[str]]):
        self.rows, self.tokenizer = rows, AutoTokenizer.from_pretrained(name)
        self.shape = model_shape(empty_model(name))
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=DTYPE).eval()
        self.measure()

    def measure(self) -> None:
        """The device as it is now."""
        device = this_cpu(self.shape.width, DTYPE, 1.0, time.process_time)
        self.device = device._replace(bandwidth=read_rate(0.5, time.process_time))

    def tokenizing(self, n: int):
        texts = self.rows["chosen"] + self.rows["rejected"]
        texts = (texts * 10)[: 10 * n]
        self.tokenizer(texts[:10])
        return None, clocked(lambda: self.tokenizer(texts)), sum(map(len, self.tokenizer(texts)["input_ids"]))

    def embedding(self, n: int):
        texts = (self.rows["chosen"] + self.rows["rejected"])[:n]
        lengths = [len(ids) for ids in self.tokenizer(list(dict.fromkeys(texts)))["input_ids"]]
        flops = forward_flops(self.shape, sum(lengths), mean_context(lengths))
        embedder = Embedder(self.model, self.tokenizer)
        embedder(["", ""], ["Warm up.", "Twice."], progress=False)
        measured = clocked(lambda: embedder([""] * len(texts), texts, progress=False))
        return seconds_of(flops, self.device, DTYPE, self.shape.width), measured, sum(lengths)

    def gradients(self, n: int):
        prompts, sides = self.rows["prompt"][:n], [self.rows[name][:n] for name in ("chosen", "rejected")]
        pairs = [tokenize_pairs(self.tokenizer, prompts, side, 512) for side in sides]
        lengths = [len(s.prompt) + len(s.response) for side in pairs for s in side]
        scored = sum(len(s.response) for side in pairs for s in side)
        tokens = GradientTokens(scored + sum(len(s.prompt) for s in pairs[0]), sum(lengths), scored)
        flops = gradient_flops(self.shape, tokens, mean_context(lengths), RANK)
        adapted = get_peft_model(
            self.model, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
        ).eval()
        features = GradientFeatures(adapted, self.tokenizer)
        features(prompts[-1:], sides[0][-1:], progress=False)
        texts = [text for pair in zip(*sides, strict=True) for text in pair]
        twice = [prompt for prompt in prompts for _ in sides]
        measured = clocked(lambda: features(twice, texts, progress=False))
        self.model = adapted.unload()
        predicted = seconds_of(flops, self.device, DTYPE, self.shape.width, "backward")
        return predicted, measured, int(tokens.backward)

    def reading(self, n: int):
        """What comes before writing, with the first token of each response."""
        job, measured, _ = self._write(n, n, 1)
        return generation_seconds(self.shape, job, self.device, DTYPE).prefill, measured, int(job.prompt * n)

    def writing(self, n: int, batch: int, length: int):
        """What comes after the first tokens."""
        job, whole, tokens = self._write(n, batch, length)
        _, first, _ = self._write(n, batch, 1)
        rest = job._replace(response=tokens / n - 1)
        return generation_seconds(self.shape, rest, self.device, DTYPE).decode, whole - first, tokens - n

    def _write(self, n: int, batch: int, length: int) -> tuple[Writing, float, int]:
        prompts = self.rows["prompt"][:n]
        settings = {"max_new_tokens": length, "batch_size": batch}
        found = []
        measured = clocked(lambda: found.append(generate(self.model, self.tokenizer, prompts, **settings)))
        prompt = sum(map(len, self.tokenizer(prompts)["input_ids"])) / n
        return Writing(n, prompt, n, found[0].n_tokens / n, batch), measured, found[0].n_tokens


def clocked(run) -> float:
    """Seconds of the processor."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Measure and print the Markdown of docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--n_responses", type=int, default=200)
    parser.add_argument("--n_pairs", type=int, default=4)
    parser.add_argument("--jobs", nargs="+", help="some of them: tokenizing embedding gradients reading many few")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = load(args.dataset).shuffle(seed=0).select(range(args.n_responses))[:]
    check = Check(args.model, rows)
    jobs = {
        "tokenizing": (f"tokenizing, {args.n_responses} responses", lambda: check.tokenizing(args.n_responses)),
        "embedding": (f"embedding, {args.n_responses} responses", lambda: check.embedding(args.n_responses)),
        "gradients": (
            f"gradient features, {args.n_pairs} pairs, LoRA r = {RANK}",
            lambda: check.gradients(args.n_pairs),
        ),
        "reading": ("reading 16 prompts, to write", lambda: check.reading(16)),
        "many": ("writing 16 responses, 16 at a time", lambda: check.writing(16, 16, 10)),
        "few": ("writing 2 responses, 1 at a time", lambda: check.writing(2, 1, 10)),
    }
    print(f"{date.today()}, one thread, {DTYPE}\n")
    print("| job | tokens | products, GFLOP/s | reads, GB/s | predicted, s | measured, s | predicted / measured |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for title, job in (jobs[name] for name in args.jobs or jobs):
        check.measure()
        predicted, measured, tokens = job()
        rates = f"{check.device.single / 1e9:.0f} | {check.device.bandwidth / 1e9:.0f}"
        told = f"{predicted:.1f} | {measured:.1f} | {predicted / measured:.2f}" if predicted else f"| {measured:.2f} |"
        print(f"| {title} | {tokens:,} | {rates} | {told} |", flush=True)


if __name__ == "__main__":
    main()
