"""REAL's selection as a `datasets.map` callable, and as a budget over a whole pool."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from trl_real.data.columns import (
    POOL_COLUMNS,
    PREFERENCE_COLUMNS,
    check_own_columns,
    extended,
    is_batch,
    is_pool,
    to_columns,
)
from trl_real.errors import TrlRealError
from trl_real.runtime.shards import SHARD_ROWS
from trl_real.selection.annotation import (
    to_own_columns,
)
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
    Choose which two responses of each prompt deserve a label, and which prompts first, from embeddings of the
    responses in the model that will be aligned (REAL, arXiv 2409.17169). Reads no label and no score.

    As a callable for `map` it adds `pair`, `response_a`, `response_b`, `similarity` and `skipped` to a pool (`prompt`,
    `responses`), and `similarity` and `skipped` to rows that are labelled already (`chosen`, `rejected`). With a
    budget it ranks over the whole pool:

    ```python
    selector = EmbeddingPairSelector("HuggingFaceTB/SmolLM2-135M-Instruct", strategy="easy")
    pool = pool.map(selector, **selector.map_kwargs())
    worth_a_label = selector.select(pool, budget=0.25)
    ```

    Args:
        model (`str`, `PreTrainedModel` or encoder, *optional*):
            Hub id or local path, loaded on first use; a loaded model; an object with `encode(list[str]) -> array`; or
            None, where the rows carry a column `embeddings` (one vector a response).
        strategy (`str` or function, *optional*, defaults to `"easy"`):
            A name in `STRATEGIES` or a function `(embeddings (N, K, d), draws (N, P)) -> scores (N, P)`. `"random"`
            loads no model.
        tokenizer (*optional*): For a loaded model; a model given by name brings its own.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        context (`str`, *optional*, defaults to `"response"`):
            `"response"` reads a response alone, as the paper does; `"prompt+response"` after its prompt.
        layer (`int`, *optional*, defaults to `-1`): -1 for the last hidden state, else an index into `hidden_states`.
        max_length (`int`, *optional*, defaults to `512`): Tokens of a response that are read, from its start.
        batch_tokens (`int`, *optional*): Tokens in a forward pass; by default 1024 on a CPU and 16384 elsewhere.
        dtype (`str`, *optional*):
            `"float32"` by default, for a loaded model its own. With `"bfloat16"` or `"float16"`, `select` embeds the
            rows near a decision again in float32, so that it keeps what float32 would keep.
        device (`str`, *optional*): By default the accelerator of this rank, else the CPU.
        center (`bool`, *optional*, defaults to `False`): Short for `geometry="centered"`.
        geometry (`str`, *optional*, defaults to `"raw"`):
            In which geometry similarity is measured: a name in `trl_real.functional.geometry.GEOMETRIES`, fitted to a
            sample that `select` or `fit` draws. `"raw"` is the paper's; for what the others bring see docs/results.md.
        responses (`str`, *optional*, defaults to `"responses"`): Column that holds the list of responses.
        seed (`int`, *optional*, defaults to `42`): Seed of the draws, which depend on it and on a row's content.
        include_bos (`bool`, *optional*, defaults to `False`): Average a BOS token too, as REAL's HH script on Llama.
        include_eos (`bool`, *optional*, defaults to `False`): Average an EOS token too, as REAL's SHP script.
        on_nonfinite (`str`, *optional*, defaults to `"error"`):
            What to do about an embedding that is not finite: `"error"`, or `"skip"` the row.

    Attributes:
        record (`SelectionRecord`): How the last selection was made (by split, for a `DatasetDict`).

    Raises:
        TrlRealError: If a setting is out of range; a name or path is looked up on first use.
    """

    record: SelectionRecord | Any = None  # Any: by split, or None before the first selection

    def __call__(self, rows: Any, rank: int | None = None) -> Any:
        """
        Annotate a row or a batch, in any format of `datasets`; rows are neither dropped nor reordered.

        Args:
            rows: A row or a batch; tables (pandas, Arrow) are batches.
            rank: Rank of the worker, from `map(with_rank=True)`.

        Raises:
            MissingColumnError: If there are neither responses nor labelled pairs, or no embeddings where no model is.
            TrlRealError: If a response is no text, an embedding is not finite or a column is in the way.
        """
        columns = to_columns(rows)
        pool = is_pool(columns, self.responses)
        own = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
        check_own_columns(columns, own)
        depths = {self.responses: 1, "prompt": 0} if pool else {"chosen": 0, "rejected": 0, "prompt": 0}
        batched = is_batch(rows, columns, depths)
        batch = columns if batched else {name: [value] for name, value in columns.items()}
        candidates, choice, _ = self.annotate(batch, pool, rank)
        added = {name: values for name, values in to_own_columns(candidates, choice).items() if name in own}
        if not isinstance(rows, Mapping):
            return extended(rows, added)
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
    ) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
        """
        The rows most worth a label, ranked over the whole pool; `record` then tells how they were chosen.

        Args:
            dataset: A pool or labelled pairs; each split of a `DatasetDict` by itself. A stream needs `shards` or
                `sample`.
            budget: None for every row with a pair, a float in (0, 1] for a share of these, an int for so many rows.
            num_proc: Worker processes, as in `Dataset.map`.
            batch_size: Rows a worker takes at a time.
            shards: Folder for the scores, which are then found and kept in parts: a selection that was killed goes on
                there, and processes under `accelerate launch` or `torchrun` do it together. See docs/scale.md.
            shard_rows: Rows of such a part.
            sample: For a stream: rows from which a threshold is taken, instead of the exact cut
                (`trl_real.selection.streaming.select_by_sample`).

        Returns:
            The kept rows in their old order, with the columns that `map` adds; of a stream a stream.

        Raises:
            TrlRealError: If the budget is out of range, or a stream comes without `shards` or `sample`.
        """
        check_budget(budget)
        settings: dict[str, Any] = {"batch_size": batch_size, "shard_rows": shard_rows, "sample": sample}
        if isinstance(dataset, DatasetDict | IterableDatasetDict):
            kept, self.record = select_splits(self, dataset, budget, shards, num_proc=num_proc, **settings)
            return kept
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TrlRealError(f"select takes a Dataset or DatasetDict, not a {type(dataset).__name__}.")
        if num_proc and (shards is not None or isinstance(dataset, IterableDataset)):
            raise TrlRealError(
                "num_proc forks workers of one map; with shards start processes: torchrun, accelerate. "
                "Leave num_proc out."
            )
        if isinstance(dataset, IterableDataset):
            kept, self.record = select_stream(self, dataset, budget, shards=shards, **settings)
            return kept
        if sample is not None:
            raise TrlRealError(f"sample={sample} is for streams; a Dataset is ranked as a whole. Leave it out.")
        engine = Mapped(num_proc, batch_size) if shards is None else Sharded(Path(shards), shard_rows, batch_size)
        kept, self.record = select_rows(self, DatasetPool(self, dataset, engine), budget)
        return kept

    def fit(self, dataset: Dataset) -> "EmbeddingPairSelector":
        """Fit the geometry to up to 1,000 rows drawn by seed and content."""
        self.fitted = fitted_geometry(self, dataset)
        return self

    def map_kwargs(self) -> dict[str, Any]:
        """Arguments with which `map` is fast: large batches leave little to pad."""
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
    """Each split by itself, in a folder of its own for its shards; and the records by split."""
    kept, records = type(splits)(), {}
    for name, split in splits.items():
        part = None if shards is None else Path(shards) / name
        kept[name] = selector.select(split, budget, shards=part, **settings)
        records[name] = selector.record
    return kept, records
