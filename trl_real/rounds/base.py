"""Base of runs in rounds: a folder per run, a base model with an adapter per round, and tests between rounds."""

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig

from trl_real.data.chat import as_chat
from trl_real.data.conversation import dialogue
from trl_real.data.digest import dataset_digest
from trl_real.errors import TrlRealError, check_columns
from trl_real.labeling.annotate import identity_of
from trl_real.labeling.verdicts import Judge, name_of
from trl_real.rounds.testing import metrics_on_test_pairs, save_test_pairs
from trl_real.runtime.digests import sha256
from trl_real.runtime.run_folder import Round, RoundFolder
from trl_real.runtime.run_lock import run_lock
from trl_real.training.adapters import (
    adapter_settings,
    default_lora,
    fresh_adapter,
    load_base,
    save_adapter,
    with_adapter,
)
from trl_real.training.config import REALDPOConfig
from trl_real.training.resume import weights_of


logger = logging.getLogger(__name__)

Evaluate = Callable[[Any, Any], dict[str, float]]

COST = ("seconds", "n_tokens")
# Metrics of a policy that equals its reference: all margins are 0.
UNTRAINED = {"loss": math.log(2), "accuracy": 0.5, "margin": 0.0}
# Arguments of the trainer that may change when a run continues, or that each round sets itself.
NOT_SETTINGS: tuple[str, ...] = ("output_dir", "logging_dir", "logging_steps", "disable_tqdm", "report_to", "run_name")
NOT_SETTINGS += ("seed", "shared_prompts", "as_messages")


class NothingLeft(TrlRealError):
    """Raised when a round has no pair to select from: the run ends with the previous round."""


@dataclass
class RoundsResult:
    """
    Results of a run. `rounds` has one mapping per round, after those from before the first round: counts, metrics, and
    under `phases` the seconds and tokens of each step.
    """

    folder: Path
    name: str
    seed: int
    rounds: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Rounds(ABC):
    """Base class of runs in rounds: the settings and steps that all methods share, described in `active_rounds`."""

    model: str
    args: REALDPOConfig
    output_dir: str | Path
    peft_config: PeftConfig | None = None
    eval_dataset: Dataset | None = None
    evaluate: Evaluate | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        self.peft_config = copy.deepcopy(self.peft_config) or default_lora()  # PEFT changes it in place
        for name in ("pool", "seed_labels", "prompts", "eval_dataset") if self.args.as_messages else ():
            setattr(self, name, as_chat(getattr(self, name, None), responses=getattr(self, "responses", "responses")))
        self.check()
        if self.eval_dataset is not None:
            columns = self.eval_dataset.column_names
            check_columns(columns, ("chosen", "rejected"), "eval_dataset needs labelled pairs.")
        with run_lock(self.output_dir):
            self.runs = RoundFolder(self.output_dir, {**self.settings(), **self._shared_settings()})

    def run(self, rounds: int, on_round: Callable[[int], None] = lambda number: None) -> RoundsResult:
        """Run the rounds that are not finished yet, up to the given total; call `on_round` before each."""
        with run_lock(self.output_dir):
            return self._run(rounds, on_round)

    def _run(self, rounds: int, on_round: Callable[[int], None]) -> RoundsResult:
        result = RoundsResult(self.runs.folder, self.name, self.seed, self.start())
        for number in range(1, rounds + 1):
            on_round(number)
            try:
                result.rounds.append(self.round(number, result.rounds[-1]))
            except NothingLeft:
                logger.warning("Round %d has no pair left that was not judged before; the run ends here.", number)
                break
        return result

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the arm in reports."""

    @abstractmethod
    def check(self) -> None:
        """Check the settings before anything is written."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the method's settings that every round depends on, as plain values."""

    @abstractmethod
    def start(self) -> list[dict[str, Any]]:
        """Prepare the first round, and return the metrics from before it."""

    @abstractmethod
    def round(self, number: int, before: dict[str, Any]) -> dict[str, Any]:
        """Run a round, given the results of the previous one."""

    def _shared_settings(self) -> dict[str, Any]:
        trainer = {name: value for name, value in self.args.to_dict().items() if name not in NOT_SETTINGS}
        return {
            "model": self.model,
            "weights": weights_of(self.model, self.args),
            "seed": self.seed,
            "test": None if self.eval_dataset is None else dataset_digest(self.eval_dataset),
            **adapter_settings(self.peft_config),
            "trainer": sha256(sorted(trainer.items())).hex()[:16],
        }

    def base(self) -> tuple[Any, Any]:
        """Load the model before alignment and its tokenizer."""
        return load_base(self.model, self.args.model_init_kwargs, self.args.use_cpu)

    def policy(self, this: Round) -> tuple[Any, Any]:
        """Load the base model with the adapter of a round, and the tokenizer."""
        base, tokenizer = self.base()
        return with_adapter(base, this / "adapter", trainable=True), tokenizer

    def begin(self, adapter: str) -> dict[str, float]:
        """
        Create an adapter without effect in this folder of round 0, save the test pairs with the base model's
        log-probabilities, and return the base model's metrics.
        """
        zero = self.runs.round(0)

        def make() -> dict[str, Any]:
            base, tokenizer = self.base()
            policy = fresh_adapter(base, self.peft_config, self.seed)
            if self.eval_dataset is not None:
                save_test_pairs(self.eval_dataset, policy, tokenizer, self.args, zero / "test")
            save_adapter(policy, zero / adapter)
            return {"metrics": self.evaluate(policy, tokenizer) if self.evaluate is not None else {}}

        untrained = UNTRAINED if self.eval_dataset is not None else {}
        return {**zero.step("start", make)["metrics"], **untrained}

    def test(self, this: Round) -> dict[str, Any]:
        """Return the metrics of a round's policy."""
        found: dict[str, float] = {}
        if self.eval_dataset is None and self.evaluate is None:
            return {"metrics": found}
        policy, tokenizer = self.policy(this)
        if self.eval_dataset is not None:
            found |= metrics_on_test_pairs(policy, tokenizer, self.args, self.runs.round(0) / "test")
        if self.evaluate is not None:
            found |= self.evaluate(policy, tokenizer)
        return {"metrics": found}


def phases_of(this: Round) -> dict[str, dict[str, float]]:
    """Return the seconds and tokens of each step of a round."""
    return {name: {key: state.get(key, 0) for key in COST} for name, state in this.state.items()}


def setting_of(judge: Judge) -> str:
    """Return a judge as a setting, without votes, which may be added during a run."""
    return f"{name_of(judge)}, {identity_of(judge, ignore=('votes',))}"


def drawn(prompts: Iterable[Any], *seeds: int) -> list[list[int]]:
    """Return the rows of each different prompt, in a random order that depends on texts and seeds, not on the rows."""
    found: dict[bytes, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(sha256(*seeds, dialogue(prompt)), []).append(i)
    return [found[key] for key in sorted(found)]
