"""Section of a dataset card about a subset: recipe, counts and similarity of the pairs."""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PureWindowsPath

import yaml
from huggingface_hub import DatasetCard

from trl_real.errors import TrlRealError
from trl_real.hub.facts import CardFacts, Table
from trl_real.selection.record import SelectionRecord


NOTICE = "<!-- Written by trl-real and replaced at each push. Text outside of these two markers is left alone. -->"
TASK_CATEGORIES = ["text-generation"]
# `library:` is how the Hub lists the datasets of a library, with their "Use this dataset" entry.
TAGS = ["trl", "trl-real", "library:trl-real", "preference"]
LABELLED_TAGS = ["dpo"]
LABELLED_COLUMNS = {"chosen", "rejected"}
COUNTED = ("n_picked", "lengths")  # settings of a record that the table of counts shows
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))  # the Hub's names
HISTOGRAM_ROWS = 20
BAR_WIDTH = 24

_ANY_MARKER = r"<!-- trl-real:(?:begin|end) "
_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{8,}")
_PATH_START = r"(?:/|~[\\/]|\\\\|[A-Za-z]:[\\/]|\.{1,2}[\\/])"
_WHOLE_PATH = re.compile(rf"(?:file:)?{_PATH_START}.*", re.DOTALL)
_PATH_INSIDE = re.compile(rf"(?<![\w.:/\\]){_PATH_START}[^\s'\",;)\]}}]+")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "\\": "&#92;"}


def update_card(
    content: str,
    record: SelectionRecord,
    config_name: str,
    repo_id: str,
    *,
    columns: Iterable[str] = (),
    tables: Sequence[Table] = (),
    facts: CardFacts | None = None,
    revision: str | None = None,
) -> str:
    """
    Replace our section for one config in the card, or add it at the end; everything else stays as it is.

    Tags and the task category are added only with the first section of a config, so that a user can remove them.

    Args:
        content (`str`): Full text of `README.md`; its metadata block has the number of rows of each split.
        record, config_name, repo_id, revision: Arguments of `push_subset`.
        columns (iterable of `str`): Columns of the dataset; `chosen` and `rejected` make it a `dpo` dataset.
        tables: Further tables of our section: title, header and rows.
        facts: Title, licence and language for the metadata; what is not given stays.

    Returns:
        The new `README.md`.

    Raises:
        TrlRealError: If the metadata block at the top cannot be read, or the record is inconsistent.
    """
    try:
        card = DatasetCard(content)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise TrlRealError(
            f"The metadata block at the top of README.md cannot be read ({type(error).__name__}). "
            f"Correct it on the page of {repo_id}, then push again."
        ) from error
    n_rows = _rows_by_split(card.data.to_dict(), config_name)
    section = render_section(record, config_name, repo_id, n_rows, revision, tables)
    for name, value in (facts.metadata() if facts else {}).items():
        card.data[name] = value
    if not card.text.strip():
        title = card.data.get("pretty_name") or repo_id.rpartition("/")[2]
        card.data["pretty_name"], card.text = title, f"\n# {escape(title)}\n"
    if _find_section(card.text, config_name) is None:
        tags = TAGS + (LABELLED_TAGS if LABELLED_COLUMNS <= set(columns) else [])
        card.data["tags"] = _merged(card.data.get("tags"), tags)
        card.data["size_categories"] = card.data.get("size_categories") or [size_category(sum(n_rows.values()))]
        card.data["task_categories"] = _merged(card.data.get("task_categories"), TASK_CATEGORIES)
    card.text = replace_section(card.text, section, config_name)
    return str(card)


def size_category(n_rows: int) -> str:
    """Return the Hub's name for a number of rows."""
    return next((name for end, name in SIZES if n_rows < end), "n>1M")


def replace_section(text: str, section: str, config_name: str) -> str:
    """
    Replace the last well-formed section of this config in the card's text, or add the section at the end.

    A marker without its partner counts as the user's text: nothing between it and another marker changes. The line
    ends stay as they are.
    """
    line_end = "\r\n" if "\r\n" in text else "\n"
    section = section.replace("\n", line_end)
    found = _find_section(text, config_name)
    if found:
        return text[: found.start()] + section + text[found.end() :]
    gap = line_end if text.endswith(("\n", "\r")) else 2 * line_end
    return (text + gap if text.strip() else line_end) + section + line_end


