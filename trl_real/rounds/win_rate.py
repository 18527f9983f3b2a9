"""Win rate of each round's policy against the model before alignment."""

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
    Function for `evaluate` of a run in rounds: how often a judge prefers the policy's responses to those of the model
    before alignment.

    Args:
        prompts: Texts or messages that no round trains on.
        judge: Judge that reads texts.
        folder: Folder to save the start's responses in, which all rounds, arms and seeds share.
        seed: Seed of the sampling.
        **generation: Settings of `generate`, such as `max_new_tokens` and `temperature`.

    Raises:
        TrlRealError: If `prompts` is empty.
    """

    def __init__(self, prompts: Sequence[Any], judge: Judge, folder: str | Path, *, seed: int = 42, **generation: Any):
        if not len(prompts):
            raise TrlRealError("prompts is empty. Give prompts to compare policies on.")
        self.prompts, self.judge, self.folder = list(prompts), judge, Path(folder)
        self.generation = {"seed": seed, **generation}

    def __call__(self, policy: Any, tokenizer: Any) -> dict[str, float]:
        """Return the PEFT model's `win_rate` (0.5 for the start itself) and `completion_length`, in characters."""
        texts = self._generate(policy, tokenizer)
        found = compare(self.prompts, texts, self._of_start(policy, tokenizer), self.judge)
        return {"win_rate": found.rates["win_rate"], "completion_length": found.model_length}

    def _of_start(self, policy: Any, tokenizer: Any) -> list[str]:
        key = json.dumps([self.prompts, self.generation, tokenizer.name_or_path], sort_keys=True)
        path = self.folder / f"start-{sha256(key).hex()[:16]}.json"
        if not path.exists() or len(read_json(path).get("completions", ())) != len(self.prompts):
            self.folder.mkdir(parents=True, exist_ok=True)
            with without_adapter(policy):
                write_json(path, {"completions": self._generate(policy, tokenizer)})
        return read_json(path)["completions"]

    def _generate(self, policy: Any, tokenizer: Any) -> list[str]:
        return [texts[0] for texts in generate_responses(policy, tokenizer, self.prompts, **self.generation)]
