"""REAL's selection, as a `datasets.map` callable or with a budget over a whole pool."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.formatting.formatting import LazyBatch, LazyRow

from trl_real.data.chat import as_chat
from trl_real.data.columns import (
    POOL_COLUMNS,
    PREFERENCE_COLUMNS,
    check_own_columns,
    extended,
    is_batch,
    is_pool,
    to_columns,
    to_python,
)
from trl_real.data.images import IMAGE_COLUMNS
from trl_real.data.pairs import ready_pairs
from trl_real.data.row_check import check_texts
from trl_real.errors import TrlRealError
from trl_real.runtime.shards import SHARD_ROWS
from trl_real.selection.annotation import to_own_columns
from trl_real.selection.budget import check_budget
from trl_real.selection.engines import Mapped, Sharded
from trl_real.selection.fitting import fitted_geometry
from trl_real.selection.pool import DatasetPool, select_rows
from trl_real.selection.record import SelectionRecord
from trl_real.selection.scorer import PairScorer
from trl_real.selection.streaming import select_stream


Splits = TypeVar("Splits", DatasetDict, IterableDatasetDict)


class EmbeddingPairSelector(PairScorer):
    """
    Selector of the two responses of each prompt that are most worth a label, and of the prompts, by embeddings of the
    responses in the model that will be aligned (REAL, arXiv 2409.17169). It reads no labels and no scores.

    As a callable for `map` it adds `pair`, `response_a`, `response_b`, `similarity` and `skipped` to a pool (`prompt`,
    `responses`), and `similarity` and `skipped` to labelled pairs (`chosen`, `rejected`). With a budget it ranks the
    whole pool:

    ```python
    selector = EmbeddingPairSelector("HuggingFaceTB/SmolLM2-135M-Instruct", strategy="easy")
    pool = pool.map(selector, **selector.map_kwargs())
    worth_a_label = selector.select(pool, budget=0.25)
    ```

    Args:
        model (`str`, `PreTrainedModel` or encoder, *optional*):
            Hub id or local path, loaded on first use; a loaded model; an object with `encode(list[str]) -> array`; or
            None if the dataset has a column `embeddings` (one vector per response).
        strategy (`str`, function or `dict`, *optional*, defaults to `"easy"`):
            Name in `STRATEGIES` or function `(embeddings (N, K, d), draws (N, P)) -> scores (N, P)`. `"random"`
            loads no model. For `select` also a mixture of strategies that share the budget: `"easy@centered+random"`,
            a dict of shares such as `{"random": 0.25, "easy@centered": 0.75}`, or `"auto"`
            (`trl_real.selection.mixture`). It always embeds in float32, and the kept rows have two columns more:
            `selected_by`, and `selection_probability`, known for the rows of `"random"` and NaN for others.
        tokenizer (*optional*): Tokenizer or processor of a loaded model; a model given by name has its own.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        context (`str`, *optional*, defaults to `"response"`):
            Text to embed: `"response"` is the response alone, as in the paper, for which a vision-language model uses
            its language model; `"prompt+response"` adds the prompt and the images of the row (`image`, `images`).
        layer (`int`, *optional*, defaults to `-1`): Index into `hidden_states`; -1 for the last hidden state.
        max_length (`int`, *optional*, defaults to `512`): Number of tokens to read per response, from its start.
        batch_tokens (`int`, *optional*): Tokens per forward pass; by default 1024 on a CPU, elsewhere as many as fit,
            16384 at most.
        dtype (`str`, *optional*):
            Precision, by default `"float32"` or that of the loaded model. With `"bfloat16"` or `"float16"`, `select`
            embeds the rows near a decision again in float32, so that it keeps the same rows as float32.
        device (`str`, *optional*): Device, by default the accelerator of this rank, else the CPU.
        geometry (`str`, *optional*, defaults to `"raw"`):
            Geometry of the similarity: a name in `trl_real.functional.geometry.GEOMETRIES`, fitted to a sample that
            `select` or `fit` draws. `"raw"` is the paper's; docs/results.md compares the others.
        responses (`str`, *optional*, defaults to `"responses"`): Column with the list of responses.
        seed (`int`, *optional*, defaults to `42`): Seed of the draws, together with the content of a row.
        include_bos (`bool`, *optional*, defaults to `False`): Whether to average a BOS token (REAL's HH script).
        include_eos (`bool`, *optional*, defaults to `False`): Whether to average an EOS token (REAL's SHP script).
        on_nonfinite (`str`, *optional*, defaults to `"error"`):
            Reaction to an embedding that is not finite: raise an `"error"`, or `"skip"` the row.

    Attributes:
        record (`SelectionRecord`): Record of the last selection; for a `DatasetDict` a dict of records by split.

    Raises:
        TrlRealError: If a setting is out of range. The model is looked up on first use.
    """

    record: SelectionRecord | Any = None  # Any: by split, or None before the first selection

    def __call__(self, rows: Any, rank: int | None = None) -> Any:
        """
        Annotate a row or a batch, in any format of `datasets`; rows are neither dropped nor reordered.

        Args:
            rows: A row or a batch; tables (pandas, Arrow) are batches.
            rank: Rank of the worker, from `map(with_rank=True)`.

        Raises:
            MissingColumnError: If responses and labelled pairs are missing, or without a model the embeddings.
            TrlRealError: If a response is not text, an embedding is not finite, or a column would be overwritten.
        """
        columns = to_columns(rows, () if self.reads_images else IMAGE_COLUMNS)
        pool = is_pool(columns, self.responses)
        own = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
        check_own_columns(columns, own)
        if self.mixed:
            raise TrlRealError(
                f"strategy={self.strategy!r} shares out a budget over a whole pool, and map sees one batch at a time. "
                "Type selector.select(dataset, budget=…)."
            )
        depths = {self.responses: 1, "prompt": 0} if pool else {"chosen": 0, "rejected": 0, "prompt": 0}
        batched = is_batch(rows, columns, depths)
        batch = columns if batched else {name: [value] for name, value in columns.items()}
        candidates, (choice,), _ = self.annotate(batch, pool, rank)
        own_columns = to_own_columns(candidates, choice.pairs, choice.similarity)
        added = {name: values for name, values in own_columns.items() if name in own}
        if not isinstance(rows, Mapping):
            return extended(rows, added)
        if not isinstance(rows, LazyRow | LazyBatch) and not any(hasattr(rows[name], "tolist") for name in rows):
            added = to_python(added)  # of a stream; `Dataset.map` takes its column types from arrays
        return added if batched else {name: values[0] for name, values in added.items()}

    def select(
        self,
        dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
        budget: float | int | None = None,
        *,
        num_proc: int | None = None,
        batch_size: int = 512,
        shards: str | Path | None = None,
        shard_rows: int = SHARD_ROWS,
        sample: int | None = None,
        as_messages: bool = False,
    ) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
        """
        Select the rows most worth a label, ranked over the whole pool, and set `record`.

        Args:
            dataset: Pool, ready pairs (`response_a`, `response_b`) or labelled pairs; the splits of a `DatasetDict`
                are ranked separately. A stream needs `shards` or `sample`.
            budget: Share of the rows with a pair (float in (0, 1]), number of rows (int), or None for all of them.
            num_proc: Number of worker processes, as in `Dataset.map`.
            batch_size: Number of rows per batch.
            shards: Folder to save the scores in, shard by shard: a killed selection continues there, and processes
                under `accelerate launch` or `torchrun` share the work. See docs/scale.md.
            shard_rows: Number of rows per shard.
            sample: For a stream, number of rows to take a threshold from instead of the exact cut
                (`trl_real.selection.streaming.select_by_sample`).
            as_messages: Whether text prompts and responses become messages, for chat models (`trl_real.as_chat`).

        Returns:
            The kept rows in the order of the dataset, with the columns that `map` adds; for a stream a stream.

        Raises:
            TrlRealError: If the budget is out of range, or a stream has no `shards` and no `sample`.
        """
        check_budget(budget)
        if as_messages:
            dataset = as_chat(dataset, responses=self.responses)
        settings: dict[str, Any] = {"batch_size": batch_size, "shard_rows": shard_rows, "sample": sample}
        if isinstance(dataset, DatasetDict | IterableDatasetDict):
            kept, self.record = select_splits(self, dataset, budget, shards, num_proc=num_proc, **settings)
            return kept
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TrlRealError(f"select takes a Dataset or DatasetDict, not a {type(dataset).__name__}.")
        if num_proc and (shards is not None or isinstance(dataset, IterableDataset)):
            raise TrlRealError(
                "num_proc forks workers of one map; for shards start processes with torchrun or accelerate. "
                "Leave num_proc out."
            )
        dataset = ready_pairs(dataset, self.responses)
        if isinstance(dataset, IterableDataset):
            kept, self.record = select_stream(self, dataset, budget, shards=shards, **settings)
            return kept
        if sample is not None:
            raise TrlRealError(f"sample={sample} is for streams, and this is a Dataset. Leave it out.")
        check_texts(dataset, (), optional=("prompt", "chosen", "rejected"))
        check_budget(budget, len(dataset))
        engine = Mapped(num_proc, batch_size) if shards is None else Sharded(Path(shards), shard_rows, batch_size)
        kept, self.record = select_rows(self, DatasetPool(self, dataset, engine), budget)
        return kept

    def fit(self, dataset: Dataset) -> "EmbeddingPairSelector":
        """Fit the geometry, or those of a mixture, to up to 1,000 rows, drawn by seed and content."""
        dataset = ready_pairs(dataset, self.responses)
        self.set_fitted({name: fitted_geometry(self, dataset, name) for name in self.geometries})
        return self

    def map_kwargs(self) -> dict[str, Any]:
        """Return arguments for a fast `map`: large batches need little padding."""
        return {"batched": True, "batch_size": 512}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "record": None}


def select_splits(
    selector: EmbeddingPairSelector,
    splits: Splits,
    budget: float | int | None,
    shards: str | Path | None,
    **settings,
) -> tuple[Splits, dict[str, SelectionRecord]]:
    """Select from each split, with a separate folder for its shards; return the kept rows and the records by split."""
    kept, records = type(splits)(), {}
    for name, split in splits.items():
        part = None if shards is None else Path(shards) / name
        kept[name] = selector.select(split, budget, shards=part, **settings)
        records[name] = selector.record
    return kept, records
