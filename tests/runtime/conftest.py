"""Inputs of the verbs that write a folder."""

import pytest

from support.verb_runs import make_inputs


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("given"))
