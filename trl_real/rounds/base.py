"""What runs in rounds share: a folder, a base model with an adapter a round, and tests between the rounds."""

import copy
import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig

from trl_real.data.conversation import dialogue
from trl_real.data.digest import told
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.annotate import identity_of
from trl_real.labeling.verdicts import Judge, name_of
from trl_real.rounds.testing import keep_test_pairs, metrics_on_test_pairs
from trl_real.runtime.run_folder import Round, RoundFolder
from trl_real.training.adapters import (
    adapter_settings,
    default_lora,
    fresh_adapter,
    load_base,
    save_adapter,
    with_adapter,
)
from trl_real.training.config import REALDPOConfig


logger = logging.getLogger(__name__)

Evaluate = Callable[[Any, Any], dict[str, float]]

COST = ("seconds", "n_tokens")
# A policy that is its own reference has no margin.
UNTRAINED = {"loss": math.log(2), "accuracy": 0.5, "margin": 0.0}
# No part of what a run hangs on: folders, logging, and what the rounds set themselves.
NOT_SETTINGS = ("output_dir", "logging_dir", "logging_steps", "disable_tqdm", "report_to", "run_name", "seed")


class NothingLeft(TrlRealError):
    """A round has nothing to choose from: the run ends with the one before."""


@dataclass
class Run:
    """
    What came of a run.

    Args:
        folder: Its folder.
        name: Of the arm.
        seed: Of the run.
        rounds: A mapping a round, after what there was before the first: its counts, its metrics, and under `phases`
            the seconds and tokens of each step.
    """

    folder: Path
    name: str
    seed: int
    rounds: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Rounds(ABC):
    """
    A run in rounds, and all that its rounds share.

    Args:
        model: Hub id or path of the model before alignment.
        args: Of the trainer.
        output_dir: Folder of the run; a run that was killed goes on from there.
        peft_config: Of the adapter; rank 16 on all linear layers by default.
        eval_dataset: Labelled pairs that every round is tested on, against the model before alignment.
        evaluate: Takes the policy and its tokenizer, returns further metrics, such as a win rate.
        seed: Of everything that is drawn.
    """

    model: str
    args: REALDPOConfig
    output_dir: str | Path
    peft_config: PeftConfig | None = None
    eval_dataset: Dataset | None = None
    evaluate: Evaluate | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        self.peft_config = copy.deepcopy(self.peft_config) or default_lora()  # PEFT writes into it
        self.check()
        columns = None if self.eval_dataset is None else self.eval_dataset.column_names
        for name in ("chosen", "rejected"):
            if columns is not None and name not in columns:
                raise MissingColumnError(name, columns, "eval_dataset are labelled pairs.")
        self.runs = RoundFolder(self.output_dir, {**self.settings(), **self._shared_settings()})

    def run(self, rounds: int) -> Run:
        """Do the rounds that are not done yet, of so many in all."""
        found = Run(self.runs.folder, self.name, self.seed, self.start())
        for number in range(1, rounds + 1):
            try:
                found.rounds.append(self.round(number, found.rounds[-1]))
            except NothingLeft:
                logger.warning("Round %d has no pair to choose that was not judged before; the run ends here.", number)
                break
        return found

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the arm, in reports."""

    @abstractmethod
    def check(self) -> None:
        """Refuse settings that are out of range, before anything is written."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What every round hangs on beside the shared settings, as plain values."""

    @abstractmethod
    def start(self) -> list[dict[str, Any]]:
        """What there is before the first round, and what it scores."""

    @abstractmethod
    def round(self, number: int, before: dict[str, Any]) -> dict[str, Any]:
        """Do a round, given what the one before came to."""

    def _shared_settings(self) -> dict[str, Any]:
        trainer = {name: value for name, value in self.args.to_dict().items() if name not in NOT_SETTINGS}
        return {
            "model": self.model,
            "seed": self.seed,
            "test": None if self.eval_dataset is None else told(self.eval_dataset),
            **adapter_settings(self.peft_config),
            "trainer": hashlib.sha256(repr(sorted(trainer.items())).encode()).hexdigest()[:16],
        }

    def base(self) -> tuple[Any, Any]:
        """The model before alignment, and its tokenizer."""
        return load_base(self.model, self.args.model_init_kwargs, self.args.use_cpu)

    def policy(self, of: Round) -> tuple[Any, Any]:
        """The base with the adapter of a round, and its tokenizer."""
        base, tokenizer = self.base()
        return with_adapter(base, of / "adapter", trainable=True), tokenizer

    def begin(self, adapter: str) -> dict[str, float]:
        """
        Make a fresh adapter, which is still the base, and keep the test pairs with what the base says of them.

        Args:
            adapter: Its folder in round 0.

        Returns:
            What it scores.
        """
        zero = self.runs.round(0)

        def make() -> dict[str, Any]:
            base, tokenizer = self.base()
            policy = fresh_adapter(base, self.peft_config, self.seed)
            if self.eval_dataset is not None:
                keep_test_pairs(self.eval_dataset, policy, tokenizer, self.args, zero / "test")
            save_adapter(policy, zero / adapter)
            return {"metrics": self.evaluate(policy, tokenizer) if self.evaluate is not None else {}}

        untrained = UNTRAINED if self.eval_dataset is not None else {}
        return {**zero.step("start", make)["metrics"], **untrained}

    def test(self, this: Round) -> dict[str, Any]:
        """What a round's policy scores."""
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
    """Seconds and tokens of the steps of a round."""
    return {name: {key: state.get(key, 0) for key in COST} for name, state in this.state.items()}


def setting_of(judge: Judge) -> str:
    """A judge as a setting; votes may be added while rounds go on."""
    return f"{name_of(judge)}, {identity_of(judge, but=('votes',))}"


def drawn(prompts: Iterable[Any], *seeds: int) -> list[list[int]]:
    """
    The rows of each prompt, in an order that its text and the seeds draw, whatever order they come in.

    Args:
        prompts: Texts, messages or None.
        seeds: Of the draw.
    """
    found: dict[bytes, list[int]] = {}
    for i, prompt in enumerate(prompts):
        said = "\0".join([*map(str, seeds), dialogue(prompt)])
        found.setdefault(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest(), []).append(i)
    return [found[key] for key in sorted(found)]
