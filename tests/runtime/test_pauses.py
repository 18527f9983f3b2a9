"""How long a client waits before it asks a server again."""

from types import SimpleNamespace

import pytest

from trl_real.runtime import openai_client
from trl_real.runtime.openai_client import FIRST_PAUSE, LONGEST_PAUSE, _pause


def waited(monkeypatch, attempt, asked=None, draw=lambda low, high: high):
    monkeypatch.setattr(openai_client.random, "uniform", draw)
    failure = SimpleNamespace(pause=asked)
    return _pause(SimpleNamespace(attempt_number=attempt, outcome=SimpleNamespace(exception=lambda: failure)))


def test_pauses_double_up_to_the_longest_and_are_at_least_half_of_that(monkeypatch):
    longest = [waited(monkeypatch, n) for n in range(1, 12)]
    assert longest[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert longest[-1] == LONGEST_PAUSE == max(longest)
    assert [waited(monkeypatch, n, draw=lambda low, high: low) for n in range(1, 12)] == [x / 2 for x in longest]


@pytest.mark.parametrize("attempt", [1, 9])
def test_a_server_that_says_how_long_is_not_asked_earlier(attempt, monkeypatch):
    assert waited(monkeypatch, attempt, asked=90.0, draw=lambda low, high: low) == 90.0
    assert waited(monkeypatch, attempt, asked=0.0) == pytest.approx(0.1)
