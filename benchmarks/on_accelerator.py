"""
What a GPU decides, in one call of a few minutes: each result is printed and written as soon as it is there, the
important ones first, so that a cut-off run loses nothing.

    python benchmarks/on_accelerator.py --model CHECKPOINT --dataset HH.parquet --output results.jsonl --minutes 8
    python benchmarks/on_accelerator.py --parts exact embedding         # some parts
    python benchmarks/on_accelerator.py --small --device cpu            # the same code with tiny models

Without `--model` real weights are left out, without `--dataset` texts are made up and no study runs. A part that
fails leaves a line that says why, and the others run. benchmarks/travel.py packs what a bare machine needs.
"""

import argparse
import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen3Config,
)

from trl_real.data.files import load
from trl_real.data.sources import from_hh_rlhf
from trl_real.functional.design import greedy_design
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.generate import generate
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.runtime.devices import default_device, free_memory


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.tiny import tiny_tokenizer


WIDTH = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
SHAPES = {
    "135M": LlamaConfig(**WIDTH, vocab_size=49152, num_hidden_layers=30, max_position_embeddings=4096),
    "1.5B": LlamaConfig(
        hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936,
        num_hidden_layers=28, max_position_embeddings=4096,
    ),
}  # fmt: skip
SIX = {"vocab_size": 49152, "num_hidden_layers": 6, "max_position_embeddings": 4096, "initializer_range": 0.05}
FAMILIES = {
    "llama": LlamaConfig(**SIX, **WIDTH),
    "qwen3": Qwen3Config(**SIX, **WIDTH, head_dim=64),
    "gpt_neox": GPTNeoXConfig(**SIX, hidden_size=512, intermediate_size=2048, num_attention_heads=8),
    "gemma3": Gemma3TextConfig(
        **SIX, hidden_size=640, intermediate_size=2048, num_attention_heads=4, num_key_value_heads=1, head_dim=256
    ),
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 304}
LORA = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
WORDS = "boil the water then let tea stand for four minutes rain on a tin roof sum of two numbers open lock".split()


class Bench:
    """Settings, data and the file of results."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.began = args, time.perf_counter()
        self.device = torch.device(args.device or default_device())
        self.tokenizer = AutoTokenizer.from_pretrained(args.model) if args.model else tiny_tokenizer()
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.file = Path(args.output).open("a", encoding="utf-8")
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        self.tell("machine", device=name, torch=torch.__version__, free=free_memory(self.device))

    @property
    def left(self) -> float:
        """Seconds left."""
        return 60 * self.args.minutes - (time.perf_counter() - self.began)

    def tell(self, part: str, **values: Any) -> None:
        """Print a result, and write it."""
        line = json.dumps({"part": part, **values, "at": round(time.perf_counter() - self.began, 1)})
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()

    def pairs(self, n: int) -> Dataset:
        """Return pairs with a prompt, of the dataset or made up."""
        n = min(n, 12) if self.args.small else n
        if self.args.dataset:
            rows = from_hh_rlhf(load(self.args.dataset))
            return rows.select(range(min(n, len(rows))))
        text = [
            " ".join(WORDS[(i * 7 + k * k + i * k) % len(WORDS)] for k in range(20 + i % 50)) for i in range(3 * n)
        ]
        return Dataset.from_dict({"prompt": text[:n], "chosen": text[n : 2 * n], "rejected": text[2 * n :]})

    def model(self, config: Any, dtype: torch.dtype) -> Any:
        """Return a model with random weights, tiny with `--small`."""
        config = copy.deepcopy(config)
        if self.args.small:
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
            for name, value in {**SMALL, **{k: v for k, v in heads.items() if hasattr(config, k)}}.items():
                setattr(config, name, value)
        config.vocab_size = max(config.vocab_size, len(self.tokenizer))
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    def real(self, dtype: torch.dtype) -> Any:
        """Return the checkpoint's model."""
        return AutoModelForCausalLM.from_pretrained(self.args.model, dtype=dtype).to(self.device).eval()

    def seconds(self, job: Callable[[], Any]) -> float:
        """Return the duration of a job after one that does not count: it compiles, and fills caches."""
        job()
        self.wait()
        began = time.perf_counter()
        job()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def texts(pairs: Dataset) -> tuple[list[str], list[str]]:
    """Return prompts and responses, both of each pair."""
    return pairs["prompt"][:] * 2, pairs["chosen"][:] + pairs["rejected"][:]


