"""Tests of pushing pairs to Label Studio and pulling votes."""

import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets import Dataset

from support.studio_server import Studio
from trl_real.cli.main import main
from trl_real.errors import TrlRealError
from trl_real.labeling.people import label_studio
from trl_real.labeling.people.label_studio import CHOICES, LabelStudio, _when, pull_votes, push_pairs
from trl_real.labeling.people.votes import VoteBook, VotesJudge


VERSION, TOKEN = "1.23.2", "a" * 40
HOSTILE = "<script>document.title='x'</script> \u202e & {{ x }} " + "long " * 4000


def selected(n: int = 6) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"p{i}"}] for i in range(n)],
            "response_a": [HOSTILE if i == 1 else f"one {i}" for i in range(n)],
            "response_b": [f"two {i}" for i in range(n)],
            "pair": [[0, 1]] * (n - 1) + [[-1, -1]],
        }
    )


def plain_pairs(n: int) -> Dataset:
    texts = {f"response_{side}": [f"{word} {i}" for i in range(n)] for side, word in (("a", "one"), ("b", "two"))}
    return Dataset.from_dict({"prompt": [f"prompt {i}" for i in range(n)], **texts, "pair": [[0, 1]] * n})


def answer(studio: LabelStudio, task: dict, *choices: str, **fields) -> None:
    """What a person would click, through the API that the page uses."""
    value = {"from_name": "verdict", "to_name": "prompt", "type": "choices", "value": {"choices": list(choices)}}
    said = {"result": [value] if choices else [], "lead_time": 3.5, **fields}
    studio.ask("POST", f"/api/tasks/{task['id']}/annotations/", json=said)


class Answers(BaseHTTPRequestHandler):
    status, content = 200, b"{}"

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (401, b"{}", "rejects the key"),
        (200, b"<html>", "does not answer like Label Studio"),
        (400, b'{"detail": "title too short"}', "answered 400 to /api/projects/: .*title too short"),
    ],
)
def test_server_refusal_gets_a_one_line_error_without_the_key(status, content, message):
    handler = type("Handler", (Answers,), {"status": status, "content": content})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrlRealError, match=message) as caught:
            push_pairs(selected(), LabelStudio(f"http://127.0.0.1:{server.server_port}", TOKEN))
        assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(TrlRealError, match="No answer from .*Is Label Studio up?"):
        push_pairs(selected(), LabelStudio(f"http://127.0.0.1:{server.server_port}", TOKEN))


def test_annotator_with_a_changed_address_stays_the_same(tmp_path):
    class Renamed(LabelStudio):
        """A server's answers, without the server."""

        def __init__(self):
            self.address, self.pair = "ann@example.org", "one"

        def ask(self, method, path, **request):
            if path.startswith("/api/users"):
                return [{"id": 1, "email": self.address}]
            data = {"pair_key": self.pair, "shown_first": "a"}
            vote = {"id": 7, "completed_by": 1, "result": [{"value": {"choices": ["left is better"]}}]}
            return {"tasks": [{"data": data, "annotations": [vote]}], "total": 1}

    studio, votes = Renamed(), tmp_path / "votes.jsonl"
    assert pull_votes(studio, 3, votes) == 1
    studio.address = "bea@example.org"
    assert pull_votes(studio, 3, votes) == 2 and pull_votes(studio, 3, votes) == 0
    assert VoteBook.read(votes).matrix()[:2] == (["bea@example.org"], ["one"])
    studio.pair = "other"
    assert pull_votes(studio, 3, votes) == 2 and pull_votes(studio, 3, votes) == 0
    assert VoteBook.read(votes).matrix()[:2] == (["bea@example.org"], ["other"])


