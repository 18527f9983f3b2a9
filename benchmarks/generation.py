"""
Sampling with `trl_real` beside `model.generate`, interleaved (A B C A B C), medians of the rounds.

    python benchmarks/generation.py --model MODEL --prompts PROMPTS.parquet --n_prompts 96 --n 2 --rounds 3

`generate` is `model.generate` on prompts sorted by length and padded on the left, at the fastest of a few batch sizes;
`batches` is this project's decoder on the same batches, one after the other; `refilled` fills the rows that are free
with the next prompts. Rates are in tokens that are kept (those after an end are not) a second of CPU time.
`--same_length` lets no response end before `max_new_tokens`, `--lora RANK` puts a random adapter on the model and
measures it merged, too.
"""

import argparse
import statistics
import time
from collections import Counter
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_real.data.files import load
from trl_real.models import generate as ours
from trl_real.models.generation.decoding import Decoder, Sampler


BATCH_SIZES = (32, 64, 128)


class Timed(Decoder):
    """A decoder that tells where its time goes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.spent = Counter()
        for name in ("read", "continue_rows", "sampler"):
            setattr(self, name, self.timed(name, getattr(self, name)))

    def timed(self, name, function):
        def run(*arguments):
            started = time.process_time()
            result = function(*arguments)
            self.spent[name] += time.process_time() - started
            return result

        return run


class Bench:
    """The same work, done in several ways; each returns the tokens it kept."""

    def __init__(self, model, tokenizer, prompts, args):
        self.model, self.args = model, args
        texts = [ours._text(tokenizer, prompt) for prompt in prompts]
        self.ids = ours._ids(tokenizer, prompts, texts)
        self.texts, self.pad = texts, tokenizer.pad_token_id
        self.ends = frozenset() if args.same_length else ours._ends(model, tokenizer)
        self.shares = Counter()

    def asked(self):
        asked = ours._asked(self.model, self.texts, self.ids, self.args.n, self.args.max_new_tokens, 42)
        return sorted(asked, key=lambda response: (-len(response.prompt), response.prompt))

    def generate(self, batch_size, asked=None):
        kept = 0
        asked = asked or self.asked()
        for start in range(0, len(asked), batch_size):
            prompts = [response.prompt for response in asked[start : start + batch_size]]
            width = max(map(len, prompts))
            ids = torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            ends = sorted(self.ends) or [-1]
            settings = {"do_sample": self.args.temperature > 0, "top_k": 0, "top_p": 1.0}
            if self.args.temperature:
                settings["temperature"] = self.args.temperature
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.args.max_new_tokens,
                eos_token_id=ends, pad_token_id=self.pad, **settings,
            )[:, width:]  # fmt: skip
            for row in output.tolist():
                kept += next((i for i, token in enumerate(row, 1) if token in self.ends), len(row))
        return kept

    def batches(self, batch_size):
        asked = self.asked()
        return sum(self.decode(asked[i : i + batch_size], batch_size) for i in range(0, len(asked), batch_size))

    def refilled(self, batch_size):
        self.shares.clear()
        return self.decode(self.asked(), batch_size)

    def decode(self, asked, batch_size):
        decoder = Timed(self.model, Sampler(self.args.temperature), self.ends, batch_size)
        kept = sum(len(response.tokens) for response in decoder(asked))
        self.shares.update(decoder.spent)
        return kept


def rate(work, *arguments) -> float:
    """Tokens a second of CPU time."""
    started = time.process_time()
    kept = work(*arguments)
    found = kept / (time.process_time() - started)
    print(f"{work.__name__} {arguments}: {kept} tokens, {found:.0f} tokens/s", flush=True)
    return found


@contextmanager
def merged(model):
    """The adapter in the weights, for a while; the weights are what they were afterwards but for rounding."""
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()


def with_adapter(model, rank):
    """A random LoRA adapter on all linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--prompts", required=True, help="a dataset with a column `prompt`")
    parser.add_argument("--n_prompts", type=int, default=96)
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--same_length", action="store_true")
    parser.add_argument("--lora", type=int, default=0)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    model = with_adapter(model, args.lora) if args.lora else model
    column = load(args.prompts)["prompt"][: args.n_prompts]
    prompts = [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in column]
    with torch.inference_mode():
        measure(Bench(model, tokenizer, prompts, args), args)


def measure(bench: Bench, args: argparse.Namespace) -> None:
    """Print medians and ratios."""
    rates: dict[str, list[float]] = {}
    bench.decode(bench.asked()[:8], 8)
    for _ in range(args.rounds):
        for size in args.batch_sizes:
            for name in ("generate", "batches", "refilled"):
                rates.setdefault(f"{name} {size}", []).append(rate(getattr(bench, name), size))
        if args.lora:
            with merged(bench.model):
                rates.setdefault("refilled, merged", []).append(rate(bench.refilled, args.batch_sizes[-1]))
    best = max(statistics.median(found) for name, found in rates.items() if name.startswith("generate"))
    print(f"{len(bench.asked())} responses, {args.dtype}, {torch.get_num_threads()} threads")
    for name, found in rates.items():
        middle = statistics.median(found)
        each = ", ".join(f"{one:.0f}" for one in found)
        print(f"{name:18} {middle:6.0f} tokens/s, {middle / best:.2f} of the best `generate` ({each})")
    total = sum(bench.shares.values())
    print(", ".join(f"{name} {seconds / total:.0%}" for name, seconds in bench.shares.items()))


if __name__ == "__main__":
    main()
