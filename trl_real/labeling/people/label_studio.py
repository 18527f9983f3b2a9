"""Pairs to a Label Studio server and votes back, over its REST API."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datasets import Dataset

from trl_real.data.conversation import dialogue
from trl_real.errors import TrlRealError
from trl_real.labeling.people.queue import Deck
from trl_real.labeling.people.votes import Vote
from trl_real.runtime.journal import Journal


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
# A choice as a verdict, by the response that stands on the left.
CHOICES = {
    "left is better": {"a": "a", "b": "b"},
    "right is better": {"a": "b", "b": "a"},
    "tie": {"a": "tie", "b": "tie"},
    "skip": {"a": "skip", "b": "skip"},
}
IN_FORCE = ("verdict", "annotator", "key")  # of a vote: whatever of them changes, changes what is in force
AT_A_TIME, TIMEOUT = 250, 60.0
SERVER = "label studio"  # stands in for the annotator when sides are drawn: all who work there see the same


class LabelStudio:
    """
    A server.

    Args:
        url: Such as `http://127.0.0.1:8080`.
        api_key: Access token of a user, of either kind that Label Studio has; written nowhere.

    Raises:
        TrlRealError: If the server cannot be reached or does not take the key.
    """

    def __init__(self, url: str, api_key: str):
        import httpx2

        self.url = url.rstrip("/")
        # No environment: a .netrc would replace the token.
        self.client = httpx2.Client(
            base_url=self.url, timeout=TIMEOUT, trust_env=False, transport=httpx2.HTTPTransport(retries=3)
        )
        self.client.headers["Authorization"] = f"Token {api_key}"
        if api_key.count(".") == 2:  # a personal access token, which buys short-lived ones
            del self.client.headers["Authorization"]
            access = self.ask("POST", "/api/token/refresh", json={"refresh": api_key})["access"]
            self.client.headers["Authorization"] = f"Bearer {access}"

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """
        The JSON answer to a request.

        Raises:
            TrlRealError: If there is none, with what the server said.
        """
        import httpx2

        try:
            response = self.client.request(method, path, **request)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TrlRealError(f"No answer from {self.url} ({type(error).__name__}). Is Label Studio up?") from error
        if response.status_code == 401:
            raise TrlRealError(f"{self.url} does not take the key. Give the access token of your account page.")
        if response.is_error:
            said = " ".join(response.text.split())[:200]
            raise TrlRealError(f"{self.url} answered {response.status_code} to {path.partition('?')[0]}: {said}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise TrlRealError(f"{self.url} does not answer like Label Studio. Check the address.") from error

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """The tasks of a project, with their annotations."""
        page, seen = 1, 0
        while True:
            path = f"/api/tasks?project={project}&fields=all&page={page}&page_size={AT_A_TIME}"
            found = self.ask("GET", path)
            yield from found["tasks"]
            seen, page = seen + len(found["tasks"]), page + 1
            if seen >= found["total"] or not found["tasks"]:
                return

    def names(self) -> dict[int, str]:
        """Users by number: their e-mail addresses or names."""
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
    Send selected pairs to a project; those that are there already are not sent again.

    Args:
        dataset: What a selector's `select` returned.
        server: Where to.
        title: Of a new project, at least three characters.
        project: Number of an existing project of this function's; a new one by default.
        guidelines: Shown to the annotators of a new project.
        seed: Of the order and the sides.

    Returns:
        The project's number, and how many pairs were sent.

    Raises:
        MissingColumnError: If there are no pairs.
        TrlRealError: If the server says no.
    """
    if project is None:
        settings: dict[str, Any] = {"title": title, "label_config": LABEL_CONFIG, "expert_instruction": guidelines}
        settings |= {"show_instruction": bool(guidelines), "show_collab_predictions": False}
        project = server.ask("POST", "/api/projects/", json=settings)["id"]
    there = {task["data"].get("pair_key") for task in server.tasks(project)}
    deck = Deck(dataset)
    names = [name for name in deck.order(seed, SERVER) if there.isdisjoint(deck.keys(name))]
    for start in range(0, len(names), AT_A_TIME):
        tasks = [{"data": _task(deck, name, seed)} for name in names[start : start + AT_A_TIME]]
        server.ask("POST", f"/api/projects/{project}/import", json=tasks)
    return project, len(names)


def pull_votes(server: LabelStudio, project: int, path: str | Path) -> int:
    """
    Write the votes of a project to a votes file, which `VotesJudge` reads; those that are there are not written again.

    Votes that were changed on the server since are written anew; deleted ones are undone, and so are those that now
    stand under another name, as an annotator's whose e-mail address changed, or on another pair.

    Args:
        server: Where from.
        project: Its number.
        path: Of the file.

    Returns:
        How many lines were written.

    Raises:
        TrlRealError: If the project is none of `push_pairs`, or the server says no.
    """
    names = server.names()
    found = {vote["source"]: vote for task in server.tasks(project) for vote in _votes(task, names, project)}
    with Journal(path) as journal:
        written = {line["source"]: line for line in journal.read() if "source" in line}
        gone = [
            line
            for source, line in written.items()
            if "verdict" in line
            and source.startswith(f"label-studio/{project}/")
            and _differs(found.get(source), line, ("annotator", "key"))
        ]
        undone = [{"undo": line["key"], "annotator": line["annotator"], "source": line["source"]} for line in gone]
        new = [vote for source, vote in found.items() if _differs(written.get(source), vote)]
        for line in (*undone, *new):
            journal.append(line)
    return len(undone) + len(new)


def _task(deck: Deck, name: str, seed: int) -> dict[str, Any]:
    """What the server keeps of a pair: all that a vote needs to be told of `response_a` and `response_b` again."""
    pair = deck.show(name, seed, SERVER)
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
    """The lines of a task's annotations."""
    data = task["data"]
    if not {"pair_key", "shown_first"} <= data.keys():
        raise TrlRealError(f"Project {project} has tasks that are no pairs. Give one that `--push` made.")
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
        yield {**vote.to_line(), "source": f"label-studio/{project}/{quote(str(annotation['id']))}"}


def _differs(one: dict[str, Any] | None, other: dict[str, Any], by: Sequence[str] = IN_FORCE) -> bool:
    return one is None or any(one.get(name) != other[name] for name in by)
