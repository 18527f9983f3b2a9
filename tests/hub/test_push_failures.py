"""A push that fails, is killed or meets another one leaves the Hub and the local rows whole, and can be repeated."""

import json
import subprocess
import sys

from support.pushes import PRELUDE, assert_one_line, card, run


def test_failed_push_can_be_repeated(hub, tmp_path):
    hub.fail(r"POST .*/user/rows/commit/")
    hub.fail(r"POST .*/user/card/commit/", nth=2)
    hub.fail(r"POST .*/user/old/commit/", nth=3)
    hub.fail(r"POST .*/user/old/commit/", nth=5)
    out = run(
        hub,
        tmp_path,
        """
subset = rows(8)
out["unbroken"] = push(subset, "user/unbroken")
for name in ("rows", "card"):
    out[name] = [push(subset, f"user/{name}"), push(subset, f"user/{name}")]
push(rows(3), "user/old", record=record(3, seed=1))
out["old"] = [push(subset, "user/old")]
out["old rows"] = len(loaded("user/old", "easy-0.25")["rows"])
out["old"] += [push(subset, "user/old")]
out["new rows"] = len(loaded("user/old", "easy-0.25")["rows"])
out["old"] += [push(subset, "user/old")]
out["local"] = subset.to_list() == rows(8).to_list()
""",
    )
    assert_one_line(out["rows"][0], "user/rows", "507", "push again")
    assert_one_line(out["card"][0], "user/card", "507", "The rows are pushed", "push again")
    assert_one_line(out["old"][0], "507")
    assert_one_line(out["old"][1], "507", "The rows are pushed")
    assert out["old rows"] == 3 and out["new rows"] == 8 and out["local"]
    for name in ("rows", "card", "old"):
        assert out[name][-1] == f"{hub.url}/datasets/user/{name}"
        unbroken = dict(hub.repo("user/unbroken").files())
        unbroken["README.md"] = unbroken["README.md"].replace(b"unbroken", name.encode())
        assert hub.repo(f"user/{name}").files() == unbroken


