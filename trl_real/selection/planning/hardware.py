"""Speed and price of devices: measured for a CPU, from data sheets and assumptions for GPUs."""

from typing import NamedTuple

from trl_real.errors import TrlRealError


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # per number


class Shares(NamedTuple):
    """
    Shares of the peak that jobs reach, each in (0, 1] and without padding tokens, and the overhead of a step.

    Args:
        packed: Share of forward passes over packed sequences.
        padded: Share of forward passes over padded prompts, before generation.
        backward: Share of gradient features, forward and backward.
        decode: Share of products with few rows, one token of each response.
        bandwidth: Share of the bandwidth when weights are read during generation.
        layer_seconds: Overhead per layer and generated token, mostly to launch operations; 0 with CUDA graphs.
        half_width: Hidden size with which a model reaches half of these shares, since small products leave a GPU idle;
            0 if the width does not matter.
    """

    packed: float
    padded: float
    backward: float
    decode: float
    bandwidth: float
    layer_seconds: float
    half_width: int


class Hardware(NamedTuple):
    """
    One device: a GPU, or for a CPU one core.

    Args:
        name: Name to print.
        half: Peak of dense matrix products in bfloat16 or float16, in FLOP per second.
        single: Peak in float32 (TF32 is off by default), in FLOP per second.
        bandwidth: Bandwidth of the memory with the weights, in bytes per second.
        memory: Memory in bytes; 0 if unknown.
        price: USD per device and hour, an assumption: prices differ by a factor of four.
        shares: Shares of the peaks that jobs reach.
        source: Source of the figures.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: float
    price: float
    shares: Shares
    source: str

    def peak(self, dtype: str) -> float:
        """Return the peak FLOP per second of matrix products in this precision."""
        return self.single if dtype == "float32" else self.half

    def mfu(self, width: int, job: str = "packed") -> float:
        """Return the share of the peak that a job reaches with hidden size `width`, which is half at `half_width`."""
        return getattr(self.shares, job) * width / (width + self.shares.half_width)


ESTIMATE = "an estimate: peaks from data sheets; shares of the peak and price are assumptions, not measured"
MEASURED = "measured on 2026-11-25; the price is an assumption"

# Packed, padded, backward: SmolLM2-135M on an AVX-512 CPU. The others on the CPU of docs/scale.md: decode
# compares products of 16 and 1,024 rows, bandwidth products of one row and reads; layer_seconds is the rest.
CPU_SHARES = Shares(0.85, 0.6, 0.62, 0.47, 0.66, 7e-4, 0)
GPU_SHARES = Shares(0.5, 0.35, 0.4, 0.3, 0.6, 7e-4, 2048)

HARDWARE: dict[str, Hardware] = {  # without sparsity
    "cpu": Hardware("one CPU core (AVX2)", 9e9, 70e9, 18e9, 0, 0.05, CPU_SHARES, MEASURED),
    "l4": Hardware("L4 24 GB", 121e12, 30.3e12, 300e9, 24e9, 0.8, GPU_SHARES, ESTIMATE),
    "rtx4090": Hardware("RTX 4090 24 GB", 165e12, 82.6e12, 1008e9, 24e9, 0.5, GPU_SHARES, ESTIMATE),
    "a100": Hardware("A100 80 GB SXM", 312e12, 19.5e12, 2039e9, 80e9, 1.8, GPU_SHARES, ESTIMATE),
    "h100": Hardware("H100 80 GB SXM", 989e12, 67e12, 3350e9, 80e9, 2.5, GPU_SHARES, ESTIMATE),
    "h200": Hardware("H200 141 GB SXM", 989e12, 67e12, 4800e9, 141e9, 3.5, GPU_SHARES, ESTIMATE),
}


def hardware_named(name: str) -> Hardware:
    """Return the row of `HARDWARE` with this name; TrlRealError if there is none."""
    if name not in HARDWARE:
        raise TrlRealError(f"No hardware {name!r}; there are {', '.join(HARDWARE)}. Type --hardware h100.")
    return HARDWARE[name]