def exact(bench: Bench) -> None:
    """Packing against one response at a time: embeddings, log-probabilities, gradient features."""
    for dtype in (torch.float32, torch.bfloat16):
        if bench.args.model:
            _exact(bench, "checkpoint", bench.real(dtype))
        for name, config in FAMILIES.items():
            _exact(bench, name, bench.model(config, dtype))


def _exact(bench: Bench, name: str, model: Any) -> None:
    prompts, responses = texts(bench.pairs(16))
    rows = [([prompt], [response]) for prompt, response in zip(prompts, responses, strict=True)]
    options = EmbedderOptions("prompt+response", max_length=256)
    embedder, scorer = Embedder(model, bench.tokenizer, options), ResponseLogProbs(model, bench.tokenizer, 256)
    together, sums = embedder(prompts, responses).vectors, scorer(prompts, responses).sums
    attention, packs = embedder.attention, (embedder.packs_well, scorer.packs_well)
    embedder.packs_well = scorer.packs_well = False  # the model's own attention, one response at a time
    alone = torch.cat([embedder(*row).vectors for row in rows])
    single = torch.cat([scorer(*row).sums for row in rows])
    adapted = get_peft_model(model, copy.deepcopy(LORA))
    features = GradientFeatures(adapted, bench.tokenizer, GradientOptions(max_length=256))
    found, method = features(prompts[:8], responses[:8]).vectors, features.method
    features._method = "one by one"
    lone = features(prompts[:8], responses[:8]).vectors
    bench.tell(
        "exact", model=name, dtype=str(model.dtype), attention=attention, packs=packs,
        embeddings_off=float((1 - torch.cosine_similarity(together.double(), alone.double())).max()),
        log_probs_off=float(((sums - single).abs() / single.abs()).max()),
        gradients=method, gradients_with=features.attention,
        gradients_off=float((1 - torch.cosine_similarity(found.double(), lone.double())).max()),
    )  # fmt: skip


def embedding(bench: Bench) -> None:
    """Tokens a second, and the share of the peak, beside plain batches and sentence-transformers."""
    for size, config in SHAPES.items():
        _embedding(bench, size, bench.model(config, torch.bfloat16))


def _embedding(bench: Bench, size: str, model: Any) -> None:
    weights = sum(p.numel() for n, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in n)
    peak = matmul_rate(bench, model.config)
    prompts, responses = texts(bench.pairs(4000))
    embedder = Embedder(model, bench.tokenizer)
    n_tokens = embedder(prompts, responses).n_tokens
    tokenizing = bench.seconds(lambda: bench.tokenizer(responses, add_special_tokens=False))
    jobs: dict[str, Callable[[], Any]] = {
        "trl_real": lambda: embedder(prompts, responses, progress=False),
        "plain batches of 16": lambda: list(plain(bench, model, responses)),
        "sentence-transformers": encoder(bench, model, responses),
    }
    for name, job in jobs.items():
        seconds = bench.seconds(job)
        bench.tell("embedding", size=size, method=name, tokens_per_second=round(n_tokens / seconds),
                   share_of_peak=round(2 * weights * n_tokens / seconds / peak, 3), attention=embedder.attention,
                   batch_tokens=embedder.batch_tokens, tokenizing_share=round(tokenizing / seconds, 3))  # fmt: skip


def encoder(bench: Bench, model: Any, responses: list[str]) -> Callable[[], Any]:
    """Return a call of sentence-transformers with mean pooling, without the chat template."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        bare = copy.deepcopy(bench.tokenizer)
        bare.chat_template = None
        bare.save_pretrained(folder)
        model.save_pretrained(folder)
        body = Transformer(folder, max_seq_length=512, model_kwargs={"dtype": "bfloat16"})
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean")
    made = SentenceTransformer(modules=[body, pooling], device=str(bench.device))
    return lambda: made.encode(responses, batch_size=32, show_progress_bar=False)


def plain(bench: Bench, model: Any, responses: list[str]) -> Iterator[torch.Tensor]:
    """Yield the mean hidden states of batches of 16, padded."""
    for start in range(0, len(responses), 16):
        batch = responses[start : start + 16]
        inputs = bench.tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=512)
        inputs = {name: inputs[name].to(bench.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            yield ((hidden * mask).sum(1) / mask.sum(1)).float().cpu()


def matmul_rate(bench: Bench, config: Any) -> float:
    """Return the FLOP a second of the model's widest product, with 8192 tokens (64 with `--small`), in bfloat16."""
    n = 64 if bench.args.small else 8192
    x, w = (
        torch.randn(rows, config.hidden_size, device=bench.device, dtype=torch.bfloat16)
        for rows in (n, config.intermediate_size)
    )
    return 20 * 2 * n * w.numel() / bench.seconds(lambda: [x @ w.T for _ in range(20)])