def test_a_push_that_is_killed_at_any_request_can_be_repeated(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
import os, httpx2
send = httpx2.HTTPTransport.handle_request

def killed(point, answered, action):
    child = os.fork()
    if not child:
        seen = []
        def counted(self, request):
            seen.append(request)
            if len(seen) == point and not answered:
                os._exit(137)
            response = send(self, request)
            if len(seen) == point:
                os._exit(137)
            return response
        httpx2.HTTPTransport.handle_request = counted
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

subset = rows(8)
push(subset, "user/unbroken")
for answered in (False, True):
    for point in range(1, 100):
        name = f"user/killed{point}{answered}"
        status = killed(point, answered, lambda: push(subset, name))
        if status != 137:
            break
        out[name] = push(subset, name)
out["local"] = subset.to_list() == rows(8).to_list()
""",
    )
    assert out.pop("local") and len(out) >= 20
    unbroken = hub.repo("user/unbroken").files()
    for name, url in out.items():
        assert url == f"{hub.url}/datasets/{name}"
        found, word = dict(hub.repo(name).files()), name.removeprefix("user/").lower()
        text = found.pop("README.md").decode().lower().replace(word, "unbroken")
        assert text == unbroken["README.md"].decode().lower()
        assert found == {file: content for file, content in unbroken.items() if file != "README.md"}, name


def test_refused_upload_lost_response_and_concurrent_commit(hub, tmp_path):
    hub.fail(r"PUT /lfs/")
    hub.fail(r"POST .*/user/lost/commit/", drop=True)
    hub.fail(r"POST .*/user/rival/commit/", status=412)
    hub.fail(r"POST .*/user/rival/commit/", nth=3, status=412)
    out = run(
        hub,
        tmp_path,
        """
out["upload"] = [push(rows(8), "user/upload"), push(rows(8), "user/upload")]
out["lost"] = [push(rows(8), "user/lost"), push(rows(8), "user/lost")]
out["rival"] = push(rows(8), "user/rival")
""",
    )
    assert_one_line(out["upload"][0], "507")
    assert "s3cret" not in out["upload"][0]
    assert_one_line(out["lost"][0], "cannot be reached")
    assert out["rival"].startswith("http")
    for name in ("upload", "lost"):
        assert out[name][1].startswith("http")
        assert hub.repo(f"user/{name}").files().keys() == hub.repo("user/rival").files().keys()


def test_a_commit_that_comes_between_reading_the_card_and_writing_it_is_kept(hub, tmp_path):
    run(
        hub,
        tmp_path,
        """
from huggingface_hub import upload_file
import trl_real.hub.push as module
push(rows(8), "user/subset", commit_message="Mine")
own, rivals = module.update_card, ["the rival's words"]
def update_card(content, *args, **kwargs):
    found = own(content, *args, **kwargs)
    if rivals:
        changed = (content + rivals.pop()).encode()
        upload_file(path_or_fileobj=changed, path_in_repo="README.md", repo_id="user/subset", repo_type="dataset")
    return found
module.update_card = update_card
out["said"] = push(rows(8), "user/subset")
""",
    )
    text, messages = card(hub, "user/subset"), hub.repo("user/subset").messages
    assert "the rival's words" in text and text.count("trl-real:begin") == 1
    assert [message for message in messages if "Mine" in message] == ["Mine", "Mine: card and record"]


def test_two_concurrent_pushes_both_arrive(hub, tmp_path):
    script = (
        PRELUDE
        + """
import sys
name = sys.argv[1]
for start in range(3):
    said = push(rows(8, start), "user/subset", config_name=name, record=record(8, seed=start))
    assert said.startswith("http"), said
"""
    )
    names = ["first", "second"]
    running = [
        subprocess.Popen([sys.executable, "-c", script, name], env=hub.environment(tmp_path / name)) for name in names
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    text, files = card(hub, "user/subset"), hub.repo("user/subset").files()
    for name in names:
        assert text.count(f"trl-real:begin {name} ") == text.count(f"config_name: {name}\n") - 1 == 1
        assert json.loads(files[f"selection_records/{name}.json"])["seed"] == 2


def test_hub_refusal_gets_a_one_line_error_with_a_fix(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
from huggingface_hub import create_repo, upload_file
out["theirs"] = push(rows(2), "other/subset")
out["bad token"] = push(rows(2), "user/subset", token="hf_wrongwrongwrong")
out["revision"] = push(rows(2), "user/subset2", revision="refs/pr/9")
broken = {"path_or_fileobj": b"---\\ntags: [\\n---\\nmine", "path_in_repo": "README.md"}
create_repo("user/broken", repo_type="dataset")
upload_file(**broken, repo_id="user/broken", repo_type="dataset")
out["broken card"] = push(rows(2), "user/broken")
push(DatasetDict({"train": rows(2), "test": rows(2)}), "user/mixed")
out["features"] = push(rows(2).remove_columns("pair"), "user/mixed")
""",
    )
    assert_one_line(out["theirs"], "other/subset", "403", "hf auth login")
    assert_one_line(out["bad token"], "401", "hf auth login")
    assert "wrongwrong" not in out["bad token"]
    assert_one_line(out["revision"], "refs/pr/9")
    assert_one_line(out["broken card"], "user/broken")
    assert hub.repo("user/broken").files()["README.md"] == b"---\ntags: [\n---\nmine"
    assert_one_line(out["features"], "easy-0.25", "DatasetDict")


def test_without_network_or_account(hub, tmp_path):
    code = 'out["said"] = push(rows(2), "user/subset")'
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert_one_line(run(hub, tmp_path, code, **unreachable)["said"], "cannot be reached", "HF_ENDPOINT")
    assert_one_line(run(hub, tmp_path, code, HF_HUB_OFFLINE="1")["said"], "unset HF_HUB_OFFLINE")
    anonymous = run(hub, tmp_path, code + '\nout["bare"] = push(rows(2), "subset")', HF_TOKEN="")
    assert_one_line(anonymous["said"], "hf auth login")
    assert_one_line(anonymous["bare"], "hf auth login")


def test_local_mistakes_are_reported_before_anything_is_sent(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
for name in ("data", "selection_records", "a/b", "", "-x", "a b", "x -->", ".", "x" * 97):
    out[f"config {name}"] = push(rows(2), "user/subset", config_name=name)
out["bad id"] = push(rows(2), "user/a/b")
out["split"] = push(rows(2), "user/subset", split="a-b")
out["no record"] = push(rows(2), "user/subset", record=None)
out["half a record"] = push(rows(2), "user/subset", record={"strategy": "easy"})
out["lost rows"] = push(rows(2), "user/subset", record=record(8, n_rows=41))
out["no rows"] = push(rows(0), "user/subset")
out["a list"] = push([{"prompt": "x"}], "user/subset")
""",
    )
    for message in out.values():
        assert_one_line(message)
    assert "user/a/b" in out["bad id"] and "a-b" in out["split"]
    assert "record=selector.record" in out["no record"] and "does not add up" in out["lost rows"]
    assert "0 rows" in out["no rows"] and "found list" in out["a list"] and "budget" in out["half a record"]
    assert hub.requests == []
