"""
Tokens a second of the embedder beside what people use, interleaved (A B C … A B C …), medians of the rounds.

    python benchmarks/embedding.py --model MODEL --dataset PREFERENCES.parquet --n_pairs 60 --rounds 3

Rates count real tokens, not padding; the share is of this machine's matrix-multiply rate at the model's shapes, at two
floating-point operations a weight and token. `--dataset` holds `prompt`, `chosen` and `rejected`, or full dialogues.
"""

import argparse
import copy
import statistics
import tempfile
import time

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_real.data.files import load
from trl_real.data.sources import from_hh_rlhf
from trl_real.models.embed import Embedder, EmbedderOptions


class Baselines:
    """What the embedder is measured against; each takes texts (and prompts) and returns one vector a text."""

    def __init__(self, name: str):
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        self.backbone = self.model.base_model
        self.name = name

    def plain(self, prompts, texts):
        """Batches of 16 in the order of the file, headless backbone, padded to the longest."""
        return torch.cat([self._mean(["" for _ in b], b, self.backbone) for b in _batches(texts, 16)])

    def plain_in_context(self, prompts, texts):
        """The same with the prompt in front; the response's tokens are averaged."""
        pairs = zip(_batches(prompts, 16), _batches(texts, 16), strict=True)
        return torch.cat([self._mean(p, t, self.backbone) for p, t in pairs])

    def real_script(self, prompts, texts):
        """The REAL paper's script: batches of 8 padded to 512, the whole causal LM, all hidden states."""
        vectors = []
        for batch in _batches(texts, 8):
            inputs = self.tokenizer(
                batch, padding="max_length", max_length=512, truncation=True, add_special_tokens=False,
                return_tensors="pt",
            )  # fmt: skip
            hidden = self.model(**inputs, output_hidden_states=True).hidden_states[-1]
            mask = inputs["attention_mask"][..., None]
            vectors.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(vectors)

    def sentence_transformers(self, prompts, texts):
        """`encode`, mean pooling, without the chat template that it would wrap every text in."""
        return torch.as_tensor(self._sentence_transformer().encode(texts, batch_size=32, show_progress_bar=False))

    def one_by_one(self, prompts, texts):
        """The reference for exactness."""
        return torch.cat([self._mean([""], [text], self.backbone) for text in texts])

    def _mean(self, prompts, texts, model):
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        before = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        rows = [(p[-512:], t[:512]) for p, t in zip(before, ids, strict=True)]
        width = max(len(p) + len(t) for p, t in rows)
        tokens, mask, pooled = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        for i, (p, t) in enumerate(rows):
            tokens[i, : len(p) + len(t)] = torch.tensor(p + t)
            mask[i, : len(p) + len(t)] = 1
            pooled[i, len(p) : len(p) + len(t)] = 1
        hidden = model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        return (hidden * pooled[..., None]).sum(1) / pooled.sum(1, keepdim=True)

    def _sentence_transformer(self):
        if not hasattr(self, "_encoder"):
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

            with tempfile.TemporaryDirectory() as folder:
                # The template must be gone before loading, which decides whether texts become messages.
                bare = copy.deepcopy(self.tokenizer)
                bare.chat_template = None
                bare.save_pretrained(folder)
                self.model.save_pretrained(folder)
                body = Transformer(folder, max_seq_length=512, model_kwargs={"dtype": "float32"})
            pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean")
            self._encoder = SentenceTransformer(modules=[body, pooling], device="cpu")
        return self._encoder


