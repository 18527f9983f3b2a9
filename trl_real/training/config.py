"""What REAL's trainer can be told, beyond what TRL's `DPOConfig` can."""

from dataclasses import dataclass, field
from numbers import Real

from trl import DPOConfig

from trl_real.errors import TrlRealError
from trl_real.selection.strategies import STRATEGIES


@dataclass
class REALDPOConfig(DPOConfig):
    r"""
    Configuration of [`REALDPOTrainer`]: every parameter of [`~trl.DPOConfig`], with the same defaults, and the two
    below. They go together: a strategy ranks the training pairs, a budget says how many of them are kept.

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

    Raises:
        TrlRealError: If there is no such strategy, if the budget is neither a share nor a number of rows, or if one is
            given without the other.
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
        super().__post_init__()


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
