"""TRL's `DPOTrainer` that selects its training pairs at init, and resumes on the same pairs."""

import copy
import textwrap
import warnings
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import get_config_model_id

from trl_real.data.chat import as_chat
from trl_real.data.conversation import TEMPLATE_COLUMNS
from trl_real.data.pairs import SAME_AS_TRAINED
from trl_real.errors import TrlRealError
from trl_real.reports.model_card import CARD, complete_card
from trl_real.selection.mixture.parts import is_mixture, mixture_name
from trl_real.selection.record import SelectionRecord
from trl_real.selection.selector import EmbeddingPairSelector
from trl_real.selection.strategies import strategy_name
from trl_real.training.config import REALDPOConfig
from trl_real.training.kept_rows import (
    PROMPT_TOO_LONG,
    KeptRows,
    check_selectable,
    check_unsharded,
    complete_record,
    named_strategy,
    selection_section,
    trained_alike,
)
from trl_real.training.preparation import check_ends, check_vocabulary, told_preparation, without_ends
from trl_real.training.resume import last_checkpoint


# Column with row numbers while TRL tokenizes, which drops rows and changes texts.
ROW = "_trl_real_row"

CITATION = textwrap.dedent("""\
    @article{zhang2024real,
        title   = {{REAL: Response Embedding-based Alignment for LLMs}},
        author  = {Honggen Zhang and Xufeng Zhao and Igor Molybog and June Zhang},
        year    = 2024,
        journal = {arXiv preprint arXiv:2409.17169},
    }""")

PAPER = {
    "title": "REAL: Response Embedding-based Alignment for LLMs",
    "id": "2409.17169",
    "citation": f"{CITATION}\n\n{DPOTrainer._paper['citation']}",
}


