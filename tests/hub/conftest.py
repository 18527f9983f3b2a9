"""Fixtures of the tests that push."""

import pytest

from support.hub_server import HubServer


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server