def _batches(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


def ours(name: str, baselines: Baselines, dtype: str, context: str = "response"):
    """The embedder, with weights of `dtype`."""
    model = baselines.model
    if dtype != "float32":
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    embedder = Embedder(model, baselines.tokenizer, EmbedderOptions(context=context))
    return lambda prompts, texts: embedder(prompts, texts, progress=False).vectors


def matmul_rate(backbone, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """FLOP/s of matrix products at the backbone's shapes, 1,024 tokens."""
    shapes = {tuple(p.shape) for n, p in backbone.named_parameters() if p.ndim == 2 and "embed" not in n}
    operands = [(torch.randn(1024, k).to(dtype), torch.randn(m, k).to(dtype)) for m, k in shapes]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for x, w in operands:
            torch.nn.functional.linear(x, w)
            done += 2 * x.shape[0] * w.numel()
    return done / (time.perf_counter() - start)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="Anthropic/hh-rlhf")
    parser.add_argument("--split", default=None)
    parser.add_argument("--n_pairs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = from_hh_rlhf(load(args.dataset, args.split)).select(range(args.n_pairs + 20))
    rows = rows.filter(lambda r: bool(r["chosen"].strip() and r["rejected"].strip())).select(range(args.n_pairs))
    texts = rows["chosen"][:] + rows["rejected"][:]
    prompts = rows["prompt"][:] * 2
    base = Baselines(args.model)
    with torch.inference_mode():
        alone = {
            "REAL's script (8 x 512, causal LM)": base.real_script,
            "plain batches of 16": base.plain,
            "sentence-transformers, no template": base.sentence_transformers,
            "trl_real float32": ours(args.model, base, "float32"),
            "trl_real bfloat16": ours(args.model, base, "bfloat16"),
        }
        reference = base.one_by_one(prompts, texts)
        report(args, base, "responses alone", alone, prompts, texts, reference, context=False)
        few = rows.select(range(min(40, len(rows))))
        prompts, texts = few["prompt"][:] * 2, few["chosen"][:] + few["rejected"][:]
        together = {
            "plain batches of 16": base.plain_in_context,
            "trl_real float32": ours(args.model, base, "float32", "prompt+response"),
            "trl_real bfloat16": ours(args.model, base, "bfloat16", "prompt+response"),
        }
        report(args, base, "prompt+response", together, prompts, texts, None, context=True)


def _count(tokenizer, strings) -> int:
    return sum(min(512, len(ids)) for ids in tokenizer(strings, add_special_tokens=False)["input_ids"])


def report(args, base, title, methods, prompts, texts, reference, context) -> None:
    """Time the methods in turn and print one table."""
    n_tokens = _count(base.tokenizer, texts) + (_count(base.tokenizer, prompts) if context else 0)
    seconds, vectors = {name: [] for name in methods}, {}
    for method in methods.values():
        method(prompts[:4], texts[:4])
    for _ in tqdm(range(args.rounds), desc=title):
        for name, method in methods.items():
            start = time.perf_counter()
            vectors[name] = method(prompts, texts)
            seconds[name].append(time.perf_counter() - start)
    reference = vectors["plain batches of 16"] if reference is None else reference
    weights = sum(p.numel() for n, p in base.backbone.named_parameters() if p.ndim == 2 and "embed" not in n)
    peak = {kind: matmul_rate(base.backbone, kind) for kind in (torch.float32, torch.bfloat16)}
    plain = statistics.median(seconds["plain batches of 16"])
    print(f"\n{title}: {len(texts)} sequences, {n_tokens} tokens, {torch.get_num_threads()} threads; matrix products "
          f"{peak[torch.float32] / 1e9:.0f} GFLOP/s float32, {peak[torch.bfloat16] / 1e9:.0f} bfloat16")  # fmt: skip
    print(f"| {'method':<36} | tokens/s | x plain | share of peak | 1 - cosine, max |")
    print(f"|{'-' * 38}|---------:|--------:|--------------:|----------------:|")
    for name in methods:
        median = statistics.median(seconds[name])
        rate = n_tokens / median
        share = rate * 2 * weights / peak[torch.bfloat16 if "bfloat16" in name else torch.float32]
        off = 1 - torch.cosine_similarity(vectors[name].double(), reference.double())
        print(f"| {name:<36} | {rate:8.0f} | {plain / median:7.2f} | {share:13.2f} | {off.max():15.0e} |")
    slowest = seconds.get("REAL's script (8 x 512, causal LM)")
    if slowest:
        for name in ("trl_real float32", "trl_real bfloat16"):
            against = {label: statistics.median(seconds[other]) / statistics.median(seconds[name]) for label, other in
                       (("REAL's script", "REAL's script (8 x 512, causal LM)"),
                        ("sentence-transformers", "sentence-transformers, no template"))}  # fmt: skip
            print(f"{name}: " + ", ".join(f"{ratio:.1f} x {label}" for label, ratio in against.items()))


if __name__ == "__main__":
    main()
