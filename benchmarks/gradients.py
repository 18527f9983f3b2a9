"""
Seconds a response of gradient features beside what people do, interleaved (A B C … A B C …), medians of the rounds.

    python benchmarks/gradients.py --model MODEL --dataset PREFERENCES.parquet --n_pairs 4 --rounds 3

The adapter is LoRA of rank 8 on all linear layers, with a small random B. `--dataset` holds `prompt`, `chosen` and
`rejected`, or full dialogues. Errors are against PEFT's gradients in float64, one backward pass a response, projected
where the method projects; speed-ups are against PEFT with one backward pass a response, and with one a pair; peak
memory is beyond the loaded model, each method in a process of its own. Seconds are those of the processor, so that a
busy machine matters less.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_real.data.files import load
from trl_real.data.sources import from_hh_rlhf
from trl_real.functional.projection import make_projection
from trl_real.models.adapters import adapter_parameters, measured
from trl_real.models.attention.segments import packed
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.passes import Row, packed_passes
from trl_real.models.sequences import tokenize_pairs


Pairs = dict[str, list[str]]
MAX_LENGTH = 512


class Bench:
    """The methods by name; each takes pairs and returns one vector a response or a pair, or nothing."""

    def __init__(self, name: str, rank: int = 8):
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.name, self.config = name, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        self.model = self._load()
        self.features: dict[tuple, GradientFeatures] = {}

    def _load(self):
        torch.manual_seed(0)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(self.name, dtype=torch.float32).eval(), self.config
        )
        with torch.no_grad():  # a fresh adapter, where B is 0, would leave half of the gradient at 0
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.01)
        return model

    def ours(self, dim: int | None, dtype: torch.dtype | None = None) -> GradientFeatures:
        if (dim, dtype) not in self.features:
            options = GradientOptions(projection_dim=dim, max_length=MAX_LENGTH)
            self.features[dim, dtype] = GradientFeatures(self.model, self.tokenizer, options, dtype)
            assert self.features[dim, dtype].method == "packed"
        return self.features[dim, dtype]

    def methods(self) -> dict[str, tuple[Callable[[Pairs], Tensor | None], bool]]:
        """Name -> the function, and whether its vectors are those of pairs."""
        return {
            "PEFT, one backward a response": (self.loop, False),
            "PEFT, one backward a pair": (self.loop_pairs, True),
            "forward and backward alone, packed": (self.bare, False),
            "responses, whole gradients": (lambda p: self._responses(p, None), False),
            "responses, sketch to 8192": (lambda p: self._responses(p, 8192), False),
            "responses, sketch, bf16 products": (lambda p: self._responses(p, 8192, torch.bfloat16), False),
            "pairs, whole gradients": (lambda p: self._pairs(p, None), True),
            "pairs, sketch to 8192": (lambda p: self._pairs(p, 8192), True),
            "pairs, sketch, bf16 products": (lambda p: self._pairs(p, 8192, torch.bfloat16), True),
        }

    def rows(self, pairs: Pairs) -> list[Row]:
        sides = [tokenize_pairs(self.tokenizer, pairs["prompt"], pairs[side], MAX_LENGTH) for side in SIDES]
        return [Row(s.prompt, (s.response,)) for both in zip(*sides, strict=True) for s in both]

    def loop(self, pairs: Pairs) -> Tensor:
        """Full logits, ordinary gradients, a response at a time."""
        return torch.stack([self._gradient([row], [1.0]) for row in self.rows(pairs)])

    def exact(self, pairs: Pairs) -> dict[bool, Tensor]:
        """The gradients in float64: of responses (False) and of pairs (True)."""
        self.model.double()
        whole = self.loop(pairs)
        self.model.float()
        return {False: whole, True: whole[0::2] - whole[1::2]}

    def loop_pairs(self, pairs: Pairs) -> Tensor:
        """The difference of a pair's log-probabilities, the two padded together."""
        rows = self.rows(pairs)
        return torch.stack([self._gradient(rows[i : i + 2], [1.0, -1.0]) for i in range(0, len(rows), 2)])

    def _gradient(self, rows: list[Row], signs: list[float]) -> Tensor:
        width = max(row.n_tokens for row in rows)
        tokens, mask, scored = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        for i, row in enumerate(rows):
            tokens[i, : row.n_tokens] = torch.tensor(row.prompt + row.responses[0])
            mask[i, : row.n_tokens] = 1
            scored[i, len(row.prompt) : row.n_tokens] = 1
        logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        log_probs = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        objective = ((log_probs * scored[:, 1:]).sum(1) * torch.tensor(signs)).sum()
        parameters = adapter_parameters(self.model)
        found = torch.autograd.grad(objective, list(parameters.values()))
        named = dict(zip(parameters, found, strict=True))
        return torch.cat([named[name].flatten() for name in sorted(named)])

    def bare(self, pairs: Pairs) -> None:
        """The same passes, and nobody looks at what flows through them: the floor."""
        features, model = self.ours(8192), self.model
        with measured(model, []), packed(features.body, features.attention):
            handle = model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_())
            for step in packed_passes(self.rows(pairs), features.batch_tokens):
                if step.context and not step.context.extra["kept"]:
                    features._logits(step.context)
                features._objective(step).backward(retain_graph=not step.last)
            handle.remove()

    def _responses(self, pairs: Pairs, dim: int | None, dtype: torch.dtype | None = None) -> Tensor:
        prompts = [prompt for prompt in pairs["prompt"] for _ in SIDES]
        responses = [text for both in zip(*(pairs[side] for side in SIDES), strict=True) for text in both]
        return self.ours(dim, dtype)(prompts, responses, progress=False).vectors

    def _pairs(self, pairs: Pairs, dim: int | None, dtype: torch.dtype | None = None) -> Tensor:
        return self.ours(dim, dtype).differences(pairs["prompt"], pairs["chosen"], pairs["rejected"], False).vectors


