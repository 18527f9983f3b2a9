"""How much of SPA's learning from doubtful labels takes part (arXiv 2406.04412, section 4.2)."""

from collections.abc import Sequence
from typing import NamedTuple


class Ablation(NamedTuple):
    """
    Args:
        refines: Whether the labels of doubtful pairs are smoothed (Eq. 9-10).
        extrapolates: Whether doubt is told by the policy extrapolated away from its reference (Eq. 11-12).
    """

    refines: bool
    extrapolates: bool


ABLATIONS = {
    "expansion": Ablation(False, False),
    "refinement": Ablation(True, False),
    "detection": Ablation(True, True),
}

ALPHA = 0.1  # the paper's


def trusting() -> dict[str, float]:
    """The trainer's settings where every label is believed, such as those of people."""
    return {"noise_smoothing": 0.0, "noise_extrapolation": 0.0}


def doubting(ablation: str, smoothing: float, extrapolation: Sequence[float], number: int) -> dict[str, float]:
    """
    The trainer's settings in a round.

    Args:
        ablation: A name in `ABLATIONS`.
        smoothing: alpha; 0 for the paper's 0.1.
        extrapolation: lambda of each round.
        number: Of the round, 1 first.
    """
    which = ABLATIONS[ablation]
    return {
        "noise_smoothing": (smoothing or ALPHA) if which.refines else 0.0,
        "noise_extrapolation": extrapolation[number - 1] if which.extrapolates else 0.0,
    }
