"""Tests of the append-only journal."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from trl_real.errors import TrlRealError
from trl_real.runtime.journal import Journal


def test_lines_with_any_content_are_read_back_in_order(tmp_path):
    lines = [{"text": "a\nb \ud800 “ü” \x00"}, {}, {"n": [1, None, 0.5]}]
    with Journal(tmp_path / "new" / "j.jsonl") as journal:
        assert journal.read() == []
        for line in lines:
            journal.append(line)
        assert journal.read() == lines
    assert Journal(tmp_path / "new" / "j.jsonl").read() == lines


def test_torn_last_line_is_overwritten(tmp_path):
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'{"n": 1}\n{"n": 2')
    journal = Journal(file)
    assert journal.read() == [{"n": 1}]
    journal.append({"n": 3})
    assert file.read_bytes() == b'{"n": 1}\n{"n": 3}\n'


def test_complete_last_line_without_line_break_is_read(tmp_path):
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'{"n": 1}\n{"n": 2}')
    with Journal(file) as journal:
        assert journal.read() == [{"n": 1}, {"n": 2}]
        journal.append({"n": 3})
        journal.append({"n": 4})
    assert file.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n{"n": 4}\n'


def test_invalid_json_line_is_named(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"n": 1}\nnonsense\n{"n": 2}\n')
    with pytest.raises(TrlRealError, match="Line 2 of .* is not a JSON object"):
        Journal(tmp_path / "j.jsonl").read()
    with pytest.raises(TrlRealError, match="is a folder"):
        Journal(tmp_path)


def test_second_writer_is_refused(tmp_path):
    with Journal(tmp_path / "j.jsonl") as first:
        first.append({"n": 1})
        with pytest.raises(TrlRealError, match="Another process is writing"):
            Journal(tmp_path / "j.jsonl").append({"n": 2})
        assert Journal(tmp_path / "j.jsonl").read() == [{"n": 1}]
    Journal(tmp_path / "j.jsonl").append({"n": 2})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_is_reported_and_loses_nothing(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"n": 1})
    whole, journal._file = journal._file, open("/dev/full", "wb", buffering=0)
    with pytest.raises(TrlRealError, match="No space left on device.*free some disk space and run again"):
        journal.append({"n": 2})
    journal._file = whole
    assert journal.read() == [{"n": 1}]


def test_kill_9_loses_no_reported_line(tmp_path):
    code = (
        "import sys; from trl_real.runtime.journal import Journal\n"
        "journal = Journal(sys.argv[1])\n"
        "for n in range(10**6): journal.append({'n': n}); print(n, flush=True)"
    )
    file = tmp_path / "j.jsonl"
    child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    told = [child.stdout.readline() for _ in range(5)]
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    told += child.stdout.read().split("\n")[:-1]
    child.wait()
    found = [line["n"] for line in Journal(file).read()]
    assert found == list(range(len(found))) and len(found) >= len(told)
    assert all(json.loads(line) for line in file.read_bytes().splitlines()[:-1])
