"""The win rate of each round's policy against the model that it came from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.evaluation.compare import compare
from trl_real.labeling.verdicts import Judge
from trl_real.models.generate import generate_responses
from trl_real.models.implicit import without_adapter
from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.runtime.digests import sha256


class WinRateAgainstStart:
    """
    `evaluate` of a run in rounds: how often a judge prefers what the policy writes over what the model before
    alignment wrote.

    Args:
        prompts: Texts or messages that no round learns from.
        judge: Any judge that reads texts.
        folder: Keeps what the start wrote, so that it writes once for all rounds, arms and seeds.
        seed: Of the sampling.
        **generation: Of `generate`: `max_new_tokens`, `temperature`, ….

    Raises:
        TrlRealError: If there are no prompts.
    """

    def __init__(self, prompts: Sequence[Any], judge: Judge, folder: str | Path, *, seed: int = 42, **generation: Any):
        if not len(prompts):
            raise TrlRealError("There are no prompts to compare policies on. Give some.")
        self.prompts, self.judge, self.folder = list(prompts), judge, Path(folder)
        self.generation = {"seed": seed, **generation}

    def __call__(self, policy: Any, tokenizer: Any) -> dict[str, float]:
        """
        Args:
            policy: A PEFT model, whose base is the start.
            tokenizer: Its tokenizer.

        Returns:
            `win_rate` (0.5 for the start itself) and `completion_length`, in characters.
        """
        texts = self._written(policy, tokenizer)
        found = compare(self.prompts, texts, self._of_start(policy, tokenizer), self.judge)
        return {"win_rate": found.rates["win_rate"], "completion_length": found.model_length}

    def _of_start(self, policy: Any, tokenizer: Any) -> list[str]:
        said = json.dumps([self.prompts, self.generation, tokenizer.name_or_path], sort_keys=True)
        path = self.folder / f"start-{sha256(said).hex()[:16]}.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with without_adapter(policy):
                write_json(path, {"completions": self._written(policy, tokenizer)})
        return read_json(path)["completions"]

    def _written(self, policy: Any, tokenizer: Any) -> list[str]:
        return [texts[0] for texts in generate_responses(policy, tokenizer, self.prompts, **self.generation)]
