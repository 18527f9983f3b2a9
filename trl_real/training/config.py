"""What REAL's trainer can be told, beyond what TRL's `DPOConfig` can."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import NamedTuple

from trl import DPOConfig

from trl_real.errors import TrlRealError
from trl_real.selection.strategies import STRATEGIES
from trl_real.training.label_confidence import reads_soft_labels
from trl_real.training.noise_window import shortest_window


class Range(NamedTuple):
    """What a number may be, and how that is written."""

    holds: Callable[[float], bool]
    written: str


class Reader(NamedTuple):
    """When a setting is read, and what to say and to type where it would be ignored; `{c}` is the configuration."""

    reads: Callable[[DPOConfig], bool]
    otherwise: str


SMOOTHED_LOSSES = ("aot", "aot_unpaired", "exo_pair", "robust")

RANGES = {
    "noise_smoothing": Range(lambda x: 0 <= x < 0.5, "a probability in [0, 0.5), such as SPA's 0.1"),
    "noise_share": Range(lambda x: 0 < x < 100, "a percentage in (0, 100), such as SPA's 10"),
    "noise_extrapolation": Range(lambda x: 0 <= x < math.inf, "a number of at least 0, such as SPA's 0.5"),
    "noise_warmup": Range(lambda x: 0 <= x < 1, "a share of the steps in [0, 1), such as SPA's 0.2"),
    "noise_window": Range(lambda x: x >= 1 and float(x).is_integer(), "a whole number of pairs, such as 512"),
}

_SMOOTHS = Reader(
    lambda c: c.noise_smoothing > 0,
    "it belongs to noise_smoothing, which is 0. Type noise_smoothing=0.1, or leave it out",
)

READERS = {
    "label_smoothing": Reader(
        lambda c: any(loss in SMOOTHED_LOSSES for loss in c.loss_type),
        f"loss_type={{c.loss_type}} does not read it, only {', '.join(SMOOTHED_LOSSES)} do. Type loss_type='robust', "
        "or give the rows a column 'label_confidence' of 1 - label_smoothing, or leave it out",
    ),
    "discopop_tau": Reader(
        lambda c: "discopop" in c.loss_type,
        "loss_type={c.loss_type} does not read it. Type loss_type='discopop', or leave it out",
    ),
    "f_alpha_divergence_coef": Reader(
        lambda c: c.f_divergence_type == "alpha_divergence",
        "f_divergence_type={c.f_divergence_type!r} does not read it. Type f_divergence_type='alpha_divergence', or "
        "leave it out",
    ),
    "noise_smoothing": Reader(
        reads_soft_labels,
        "it smooths DPO's own loss only, not loss_type={c.loss_type}, f_divergence_type={c.f_divergence_type!r}, "
        "use_weighting={c.use_weighting}. Type loss_type='sigmoid' with the other two left out, or leave it out",
    ),
    "noise_share": _SMOOTHS,
    "noise_extrapolation": _SMOOTHS,
    "noise_warmup": _SMOOTHS,
    "noise_window": _SMOOTHS,
}


@dataclass
class REALDPOConfig(DPOConfig):
    r"""
    Configuration of [`REALDPOTrainer`]: every parameter of [`~trl.DPOConfig`], with the same defaults, and those
    below. Two of them select: a strategy ranks the training pairs, a budget says how many of them are kept. The others
    are SPA's self-refinement (arXiv 2406.04412), which trusts a label less where the model itself doubts it.

    A setting that the chosen loss would not read, TRL's `label_smoothing` among them, is an error.

    A command line and a YAML file cannot tell 1 from 1.0, so a budget goes by its value and not, as in
    [`EmbeddingPairSelector.select`], by its type: up to 1 it is a share, above 1 a number of rows. `1` keeps every
    pair that can be trained on.

    Args:
        selection_strategy (`str`, *optional*):
            Keep the pairs that this strategy ranks first, by their responses' embeddings in the model that is trained
            (REAL, arXiv 2409.17169): a name in `STRATEGIES`. By default nothing is selected, and the trainer is
            [`~trl.DPOTrainer`].
        selection_budget (`float`, *optional*):
            How much of the training set is kept: a share in (0, 1] of the rows with a pair, or a whole number of rows
            above 1.
        noise_smoothing (`float`, *optional*, defaults to `0.0`):
            SPA's alpha in [0, 0.5): the probability that a doubtful pair's label is wrong. 0 trusts every label.
        noise_share (`float`, *optional*, defaults to `10.0`):
            SPA's K in (0, 100), percent: a pair is doubtful if its implicit reward margin is among the lowest K % of
            the last `noise_window` pairs, counted over all processes.
        noise_extrapolation (`float`, *optional*, defaults to `0.0`):
            SPA's lambda, at least 0: margins are told by the policy extrapolated away from the reference, with logits
            `(1 + lambda) h_policy - lambda h_reference`. Costs a pass of the language model's head in a step, and with
            precomputed log probabilities a forward of the reference.
        noise_warmup (`float`, *optional*, defaults to `0.2`):
            Share of the steps, in [0, 1), before labels are smoothed.
        noise_window (`int`, *optional*, defaults to `512`):
            How many of the last pairs the lowest share is taken of.

    Raises:
        TrlRealError: If there is no such strategy, if the budget is neither a share nor a number of rows, or if one is
            given without the other; if a number is out of its range; if a setting would be ignored.
    """

    selection_strategy: str | None = field(
        default=None,
        metadata={
            "help": "Keep the training pairs that this strategy ranks first, by their responses' embeddings in the "
            f"model that is trained: {', '.join(STRATEGIES)}. By default nothing is selected. Needs selection_budget."
        },
    )
    selection_budget: float | None = field(
        default=None,
        metadata={
            "help": "How much of the training set selection_strategy keeps: up to 1 a share of the rows with a pair "
            "(0.25 for a quarter), above 1 a number of rows."
        },
    )
    noise_smoothing: float = field(
        default=0.0,
        metadata={"help": "SPA's alpha in [0, 0.5): how probably a doubtful pair's label is wrong; 0 is never."},
    )
    noise_share: float = field(
        default=10.0,
        metadata={"help": "SPA's K in percent: the pairs with the lowest margins of late that count as doubtful."},
    )
    noise_extrapolation: float = field(
        default=0.0,
        metadata={"help": "SPA's lambda: tell the margins by the policy extrapolated away from the reference."},
    )
    noise_warmup: float = field(
        default=0.2, metadata={"help": "Share of the steps, in [0, 1), before doubtful labels are smoothed."}
    )
    noise_window: int = field(
        default=512, metadata={"help": "How many of the last pairs the share of doubtful ones is taken of."}
    )

    def __post_init__(self):
        strategy, budget = self.selection_strategy, self.selection_budget
        if strategy is not None and strategy not in STRATEGIES:
            raise TrlRealError(f"No selection_strategy {strategy!r}; there are {', '.join(STRATEGIES)}.")
        if strategy is not None and budget is None:
            raise TrlRealError(
                f"selection_strategy={strategy!r} without selection_budget would keep every pair. "
                "Give a share such as selection_budget=0.25, or a number of rows."
            )
        if strategy is None and budget is not None:
            raise TrlRealError(
                f"selection_budget={budget!r} without selection_strategy would be ignored. "
                f"Give selection_strategy='easy' (or one of {', '.join(STRATEGIES)}), or leave the budget out."
            )
        self.selection_budget = _share_or_rows(budget)
        for name, allowed in RANGES.items():
            check_number(name, getattr(self, name), allowed)
        super().__post_init__()
        check_read(self)
        if self.noise_window < shortest_window(self.noise_share):
            raise TrlRealError(
                f"noise_window={self.noise_window} is too short to tell noise_share={self.noise_share} percent. "
                f"Type noise_window={shortest_window(self.noise_share)} or more."
            )


def check_number(name: str, value: float, allowed: Range) -> None:
    """
    Raises:
        TrlRealError: If a setting is no number, or not one of those allowed.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not allowed.holds(value):
        raise TrlRealError(f"{name}={value!r} is not {allowed.written}.")


def check_read(config: DPOConfig) -> None:
    """
    Raises:
        TrlRealError: About the first setting that differs from its default and that nothing would read.
    """
    defaults = {setting.name: setting.default for setting in fields(config)}
    for name, reader in READERS.items():
        value = getattr(config, name)
        if value != defaults[name] and not reader.reads(config):
            raise TrlRealError(f"{name}={value!r} would be ignored: {reader.otherwise.format(c=config)}.")


def _share_or_rows(budget: float | None) -> float | int | None:
    """The budget as the selector takes it: a float is a share, an int a number of rows."""
    if budget is None:
        return None
    number = isinstance(budget, Real) and not isinstance(budget, bool)
    if not number or not budget > 0 or (budget > 1 and not float(budget).is_integer()):
        raise TrlRealError(
            f"selection_budget={budget!r} is neither a share in (0, 1] nor a whole number of rows above 1. "
            "Type selection_budget=0.25 for a quarter of the pairs, or selection_budget=1000 for so many rows."
        )
    return float(budget) if budget <= 1 else int(budget)