class Listing(LabelStudio):
    """A server's answers, without the server: annotations that are listed in any order, on pages of one task."""

    def __init__(self, draws):
        self.draws, self.pairs = draws, {f"pair {i}": {} for i in range(3)}

    def ask(self, method, path, **request):
        if path.startswith("/api/users"):
            return [{"id": who, "email": f"person {who}"} for who in (1, 2)]
        key = list(self.pairs)[int(path.split("&page=")[1].split("&")[0]) - 1]
        annotations = list(self.pairs[key].values())
        self.draws.shuffle(annotations)
        data = {"pair_key": key, "shown_first": "a"}
        return {"tasks": [{"data": data, "annotations": annotations}], "total": len(self.pairs)}

    def expected(self):
        """The last vote of each person on each pair, by its time."""
        last = {}
        for key, annotations in self.pairs.items():
            for each in sorted(annotations.values(), key=lambda each: each["updated_at"]):
                last[f"person {each['completed_by']}", key] = CHOICES[each["result"][0]["value"]["choices"][0]]["a"]
        return last


@pytest.mark.parametrize("seed", range(8))
def test_the_last_vote_of_each_person_counts_at_each_pull(seed, tmp_path):
    draws = random.Random(seed)
    studio, path = Listing(draws), tmp_path / "votes.jsonl"
    for clock in range(60):
        annotations = studio.pairs[draws.choice(list(studio.pairs))]
        if annotations and draws.random() < 0.3:
            del annotations[draws.choice(list(annotations))]
        else:
            number = draws.choice(list(annotations)) if annotations and draws.random() < 0.4 else 100 - clock
            who = annotations[number]["completed_by"] if number in annotations else draws.choice((1, 2))
            value = {"value": {"choices": [draws.choice(list(CHOICES))]}}
            time = f"2026-11-28T10:{clock:02}:00.5Z"
            annotations[number] = {"id": number, "completed_by": who, "result": [value], "updated_at": time}
        if clock % 3 == 0:
            pull_votes(studio, 7, path)
            book = VoteBook.read(path) if path.exists() and path.stat().st_size else VoteBook()
            found = {(who, vote.key): vote.verdict for who in book.annotators for vote in book.votes(who)}
            assert found == studio.expected(), clock
            assert pull_votes(studio, 7, path) == 0


