"""Send pairs to a Label Studio server and fetch the votes, over its REST API."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datasets import Dataset

from trl_real.data.conversation import dialogue
from trl_real.errors import TrlRealError
from trl_real.labeling.people.queue import Deck
from trl_real.labeling.people.votes import Vote
from trl_real.runtime.journal import Journal
from trl_real.runtime.server_words import printable


# `Choices` and not `Pairwise`: that tag has no tie, and its results are missing from exports.
LABEL_CONFIG = """
<View>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt"/>
  <View style="display: flex; gap: 1.5em">
    <View style="flex: 1"><Header value="Left"/><Text name="left" value="$left"/></View>
    <View style="flex: 1"><Header value="Right"/><Text name="right" value="$right"/></View>
  </View>
  <Choices name="verdict" toName="prompt" choice="single-radio" required="true" showInline="true">
    <Choice value="left is better" hotkey="1"/>
    <Choice value="tie" hotkey="2"/>
    <Choice value="right is better" hotkey="3"/>
    <Choice value="skip" hotkey="4"/>
  </Choices>
</View>
"""
# Choice -> response on the left -> verdict.
CHOICES = {
    "left is better": {"a": "a", "b": "b"},
    "right is better": {"a": "b", "b": "a"},
    "tie": {"a": "tie", "b": "tie"},
    "skip": {"a": "skip", "b": "skip"},
}
COMPARED = ("verdict", "annotator", "key")  # a change in one of these writes the vote again
AT_A_TIME, TIMEOUT, LARGEST_PAGE = 250, 60.0, 2**25  # tasks a page, seconds and bytes
SERVER = "label studio"  # annotator name in the draw of the sides: everybody on the server sees the same


class LabelStudio:
    """
    Client of a Label Studio server.

    Args:
        url: URL of the server, such as `http://127.0.0.1:8080`.
        api_key: Access token of a user, of either kind of Label Studio; stored nowhere.

    Raises:
        TrlRealError: If the server cannot be reached or rejects the key.
    """

    def __init__(self, url: str, api_key: str):
        import httpx2

        from trl_real.runtime.bounded_http import bounded_client

        self.url = url.rstrip("/")
        # Ignore the environment: a .netrc would replace the token.
        settings = {"timeout": TIMEOUT, "trust_env": False, "transport": httpx2.HTTPTransport(retries=3)}
        self.client = bounded_client(lambda _: LARGEST_PAGE, base_url=self.url, **settings)
        self.client.headers["Authorization"], self.key = f"Token {api_key}", api_key
        if api_key.count(".") == 2:  # a personal access token, exchanged for short-lived ones
            del self.client.headers["Authorization"]
            with self.reading():
                access = self.ask("POST", "/api/token/refresh", json={"refresh": api_key})["access"]
            self.client.headers["Authorization"] = f"Bearer {access}"

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """
        Send a request and return the JSON answer.

        Raises:
            TrlRealError: If the request fails, with the answer of the server.
        """
        import httpx2

        try:
            response = self.client.request(method, path, **request)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TrlRealError(f"No answer from {self.url} ({type(error).__name__}). Is Label Studio up?") from error
        if response.status_code == 401:
            raise TrlRealError(f"{self.url} rejects the key. Give the access token of your account page.")
        if response.is_error:
            text = printable(response.text.replace(self.key, "[key]"))
            raise TrlRealError(f"{self.url} answered {response.status_code} to {path.partition('?')[0]}: {text}")
        if response.has_redirect_location:
            raise TrlRealError(f"{self.url} sends to another address, which is not followed. Give the final one.")
        try:
            return response.json() if response.content else None
        except (ValueError, RecursionError) as error:
            raise TrlRealError(f"{self.url} does not answer like Label Studio. Check the address.") from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise `TrlRealError` in this block for an answer of another form than Label Studio's."""
        try:
            yield
        except (KeyError, TypeError, AttributeError) as error:
            raise TrlRealError(f"{self.url} does not answer like Label Studio. Check the address.") from error

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """Yield the tasks of a project, with their annotations."""
        page, seen = 1, 0
        while True:
            path = f"/api/tasks?project={project}&fields=all&page={page}&page_size={AT_A_TIME}"
            found = self.ask("GET", path)
            yield from found["tasks"]
            seen, page = seen + len(found["tasks"]), page + 1
            if seen >= found["total"] or not found["tasks"]:
                return

    def names(self) -> dict[int, str]:
        """Return the e-mail address or name of each user, by number."""
        users = self.ask("GET", "/api/users/")
        return {user["id"]: user.get("email") or user.get("username") or f"user {user['id']}" for user in users}


