"""Configuration of `REALDPOTrainer`: TRL's `DPOConfig` with pair selection and label noise."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import NamedTuple

from trl import DPOConfig

from trl_real.errors import TrlRealError
from trl_real.selection.mixture.parts import MIXTURES, mixture_name, parts_of
from trl_real.selection.strategies import STRATEGIES
from trl_real.training.label_confidence import reads_soft_labels
from trl_real.training.noise_window import shortest_window


class Range(NamedTuple):
    """Allowed values of a number, and their description in error messages."""

    contains: Callable[[float], bool]
    description: str


class Requirement(NamedTuple):
    """Condition for a setting to have an effect, and the message without it; `{c}` is the configuration."""

    is_met: Callable[[DPOConfig], bool]
    message: str


ONE = (
    "selection_budget=1 could mean every pair or, as in select, one row. Type 1.0 for every pair that can be trained "
    "on, or leave both selection settings out."
)
SMOOTHED_LOSSES = ("aot", "aot_unpaired", "exo_pair", "robust")

RANGES = {
    "noise_smoothing": Range(lambda x: 0 <= x < 0.5, "a probability in [0, 0.5), such as SPA's 0.1"),
    "noise_share": Range(lambda x: 0 < x < 100, "a percentage in (0, 100), such as SPA's 10"),
    "noise_extrapolation": Range(lambda x: 0 <= x < math.inf, "a number of at least 0, such as SPA's 0.5"),
    "noise_warmup": Range(lambda x: 0 <= x < 1, "a share of the steps in [0, 1), such as SPA's 0.2"),
    "noise_window": Range(lambda x: x >= 1 and float(x).is_integer(), "a whole number of pairs, such as 512"),
}

_NEEDS_SMOOTHING = Requirement(
    lambda c: c.noise_smoothing > 0,
    "it needs noise_smoothing, which is 0. Type noise_smoothing=0.1, or leave it out",
)

REQUIREMENTS = {
    "label_smoothing": Requirement(
        lambda c: any(loss in SMOOTHED_LOSSES for loss in c.loss_type),
        f"loss_type={{c.loss_type}} does not read it, only {', '.join(SMOOTHED_LOSSES)} do. Type loss_type='robust', "
        "or add a column 'label_confidence' with the value 1 - label_smoothing, or leave it out",
    ),
    "discopop_tau": Requirement(
        lambda c: "discopop" in c.loss_type,
        "loss_type={c.loss_type} does not read it. Type loss_type='discopop', or leave it out",
    ),
    "f_alpha_divergence_coef": Requirement(
        lambda c: c.f_divergence_type == "alpha_divergence",
        "f_divergence_type={c.f_divergence_type!r} does not read it. Type f_divergence_type='alpha_divergence', or "
        "leave it out",
    ),
    "noise_smoothing": Requirement(
        reads_soft_labels,
        "it only smooths DPO's own loss, not loss_type={c.loss_type}, f_divergence_type={c.f_divergence_type!r}, "
        "use_weighting={c.use_weighting}. Type loss_type='sigmoid' with the other two left out, or leave it out",
    ),
    "noise_share": _NEEDS_SMOOTHING,
    "noise_extrapolation": _NEEDS_SMOOTHING,
    "noise_warmup": _NEEDS_SMOOTHING,
    "noise_window": _NEEDS_SMOOTHING,
}
# Settings that transformers 5.23 renamed: the old names work until version 6, and older versions know no others.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


@dataclass
class REALDPOConfig(DPOConfig):
    r"""
    Configuration of [`REALDPOTrainer`]. It has all parameters of [`~trl.DPOConfig`], with the same defaults, and those
    below. The `selection_` parameters select training pairs: a strategy ranks them, a budget says how many to keep.
    The `noise_` parameters are SPA's self-refinement (arXiv 2406.04412), which trusts a label less if the model doubts
    it.

    A setting that the chosen loss ignores, including TRL's `label_smoothing`, raises an error.

    A command line and a YAML file do not distinguish 1 from 1.0. Therefore the value of a budget decides, not its type
    as in [`EmbeddingPairSelector.select`]: up to 1 it is a share, above 1 a number of rows. `1.0` keeps every pair
    that can be trained on; `1` is refused, since it is one row there.

    Args:
        selection_strategy (`str` or function, *optional*):
            Strategy that ranks the pairs by embeddings of their responses in the model to train (REAL, arXiv
            2409.17169): a name in `STRATEGIES`, a name with a geometry such as `"easy@centered"`, a function, or a
            mixture (`"auto"`, `"easy@centered+random"`, a dict of shares), as [`EmbeddingPairSelector`] takes them.
            By default all pairs are kept, as in [`~trl.DPOTrainer`].
        selection_budget (`float`, *optional*):
            Part of the training set to keep: a share in (0, 1] of the rows with a pair, or a whole number of rows
            above 1.
        noise_smoothing (`float`, *optional*, defaults to `0.0`):
            SPA's alpha in [0, 0.5): probability that the label of a doubtful pair is wrong. 0 trusts every label.
        noise_share (`float`, *optional*, defaults to `10.0`):
            SPA's K in (0, 100), percentage of doubtful pairs: a pair is doubtful if its implicit reward margin is
            among the lowest K % of the last `noise_window` pairs of all processes.
        noise_extrapolation (`float`, *optional*, defaults to `0.0`):
            SPA's lambda, at least 0: margins are computed with a policy extrapolated away from the reference, with
            logits `(1 + lambda) h_policy - lambda h_reference`. Each step then also runs the language model's head
            and, with precomputed log probabilities, a forward pass of the reference.
        noise_warmup (`float`, *optional*, defaults to `0.2`):
            Share of the training steps, in [0, 1), before labels are smoothed.
        noise_window (`int`, *optional*, defaults to `512`):
            Number of the last pairs among which the doubtful ones are found.
        as_messages (`bool`, *optional*, defaults to `False`):
            Whether texts of training and evaluation sets become messages, for chat models: a prompt a message of the
            user, a response one of the assistant ([`as_chat`]).
        shared_prompts (`bool`, *optional*):
            Whether the prompt that two responses share is read once, without padding; losses and gradients stay the
            same, up to rounding. By default it is, wherever a check on the model finds that it may. True makes it an
            error where it may not; with dropout, rows then share the mask of their common tokens. False runs TRL's
            step, bit for bit.

    Raises:
        TrlRealError: If the strategy is unknown, if the budget is neither a share nor a number of rows, or if only one
            of the two is given; if a number is out of its range; if a setting would be ignored.
    """

    # `None` is second: the argument parser of transformers takes the first type then.
    selection_strategy: str | None | Callable | dict = field(
        default=None,
        metadata={
            "help": "Strategy that ranks the training pairs by embeddings of their responses in the model to train: "
            + "; ".join(f"{name} ({strategy.help})" for name, strategy in STRATEGIES.items())
            + ". A geometry may follow, as in easy@centered. Several may share the budget: easy@centered+random, or "
            f"{', '.join(MIXTURES)}. By default all pairs are kept. Needs selection_budget."
        },
    )
    selection_budget: float | None = field(
        default=None,
        metadata={
            "help": "Part of the training set that selection_strategy keeps: up to 1 a share of the rows with a pair "
            "(0.25 for a quarter), above 1 a number of rows."
        },
    )
    noise_smoothing: float = field(
        default=0.0,
        metadata={"help": "SPA's alpha in [0, 0.5): probability that the label of a doubtful pair is wrong."},
    )
    noise_share: float = field(
        default=10.0,
        metadata={
            "help": "SPA's K in (0, 100): percentage of pairs that are doubtful, those with the lowest margins."
        },
    )
    noise_extrapolation: float = field(
        default=0.0,
        metadata={"help": "SPA's lambda: compute margins with the policy extrapolated away from the reference."},
    )
    noise_warmup: float = field(
        default=0.2, metadata={"help": "Share of the training steps, in [0, 1), before labels are smoothed."}
    )
    noise_window: int = field(
        default=512, metadata={"help": "Number of the last pairs among which the doubtful ones are found."}
    )
    as_messages: bool = field(
        default=False,
        metadata={
            "help": "Whether text prompts become messages of the user and text responses messages of the assistant, "
            "for chat models."
        },
    )
    shared_prompts: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the prompt of two responses is read once, without padding; losses are the same up to "
            "rounding. By default wherever a check on the model allows it; true: or an error; false: TRL's own step."
        },
    )

    def __post_init__(self):
        strategy, budget = self.selection_strategy, self.selection_budget
        if strategy is not None:
            try:
                parts_of(strategy)
            except TrlRealError as error:
                raise TrlRealError(str(error).replace("No strategy", "No selection_strategy", 1)) from None
            if isinstance(strategy, Mapping) and all(isinstance(name, str) for name in strategy):
                self.selection_strategy = strategy = mixture_name(strategy)  # can be saved with a checkpoint
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
        for old, new in RENAMED.items():  # TRL sets the old name, which warns
            if getattr(self, new, 0) is None:
                setattr(self, new, getattr(self, old))
        super().__post_init__()
        check_has_effect(self)
        if self.noise_window < shortest_window(self.noise_share):
            raise TrlRealError(
                f"noise_window={self.noise_window} is too short for noise_share={self.noise_share} percent. "
                f"Type noise_window={shortest_window(self.noise_share)} or more."
            )


def check_number(name: str, value: float, allowed: Range) -> None:
    """
    Check that a setting is a number in its range.

    Raises:
        TrlRealError: If it is not.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not allowed.contains(value):
        raise TrlRealError(f"{name}={value!r} is not {allowed.description}.")