def test_every_choice_is_mirrored_when_the_sides_are_swapped():
    for choice, verdicts in CHOICES.items():
        assert set(verdicts) == {"a", "b"}
        mirrored = {"a": "b", "b": "a"}.get(verdicts["a"], verdicts["a"])
        assert verdicts["b"] == mirrored, choice


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push"], "--label_studio is missing"),
        (["--label_studio", "http://127.0.0.1:9", "--pull"], "--votes is missing"),
        (["--label_studio", "http://127.0.0.1:9", "--push", "--dataset", "x"], "Give --api_key, or set LABEL_STUDIO"),
        (["--label_studio", "x", "--push", "--pull", "--dataset", "x"], "Give either --push or --pull"),
    ],
)
def test_mistakes_get_a_one_line_error(flags, message, capsys, monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    assert main(["label", *flags]) == 2
    assert message in capsys.readouterr().err


def installed() -> Path:
    """Label Studio in a separate environment, which is kept: it is a gigabyte."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trl_real" / f"label-studio-{VERSION}"
    program = folder / "bin" / "label-studio"
    if not program.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [folder / "bin" / "pip", "install", "-q", f"label-studio=={VERSION}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return program


@pytest.fixture(scope="module", params=["imitated", pytest.param("real", marks=pytest.mark.slow)])
def server(request):
    """Address of a server: one that answers like Label Studio, and in the slow tests Label Studio itself."""
    if request.param == "real":
        yield from _label_studio(request.getfixturevalue("tmp_path_factory"))
        return
    studio = Studio(TOKEN)
    yield studio.url
    studio.close()


def _label_studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "LATEST_VERSION_CHECK": "0",
        "COLLECT_ANALYTICS": "0",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "DJANGO_DB": "sqlite",
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_USERNAME": "ann@example.org",
        "LABEL_STUDIO_PASSWORD": "secret-word",
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [installed(), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env={**environment, **settings}, stdout=log, stderr=log)
        try:
            for _ in range(180):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()[-2000:]
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def annotate(studio: LabelStudio, project: int, choices: list[str | None]) -> list[dict]:
    tasks = sorted(studio.tasks(project), key=lambda task: task["data"]["row"])
    for task, choice in zip(tasks, choices, strict=True):
        if choice is not None:
            answer(studio, task, choice)
    return tasks


def test_pairs_are_pushed_and_votes_pulled_once(server, tmp_path, capsys):
    studio, votes = LabelStudio(server, TOKEN), tmp_path / "votes.jsonl"
    project, n = push_pairs(selected(), studio, guidelines="Pick the better one.")
    assert n == 5 and push_pairs(selected(), studio, project=project) == (project, 0)
    choices = ["left is better", "right is better", "tie", "skip", None]
    tasks = annotate(studio, project, choices)
    assert tasks[1]["data"]["left"] in (HOSTILE, "two 1")
    assert pull_votes(studio, project, votes) == 4 and pull_votes(studio, project, votes) == 0

    judged = VotesJudge(votes)(selected()[:5])
    shown = [task["data"]["shown_first"] for task in tasks]
    assert judged[0] == float(shown[0] == "a") and judged[1] == float(shown[1] == "b") and judged[2] == 0.5
    assert judged[3] != judged[3] and judged[4] != judged[4]
    assert VoteBook.read(votes).annotators == ["ann@example.org"]

    first = next(task for task in studio.tasks(project) if task["data"]["row"] == 0)["annotations"][0]
    value = {"from_name": "verdict", "to_name": "prompt", "type": "choices", "value": {"choices": ["tie"]}}
    studio.ask("PATCH", f"/api/annotations/{first['id']}/", json={"result": [value]})
    assert pull_votes(studio, project, votes) == 1
    assert VotesJudge(votes)(selected()[:1]) == [0.5]  # a vote that was changed
    studio.ask("DELETE", f"/api/annotations/{first['id']}/")
    assert pull_votes(studio, project, votes) == 1 and pull_votes(studio, project, votes) == 0
    undone = VotesJudge(votes)(selected()[:1])
    assert undone[0] != undone[0]  # and one that was deleted


def test_the_command_line_does_the_same(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    selected().to_parquet(str(tmp_path / "pairs.parquet"))
    capsys.readouterr()
    assert main(["label", "--label_studio", server, "--push", "--dataset", str(tmp_path / "pairs.parquet")]) == 0
    out, err = capsys.readouterr()
    project = int(out.split()[1].rstrip(":"))
    annotate(LabelStudio(server, TOKEN), project, ["tie"] * 5)
    votes = str(tmp_path / "votes.jsonl")
    assert main(["label", "--label_studio", server, "--pull", "--project", str(project), "--votes", votes]) == 0
    out, err = capsys.readouterr()
    assert "5 new lines" in err and "ann@example.org" in out and TOKEN not in out + err
    with pytest.raises(TrlRealError, match="answered 404"):
        pull_votes(LabelStudio(server, TOKEN), 9999, votes)
    with pytest.raises(TrlRealError, match="rejects the key"):
        LabelStudio(server, "b" * 40).names()


PREFERRED = {"a": ("one", 1.0), "b": ("two", 0.0)}


@pytest.fixture
def imitated(monkeypatch):
    """A server that answers like Label Studio, asked for three tasks at a time."""
    monkeypatch.setattr(label_studio, "AT_A_TIME", 3)
    studio = Studio(TOKEN)
    yield studio
    studio.close()


@pytest.mark.parametrize("side", PREFERRED)
def test_a_person_who_prefers_one_text_votes_for_it_on_both_sides(side, imitated, tmp_path):
    """No key of ours is read here: only the texts on the left and the right, and what the judge says of them."""
    pairs, client = plain_pairs(12), LabelStudio(imitated.url, TOKEN)
    project, n = push_pairs(pairs, client)
    start, verdict = PREFERRED[side]
    shown = [task["data"]["left"].startswith(start) for task in client.tasks(project)]
    assert n == len(shown) == 12 and 0 < sum(shown) < 12
    for task in client.tasks(project):
        data = task["data"]
        assert data["left"][4:] == data["right"][4:] == data["prompt"].strip()[-2:].strip()
        answer(client, task, "left is better" if data["left"].startswith(start) else "right is better")
    assert pull_votes(client, project, tmp_path / "votes.jsonl") == 12
    assert VotesJudge(tmp_path / "votes.jsonl")(pairs[:]) == [verdict] * 12
    swapped = pairs.rename_columns({"response_a": "response_b", "response_b": "response_a"})
    assert VotesJudge(tmp_path / "votes.jsonl")(swapped[:]) == [1 - verdict] * 12
    (votes,) = [VoteBook.read(tmp_path / "votes.jsonl").votes("ann@example.org")]
    assert sum(vote.verdict == vote.shown_first for vote in votes) == sum(shown)
    assert all(vote.seconds == 3.5 and vote.time.startswith("2026-11-28T10:00") for vote in votes)


def test_no_pair_is_pushed_twice_in_either_order_of_its_responses(imitated):
    pairs, client = plain_pairs(7), LabelStudio(imitated.url, TOKEN)
    project, n = push_pairs(pairs.select(range(4)), client)
    swapped = pairs.rename_columns({"response_a": "response_b", "response_b": "response_a"})
    assert n == 4 and push_pairs(swapped, client, project=project) == (project, 3)
    assert push_pairs(pairs, client, project=project) == (project, 0) and len(list(client.tasks(project))) == 7


def test_cancelled_and_unknown_annotations_are_no_votes(imitated, tmp_path):
    client = LabelStudio(imitated.url, TOKEN)
    project, _ = push_pairs(plain_pairs(4), client)
    cancelled, empty, other, kept = client.tasks(project)
    answer(client, cancelled, "tie", was_cancelled=True)
    answer(client, empty)
    answer(client, other, "left is better", "tie")
    answer(client, kept, "skip")
    assert pull_votes(client, project, tmp_path / "votes.jsonl") == 1
    (vote,) = VoteBook.read(tmp_path / "votes.jsonl").votes("ann@example.org")
    assert vote.verdict == "skip" and vote.key == kept["data"]["pair_key"]


def test_a_new_project_has_the_title_the_guidelines_and_a_choice_for_every_verdict(imitated):
    client = LabelStudio(imitated.url, TOKEN)
    push_pairs(plain_pairs(2), client, title="Which?", guidelines="Be kind.")
    push_pairs(plain_pairs(2), client)
    first, second = imitated.projects
    assert (first["title"], first["expert_instruction"], first["show_instruction"]) == ("Which?", "Be kind.", True)
    assert second["show_instruction"] is False
    assert re.findall('<Choice value="(.*?)"', first["label_config"]) == [
        "left is better", "tie", "right is better", "skip"
    ]  # fmt: skip


def test_a_personal_access_token_is_exchanged_for_a_short_lived_one(imitated):
    assert LabelStudio(imitated.url, "a.b.c").names() == {1: "ann@example.org"}


if __name__ == "__main__":
    sys.stdout.write(str(installed()))


def test_of_two_votes_at_one_time_the_later_annotation_counts():
    ninth, tenth = ({"source": f"label-studio/3/{n}", "time": "2026-01-01T00:00:00Z"} for n in (9, 10))
    assert _when(ninth) < _when(tenth) < _when({**ninth, "time": "2026-01-01T00:00:01Z"})
    assert _when({**tenth, "time": "soon"}) < _when(ninth), "a time that cannot be read comes first"
