"""Base class of the judges that report more than a probability."""

from typing import TYPE_CHECKING, Any

from trl_real.labeling.verdicts import Verdict


if TYPE_CHECKING:
    from datasets import Dataset

    from trl_real.labeling.check import JudgeCheck


class VerdictJudge:
    """A judge whose verdicts say more than a probability: subclasses write `verdicts`."""

    name = "judge"

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Judge a batch of pairs.

        Args:
            batch: Columns `prompt` (text or messages), `response_a` and `response_b` (texts).

        Returns:
            A verdict a row.
        """
        raise NotImplementedError

    def __call__(self, batch: dict[str, list[Any]]) -> list[float]:
        """The probabilities of `verdicts`."""
        return [verdict.probability for verdict in self.verdicts(batch)]

    def check(self, dataset: "Dataset", **options: Any) -> "JudgeCheck":
        """Measure how far the judge can be trusted on labelled pairs; options as in `check_judge`."""
        from trl_real.labeling.check import check_judge

        return check_judge(dataset, self, **options)
