"""SPA's ablations: which parts of the noise-aware training are active (arXiv 2406.04412, section 4.2)."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from trl_real.training.config import REALDPOConfig


class Ablation(NamedTuple):
    """Active parts of SPA's noise-aware training."""

    refines: bool  # labels of doubtful pairs are smoothed (Eq. 9-10)
    extrapolates: bool  # doubtful pairs are found with the policy extrapolated away from its reference (Eq. 11-12)


ABLATIONS = {
    "expansion": Ablation(False, False),
    "refinement": Ablation(True, False),
    "detection": Ablation(True, True),
}

ALPHA = 0.1  # of the paper
# The trainer's defaults: every label is trusted, as if from people.
NOISE_OFF = {setting.name: setting.default for setting in fields(REALDPOConfig) if setting.name.startswith("noise_")}


def noise_settings(ablation: str, smoothing: float, extrapolation: Sequence[float], number: int) -> dict[str, Any]:
    """Return the trainer's noise settings in a round (the first is 1); a smoothing of 0 means the paper's 0.1."""
    parts = ABLATIONS[ablation]
    if not parts.refines:
        return NOISE_OFF
    return {
        "noise_smoothing": smoothing or ALPHA,
        "noise_extrapolation": extrapolation[number - 1] if parts.extrapolates else 0.0,
    }