def gradients(bench: Bench) -> None:
    """Gradient features a second."""
    for size, config in SHAPES.items():
        _gradients(bench, size, get_peft_model(bench.model(config, torch.bfloat16), copy.deepcopy(LORA)))


def _gradients(bench: Bench, size: str, model: Any) -> None:
    prompts, responses = texts(bench.pairs(400))
    features = GradientFeatures(model, bench.tokenizer, GradientOptions())
    seconds = bench.seconds(lambda: features(prompts, responses, progress=False))
    bench.tell("gradients", size=size, responses_per_second=round(len(responses) / seconds, 2),
               method=features.method, attention=features.attention)  # fmt: skip


def step(bench: Bench) -> None:
    """The prompt-once step beside TRL's."""
    own = Path(__file__).with_name("training_step.py")
    shapes = {"equal lengths": ("20", "40"), "long prompt": ("300", "20"), "long responses": ("20", "200")}
    for name, (prompt, length) in list(shapes.items())[: 1 if bench.args.small else None]:
        flags = [
            "--pairs",
            "2" if bench.args.small else "8",
            "--prompt",
            prompt,
            "--length",
            length,
            "--only",
            "shared",
            "--rounds",
            "2",
        ]
        flags += ["--steps", "2" if bench.args.small else "10", "--lora"]
        if bench.args.model:
            flags += ["--model", bench.args.model]
        command = [sys.executable, str(own), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(60, bench.left))
        if done.returncode:
            raise RuntimeError(done.stderr[-500:])
        bench.tell("step", shape=name, table=done.stdout.splitlines()[-2:])


def design(bench: Bench) -> None:
    """The greedy design on many wide features."""
    n, d, k = (200, 32, 10) if bench.args.small else (200_000, 8192, 1000)
    generator = torch.Generator(bench.device).manual_seed(0)
    features = torch.randn(n, d, device=bench.device, generator=generator)
    features /= features.norm(dim=1, keepdim=True)
    began = time.perf_counter()
    found = greedy_design(features, k)
    bench.wait()
    bench.tell("design", n=n, d=d, k=k, seconds=round(time.perf_counter() - began, 2), log_det=found.log_det)


def generation(bench: Bench) -> None:
    """Greedy decoding by transformers' continuous batching, and samples by the own decoder."""
    model = bench.real(torch.bfloat16) if bench.args.model else bench.model(SHAPES["135M"], torch.bfloat16)
    prompts = bench.pairs(256)["prompt"][:]
    for name, temperature in (("greedy", 0.0), ("samples", 1.0)):
        settings = {"max_new_tokens": 8 if bench.args.small else 64, "temperature": temperature}
        found = generate(model, bench.tokenizer, [prompt[-400:] or "?" for prompt in prompts], **settings)
        bench.tell("generation", what=name, tokens_per_second=round(found.n_tokens / found.seconds, 1))