def render_section(
    record: SelectionRecord,
    config_name: str,
    repo_id: str,
    n_rows: dict[str, int],
    revision: str | None = None,
    tables: Sequence[Table] = (),
) -> str:
    """
    Render our section of the card, with its two markers; equal arguments give equal text.

    `n_rows` is the number of rows pushed, by split; the other arguments are those of `update_card`.

    Raises:
        TrlRealError: If the record's counts do not add up, or its histogram is invalid.
    """
    check_record(record)
    record = SelectionRecord.from_dict(public_record(record))
    parts = [
        f"<!-- trl-real:begin {config_name} -->",
        NOTICE,
        f"## {escape(config_name)}",
        _load_snippet(config_name, repo_id, next(iter(n_rows), None), revision),
        "### Recipe\n\n" + _table(["setting", "value"], _recipe(record)),
        "### Counts\n\n" + _table(["rows", "count"], _counts(record, n_rows)),
        *(f"### {title}\n\n{_table(header, rows)}" for title, header, rows in tables),
        *_similarity(record),
        f"The whole record: `selection_records/{config_name}.json`.",
        f"<!-- trl-real:end {config_name} -->",
    ]
    return "\n\n".join(parts)


def check_record(record: SelectionRecord) -> None:
    """
    Check the counts and the histogram of a record.

    Raises:
        TrlRealError: If kept, not chosen and skipped rows do not add up to all rows, or bins and counts do not match.
    """
    n_skipped = sum(record.skipped.values())
    if record.n_rows != record.n_kept + record.n_not_chosen + n_skipped:
        raise TrlRealError(
            f"The record does not add up: {record.n_rows} rows in, but {record.n_kept} kept + {record.n_not_chosen} "
            f"not chosen + {n_skipped} skipped. Give the record that the selection wrote: record=selector.record"
        )
    edges, pool, kept = (len(record.histogram.get(name, [])) for name in ("edges", "pool", "kept"))
    if record.histogram and not edges - 1 == pool == kept > 0:
        raise TrlRealError(
            f"The record's histogram has {edges} edges, {pool} pool counts and {kept} kept counts; it needs one edge "
            "more than counts. Give the record that the selection wrote: record=selector.record"
        )


def public_record(record: SelectionRecord) -> dict:
    """Return the record without private data: local paths become their last component, access tokens are removed."""
    values = _public(record.to_dict())
    if record.model and os.path.exists(record.model):
        values["model"] = _last_component(record.model)
    return values


