"""
The tables of docs/scale.md: what 1 M, 100 M and 1 B responses cost on 1, 8 and 64 GPUs, by the cost model.

    python benchmarks/scale_tables.py --hardware h100 --tokenize_rate 350000

Every figure is an estimate. Models are counted from their configs, without weights. Prompts have 150 tokens (HH-RLHF:
148), four responses each; precision is bfloat16; the devices share the work and lose nothing.
"""

import argparse

import torch
from cost_model import (
    GradientTokens,
    JudgePrice,
    Writing,
    generation_seconds,
    gradient_flops,
    judge_money,
    people_money,
)
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from trl_real.selection.planning.cost import (
    ModelShape,
    feature_bytes,
    folder_bytes,
    forward_flops,
    money_of,
    seconds_of,
    weight_bytes,
)
from trl_real.selection.planning.hardware import Hardware, hardware_named
from trl_real.selection.planning.model_shape import model_shape
from trl_real.selection.planning.plan_record import shown_bytes, shown_seconds


MODELS = {
    "135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "1.5B": Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    ),
}  # fmt: skip
RESPONSES = {"1 M": 1e6, "100 M": 1e8, "1 B": 1e9}
TOKENS = (45, 250)  # of a response: HH-RLHF, UltraFeedback
PROMPT, PER_PROMPT = 150, 4
DEVICES = (1, 8, 64)
DTYPE, RANK, DIM = "bfloat16", 8, 8192
BATCH, SERVED_BATCH = 64, 256
CHARACTERS = 4.5  # of a token
JUDGE = JudgePrice(0.15, 0.6)  # USD a million tokens: a small hosted model
PEOPLE_SECONDS, WAGE = 60, 20


def embedding(shape: ModelShape, n: float, length: int, device: Hardware) -> float:
    """Seconds on one device to embed responses alone."""
    return seconds_of(forward_flops(shape, n * length, length), device, DTYPE, shape.width)


def gradients(shape: ModelShape, n: float, length: int, device: Hardware) -> float:
    """Seconds on one device for each response's own gradient, the prompt read once a prompt."""
    tokens = GradientTokens(n * (length + PROMPT / PER_PROMPT), n * (length + PROMPT), n * length)
    return seconds_of(gradient_flops(shape, tokens, PROMPT + length, RANK), device, DTYPE, shape.width, "backward")


def generation(shape: ModelShape, n: float, length: int, device: Hardware, batch: int = BATCH) -> float:
    """Seconds on one device to write responses."""
    found = generation_seconds(shape, Writing(n / PER_PROMPT, PROMPT, n, length, batch), device, DTYPE)
    return found.prefill + found.decode


def served(shape: ModelShape, n: float, length: int, device: Hardware) -> float:
    """The same by a server that starts a step at once."""
    quick = device._replace(shares=device.shares._replace(layer_seconds=0.0))
    return generation(shape, n, length, quick, SERVED_BATCH)


JOBS = {
    "embedding": embedding,
    "gradient features": gradients,
    "generation": generation,
    "generation, served": served,
}


def counted(config) -> ModelShape:
    """A model's counts from its config."""
    with torch.device("meta"):
        return model_shape(AutoModelForCausalLM.from_config(config))


def device_rows(shapes: dict[str, ModelShape], device: Hardware):
    """Lines of the large table."""
    for name, shape in shapes.items():
        for job, seconds in JOBS.items():
            for length in TOKENS:
                cells = [name, job, str(length)]
                for n in RESPONSES.values():
                    spent = seconds(shape, n, length, device)
                    times = " / ".join(shown_seconds(spent / n_devices) for n_devices in DEVICES)
                    cells.append(f"{times}; {shown_money(money_of(spent, device.price))}")
                yield cells


def label_rows():
    """Lines of the table of labels: a quarter of the prompts, one pair each."""
    for length in TOKENS:
        for who in ("judge", "people"):
            cells = [who, str(length)]
            for n in RESPONSES.values():
                pairs = n / PER_PROMPT / 4
                judged = judge_money(pairs, PROMPT, length, JUDGE)
                paid = judged if who == "judge" else people_money(pairs, PEOPLE_SECONDS, WAGE)
                cells.append(f"{pairs:,.0f} labels: {shown_money(paid)}")
            yield cells


def other_rows(shapes: dict[str, ModelShape], tokenize_rate: float):
    """Lines of the table of bytes and of the tokenizer."""
    rows = list(RESPONSES.values())
    for length in TOKENS:
        text = 2 * length * CHARACTERS
        yield [f"work folder, {length} tokens", *(shown_bytes(folder_bytes(n / PER_PROMPT, text)) for n in rows)]
    yield ["the cut, in memory", *(shown_bytes(8 * n / PER_PROMPT) for n in rows)]
    for name, shape in shapes.items():
        yield [f"embeddings of {name}, were they kept", *(shown_bytes(feature_bytes(n, shape.width)) for n in rows)]
    for kind in ("float32", "bfloat16"):
        yield [f"gradient features, d = {DIM}, {kind}", *(shown_bytes(feature_bytes(n, DIM, kind)) for n in rows)]
    for length in TOKENS:
        cells = (shown_seconds(n * length / tokenize_rate) for n in rows)
        yield [f"tokenizing in one process, {length} tokens", *cells]


def shown_money(usd: float) -> str:
    """USD, to two figures or whole thousands."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if usd >= size:
            return f"${usd / size:.3g} {unit}"
    return f"${usd:.2f}" if usd < 10 else f"${usd:.0f}"


def table(heads: list[str], rows) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


def main() -> None:
    """Print the Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="h100")
    parser.add_argument("--tokenize_rate", type=float, default=3.5e5, help="tokens a second of one process")
    args = parser.parse_args()
    device, shapes = hardware_named(args.hardware), {name: counted(config) for name, config in MODELS.items()}
    for name, shape in shapes.items():
        print(
            f"* {name}: {shape.total / 1e6:,.1f} M weights ({shown_bytes(weight_bytes(shape, DTYPE))}), "
            f"{shape.active / 1e6:,.1f} M of them in the layers; {device.mfu(shape.width):.0%} of peak"
        )
    print(f"\n{device.name}, {device.price} USD an hour, {device.source}\n")
    print(table(["model", "job", "tokens", *RESPONSES], device_rows(shapes, device)))
    print(table(["labels by", "tokens", *RESPONSES], label_rows()))
    print(table(["what", *RESPONSES], other_rows(shapes, args.tokenize_rate)))


if __name__ == "__main__":
    main()