def quantized(bench: Bench) -> None:
    """Whether a 4-bit base with an adapter gives what its dequantized weights give, and whether rounds on it run."""
    if find_spec("bitsandbytes") is None:
        return bench.tell("quantized", skipped="needs bitsandbytes")
    with tempfile.TemporaryDirectory() as made:
        folder, (prompts, responses) = bench.args.model or made, texts(bench.pairs(16))
        if not bench.args.model:
            bench.model(SHAPES["135M"], torch.float32).save_pretrained(made)
            bench.tokenizer.save_pretrained(made)
        for dtype in (torch.float32, torch.bfloat16):
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
            where = {"quantization_config": config, "dtype": dtype, "device_map": {"": str(bench.device)}}
            models = [AutoModelForCausalLM.from_pretrained(folder, **where).eval() for _ in range(2)]
            values = [_values(bench, model, prompts, responses) for model in (models[0], models[1].dequantize())]
            off = {
                name: float((1 - torch.cosine_similarity(*rows)).max())
                for name, rows in zip(
                    ("embeddings_off", "log_probs_off", "gradients_off"), zip(*values, strict=True), strict=True
                )
            }
            bench.tell("quantized", dtype=str(dtype), **off)
        _rounds(bench, Path(made), folder, {"prompt": prompts, "responses": [[text, text[:30]] for text in responses]})
    return None


def _values(bench: Bench, model: Any, prompts: list[str], responses: list[str]) -> list[torch.Tensor]:
    """Return embeddings, log-probabilities and gradients, in this order, so that gradients come after other passes."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, copy.deepcopy(LORA))
    embeddings = Embedder(adapted, bench.tokenizer)(prompts, responses).vectors
    sums = ResponseLogProbs(adapted, bench.tokenizer)(prompts, responses).sums[None]
    return [
        embeddings,
        sums,
        GradientFeatures(adapted, bench.tokenizer, GradientOptions())(prompts, responses).vectors,
    ]


def _rounds(bench: Bench, made: Path, folder: str, pool: dict[str, list]) -> None:
    """Run two rounds on a base in 4 bits."""
    Dataset.from_dict({**pool, "scores": [[1.0, 0.0]] * len(pool["prompt"])}).to_parquet(made / "pool.parquet")
    bench.pairs(8).to_json(made / "test.jsonl")
    flags = (
        f"active --model {folder} --load_in_4bit --use_peft --dataset {made}/pool.parquet --selectors gradient easy"
    )
    flags += f" --rounds 2 --budget 4 --max_steps 9 --learning_rate 1e-3 --output_dir {made}/out"
    flags += f" --eval_dataset {made}/test.jsonl" + " --use_cpu True" * (bench.device.type == "cpu")
    command = [sys.executable, "-m", "trl_real.cli.main", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(60, bench.left))
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    bench.tell("quantized", rounds=done.stdout.splitlines())


def study(bench: Bench) -> None:
    """Savings with DPO: random, easy and easy@centered, as many seeds as fit."""
    if not (bench.args.model and bench.args.dataset):
        return bench.tell("study", skipped="needs --model and --dataset")
    for seed in range(1 if bench.args.small else 10):
        folder = f"{bench.args.output}.study"
        command = [sys.executable, "-m", "trl_real.cli.main", "study", "--engine", "dpo", "--model", bench.args.model]
        command += ["--dataset", bench.args.dataset, "--source", "hh_rlhf", "--output_dir", folder]
        command += ["--arms", "random", "easy", "easy@centered", "--budgets", "0.1", "0.2", "0.35", "1.0"]
        command += ["--seeds", *map(str, range(seed + 1)), "--use_peft", "--learning_rates", "1e-4"]
        try:  # cells that are there are kept
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, bench.left))
        except subprocess.TimeoutExpired:
            return bench.tell("study", seeds=seed, stopped="no time left", folder=folder)
        bench.tell("study", seeds=seed + 1, folder=folder, said=(done.stdout + done.stderr)[-600:])
        if done.returncode:
            return None
    return None


PARTS = {
    "exact": exact, "embedding": embedding, "gradients": gradients, "step": step, "generation": generation,
    "quantized": quantized, "design": design, "study": study,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint, such as SmolLM2-135M-Instruct's")
    parser.add_argument("--dataset", help="HH-RLHF as a file")
    parser.add_argument("--output", default="on_accelerator.jsonl", help="file of results, which grows")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins later")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device")
    parser.add_argument("--small", action="store_true", help="tiny models and little data, to try the code")
    args = parser.parse_args()
    bench = Bench(args)
    for name in args.parts:
        if bench.left <= 0:
            bench.tell(name, skipped="no time left")
            continue
        try:
            PARTS[name](bench)
        except Exception as error:  # the other parts are worth as much
            bench.tell(name, failed=f"{type(error).__name__}: {error}"[:600])
        gc.collect()


if __name__ == "__main__":
    main()
