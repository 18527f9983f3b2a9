"""Base class of judges that report more than a probability."""

from typing import TYPE_CHECKING, Any

from trl_real.labeling.verdicts import Verdict


if TYPE_CHECKING:
    from datasets import Dataset

    from trl_real.labeling.check import JudgeCheck


ROWS_PER_SAVE = 32  # of judges that run a model in this process: about two forward passes on an accelerator


class VerdictJudge:
    """Judge that returns a `Verdict` per pair: subclasses implement `verdicts`."""

    name = "judge"
    rows_per_save: int | None = None  # rows that `annotate` gives at once with a journal; None for its batch size

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Judge a batch of pairs.

        Args:
            batch: Columns `prompt` (text or messages), `response_a` and `response_b` (texts).

        Returns:
            One verdict per row.
        """
        raise NotImplementedError

    def __call__(self, batch: dict[str, list[Any]]) -> list[float]:
        """Return the probabilities of `verdicts`."""
        return [verdict.probability for verdict in self.verdicts(batch)]

    def check(self, dataset: "Dataset", **options: Any) -> "JudgeCheck":
        """Measure the judge on labelled pairs; options as in `check_judge`."""
        from trl_real.labeling.check import check_judge

        return check_judge(dataset, self, **options)