def escape(value: object) -> str:
    """Return one line that a Markdown table shows unchanged; it cannot end the table or open a comment."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    line = re.sub(r"[&<>|`\\]", lambda found: _ENTITIES[found[0]], line)
    return re.sub(r"([*_\[\]~$])", r"\\\1", line)


def _find_section(text: str, config_name: str) -> re.Match | None:
    name = re.escape(config_name)
    begin, end = rf"^[ \t]*<!-- trl-real:begin {name} -->", rf"^[ \t]*<!-- trl-real:end {name} -->"
    found = re.finditer(rf"{begin}(?:(?!{_ANY_MARKER})[\s\S])*?{end}", text, re.MULTILINE)
    return max(found, key=re.Match.start, default=None)


def _rows_by_split(metadata: dict, config_name: str) -> dict[str, int]:
    infos = metadata.get("dataset_info") or []
    for info in [infos] if isinstance(infos, dict) else infos:
        if info.get("config_name", "default") == config_name:
            return {split["name"]: split["num_examples"] for split in info.get("splits", [])}
    return {}


def _merged(present: list[str] | str | None, wanted: list[str]) -> list[str]:
    present = [present] if isinstance(present, str) else list(present or [])
    return present + [tag for tag in wanted if tag not in present]


def _load_snippet(config_name: str, repo_id: str, split: str | None, revision: str | None) -> str:
    arguments = [json.dumps(repo_id), json.dumps(config_name)]
    named = {"split": split, "revision": revision}
    arguments += [f"{name}={json.dumps(value)}" for name, value in named.items() if value]
    return f"```python\nfrom datasets import load_dataset\n\ndataset = load_dataset({', '.join(arguments)})\n```"


def _table(header: list[str], rows: Sequence[tuple]) -> str:
    lines = [header, ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _recipe(record: SelectionRecord) -> list[tuple]:
    rows = [("strategy", record.strategy), ("budget", _budget(record.budget)), ("seed", record.seed)]
    rows += [("model", record.model or "none"), ("revision", record.revision or "none")]
    rows += sorted((str(name), value) for name, value in record.settings.items() if name not in COUNTED)
    cut = f"{record.n_truncated} of {record.n_responses} ({record.truncation_rate:.1%})"
    rows += [
        ("responses cut to the context", cut),
        ("rows embedded again in float32", record.n_rescored),
        ("tokens embedded", record.tokens),
        ("seconds spent embedding", f"{record.seconds:.1f}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))),
    ]
    return rows


def _budget(budget: float | int | None) -> str:
    if budget is None:
        return "all rows with a pair"
    return f"{budget:g} of the rows with a pair" if isinstance(budget, float) else f"{budget} rows"


def _counts(record: SelectionRecord, n_rows: dict[str, int]) -> list[tuple]:
    where = "in the sample" if record.sampled else "in the pool"
    rows: list[tuple] = [(where, record.n_rows), ("kept", record.n_kept), ("not chosen", record.n_not_chosen)]
    rows += [(f"skipped: {reason}", count) for reason, count in sorted(record.skipped.items())]
    if "n_picked" in record.settings:  # several pairs can come from one row
        rows.append(("pairs picked in the kept rows", record.settings["n_picked"]))
    lengths = record.settings.get("lengths") or {}
    for where, found in lengths.items():
        rows.append((f"characters of a response, median ({where})", f"{found['median']:.0f}" if found else "–"))
    return rows + [(f"in this repository, split {split}", count) for split, count in n_rows.items()]


def _similarity(record: SelectionRecord) -> list[str]:
    if not record.similarity:
        return []
    rows = [
        (name, f"{value:.3f}", _number(record.similarity_kept.get(name))) for name, value in record.similarity.items()
    ]
    parts = ["### Similarity of the two responses\n\n" + _table(["quantile", "pool", "kept"], rows)]
    if record.histogram:
        lines = ["Rows by similarity; each column is scaled to its largest bin.", histogram(record.histogram)]
        parts.append("\n\n".join(lines))
    return parts


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def histogram(counts: dict[str, list]) -> str:
    """
    Render the histogram of a `SelectionRecord` as text in a fenced block: pool and kept rows, side by side.

    Neighbouring bins are joined to at most `HISTOGRAM_ROWS`.
    """
    edges, pool, kept = (counts[name] for name in ("edges", "pool", "kept"))
    step = math.ceil(len(pool) / HISTOGRAM_ROWS)
    starts = range(0, len(pool), step)
    pool, kept = ([sum(column[i : i + step]) for i in starts] for column in (pool, kept))
    ends = [edges[min(i + step, len(edges) - 1)] for i in starts]
    lines = [f"{'similarity':<17}{'pool':<{BAR_WIDTH + 10}}kept"]
    for start, end, *bins in zip((edges[i] for i in starts), ends, pool, kept, strict=True):
        bars = [
            f"{'█' * _bar(n, max(column)):<{BAR_WIDTH}} {n:<9}" for n, column in zip(bins, (pool, kept), strict=True)
        ]
        lines.append(f"{start:6.3f} to {end:6.3f} {''.join(bars)}".rstrip())
    return "```text\n" + "\n".join(lines) + "\n```"


def _bar(count: int, largest: int) -> int:
    return math.ceil(BAR_WIDTH * count / largest) if largest else 0


def _public(value):
    if isinstance(value, dict):
        return {_public(key): _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if not isinstance(value, str):
        return value
    value = _SECRET.sub("[removed]", value)
    if _WHOLE_PATH.fullmatch(value):
        return _last_component(value)
    return _PATH_INSIDE.sub(lambda found: _last_component(found[0]), value)


def _last_component(path: str) -> str:
    return PureWindowsPath(path).name or "local"
