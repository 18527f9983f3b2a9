"""REAL's selection as a `datasets.map` callable, and as a budget over a whole pool."""

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from torch import Tensor

from trl_real.data.columns import (
    OWN_FEATURES,
    POOL_COLUMNS,
    PREFERENCE_COLUMNS,
    check_own_columns,
    extended,
    is_batch,
    is_pool,
    to_columns,
)
from trl_real.data.pairs import Candidates
from trl_real.data.shards import SHARD_ROWS
from trl_real.errors import TrlRealError
from trl_real.functional.geometry import Geometry
from trl_real.models.embed import Context, EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.models.load import prepare_process
from trl_real.selection.annotation import (
    Choice,
    choose,
    gather_candidates,
    given_vectors,
    skip_nonfinite,
    to_own_columns,
)
from trl_real.selection.budget import check_budget
from trl_real.selection.engines import Mapped, Sharded
from trl_real.selection.fitting import checked_geometry, fitted_geometry
from trl_real.selection.pool import select_from, select_splits
from trl_real.selection.record import SelectionRecord
from trl_real.selection.strategies import STRATEGIES, Strategy, uniform
from trl_real.selection.streaming import select_stream


# Part of the fingerprint: `datasets` hashes what a selector holds, not what its code does.
ALGORITHM_VERSION = 1


class EmbeddingPairSelector:
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

    def __init__(
        self,
        model: Any = None,
        *,
        strategy: str | Strategy = "easy",
        tokenizer: Any = None,
        revision: str | None = None,
        context: Context = "response",
        layer: int = -1,
        max_length: int = 512,
        batch_tokens: int | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        center: bool = False,
        geometry: str = "raw",
        responses: str = "responses",
        seed: int = 42,
        include_bos: bool = False,
        include_eos: bool = False,
        on_nonfinite: Literal["error", "skip"] = "error",
    ):
        self.strategy, self.responses, self.seed = strategy, responses, seed
        self.geometry, self.on_nonfinite = checked_geometry(geometry, center), on_nonfinite
        options = EmbedderOptions(context, layer, max_length, batch_tokens, include_bos, include_eos)
        self.scorer  # noqa: B018  (raises if there is no such strategy)
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
            raise TrlRealError(f"seed={seed!r} is not a whole number of 64 bits. Type seed=42.")
        if on_nonfinite not in ("error", "skip"):
            raise TrlRealError(f"on_nonfinite={on_nonfinite!r} is not one of error, skip.")
        self.encoder = None
        if model is not None and self.embeds:
            self.encoder = Encoder(model, tokenizer, revision, dtype, device, options)
        self.fitted: Geometry | None = None
        self.record: SelectionRecord | dict[str, SelectionRecord] | None = None

    @property
    def scorer(self) -> Strategy:
        """The strategy as a function."""
        if callable(self.strategy):
            return self.strategy
        if not isinstance(self.strategy, str) or self.strategy not in STRATEGIES:
            raise TrlRealError(
                f"No strategy {self.strategy!r}; there are {', '.join(STRATEGIES)}. Or give a function."
            )
        return STRATEGIES[self.strategy]

    @property
    def embeds(self) -> bool:
        """Whether the strategy looks at embeddings."""
        return self.scorer is not uniform

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

    def annotate(
        self, batch: dict[str, list], pool: bool, rank: int | None = None, row_ids: list[int] | None = None
    ) -> tuple[list[Candidates], Choice, dict[str, Any]]:
        """
        Candidates and choice of each row of a batch, and what embedding them took.

        Args:
            batch: Columns, as Python values.
            pool: Whether it is a pool, or labelled pairs.
            rank: Of the worker.
            row_ids: Numbers of the rows, for errors; by default those in the batch.
        """
        prepare_process()
        rows = gather_candidates(batch, pool, self.responses)
        vectors, cost = self._vectors(rows, batch, rank)
        bad = skip_nonfinite(rows, vectors)
        if bad and self.on_nonfinite == "error":
            where = f"rows {[row_ids[i] for i in bad][:5]}" if row_ids else f"rows {bad[:5]} of this batch"
            raise TrlRealError(
                f"Embeddings of {where} are missing or hold NaN or infinity. "
                "Leave such rows out with on_nonfinite='skip', or embed in dtype='float32'."
            )
        return rows, choose(rows, vectors, self.scorer, self.seed), cost

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
        settings = {"batch_size": batch_size, "shard_rows": shard_rows, "sample": sample}
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
        kept, self.record = select_from(self, dataset, budget, engine)
        return kept

    def fit(self, dataset: Dataset) -> "EmbeddingPairSelector":
        """Fit the geometry to up to 1,000 rows drawn by seed and content."""
        self.fitted = fitted_geometry(self, dataset)
        return self

    def features(self, features: Features) -> Features:
        """The features of a dataset after `map`: for `IterableDataset.map(features=…)`, which cannot see them."""
        own = POOL_COLUMNS if is_pool(features, self.responses) else PREFERENCE_COLUMNS
        return Features({**features, **{name: OWN_FEATURES[name] for name in own}})

    def map_kwargs(self) -> dict[str, Any]:
        """Arguments with which `map` is fast: large batches leave little to pad."""
        return {"batched": True, "batch_size": 512}

    def _vectors(self, rows: list[Candidates], batch: dict, rank: int | None) -> tuple[list[Tensor], dict[str, Any]]:
        """One `(K, d)` tensor a row, and what they cost."""
        cost = {"n_tokens": 0, "seconds": 0.0, "truncated": np.zeros(len(rows), np.int32)}
        sizes = [len(row.texts) for row in rows]
        if not self.embeds:
            return [torch.zeros(size, 0) for size in sizes], cost
        if self.encoder is None:
            return [self._placed(v) for v in given_vectors(rows, batch)], cost
        texts = [text for row in rows for text in row.texts]
        prompts = [row.prompt for row in rows for _ in row.texts]
        found = self.encoder(prompts, texts, rank)
        cost.update(n_tokens=found.n_tokens, seconds=found.seconds)
        cost["truncated"] = np.array([int(part.sum()) for part in found.truncated.split(sizes)], np.int32)
        return [self._placed(part) for part in found.vectors.split(sizes)], cost

    def _placed(self, vectors: Tensor) -> Tensor:
        """Embeddings in the selector's geometry."""
        if self.geometry == "raw":
            return vectors
        if self.fitted is None:
            raise TrlRealError(
                f"geometry={self.geometry!r} is fitted to the pool first. Type selector.fit(dataset), or use select."
            )
        return self.fitted(vectors) if vectors.numel() else vectors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "record": None, "version": ALGORITHM_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "version"})
