"""Record of a selection, for the dataset card, the model card and the report."""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import read_json


RECORD_FILE = "selection_record.json"
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
HISTOGRAM_BINS = 40
NO_SPREAD = 1e-9  # range below which similarities count as equal


@dataclass
class SelectionRecord:
    """
    Recipe and counts of one selection. `n_rows = n_kept + n_not_chosen + sum(skipped.values())`, always.

    Args:
        strategy (`str`): Name of the strategy, or the qualified name of the user's function.
        budget (`float` or `int`, *optional*): Share of the rows with a pair, number of rows, or None for all.
        seed (`int`): Seed of all draws.
        model (`str`, *optional*): Hub id, path or class of the embedding model.
        revision (`str`, *optional*): Commit on the Hub, or `sha256:` and a digest of the weights.
        settings (`dict`): Settings: dtype, layer, context, max_length, geometry, special tokens.
        n_rows (`int`): Number of input rows; if `sampled`, this and all counts below are of the sample.
        n_kept (`int`): Number of kept rows.
        n_not_chosen (`int`): Number of rows with a pair outside the budget.
        skipped (`dict[str, int]`): Number of rows without a pair, by reason.
        n_responses (`int`): Number of responses that can be in a pair.
        n_truncated (`int`): Number of responses cut to their first `max_length` tokens.
        n_rescored (`int`): Number of rows near the cut that were embedded again in float32.
        similarity (`dict[str, float]`): Quantiles over all rows with a pair; empty without embeddings.
        similarity_kept (`dict[str, float]`): Quantiles over the kept rows.
        histogram (`dict[str, list]`): `edges` (bins + 1 values), `pool` and `kept` (counts).
        tokens (`int`): Number of tokens that the model read.
        seconds (`float`): Time of the embeddings, summed over processes.
        versions (`dict[str, str]`): Versions of the libraries.
    """

    strategy: str
    budget: float | int | None
    seed: int
    model: str | None = None
    revision: str | None = None
    settings: dict = field(default_factory=dict)
    n_rows: int = 0
    n_kept: int = 0
    n_not_chosen: int = 0
    skipped: dict = field(default_factory=dict)
    n_responses: int = 0
    n_truncated: int = 0
    n_rescored: int = 0
    similarity: dict = field(default_factory=dict)
    similarity_kept: dict = field(default_factory=dict)
    histogram: dict = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    versions: dict = field(default_factory=lambda: library_versions())

    @property
    def truncation_rate(self) -> float:
        """Share of the responses cut to `max_length` tokens."""
        return self.n_truncated / self.n_responses if self.n_responses else 0.0

    @property
    def sampled(self) -> bool:
        """Whether the counts are of a sample of a stream; `settings` then has `threshold` and `share_error`."""
        return "share_error" in self.settings

    @property
    def tokens_per_second(self) -> float:
        """Tokens embedded per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict:
        """Return the fields and the two rates as JSON values."""
        return {**asdict(self), "truncation_rate": self.truncation_rate, "tokens_per_second": self.tokens_per_second}

    @classmethod
    def from_dict(cls, values: dict) -> "SelectionRecord":
        """Make a record from the output of `to_dict`; keys of a newer version are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def save(self, folder: str | Path) -> Path:
        """Write `selection_record.json` into `folder` and return its path."""
        path = Path(folder) / RECORD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "SelectionRecord":
        """
        Read the record that `save` wrote.

        Raises:
            TrlRealError: If the folder has no record.
        """
        path = Path(folder) / RECORD_FILE
        if not path.exists():
            raise TrlRealError(f"No {RECORD_FILE} in {folder}. Give the folder that `trl-real select` wrote.")
        try:
            return cls.from_dict(read_json(path))
        except (TypeError, KeyError) as error:
            raise TrlRealError(f"{str(path)!r} is not a selection record ({error}). Remove it.") from error

    def summary(self) -> str:
        """Return a few lines of text: counts, similarity of the kept pairs, and length of the picked pairs."""
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        where = "in the sample" if self.sampled else "in"
        lines = [
            f"{self.n_rows} rows {where}: {self.n_kept} kept, {self.n_not_chosen} not chosen, "
            f"{sum(self.skipped.values())} skipped" + (f" ({skipped})" if skipped else "")
        ]
        if self.similarity_kept:
            lines.append(
                f"similarity: median {self.similarity_kept['median']:.3f} kept, {self.similarity['median']:.3f} pool; "
                f"{self.tokens} tokens at {self.tokens_per_second:.0f} tokens/s"
            )
        if self.sampled:
            share = "all" if self.budget is None else f"{self.budget:g} ± {self.settings['share_error']:.3f}"
            lines.append(f"share of the stream's rows with a pair that is kept: {share} (one standard deviation)")
        lengths = self.settings.get("lengths")
        if lengths and lengths.get("picked"):
            picked, pool = (lengths[name]["median"] for name in ("picked", "pool"))
            lines.append(
                f"pairs: {self.settings['n_picked']} of {self.settings['n_candidates']} picked; characters of a "
                f"response: median {picked:.0f} picked, {pool:.0f} pool"
            )
        return "\n".join(lines)


def describe_similarity(pool: np.ndarray, kept: np.ndarray) -> dict:
    """
    Return the fields `similarity`, `similarity_kept` and `histogram` of a `SelectionRecord`; {} without embeddings.

    Args:
        pool: Similarities of all rows with a pair; NaN without embeddings. Shape `(N,)`.
        kept: Similarities of the kept rows. Shape `(k,)`.
    """
    pool, kept = pool[np.isfinite(pool)], kept[np.isfinite(kept)]
    if not pool.size:
        return {}
    low, high = float(pool.min()), float(pool.max())
    if high - low < NO_SPREAD:
        low, high = low - 0.5, high + 0.5  # as numpy does for equal values
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)  # in float64: float32 may have fewer steps than bins
    return {
        "similarity": _quantiles(pool),
        "similarity_kept": _quantiles(kept) if kept.size else {},
        "histogram": {
            "edges": edges.tolist(),
            "pool": np.histogram(pool, edges)[0].tolist(),
            "kept": np.histogram(kept, edges)[0].tolist(),
        },
    }


def library_versions() -> dict[str, str]:
    """Return the versions of trl_real and of the libraries that a selection depends on."""
    return {name: version(name) for name in ("trl-real", "torch", "transformers", "datasets")}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).round(6).tolist(), strict=True))