class SelectingDPOTrainer(DPOTrainer):
    """Base class of [`REALDPOTrainer`] that selects training rows at init, saves their numbers and resumes on them."""

    # Record of the selection that chose the rows before they were labelled, for the card; set it before training.
    earlier_selection: SelectionRecord | None = None
    _pool: Dataset | None = None
    _candidates: Dataset | None = None
    _kept: KeptRows | None = None

    if not TYPE_CHECKING:  # type checkers see the arguments of `DPOTrainer`

        @wraps(DPOTrainer.__init__, assigned=())
        def __init__(self, *args, **kwargs):
            given = signature(DPOTrainer).bind(*args, **kwargs).arguments
            if getattr(given.get("args"), "as_messages", False):
                given |= {name: as_chat(given.get(name)) for name in ("train_dataset", "eval_dataset")}
            if selects(given.get("args")):
                check_selectable(given.get("train_dataset"), given["args"])
            super().__init__(**given)
            if isinstance(self.train_dataset, Dataset):
                check_vocabulary(self.model, self.train_dataset)
            check_ends(self.model, self.processing_class, given.get("train_dataset"))
            if self._is_vision_dataset and selects(self.args):  # TRL prepares none: images are read in each step
                self.train_dataset = self._pool = self.train_dataset.add_column(
                    ROW, np.arange(len(self.train_dataset))
                )
            self.train_dataset = self._select(self.train_dataset)
            strategy = self.args.selection_strategy if selects(self.args) else ""
            if not isinstance(strategy, str):  # cannot be saved with a checkpoint
                self.args = copy.copy(self.args)
                self.args.selection_strategy = (
                    mixture_name(strategy) if is_mixture(strategy) else strategy_name(strategy)
                )

    @property
    def selection_record(self) -> SelectionRecord | None:
        """Record of the selection, if there was one."""
        return self._kept.record if self._kept else None

    @property
    def selected_rows(self) -> np.ndarray | None:
        """Numbers of the selected rows in the given training set, ascending."""
        return self._kept.rows if self._kept else None

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Train; a run that resumes from a checkpoint uses its rows."""
        self._resume_rows(checkpoint_folder(resume_from_checkpoint, self.args))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write TRL's model card, with the origin of a model in a local folder and a section about each selection, and
        the selection record.
        """
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if not self.is_world_process_zero():
            return
        complete_card(self.args.output_dir, get_config_model_id(self.model.config))
        with (Path(self.args.output_dir) / CARD).open("a", encoding="utf-8") as card:
            if self.earlier_selection is not None:
                card.write(selection_section(self.earlier_selection, earlier=True))
            if self._kept is not None:
                card.write(selection_section(self._kept.record))
        self._save_records(self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, the selection record and the selected rows."""
        if self.args.should_save:
            self._save_records(output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call=_internal_call)

    def _save_records(self, folder: str) -> None:
        if self._kept is not None:
            self._kept.save(folder)
        elif self.earlier_selection is not None:
            self.earlier_selection.save(folder)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if getattr(args, "as_messages", False):  # of `evaluate`; those of the start are messages already
            dataset = as_chat(dataset)
        first = self._pool is None and self._kept is None  # An evaluation set may also be named "train".
        if dataset_name == "train" and first and selects(args):
            self._pool = dataset = dataset.add_column(ROW, np.arange(len(dataset)))
        prepare = partial(super()._prepare_dataset, dataset, processing_class, args, dataset_name)
        return without_ends(told_preparation(prepare, dataset, dataset_name, args.max_length), processing_class)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if name == "train":
            dataset = self._select(dataset)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _select(self, prepared: Dataset) -> Dataset:
        """Return the rows to train on among those that TRL prepared: all of them without a selection."""
        if self._pool is None:
            return prepared
        pool, self._pool, self._candidates = self._pool, None, prepared
        self._n_given = len(pool)
        folder = checkpoint_folder(self.args.resume_from_checkpoint, self.args)
        if (kept := KeptRows.load(folder)) is not None:
            return self._rows_of(kept, folder)
        check_unsharded(self.model)
        outcome: list[Any] = [self._choose(pool, prepared) if self.accelerator.is_main_process else None]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], TrlRealError):
            raise outcome[0]
        return self._rows_of(outcome[0])

    def _choose(self, pool: Dataset, prepared: Dataset) -> KeptRows | TrlRealError:
        """Select the rows to keep; an error is returned, so that every process can raise it."""
        numbers = _numbers(prepared)
        seen = self._is_vision_dataset  # and not tokenized
        alike = np.zeros(len(prepared), bool) if seen else trained_alike(prepared, pool, numbers, self.args)
        dropped = {PROMPT_TOO_LONG: len(pool) - len(prepared), SAME_AS_TRAINED: int(alike.sum())}
        rows = numbers[~alike]
        texts = [
            name for name in ("prompt", "chosen", "rejected", *TEMPLATE_COLUMNS, ROW) if name in pool.column_names
        ]
        try:
            selector = EmbeddingPairSelector(
                self.accelerator.unwrap_model(self.model),
                tokenizer=getattr(self.processing_class, "tokenizer", self.processing_class),
                strategy=self.args.selection_strategy,
                seed=self.args.seed,
            )
            chosen = selector.select(pool.select_columns(texts).select(rows), self.args.selection_budget)
        except TrlRealError as error:
            return TrlRealError(str(error).replace("budget=", "selection_budget="))
        record = complete_record(selector.record, dropped)
        if not record.n_kept:
            return TrlRealError(
                f"No row of the training set has a pair to select: {record.summary().splitlines()[0]}. "
                "Check its columns 'chosen' and 'rejected'."
            )
        return KeptRows(_numbers(chosen), record)

    def _rows_of(self, kept: KeptRows, folder: str | None = None) -> Dataset:
        """Return the prepared rows that were selected, here or in the run that saved them in `folder`."""
        assert self._candidates is not None
        numbers = _numbers(self._candidates)
        if folder is not None:
            kept.check(folder, self._n_given, numbers)
        self._kept = kept
        if kept.record.model:
            self._name, self._paper = "REAL", PAPER
        return self._candidates.remove_columns(ROW).select(np.searchsorted(numbers, kept.rows).tolist())

    def _resume_rows(self, folder: str | None) -> None:
        """Replace the training rows by those of the checkpoint."""
        saved = KeptRows.load(folder)
        if saved is None:
            return
        if self._candidates is None:
            record = saved.record
            raise TrlRealError(
                f"{folder} was trained on rows that the trainer selected. Give the whole training set and type "
                f"selection_strategy={named_strategy(record)!r}, selection_budget={record.budget!r}."
            )
        assert self._kept is not None
        chosen, rows = self._kept.rows, self._rows_of(saved, folder)
        if np.array_equal(chosen, saved.rows):
            return
        warnings.warn(
            f"Training uses the rows of {folder}, but this model selects others: it is not the model that the run "
            "began with. Unless that model is given as ref_model, the reference is another one as well."
        )
        if self.precompute_ref_logps:
            size = self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
            rows = super()._precompute_ref_logps(rows, "train", size)
        self.train_dataset = rows


def selects(args: DPOConfig | None) -> bool:
    """Return whether the configuration asks for a selection; a plain `DPOConfig` does not."""
    return isinstance(args, REALDPOConfig) and args.selection_strategy is not None


def checkpoint_folder(checkpoint: str | bool | None, args: DPOConfig) -> str | None:
    """Return the folder for a value of `resume_from_checkpoint` (True is the last checkpoint), or None."""
    return last_checkpoint(args.output_dir) if checkpoint is True else checkpoint or None


def _numbers(dataset: Dataset) -> np.ndarray:
    """Return the numbers of the rows in the given training set. Shape `(N,)`, int64."""
    return dataset.select_columns(ROW).with_format("numpy")[:][ROW]
