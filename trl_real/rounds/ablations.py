"""SPA's ablations: which parts of the noise-aware training are active (arXiv 2406.04412, section 4.2)."""

from collections.abc import Sequence
from typing import NamedTuple


class Ablation(NamedTuple):
    """
    Active parts of SPA's noise-aware training.

    Args:
        refines: Whether labels of doubtful pairs are smoothed (Eq. 9-10).
        extrapolates: Whether doubtful pairs are found with the policy extrapolated away from its reference
            (Eq. 11-12).
    """

    refines: bool
    extrapolates: bool


ABLATIONS = {
    "expansion": Ablation(False, False),
    "refinement": Ablation(True, False),
    "detection": Ablation(True, True),
}

ALPHA = 0.1  # of the paper


def noise_off() -> dict[str, float]:
    """Return the trainer's settings that trust every label, as for labels from people."""
    return {"noise_smoothing": 0.0, "noise_extrapolation": 0.0}


def noise_settings(ablation: str, smoothing: float, extrapolation: Sequence[float], number: int) -> dict[str, float]:
    """
    Return the trainer's noise settings in a round.

    Args:
        ablation: Name in `ABLATIONS`.
        smoothing: alpha; 0 for the paper's 0.1.
        extrapolation: lambda of each round.
        number: Number of the round, starting at 1.
    """
    parts = ABLATIONS[ablation]
    return {
        "noise_smoothing": (smoothing or ALPHA) if parts.refines else 0.0,
        "noise_extrapolation": extrapolation[number - 1] if parts.extrapolates else 0.0,
    }
