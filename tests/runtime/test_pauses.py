"""How long a client waits before it asks a server again."""

from types import SimpleNamespace

import pytest

from trl_real.runtime import openai_client
from trl_real.runtime.openai_client import FIRST_PAUSE, LONGEST_PAUSE, _pause, _TryAgain


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


def test_pauses_double_up_to_the_longest_and_differ_between_threads():
    def pauses(attempt, asked=None):
        outcome = SimpleNamespace(exception=lambda: _TryAgain("busy", asked))
        return [_pause(SimpleNamespace(outcome=outcome, attempt_number=attempt)) for _ in range(200)]

    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (30, 60.0)):
        found = pauses(attempt)
        assert most / 2 <= min(found) < 0.6 * most and 0.9 * most < max(found) <= most
    for asked in (0.0, 2.0, 40.0):  # never before the time that the server told
        found = pauses(5, asked)
        assert asked <= min(found) < max(found) <= 1.1 * asked + 0.1
