"""DPO training for a study: train on a cell's pairs and evaluate during training."""

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_real.data.conversation import text_of
from trl_real.data.template import continued, templated
from trl_real.functional.drift import embedding_drift
from trl_real.functional.preference import implicit_margin
from trl_real.models.embed import Embedder
from trl_real.study.results import WITH_PROMPT
from trl_real.study.trained import RunPoint, TrainingRun
from trl_real.training.adapters import load_tokenizer, revision_of
from trl_real.training.config import REALDPOConfig
from trl_real.training.trainer import REALDPOTrainer


# Number of test pairs for the drift of the embeddings.
N_DRIFT = 32
SETS = ("validation", "test")
# Number of points of the reward curves.
LOGGED = 20


class DPOCells:
    """
    Trains the model on a cell's pairs, once per learning rate, always from the same weights, which are also the
    reference model.

    Args:
        model: Hub id or path of the model.
        config: Settings of the trainer; the study sets evaluation, saving, learning rate, folder and seed.
        peft_config: Configuration of the adapter, if one is trained.
        learning_rates: Learning rates to try in every cell; the one with the lowest validation loss counts.
        n_evaluations: Number of evaluations per run, the last one at its end.
        given: Command-line flags of `config`, stored in the run folder.
    """

    engine = "dpo"

    def __init__(
        self,
        model: str,
        config: REALDPOConfig,
        peft_config: Any = None,
        learning_rates: Sequence[float] = (1e-5, 1e-4),
        n_evaluations: int = 4,
        given: Sequence[str] = (),
    ):
        self.model, self.config, self.peft_config = model, config, peft_config
        self.learning_rates, self.n_evaluations = list(learning_rates), n_evaluations
        self.settings = {"learning_rates": self.learning_rates, "n_evaluations": n_evaluations, "trainer": list(given)}

    @property
    def revision(self) -> str | None:
        """Revision of the model on the Hub."""
        return revision_of(self.config.model_init_kwargs)

    def __call__(
        self, train: Dataset, validation: Dataset, test: Dataset, seed: int, folder: Path, follow_drift: bool = False
    ) -> list[TrainingRun]:
        """
        Train on a cell's preference data; return one run per learning rate.

        Args:
            train, validation, test: Preference data; `validation` may be empty.
            seed: Seed of the order of the pairs and of the adapter's weights.
            folder: Folder for the trainer; removed at the end.
            follow_drift: Whether to measure the drift of the embeddings of test pairs.
        """
        runs = [self._run(rate, train, validation, test, seed, folder, follow_drift) for rate in self.learning_rates]
        shutil.rmtree(folder, ignore_errors=True)
        return runs

    def _run(
        self, rate: float, train: Dataset, validation: Dataset, test: Dataset, seed: int, folder: Path, drift: bool
    ) -> TrainingRun:
        sets = {name: data for name, data in zip(SETS, (validation, test), strict=True) if len(data)}
        config = self._config(rate, len(train), seed, folder)
        trainer = REALDPOTrainer(
            self.model,
            args=config,
            train_dataset=train,
            eval_dataset=sets,
            processing_class=load_tokenizer(self.model, self.config.model_init_kwargs),
            peft_config=copy.deepcopy(self.peft_config),
        )
        trainer.remove_callback(PrinterCallback)  # the study has its own progress bar
        watch = Watch(trainer, len(train), test if drift else None)
        trainer.add_callback(watch)
        trainer.train()
        return TrainingRun(rate, watch.points, trainer.state.log_history, watch.drift)

    def _config(self, rate: float, n_train: int, seed: int, folder: Path) -> REALDPOConfig:
        config = copy.copy(self.config)
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
        steps = max(1, math.ceil(n_train / batch) * math.ceil(config.num_train_epochs))
        config.learning_rate, config.seed, config.data_seed = rate, seed, seed
        config.output_dir, config.disable_tqdm = str(folder), True
        config.eval_strategy, config.save_strategy = IntervalStrategy.STEPS, SaveStrategy.NO
        config.eval_steps = max(1, math.ceil(steps / self.n_evaluations))
        config.logging_steps = max(1, steps // LOGGED)
        return config


class Watch(TrainerCallback):
    """
    Callback that records each evaluation, and evaluates at the end of training if the last step did not.

    Args:
        trainer: Trainer that runs the evaluations.
        n_train: Number of labelled pairs per epoch.
        followed: Pairs for the drift of the embeddings; None for no drift.
    """

    def __init__(self, trainer: REALDPOTrainer, n_train: int, followed: Dataset | None):
        self.trainer, self.n_train = trainer, n_train
        self.points: list[RunPoint] = []
        self.drift: list[dict[str, float]] = []
        self.texts: dict[str, list[str]] = {}
        if followed is not None:
            self.texts = _texts(followed, trainer.processing_class)
        self.before = {name: self._embeddings(texts) for name, texts in self.texts.items()}
        self.evaluated_at = -1

    def on_train_end(self, args, state, control, **kwargs):
        """Evaluate at the end of training, unless the last step did."""
        if self.evaluated_at != state.global_step:
            self.trainer.evaluate()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Record a point after the test set, the last evaluation set."""
        rows = self.trainer.evaluation_rows
        if "eval_test_loss" not in (metrics or {}):
            return
        margins = {name: self._margins(rows.get(f"eval_{name}")) for name in SETS}
        labels = min(state.epoch or 0.0, 1.0) * self.n_train
        self.points.append(RunPoint(labels, margins["validation"], margins["test"]))
        self.evaluated_at = state.global_step
        if self.before:
            found: dict[str, float] = {"labels": labels}
            for prefix, texts in self.texts.items():
                drift = embedding_drift(self.before[prefix], self._embeddings(texts))
                found |= {f"{prefix}{name}": value for name, value in drift._asdict().items()}
            self.drift.append(found)

    def _margins(self, rows: dict[str, torch.Tensor] | None) -> np.ndarray:
        if rows is None:
            return np.zeros(0)
        logps = [rows[name] for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")]
        return implicit_margin(logps[0], logps[1], logps[2], logps[3], self.trainer.beta).numpy()

    def _embeddings(self, texts: list[str]) -> torch.Tensor:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        found = Embedder(model, self.trainer.processing_class)([None] * len(texts), texts, progress=False)
        return found.vectors.view(-1, 2, found.vectors.shape[1])


def _texts(pairs: Dataset, tokenizer: Any) -> dict[str, list[str]]:
    """Return the texts whose embeddings drift, by the prefix of their measures: responses, and prompts with them."""
    rows = pairs.select(range(min(N_DRIFT, len(pairs))))
    sides = [(row.get("prompt") or "", row[name]) for row in rows for name in ("chosen", "rejected")]
    whole = [
        prompt + text_of(response)
        if isinstance(prompt, str)
        else templated(tokenizer, [continued(prompt, response)], tokenize=False)[0]
        for prompt, response in sides
    ]
    return {"": [text_of(response) for _, response in sides], WITH_PROMPT: whole}
