"""Record of the estimated cost of a selection."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from trl_real.selection.planning.cost import (
    SCORE_BYTES,
    ModelShape,
    feature_bytes,
    folder_bytes,
    money_of,
    seconds_of,
    weight_bytes,
)
from trl_real.selection.planning.hardware import Hardware


SIZES = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
DERIVED = ("tokenize_seconds", "seconds", "money", "label_money", "weight_bytes", "score_bytes", "folder_bytes")
TIMES = {"days": 86400.0, "h": 3600.0, "min": 60.0}


class Estimate(NamedTuple):
    """
    Total over the pool, estimated from a sample.

    Args:
        value: Mean of the sample times the number of rows.
        error: Standard error; 0 if every row was read.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:,.0f}" + (f" (+- {self.error:,.0f})" if self.error else "")


@dataclass(frozen=True)
class SelectionPlan:
    """
    Estimated cost of a selection.

    Args:
        n_rows (`int`): Number of rows in the pool.
        n_sample (`int`): Number of rows that were read.
        pairs (`Estimate`): Number of rows with a pair.
        responses (`Estimate`): Number of responses in those rows, equal ones included.
        tokens (`Estimate`): Number of tokens that the model reads.
        text_bytes (`Estimate`): Bytes of the texts that the selection writes.
        truncation_rate (`float`): Share of the sample's responses that are cut to `max_length`.
        model (`str`, *optional*): Name of the model; None if no model runs.
        shape (`ModelShape`, *optional*): Counts of the model.
        dtype (`str`): Precision of weights and products.
        flops (`Estimate`): Operations of the forward passes.
        hardware (`Hardware`): Device.
        n_devices (`int`): Number of devices.
        tokenizing (`float`): Seconds of the tokenizer in one process on this machine.
        kept_width (`int`): Numbers per row that the work folder stores for `d_optimal`'s budget; 0 without it.
        price (`float`): USD per device and hour.
        labels (`int`): Number of labels in the budget.
        price_per_label (`float`, *optional*): USD per label.
        again (`str`): Rows that half precision embeds again in float32, in words; empty if half precision is not used.
    """

    n_rows: int
    n_sample: int
    pairs: Estimate
    responses: Estimate
    tokens: Estimate
    text_bytes: Estimate
    truncation_rate: float
    model: str | None
    shape: ModelShape | None
    dtype: str
    flops: Estimate
    hardware: Hardware
    n_devices: int
    tokenizing: float
    kept_width: int
    price: float
    labels: int
    price_per_label: float | None = None
    again: str = "rows near the cut are"

    @property
    def compute_seconds(self) -> Estimate:
        """Seconds of the forward passes, divided among the devices; the error is of the sample only."""
        return self._compute_seconds(self.dtype)

    @property
    def tokenize_seconds(self) -> float:
        """Seconds of the tokenizer, in one process per device."""
        return self.tokenizing / self.n_devices

    @property
    def seconds(self) -> float:
        """Seconds of tokenizer and forward passes, without the time to load data and model."""
        return self.compute_seconds.value + self.tokenize_seconds

    @property
    def money(self) -> float:
        """USD for the devices."""
        return money_of(self.seconds * self.n_devices, self.price)

    @property
    def label_money(self) -> float | None:
        """USD for the labels; None without a price."""
        return None if self.price_per_label is None else self.labels * self.price_per_label

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights on each device."""
        return weight_bytes(self.shape, self.dtype) if self.shape else 0.0

    @property
    def score_bytes(self) -> float:
        """Bytes in memory for the cut."""
        return float(SCORE_BYTES * self.n_rows)

    @property
    def folder_bytes(self) -> float:
        """Bytes of the work folder on disk, before compression."""
        texts = folder_bytes(self.n_rows, self.text_bytes.value / self.n_rows)
        return texts + feature_bytes(self.pairs.value, self.kept_width)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and derived values as JSON values."""
        values = {name: v._asdict() if hasattr(v, "_asdict") else v for name, v in vars(self).items()}
        values["hardware"]["shares"] = self.hardware.shares._asdict()
        follows = {name: getattr(self, name) for name in DERIVED}
        return {**values, "compute_seconds": self.compute_seconds._asdict(), **follows}

    def summary(self) -> str:
        """Return a few lines of text."""
        looked = "every row read" if self.n_sample == self.n_rows else f"estimated from {self.n_sample:,} rows"
        cost = "type --price_per_label for their cost"
        if self.price_per_label is not None:
            cost = f"{self.label_money:,.2f} USD at {self.price_per_label:g} per label"
        return "\n".join(
            [
                f"pool: {self.n_rows:,} rows, {self.pairs} with a pair, {self.responses} responses; {looked}",
                *(self._model_lines(self.shape) if self.shape else ["model: none"]),
                f"disk: {shown_bytes(self.folder_bytes)} for the work folder, before compression",
                f"labels: {self.labels:,.0f}; {cost}",
            ]
        )

    def _model_lines(self, shape: ModelShape) -> list[str]:
        device, compute = self.hardware, self.compute_seconds
        lines = [
            f"tokens: {self.tokens}; {self.truncation_rate:.1%} of the responses are cut",
            f"model: {self.model}, {shape.total / 1e6:,.1f} M parameters, "
            f"{shape.active / 1e6:,.1f} M of them active per token",
            f"memory: {shown_bytes(self.weight_bytes)} of weights in {self.dtype} on each device"
            + self._room()
            + f", {shown_bytes(self.score_bytes)} for the cut",
            f"work: {self.flops.value:.3g} FLOP",
            f"time: {shown_seconds(self.seconds)} on {self.n_devices} x {device.name}: forward passes "
            f"{shown_seconds(compute.value)} (+- {shown_seconds(compute.error)} by the sample) at "
            f"{device.mfu(shape.width):.0%} of peak, tokenizing {shown_seconds(self.tokenize_seconds)}",
            f"  ({device.source})",
            f"money: {self.money:,.2f} USD at {self.price:g} per device and hour",
        ]
        if self.dtype != "float32":
            lines.insert(-1, f"  not counted: {self.again} embedded again in float32")
        faster = self._compute_seconds("bfloat16").value
        if self.again and self.dtype == "float32" and device.memory and faster < compute.value / 2:
            lines.insert(-1, f"  --dtype bfloat16: forward passes {shown_seconds(faster)}, and the same rows chosen")
        return lines

    def _room(self) -> str:
        if not self.hardware.memory:
            return ""
        fits = "" if self.weight_bytes < self.hardware.memory else ": they do NOT fit"
        return f" of {shown_bytes(self.hardware.memory)}{fits}"

    def _compute_seconds(self, dtype: str) -> Estimate:
        if self.shape is None:
            return Estimate(0.0, 0.0)
        each = (seconds_of(part, self.hardware, dtype, self.shape.width) for part in self.flops)
        return Estimate(*(seconds / self.n_devices for seconds in each))


def shown_bytes(n: float) -> str:
    """Return bytes with their unit, such as `1.5 GB`."""
    unit, size = next(((unit, size) for unit, size in SIZES.items() if n >= size), ("", 1.0))
    return f"{n / size:,.3g} {unit}B" if unit else f"{n:.0f} bytes"


def shown_seconds(seconds: float) -> str:
    """Return a time with its unit, such as `3.2 h`."""
    unit, size = next(((unit, size) for unit, size in TIMES.items() if seconds >= 2 * size), ("s", 1.0))
    return f"{seconds / size:,.0f} {unit}" if seconds >= 100 * size else f"{seconds / size:.2g} {unit}"
