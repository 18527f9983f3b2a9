"""Nothing is asked of the network that the user did not ask for."""

import json
import os
import socket
import subprocess
import sys

import pytest
import sitecustomize


@pytest.fixture
def refused(tmp_path, monkeypatch):
    file = tmp_path / "refused"
    monkeypatch.setenv(sitecustomize.REFUSED, str(file))
    return lambda: file.read_text() if file.exists() else ""


@pytest.mark.parametrize("ask", [
    lambda: socket.create_connection(("192.0.2.1", 80)),
    lambda: socket.getaddrinfo("huggingface.co", 443),
    lambda: socket.gethostbyname("huggingface.co"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
])  # fmt: skip
def test_guard_refuses_and_writes_down_what_leaves_this_machine(ask, refused):
    with pytest.raises(ConnectionRefusedError, match="Tests may not reach"):
        ask()
    assert "192.0.2.1" in refused() or "huggingface.co" in refused()


def test_guard_stands_in_processes_that_tests_start(refused):
    code = "import socket; socket.getaddrinfo('huggingface.co', 443)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 1
    assert "huggingface.co" in refused()


def test_guard_lets_this_machine_be(refused):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.getaddrinfo("localhost", 80)
    assert refused() == ""


def test_local_file_is_read_without_a_look_up(tmp_path, refused):
    """Without the settings that the tests run under: the command line itself turns the counters off."""
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(4)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    quiet = ("HF_UPDATE_DOWNLOAD_COUNTS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    argv = ["select", "--dataset", "pool.jsonl", "--strategy", "random", "--output_dir", "out"]
    command = [sys.executable, "-m", "trl_real.cli.main", *argv]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert refused() == ""
