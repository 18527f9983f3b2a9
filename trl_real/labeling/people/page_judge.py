"""Judge that asks people: it serves a page until every pair has a vote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_real.data.images import IMAGE_COLUMNS
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.people.votes import Aggregation, VotesJudge
from trl_real.labeling.verdicts import Verdict


class PageJudge(VerdictJudge):
    """
    Judge that serves the page with the pairs of a batch, waits for the votes and returns them.

    Pairs with a vote in the file are not asked again, so an interrupted run continues.

    Args:
        votes: Path of the votes file.
        guidelines: Markdown text, or path of a Markdown file.
        annotator: Name stored with the votes; None asks for it on the page.
        port: Port of the page; a free one by default.
        seed: Seed of the order and the sides.
        aggregation: Rule that combines several annotators, see `VotesJudge`.
        on_ready: Function that receives the URL when the page is ready.
    """

    def __init__(
        self,
        votes: str | Path,
        *,
        guidelines: str | Path = "",
        annotator: str | None = None,
        port: int | None = None,
        seed: int = 42,
        aggregation: str | Aggregation = "majority",
        on_ready: Callable[[str], None] | None = None,
    ):
        self.votes, self.aggregation, self.name = Path(votes), aggregation, "people"
        self.page: dict[str, Any] = {
            "guidelines": guidelines,
            "annotator": annotator,
            "port": port,
            "seed": seed,
            "on_ready": on_ready,
        }

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """Return the votes on the pairs of a batch when all are given."""
        from trl_real.labeling.people.page import serve_page

        if not self._all_voted(batch):
            read = [name for name in ("prompt", "response_a", "response_b", *IMAGE_COLUMNS) if name in batch]
            pairs = Dataset.from_dict({name: batch[name] for name in read})
            serve_page(pairs, self.votes, until_done=True, **self.page)
        return VotesJudge(self.votes, self.aggregation).verdicts(batch)

    def _all_voted(self, batch: dict[str, list[Any]]) -> bool:
        """Return whether every pair has a vote or was skipped."""
        if not self.votes.exists():
            return False
        return all(verdict.failure != "not labelled" for verdict in VotesJudge(self.votes).verdicts(batch))