SIDES = ("chosen", "rejected")


def read_pairs(path: str, n_pairs: int, seed: int) -> Pairs:
    """Random pairs of the dataset."""
    dataset = load(path)
    if "prompt" not in dataset.column_names:
        dataset = from_hh_rlhf(dataset)
    return dataset.shuffle(seed=seed).select(range(n_pairs)).select_columns(["prompt", *SIDES])[:]


def measure(bench: Bench, pairs: Pairs, rounds: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Seconds of the processor by method, median of the rounds, and the vectors."""
    seconds, vectors = {name: [] for name in bench.methods()}, {}
    few = {name: values[:1] for name, values in pairs.items()}
    for function, _ in bench.methods().values():
        function(few)
    for _ in tqdm(range(rounds), desc="Rounds"):
        for name, (function, _) in bench.methods().items():
            start = time.process_time()
            vectors[name] = function(pairs)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, vectors


def compare(bench: Bench, name: str, found: Tensor | None, exact: dict[bool, Tensor]) -> str:
    """How far the vectors are from the exact ones, or from what they would be projected."""
    if found is None:
        return ""
    expected = exact[bench.methods()[name][1]]
    if found.shape[1] != expected.shape[1]:
        expected = projected(bench, expected)
    error = (found.double() - expected).norm() / expected.norm()
    cosine = torch.nn.functional.cosine_similarity(found.double(), expected).min()
    return f"relative error {error:.1e}, worst 1 - cosine {abs(1 - cosine):.1e}"


def projected(bench: Bench, whole: Tensor, kind: str = "count_sketch", dim: int = 8192) -> Tensor:
    """Whole gradients, projected."""
    shapes = bench.ours(8192).projection.shapes
    projection = make_projection(kind, shapes, dim)
    buffer, start = projection.buffer(len(whole), whole.dtype), 0
    for name, (m, n) in shapes.items():
        projection.add(buffer, name, whole[:, start : start + m * n].unflatten(1, (m, n)))
        start += m * n
    return projection.finish(buffer)


def less_seconds(bench: Bench, n_rows: int = 16, block: int = 128, n_timed: int = 2) -> float:
    """
    Seconds a vector that the projector of LESS and TRAK (`BasicProjector`, Rademacher, 8192 numbers in blocks of 128,
    flushed every 16 gradients) takes: each block draws a matrix of signs and multiplies. `n_timed` of the 64 blocks
    are timed, after one that is not, and the rest taken to be alike.
    """
    whole = torch.randn(n_rows, sum(m * n for m, n in bench.ours(8192).projection.shapes.values()))
    signs = torch.empty(whole.shape[1], block)
    generator = torch.Generator()
    for number in range(n_timed + 1):
        if number == 1:
            start = time.process_time()
        signs.bernoulli_(0.5, generator=generator.manual_seed(number)).mul_(2).sub_(1)
        whole @ signs
    return (time.process_time() - start) / n_timed * (8192 // block) / n_rows


def cosines(vectors: Tensor) -> np.ndarray:
    """Cosines of all pairs of rows."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return (unit @ unit.T)[tuple(torch.triu_indices(len(unit), len(unit), 1))].numpy()


def _memory(model: str, pairs: Pairs, name: str, answer: multiprocessing.Queue) -> None:
    bench = Bench(model)
    function, _ = bench.methods()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function(pairs)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def peak_megabytes(model: str, pairs: Pairs, name: str) -> float:
    """Peak memory of one method beyond that of loading."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_memory, args=(model, pairs, name, answer))
    process.start()
    result = answer.get()
    process.join()
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--n_pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = read_pairs(args.dataset, args.n_pairs, args.seed)
    bench = Bench(args.model)
    n_responses = 2 * args.n_pairs
    seconds, vectors = measure(bench, pairs, args.rounds)
    exact = bench.exact(pairs)
    baseline = [seconds[f"PEFT, one backward a {what}"] for what in ("response", "pair")]
    for name in bench.methods():
        ratios = " ".join(f"{peft / seconds[name]:5.2f}x" for peft in baseline)
        memory = f"{peak_megabytes(args.model, pairs, name):6.0f} MB" if args.memory else ""
        line = f"{seconds[name] / n_responses:7.3f} s a response {ratios} {memory}"
        print(f"{name:36}{line}  {compare(bench, name, vectors[name], exact)}", flush=True)
    whole, sketch = cosines(exact[False]), cosines(projected(bench, exact[False]))
    print(f"cosines, sketch and exact: correlation {np.corrcoef(whole, sketch)[0, 1]:.3f}, n = {len(whole)}")
    less = less_seconds(bench)
    print(f"LESS's projector: {less:.2f} s a vector, from 2 of its 64 blocks")
    for name in ("pairs, sketch to 8192", "pairs, sketch, bf16 products"):
        chain = seconds["PEFT, one backward a pair"] / args.n_pairs + less
        print(f"PEFT and LESS's projector take {chain * args.n_pairs / seconds[name]:.1f} times as long as {name}")
    for name in ("responses, sketch to 8192", "responses, sketch, bf16 products"):
        chain = seconds["PEFT, one backward a response"] / n_responses + less
        print(f"PEFT and LESS's projector take {chain * n_responses / seconds[name]:.1f} times as long as {name}")


if __name__ == "__main__":
    main()
