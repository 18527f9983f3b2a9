"""TRL's `DPOTrainer`, which can first choose the pairs it trains on. What we know of TRL's insides is in this file."""

import textwrap
from dataclasses import replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from torch import nn
from torch.distributed.tensor import DTensor
from trl import DPOConfig, DPOTrainer

from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.selection.record import RECORD_FILE, SelectionRecord
from trl_real.selection.selector import EmbeddingPairSelector
from trl_real.training.config import REALDPOConfig


PROMPT_TOO_LONG = "prompt fills max_length"

# Numbers the rows while TRL tokenizes, which drops some and changes the texts of others.
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


class REALDPOTrainer(DPOTrainer):
    """
    [`~trl.DPOTrainer`] with the same arguments, which with `selection_strategy` and `selection_budget` in its
    [`REALDPOConfig`] trains only on the pairs worth training on, told by their responses' embeddings in the very model
    that is trained (REAL, arXiv 2409.17169).

    The selection is made once, at init: after tokenization, which may drop rows, and before the reference's log
    probabilities are computed, so that these are computed for the kept rows only. It keeps the rows that
    [`EmbeddingPairSelector`] keeps with the same weights, whether or not the model is about to get an adapter; an
    adapter that it comes with takes part. Evaluation sets are left whole. With several processes the main one selects
    and the others wait for it: where that could outlast `ddp_timeout`, select beforehand. Without a strategy this is
    `DPOTrainer`, loss by loss, except that it sends no telemetry.

    ```python
    args = REALDPOConfig("aligned", selection_strategy="easy", selection_budget=0.25)
    trainer = REALDPOTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", args=args, train_dataset=dataset)
    trainer.train()
    ```

    Attributes:
        selection_record (`SelectionRecord`, *optional*):
            How the training rows were chosen, if they were. It goes into the model card, and beside every saved model.

    Raises:
        TrlRealError: If there is a selection to be made and the training set is a stream, holds images, lacks a column
            or has no row with a pair, if the budget is beyond it, or if the model is sharded already.
    """

    _tag_names = [*DPOTrainer._tag_names, "trl-real"]

    selection_record: SelectionRecord | None = None
    _pool: Dataset | None = None

    @wraps(DPOTrainer.__init__, assigned=())
    def __init__(self, *args, **kwargs):
        given = signature(DPOTrainer).bind(*args, **kwargs).arguments
        if _selects(given.get("args")):
            check_selectable(given.get("train_dataset"), given["args"])
        super().__init__(*args, **kwargs)
        self.train_dataset = self._select(self.train_dataset)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """TRL's card, with a section on the selection, and the record beside it."""
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if self.selection_record is not None and self.is_world_process_zero():
            with (Path(self.args.output_dir) / "README.md").open("a", encoding="utf-8") as card:
                card.write(selection_section(self.selection_record))
            self.selection_record.save(self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and the selection record beside it."""
        if self.selection_record is not None and self.args.should_save:
            self.selection_record.save(output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call=_internal_call)

    def _send_telemetry(self) -> None:
        """TRL would report here; nothing leaves the machine."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        first = self._pool is None and self.selection_record is None  # An evaluation set may be named "train", too.
        if not (dataset_name == "train" and first and _selects(args)):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        self._pool = dataset.add_column(ROW, np.arange(len(dataset)))
        return super()._prepare_dataset(self._pool, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if name == "train":
            dataset = self._select(dataset)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _select(self, prepared: Dataset) -> Dataset:
        """The rows to train on, of those that TRL has prepared; as they are, if no selection is due."""
        if self._pool is None:
            return prepared
        pool, self._pool = self._pool, None
        check_whole(self.model)
        outcome: list[Any] = [self._choose(pool, prepared) if self.accelerator.is_main_process else None]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], TrlRealError):
            raise outcome[0]
        kept, self.selection_record = outcome[0]
        if self.selection_record.model:
            self._name, self._paper = "REAL", PAPER
        return prepared.remove_columns(ROW).select(kept)

    def _choose(self, pool: Dataset, prepared: Dataset) -> tuple[list[int], SelectionRecord] | TrlRealError:
        """Which prepared rows to keep and how that was decided; an error is returned, for every process to raise."""
        rows = prepared.select_columns(ROW).with_format("numpy")[:][ROW]
        texts = [name for name in ("prompt", "chosen", "rejected", ROW) if name in pool.column_names]
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
        record = complete_record(selector.record, n_dropped=len(pool) - len(rows))
        if not record.n_kept:
            return TrlRealError(
                f"No row of the training set has a pair to select: {record.summary().splitlines()[0]}. "
                "Check its columns 'chosen' and 'rejected'."
            )
        return np.searchsorted(rows, chosen.with_format("numpy")[:][ROW]).tolist(), record


