"""A chat judge against real servers with a real model; `make test-slow`."""

import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from trl_real.demo.model import GGUF, _fetch, demo_model
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.verdicts import summarize


pytestmark = pytest.mark.slow

ROWS = {
    "prompt": ["What is the capital of France?", "Name a colour.", "Say hello.", "What is 2 + 2?"],
    "response_a": ["Paris.", "Blue.", "Hello there!", "4"],
    "response_b": ["I do not know.", "Table.", "No.", "A 5, I think."],
}


ORDERS = ("a_first", "b_first")


def transformers_serve(folder: Path, port: int) -> tuple[list[str], str]:
    model = demo_model()
    command = [str(Path(sys.executable).with_name("transformers")), "serve"]
    return [*command, "--host", "127.0.0.1", "--port", str(port)], model


def llama_cpp(folder: Path, port: int) -> tuple[list[str], str]:
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp.server"], capture_output=True).returncode:
        pytest.skip(
            "no llama_cpp.server; pip install 'llama-cpp-python[server]' (it compiles), or set LLAMA_CPP_PYTHON"
        )
    model = str(_fetch(folder) / GGUF)
    flags = ["--model", model, "--model_alias", "smollm2", "--logits_all", "True", "--n_ctx", "2048"]
    return [python, "-m", "llama_cpp.server", *flags, "--host", "127.0.0.1", "--port", str(port)], "smollm2"


SERVERS = {"transformers serve": transformers_serve, "llama.cpp": llama_cpp}


@contextmanager
def serving(start, folder: Path):
    """Starts a server and waits for it; yields its address and the model's name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, model = start(folder, port)
    (folder / "home").mkdir()
    log = open(folder / "log", "wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HOME": str(folder / "home")})
    try:
        for _ in range(180):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.parametrize("name", SERVERS)
def test_every_pair_gets_a_verdict_or_a_reason_and_is_asked_once(name, tmp_path):
    with serving(SERVERS[name], tmp_path) as (url, model):
        settings = {"concurrency": 2, "timeout": 120.0, "cache": tmp_path / "c.sqlite", "max_failure_rate": 1.0}
        judge = ChatJudge(model, base_url=url, **settings)
        found = judge.verdicts(ROWS)
        again = ChatJudge(model, base_url=url, **settings).verdicts(ROWS)
    summary = summarize(found)
    assert summary.n_asked == 8 and summary.input_tokens > 8 * 50
    assert [v.probability for v in again] == pytest.approx([v.probability for v in found], nan_ok=True)
    assert summarize(again).n_cached == 8
    for verdict in found:
        assert verdict.failure or 0 <= verdict.probability <= 1
        reasons = ("", "the answer was cut off", "an answer that names no response")
        assert verdict.failure in (*reasons, "the answer was cut off while thinking")
    if name == "llama.cpp":  # it tells probabilities
        assert not any(v.failure for v in found) and not math.isnan(summary.position_bias)
        assert all(0 < v.a_first < 1 for v in found)


def test_the_verdicts_of_a_server_are_those_of_the_model_in_this_process(tmp_path):
    with serving(transformers_serve, tmp_path) as (url, model):
        settings = {"timeout": 120.0, "cache": tmp_path / "c.sqlite", "max_failure_rate": 1.0}
        served = ChatJudge(model, base_url=url, **settings).verdicts(ROWS)
    own = ChatJudge(model).verdicts(ROWS)
    sides = [(getattr(a, name), getattr(b, name)) for a, b in zip(served, own, strict=True) for name in ORDERS]
    read = [(said, probability) for said, probability in sides if not math.isnan(said)]
    assert len(read) >= len(sides) / 2
    assert all((said > 0.5) == (probability > 0.5) for said, probability in read), read
