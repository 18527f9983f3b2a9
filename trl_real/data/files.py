"""Datasets read from the Hub or from disk, and saved to disk completely or not at all."""

import glob
import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from datasets import (
    Dataset,
    IterableDataset,
    ReadInstruction,
    concatenate_datasets,
    config,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from trl_real.data.checks.json_lines import WHOLE, ReadRows, check_encoding, check_texts, reading
from trl_real.errors import TrlRealError


logger = logging.getLogger(__name__)

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
KINDS = (".arrow", ".json")  # of the files of a saved dataset
ONE_SPLIT, SEVERAL_SPLITS = "state.json", "dataset_dict.json"  # files that `save_to_disk` writes
MARKER = "trl_real.json"
TEXT_COLUMNS = ("prompt", "chosen", "rejected", "response_a", "response_b")  # or of messages, in every line
MAX_REASON = 300  # characters
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load(path_or_id: str | Path, split: str | None = None, **options: Any) -> Dataset:
    """
    Load one split of a dataset from disk or from the Hub.

    Args:
        path_or_id: `save_to_disk` folder, Parquet, JSONL, JSON or CSV file (also `.gz`), folder of such files, or Hub
            id. A path on disk has priority over the Hub.
        split: Name of the split, or a part of it (`"train[:1000]"`); required if there are several. Data without
            splits has the split `"train"`.
        options: Options of `datasets.load_dataset` for a dataset on the Hub: `name`, `data_dir`, `revision`, …

    Raises:
        TrlRealError: If the path or split does not exist, the split is ambiguous, or the data cannot be read.
    """
    name, splits = _splits(path_or_id, {}, options)
    return _choose(splits, split, name)


def load_stream(path_or_id: str | Path, split: str | None = None) -> IterableDataset:
    """
    Open one split of a dataset as a stream.

    Args:
        path_or_id: Path or Hub id, as in `load`.
        split: Name of the split; required if there are several.

    Raises:
        TrlRealError: As in `load`, or if `split` is a part of a split.
    """
    name, splits = _splits(path_or_id, {"streaming": True}, {"streaming": True})
    names = list(splits)
    if split not in (None, *names) or (split is None and len(names) > 1):
        raise TrlRealError(f"A stream of {name!r} is one full split of {names}; found {split!r}. Type: {names[0]!r}")
    stream = splits[split or names[0]]
    if isinstance(stream, Dataset):
        return stream.to_iterable_dataset()
    if not Path(name).expanduser().is_file() or _format(Path(name)) != "json":
        return stream
    return IterableDataset.from_generator(ReadRows(stream, name), features=stream.features)


def save(dataset: Dataset, folder: str | Path) -> Path:
    """
    Save `dataset` for `load` (or `datasets.load_from_disk`), completely or not at all.

    The data is written to a folder next to `folder`, then moved there. An earlier output of this function is replaced,
    with everything in it.

    Args:
        dataset: Dataset to save, one split.
        folder: Path of the folder; parent folders are created.

    Returns:
        Path of the folder.

    Raises:
        TrlRealError: If `folder` is a file, has content that this function did not write, or has the files that
            `dataset` reads from.
    """
    target = check_target(dataset, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    new, old = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        # An empty dataset gets no shard by default, and `load_from_disk` then fails.
        dataset.save_to_disk(new, num_shards=None if len(dataset) else 1)
        (new / MARKER).write_text(json.dumps({"trl_real": version("trl-real")}) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(folder)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of their saving to this folder."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*"):
        process, _, word = leftover.name.removeprefix(f".{target.name}.").partition(".")
        if word in ("new", "old") and process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def check_target(dataset: Dataset, folder: str | Path) -> Path:
    """
    Check that `save` can write, for the start of a long run with this dataset, and return the folder's absolute path.

    Raises:
        TrlRealError: As in `save`.
    """
    target = Path(folder).expanduser().resolve()
    if not isinstance(dataset, Dataset):
        raise TrlRealError(
            f"save takes one split, a Dataset; found {type(dataset).__name__}. Type: save(dataset['train'], …)"
        )
    if any(Path(file).resolve().is_relative_to(target) for file in _files_of(dataset.data)):
        raise TrlRealError(f"The dataset is read from {str(folder)!r} and cannot replace it. Give another folder.")
    if target.exists() and not target.is_dir():
        raise TrlRealError(f"{str(folder)!r} is a file. Give a folder.")
    if target.exists() and any(target.iterdir()) and not (target / MARKER).exists():
        raise TrlRealError(
            f"The folder {str(folder)!r} holds something that trl_real did not write. Give a new or an empty folder."
        )
    return target


def _splits(path_or_id: str | Path, on_disk: dict, on_hub: dict) -> tuple[str, dict[str, Any]]:
    """Return the name for errors, and all splits from disk or, if the path does not exist, from the Hub."""
    name, path = str(path_or_id), Path(path_or_id).expanduser()
    try:
        return name, _read_path(path, **on_disk) if path.exists() else _read_hub(name, on_hub)
    except TrlRealError:
        raise
    except (DatasetsError, OSError, ValueError, LookupError, StopIteration, RecursionError) as error:
        raise TrlRealError(
            f"Cannot read {name!r}: {_reason(error)}. Check that it is complete and that its suffix fits its format."
        ) from error


def _read_path(path: Path, **options: bool) -> dict[str, Any]:
    if path.is_dir():
        return _read_folder(path, **options)
    file_format = _format(path)
    if file_format is None:
        raise TrlRealError(
            f"{str(path)!r} does not end in one of {sorted(FORMATS)}. Give it the suffix of its format, or convert it."
        )
    return _read_lines(path, options) if file_format == "json" else _read_file(file_format, path, **options)


def _read_file(file_format: str, path: Path, **options: Any) -> dict[str, Any]:
    return load_dataset(file_format, data_files=str(path.resolve()), **options)


def _read_lines(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Read JSON; a file in which the type of a column shows late is read at once."""
    check_encoding(path, whole=not options.get("streaming"))
    try:
        splits = _read_file("json", path, **options)
    except (DatasetsError, OSError, ValueError, TypeError, RecursionError):
        size = path.stat().st_size
        with reading(path):
            if size > WHOLE or path.suffix == ".gz":
                raise
            splits = _read_file("json", path, chunksize=size + 1, **options)
    for rows in splits.values():
        if isinstance(rows, Dataset):
            check_texts(rows, path, TEXT_COLUMNS)
    return splits


def _read_folder(folder: Path, **options: bool) -> dict[str, Any]:
    if (folder / ONE_SPLIT).exists() or (folder / SEVERAL_SPLITS).exists():
        saved = load_from_disk(str(_linked(folder)))
        return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    visible = (file for file in folder.rglob("[!.]*") if "/." not in f"/{file.relative_to(folder).as_posix()}")
    found = [file for file in visible if _format(file)]
    if not found:
        raise TrlRealError(
            f"Nothing to read in the folder {str(folder)!r}: no saved dataset, and no file that ends in one of "
            f"{sorted(FORMATS)}. Give another folder or a file."
        )
    for file in found:
        if _format(file) == "json":
            check_encoding(file, whole=not options.get("streaming"))
    files = load_dataset_builder(str(folder)).config.data_files
    read = {Path(file) for names in files.values() for file in names}
    left_out = sorted(str(file.relative_to(folder)) for file in found if file.resolve() not in read)
    if left_out:
        logger.warning("%s: skipped files that belong to no split by name or format: %s", folder, ", ".join(left_out))
    return load_dataset(str(folder), **options)


def _linked(folder: Path) -> Path:
    """
    Return a folder in the cache of `datasets` with links to the files of a saved dataset.

    `map` caches its results beside the files that it reads. The links keep them out of the user's folder, and at a
    place that other processes and later runs find again.
    """
    files = [
        file for file in sorted(folder.rglob("*.*")) if file.suffix in KINDS and not file.name.startswith("cache-")
    ]
    states = [(str(file.relative_to(folder)), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    digest = hashlib.sha256(repr((str(folder.resolve()), states)).encode()).hexdigest()[:32]
    target = Path(config.HF_DATASETS_CACHE) / "trl_real" / digest
    try:
        for file in files:
            link = target / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(file.resolve())
    except OSError:  # such as a cache that cannot be written
        return folder
    return target


def _files_of(table: Any) -> list[str]:
    """Return the files that an Arrow table of `datasets` is mapped from."""
    if getattr(table, "path", None):
        return [table.path]
    return [path for row in getattr(table, "blocks", []) for block in row for path in _files_of(block)]


def _read_hub(name: str, options: dict) -> dict[str, Any]:
    if not HUB_ID.fullmatch(name) or _format(Path(name)):
        raise TrlRealError(f"No file or folder {name!r}. Check the path; it is relative to {str(Path.cwd())!r}.")
    try:
        return load_dataset(name, **options)
    except (DatasetNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise TrlRealError(
            f"No file or folder {name!r}, and no dataset from the Hub: {_reason(error)}. Check the spelling and the "
            "connection; for a private dataset type: hf auth login"
        ) from error


def _choose(splits: dict[str, Dataset], split: str | None, name: str) -> Dataset:
    names = list(splits)
    if split is None and len(names) > 1:
        raise TrlRealError(f"{name!r} has the splits {names}. Choose one: split={names[0]!r}")
    if split is None or split in names:
        return splits[split or names[0]]
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({key: len(data) for key, data in splits.items()})
    except (ValueError, AssertionError) as error:
        raise TrlRealError(f"No split {split!r} in {name!r}; it has {names}. Type: split={names[0]!r}") from error
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _format(file: Path) -> str | None:
    """Return the loader name for a file, or None."""
    return FORMATS.get(Path(file.name.lower().removesuffix(".gz")).suffix)


def _reason(error: Exception) -> str:
    if isinstance(error, StopIteration | IndexError):
        return "it holds no rows"
    return " ".join(str(error.__cause__ or error).split()).rstrip(".")[:MAX_REASON]