def check_selectable(dataset: Any, args: REALDPOConfig) -> None:
    """
    Refuse, before a model is loaded, what cannot be selected from.

    Args:
        dataset: The training set; of types that TRL refuses nothing is said.
        args: With a strategy and a budget.

    Raises:
        MissingColumnError: If there are no labelled pairs.
        TrlRealError: If it is a stream or holds images, or if the budget is more than all rows.
    """
    strategy, budget = args.selection_strategy, args.selection_budget
    if isinstance(dataset, IterableDataset):
        raise TrlRealError(
            f"selection_strategy={strategy!r} ranks the whole training set, which a stream does not show. "
            "Load it without streaming=True, or leave selection_strategy out."
        )
    if not isinstance(dataset, Dataset):
        return
    for name in ("chosen", "rejected"):
        if name not in dataset.column_names:
            raise MissingColumnError(name, dataset.column_names, "Label the pairs first, or rename the column.")
    images = sorted({"image", "images"} & set(dataset.column_names))
    if images:
        raise TrlRealError(
            f"selection_strategy={strategy!r} reads text, but the training set has a column {images[0]!r}. "
            "Select beforehand with EmbeddingPairSelector, on the text columns, and leave selection_strategy out."
        )
    if budget > max(1, len(dataset)):
        raise TrlRealError(
            f"selection_budget={budget}, but the training set has {len(dataset)} rows. "
            "Type selection_budget=0.25 for a quarter of them."
        )


def check_whole(model: nn.Module) -> None:
    """
    Refuse a model that no single process can run, as under ZeRO-3 and tensor parallelism.

    Raises:
        TrlRealError: If a weight is held in parts by several processes.
    """
    for name, weight in model.named_parameters():
        if hasattr(weight, "ds_id") or isinstance(weight, DTensor):
            raise TrlRealError(
                f"Weight {name!r} is spread over processes, so the main one cannot select with it. Select beforehand, "
                "in one process, with EmbeddingPairSelector(model).select(dataset, budget), and leave "
                "selection_strategy out."
            )


def complete_record(record: SelectionRecord, n_dropped: int) -> SelectionRecord:
    """
    The selector's record as it may be published, about the whole training set.

    Args:
        record: About the rows that TRL did not drop; a local model goes by its full path.
        n_dropped: Rows that TRL dropped, as their prompt alone is `max_length` long.
    """
    skipped = {**record.skipped, **({PROMPT_TOO_LONG: n_dropped} if n_dropped else {})}
    model = Path(record.model).name if record.model and Path(record.model).exists() else record.model
    return replace(record, model=model, n_rows=record.n_rows + n_dropped, skipped=skipped)


def selection_section(record: SelectionRecord) -> str:
    """A section of the model card: how the training rows were chosen, without a word of the data's."""
    budget = f"{record.budget:g} of the pairs" if isinstance(record.budget, float) else f"{record.budget} pairs"
    basis = (
        "the similarity of their responses' embeddings in this model, before training" if record.model else "chance"
    )
    skipped = "".join(f"| skipped: {reason} | {count} |\n" for reason, count in sorted(record.skipped.items()))
    return (
        f"\n\n## Selection\n\nThe training pairs were chosen by strategy `{record.strategy}`, budget {budget}, seed "
        f"{record.seed}, from {basis}; their labels were not read. Details are in `{RECORD_FILE}`.\n\n"
        f"| training set | rows |\n|---|---|\n| all | {record.n_rows} |\n| kept | {record.n_kept} |\n"
        f"| not chosen | {record.n_not_chosen} |\n{skipped}"
    )


def _selects(args: DPOConfig | None) -> bool:
    """Whether there is a selection to be made; a plain `DPOConfig` asks for none."""
    return isinstance(args, REALDPOConfig) and args.selection_strategy is not None
