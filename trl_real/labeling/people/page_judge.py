"""People as a judge that is asked: a page is served until every pair has a vote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.people.votes import VotesJudge
from trl_real.labeling.verdicts import Verdict


class PageJudge(VerdictJudge):
    """
    Serves the page for people with the pairs of a batch, waits until they are voted on, and takes the votes.

    Votes that are in the file already are not asked for again, so a run that was killed shows what is left.

    Args:
        votes: Path of the votes file.
        guidelines: Markdown, or the path of a Markdown file.
        annotator: Whose name stands beside the votes; None asks on the page.
        port: Of the page, a free one by default.
        seed: Of order and sides.
        on_ready: Is told the address.
    """

    def __init__(
        self,
        votes: str | Path,
        *,
        guidelines: str | Path = "",
        annotator: str | None = None,
        port: int | None = None,
        seed: int = 42,
        on_ready: Callable[[str], None] | None = None,
    ):
        self.votes, self.name = Path(votes), "people"
        self.page: dict[str, Any] = {
            "guidelines": guidelines,
            "annotator": annotator,
            "port": port,
            "seed": seed,
            "on_ready": on_ready,
        }

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """The votes on the pairs of a batch, once all are there."""
        from trl_real.labeling.people.page import serve_page

        if not self._known(batch):
            pairs = Dataset.from_dict({name: batch[name] for name in ("prompt", "response_a", "response_b")})
            serve_page(pairs, self.votes, until_done=True, **self.page)
        return VotesJudge(self.votes).verdicts(batch)

    def _known(self, batch: dict[str, list[Any]]) -> bool:
        """Whether every pair has a vote, or was skipped."""
        if not self.votes.exists():
            return False
        return all(verdict.failure != "not labelled" for verdict in VotesJudge(self.votes).verdicts(batch))
