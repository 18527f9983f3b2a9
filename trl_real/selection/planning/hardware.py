"""What a device can do in a second and costs in an hour: measured for a CPU, data sheets and assumptions for GPUs."""

from typing import NamedTuple

from trl_real.errors import TrlRealError


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # a number


class Shares(NamedTuple):
    """
    What is reached of a peak, each in (0, 1] and counted in real tokens, and what a step costs beside.

    Args:
        packed: Forward passes over packed sequences.
        padded: Forward passes over prompts that are padded to the longest, before writing.
        backward: Gradient features, there and back.
        decode: Products of few rows, one token of each response.
        bandwidth: Reads of the weights while writing.
        layer_seconds: Of each layer and step of writing, for everything that is not products or reads: PyTorch starts
            every operation by itself. 0 for servers that do not (CUDA graphs).
        half_width: Width of a model that reaches half of these shares of the products, since small ones leave a GPU
            idle; 0 if the width does not matter.
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
        name: Of the device, for people.
        half: Peak of matrix products in bfloat16 or float16, dense, in FLOP a second.
        single: Peak in float32 (TF32 is off by default), in FLOP a second.
        bandwidth: Of the memory that holds the weights, in bytes a second.
        memory: In bytes; 0 if it is whatever the machine has.
        price: USD a device and hour: an assumption always, rents differ by a factor of four.
        shares: What is reached of the peaks.
        source: Where the figures come from.
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
        """FLOP a second in matrix products of this type."""
        return self.single if dtype == "float32" else self.half

    def mfu(self, width: int, job: str = "packed") -> float:
        """Share of the peak that a job reaches in a model of hidden size `width`: half of it at `half_width`."""
        return getattr(self.shares, job) * width / (width + self.shares.half_width)


ESTIMATE = "an estimate: peaks from data sheets, the shares of them and the price are assumptions, not measured"
MEASURED = "measured on 2026-11-25; the price is an assumption"

# Packed, padded, backward: SmolLM2-135M on an AVX-512 CPU. The others: products of 16 rows and of one against those of
# 1,024 and against reads on the CPU of docs/scale.md; layer_seconds is what was left of writing one token there.
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
    """
    A row of `HARDWARE`.

    Raises:
        TrlRealError: If there is none of this name.
    """
    if name not in HARDWARE:
        raise TrlRealError(f"No hardware {name!r}; there are {', '.join(HARDWARE)}. Type --hardware h100.")
    return HARDWARE[name]