def push_pairs(
    dataset: Dataset,
    server: LabelStudio,
    *,
    title: str = "Which response is better?",
    project: int | None = None,
    guidelines: str = "",
    seed: int = 42,
) -> tuple[int, int]:
    """
    Send selected pairs to a project; pairs that the project has already are not sent again.

    Args:
        dataset: Output of a selector's `select`.
        server: Label Studio server.
        title: Title of a new project, at least three characters.
        project: Number of a project that this function created; a new one by default.
        guidelines: Text for the annotators of a new project.
        seed: Seed of the order and the sides.

    Returns:
        Number of the project, and number of pairs sent.

    Raises:
        MissingColumnError: If the column of prompts or responses is missing.
        TrlRealError: If the server rejects a request.
    """
    if project is None:
        settings: dict[str, Any] = {"title": title, "label_config": LABEL_CONFIG, "expert_instruction": guidelines}
        settings |= {"show_instruction": bool(guidelines), "show_collab_predictions": False}
        with server.reading():
            project = int(server.ask("POST", "/api/projects/", json=settings)["id"])
    with server.reading():
        known = {task["data"].get("pair_key") for task in server.tasks(project)}
    deck = Deck(dataset)
    names = [name for name in deck.order(seed, SERVER) if known.isdisjoint(deck.keys(name))]
    for start in range(0, len(names), AT_A_TIME):
        tasks = [{"data": _task(deck, name, seed)} for name in names[start : start + AT_A_TIME]]
        server.ask("POST", f"/api/projects/{project}/import", json=tasks)
    return project, len(names)


def pull_votes(server: LabelStudio, project: int, path: str | Path) -> int:
    """
    Write the votes of a project to a votes file for `VotesJudge`; votes in the file are not written again.

    Of several votes by one person on one pair, the last one by its time counts, in whatever order the server lists
    them. Votes that changed on the server are written again. Votes that were deleted, or that moved to another pair or
    another name (such as a new e-mail address of the annotator), are undone.

    Args:
        server: Label Studio server.
        project: Number of the project.
        path: Path of the votes file.

    Returns:
        Number of lines written.

    Raises:
        TrlRealError: If `push_pairs` did not create the project, or the server rejects a request.
    """
    with server.reading():
        names = server.names()
        votes = [vote for task in server.tasks(project) for vote in _votes(task, names, project)]
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for vote in sorted(votes, key=_when):
        last[vote["annotator"], vote["key"]] = vote
    found = {vote["source"]: vote for vote in last.values()}
    with Journal(path) as journal:
        ours = f"label-studio/{project}/"
        written = {line["source"]: line for line in journal.read() if str(line.get("source", "")).startswith(ours)}
        gone = [
            line
            for source, line in written.items()
            if "verdict" in line and _differs(found.get(source), line, ("annotator", "key"))
        ]
        undone = [{"undo": line["key"], "annotator": line["annotator"], "source": line["source"]} for line in gone]
        new = [vote for source, vote in found.items() if _differs(written.get(source), vote)]
        for line in (*undone, *new):
            journal.append(line)
    return len(undone) + len(new)


def _when(vote: dict[str, Any]) -> tuple[float, int]:
    """Return the time of a vote, and the number of its annotation for votes of one time."""
    number = vote["source"].rpartition("/")[2]
    try:
        time = datetime.fromisoformat(vote["time"])
    except ValueError:
        return -math.inf, int(number) if number.isdigit() else 0
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time.timestamp(), int(number) if number.isdigit() else 0


def _task(deck: Deck, name: str, seed: int) -> dict[str, Any]:
    """Return the data of a task, with all that maps a choice back to `response_a` and `response_b`."""
    pair = deck.show(name, seed, SERVER)
    if pair.images:
        raise TrlRealError(
            "Label Studio is sent texts only, and rows have images. Use the page: trl-real label --human"
        )
    return {
        "prompt": dialogue(pair.prompt),
        "left": pair.first,
        "right": pair.second,
        "pair_key": pair.key,
        "mirror_key": deck.keys(name)[1],
        "shown_first": pair.shown_first,
        "row": pair.row,
        "seed": seed,
    }


def _votes(task: dict[str, Any], names: dict[int, str], project: int) -> Iterator[dict[str, Any]]:
    """Yield the vote lines of a task's annotations."""
    data = task["data"]
    if not {"pair_key", "shown_first"} <= data.keys():
        raise TrlRealError(f"Project {project} has tasks without a pair. Give a project that `--push` created.")
    for annotation in task.get("annotations") or []:
        choices = [c for result in annotation.get("result") or [] for c in result.get("value", {}).get("choices", [])]
        if annotation.get("was_cancelled") or len(choices) != 1 or choices[0] not in CHOICES:
            continue
        who: Any = annotation.get("completed_by")
        who = who.get("id") if isinstance(who, dict) else who
        vote = Vote(
            key=data["pair_key"],
            mirror=data.get("mirror_key", ""),
            row=data.get("row", -1),
            annotator=names.get(who, f"user {who}"),
            verdict=CHOICES[choices[0]][data["shown_first"]],
            shown_first=data["shown_first"],
            seconds=float(annotation.get("lead_time") or "nan"),
            time=annotation.get("updated_at") or annotation.get("created_at") or "",
            seed=data.get("seed", -1),
        )
        yield {**asdict(vote), "source": f"label-studio/{project}/{quote(str(annotation['id']))}"}


def _differs(one: dict[str, Any] | None, other: dict[str, Any], by: Sequence[str] = COMPARED) -> bool:
    return one is None or any(one.get(name) != other[name] for name in by)