def check_has_effect(config: DPOConfig) -> None:
    """
    Check that every setting with a value other than its default has an effect.

    Raises:
        TrlRealError: If a setting would be ignored.
    """
    defaults = {setting.name: setting.default for setting in fields(config)}
    for name, requirement in REQUIREMENTS.items():
        if name not in defaults:  # a plain DPOConfig
            continue
        value = getattr(config, name)
        if value != defaults[name] and not requirement.is_met(config):
            raise TrlRealError(f"{name}={value!r} would be ignored: {requirement.message.format(c=config)}.")


def _share_or_rows(budget: float | None) -> float | int | None:
    """Return the budget in the selector's types: float for a share, int for a number of rows."""
    if budget is None:
        return None
    is_number = isinstance(budget, Real) and not isinstance(budget, bool)
    if not is_number or not budget > 0 or (budget > 1 and not float(budget).is_integer()):
        raise TrlRealError(
            f"selection_budget={budget!r} is neither a share in (0, 1] nor a whole number of rows above 1. "
            "Type selection_budget=0.25 for a quarter of the pairs, or selection_budget=1000 for 1000 rows."
        )
    if budget == 1 and isinstance(budget, Integral):
        raise TrlRealError(ONE)
    return float(budget) if budget <= 1 else int(budget)
