"""Fixtures of tests that train."""

import pytest
import trl.trainer.base_trainer

from support.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Weights by which the end that TRL writes after each text would change what is selected."""
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """Another model's weights, as a reference from which the policy differs at once."""
    return save_tiny(tmp_path_factory.mktemp("other"), seed=2)


@pytest.fixture(autouse=True)
def reports(monkeypatch) -> list:
    """What TRL would have told its makers."""
    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda **report: sent.append(report))
    return sent
