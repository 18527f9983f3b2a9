"""Fixtures of tests of judges behind a server."""

import pytest

from support.judge_server import MODEL
from trl_real.labeling.chat.judge import ChatJudge


@pytest.fixture
def judge(tmp_path):
    """Makes judges that share a cache."""

    def make(server, **settings):
        defaults = {"cache": tmp_path / "answers.sqlite", "timeout": 1.0, "deadline": 30.0, "concurrency": 16}
        return ChatJudge(MODEL, base_url=server.url, **{**defaults, **settings})

    return make
