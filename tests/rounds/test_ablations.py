"""Noise settings of each ablation, round by round."""

import pytest

from trl_real.rounds.ablations import ABLATIONS, NOISE_OFF, noise_settings


@pytest.mark.parametrize("name", ABLATIONS)
def test_noise_of_a_round(name):
    extrapolation = (0.5, 0.25, 0.125)
    for number in (1, 2, 3):
        for given, smoothing in ((0.0, 0.1), (0.3, 0.3)):  # without a number, that of the paper
            found = noise_settings(name, given, extrapolation, number)
            if name == "expansion":
                assert found == NOISE_OFF and found["noise_smoothing"] == 0
            else:
                beyond = extrapolation[number - 1] if name == "detection" else 0.0
                assert found == {"noise_smoothing": smoothing, "noise_extrapolation": beyond}
