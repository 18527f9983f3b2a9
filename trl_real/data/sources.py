"""Converters of well-known preference datasets from the Hub to pools or to TRL's explicit preference format."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, List, Value

from trl_real.data.conversation import (
    ASSISTANT_TURN,
    Messages,
    common_start,
    implied_prompt,
    is_messages,
    text_of,
    without_prompt,
)
from trl_real.data.convert import REASON, convert_rows, from_rows, iterate, report, require_columns
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, PROMPT_MISMATCH, TOO_FEW
from trl_real.errors import TrlRealError


logger = logging.getLogger(__name__)

NO_ASSISTANT_TURN = "no '\\n\\nAssistant:' in chosen"
OTHER_PROMPT = "prompt is not a user turn of chosen"
NO_SCORE = "missing score"
NOT_POSITIVE = "score not above 0"
RATIO_TOO_LOW = "score ratio too low"
NOT_REDDIT = "not from Reddit"
REPEATED = "repeated row"
# The only count that is not about skipped rows.
CONFLICTING_SCORES = "responses with several scores, the highest kept"

TEXT, TEXTS, SCORES = Value("string"), List(Value("string")), List(Value("float64"))


def from_hh_rlhf(dataset: Dataset, *, counts: Counter | None = None) -> Dataset:
    """
    Convert HH-RLHF: full dialogues in `chosen` and `rejected` become `prompt`, `chosen`, `rejected`.

    The prompt ends with the last `"\\n\\nAssistant:"` of the chosen dialogue; a response keeps its leading space. Rows
    that already have a `prompt` stay unchanged; blank responses are kept.

    Args:
        dataset: Dataset with columns `chosen`, `rejected` (text); other columns are kept.
        counts: Counter that receives the number of skipped rows per reason. Rows in = rows out + skipped rows.

    Raises:
        MissingColumnError: If `chosen` or `rejected` is missing.
        TrlRealError: If they do not hold text, or `dataset` is not one split.
    """
    columns: tuple[str, ...] = ("chosen", "rejected")
    explicit = "prompt" in (getattr(dataset, "column_names", None) or ())
    require_columns(dataset, "from_hh_rlhf", columns, text=() if explicit else columns)
    columns = ("prompt", *columns) if explicit else columns
    outputs = {"prompt": TEXT, **{name: dataset.features[name] for name in columns}}
    return convert_rows(dataset, "from_hh_rlhf", _hh_row, columns, outputs, counts)


def from_shp(
    dataset: Dataset, *, min_ratio: float | None = 1.5, reddit_only: bool = False, counts: Counter | None = None
) -> Dataset:
    """
    Convert SHP and SHP-2: all rows of a post become one pool row with `prompt`, `responses`, `scores`.

    Prompts are in the order of their first row. Responses are in alphabetical order, so that they show neither the
    order of the rows nor the votes. Comments lose the spaces around them, equal comments are merged, and a comment
    with several scores keeps the highest. The filters are those of REAL (arXiv 2409.17169), without its limit of 512
    tokens.

    Args:
        dataset: Dataset with columns `history`, `human_ref_A`, `human_ref_B` (text), `score_A`, `score_B` (votes), and
            `domain` (text) if `reddit_only`.
        min_ratio: Minimum ratio of the higher score to the lower one in a row; rows with a score of 0 or below have no
            ratio and are skipped. None keeps all rows.
        reddit_only: Whether to skip the rows of SHP-2 from StackExchange (`domain` begins with `"stack_"`).
        counts: Counter that receives the number of skipped rows per reason, and of responses with
            `CONFLICTING_SCORES`, if any.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If a column has another type, `min_ratio` is below 1, or `dataset` is not one split.
    """
    if min_ratio is not None and not min_ratio >= 1:
        raise TrlRealError(
            f"min_ratio={min_ratio} is below 1. Give 1 or more (higher score / lower score), or None for no filter."
        )
    columns = ("history", "human_ref_A", "human_ref_B", *(("domain",) if reddit_only else ()))
    require_columns(dataset, "from_shp", (*columns, "score_A", "score_B"), text=columns)
    skipped: Counter = Counter()
    pools, conflicts = _group_shp(dataset, min_ratio, reddit_only, skipped)
    if conflicts:
        logger.info("from_shp: %d %s", conflicts, CONFLICTING_SCORES)
        if counts is not None:
            counts[CONFLICTING_SCORES] += conflicts
    rows = (_shp_row(history, pool) for history, pool in pools.items())
    converted = from_rows(rows, {"prompt": TEXT, "responses": TEXTS, "scores": SCORES})
    return report("from_shp", len(dataset), converted, skipped, counts)


def from_ultrafeedback(dataset: Dataset, *, score: str = "overall_score", counts: Counter | None = None) -> Dataset:
    """
    Convert UltraFeedback with all completions: each row becomes `prompt`, `responses`, `scores`, `models`.

    In early copies of the dataset, many bad completions have an `overall_score` of 10 instead of 1;
    `score="fine-grained_score"`, the mean over four aspects, does not have this error.

    Args:
        dataset: Dataset with columns `instruction` (text) and `completions` (list of `response`, `model` and scores).
            Both and the original `models` are replaced; other columns are kept.
        score: Name of the completion's field to use as score; missing scores are None.
        counts: Counter that receives the number of skipped rows per reason. Rows in = rows out + skipped rows.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If a field is missing from the completions, or `dataset` is not one split.
    """
    columns = ("instruction", "completions")
    require_columns(dataset, "from_ultrafeedback", columns, text=("instruction",))
    feature = dataset.features["completions"]
    fields = getattr(feature, "feature", None)
    for name in ("response", "model", score):
        if not isinstance(fields, dict) or name not in fields:
            found = sorted(fields) if isinstance(fields, dict) else feature
            raise TrlRealError(
                f"No field {name!r} in column 'completions'; it has {found}. "
                "Give a list of {'response', 'model', 'overall_score'} per row, or name the score: score='…'."
            )
    outputs = {"prompt": TEXT, "responses": TEXTS, "scores": SCORES, "models": TEXTS}
    return convert_rows(dataset, "from_ultrafeedback", _ultrafeedback_row, columns, outputs, counts, score=score)


def from_ultrafeedback_binarized(dataset: Dataset, *, counts: Counter | None = None) -> Dataset:
    """
    Convert binarized UltraFeedback: a text `prompt` with full dialogues becomes three message lists without overlap.

    The prompt has the first messages that both dialogues share, with a system message if there is one; `chosen` and
    `rejected` keep the rest. Rows with a message list as prompt stay unchanged. (TRL 1.16 fails on the mixed layout.)

    Args:
        dataset: Dataset with columns `prompt` (text), `chosen`, `rejected` (message lists); other columns are kept.
        counts: Counter that receives the number of skipped rows per reason. Rows in = rows out + skipped rows.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If `chosen` or `rejected` does not hold messages, or `dataset` is not one split.
    """
    columns = ("prompt", "chosen", "rejected")
    require_columns(dataset, "from_ultrafeedback_binarized", columns)
    for name in columns[1:]:
        feature = dataset.features[name]
        if not hasattr(feature, "feature"):
            found = getattr(feature, "dtype", feature)
            raise TrlRealError(
                f"Column {name!r} holds {found} where a list of messages should be. Text needs no conversion: do "
                "not call from_ultrafeedback_binarized, or use from_hh_rlhf for full dialogues."
            )
    outputs = {name: dataset.features[name] for name in columns}
    if not hasattr(outputs["prompt"], "feature"):
        outputs["prompt"] = outputs["chosen"]
    return convert_rows(dataset, "from_ultrafeedback_binarized", _binarized_row, columns, outputs, counts)


def from_alpaca_eval(datasets: Dataset | Sequence[Dataset], *, counts: Counter | None = None) -> Dataset:
    """
    Convert outputs in the AlpacaEval format: each instruction becomes `prompt`, `responses`, `models`.

    Instructions are in the order of their first row, responses in alphabetical order of their generator, then of the
    text. Equal texts of two generators are both kept; repeated rows are not.

    Args:
        datasets: One or several datasets with columns `instruction`, `output`, `generator` (text).
        counts: Counter that receives the number of skipped rows per reason. Rows in = responses out + skipped rows.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If a column does not hold text, or a dataset is not one split.
    """
    parts = list(datasets) if isinstance(datasets, list | tuple) else [datasets]
    columns = ("instruction", "output", "generator")
    for part in parts:
        require_columns(part, "from_alpaca_eval", columns, text=columns)
    pools: dict[str, set[tuple[str, str]]] = {}
    skipped: Counter = Counter()
    for row in (row for part in parts for row in iterate(part)):
        instruction, output, generator = (row[name] for name in columns)
        if None in (instruction, output, generator):
            skipped[MISSING] += 1
        elif (generator, output) in pools.setdefault(instruction, set()):
            skipped[REPEATED] += 1
        else:
            pools[instruction].add((generator, output))
    skipped[TOO_FEW] = sum(len(pool) == 1 for pool in pools.values())
    rows = (_alpaca_row(prompt, pool) for prompt, pool in pools.items() if len(pool) > 1)
    converted = from_rows(rows, {"prompt": TEXT, "responses": TEXTS, "models": TEXTS})
    return report("from_alpaca_eval", sum(map(len, parts)), converted, skipped, counts)


SOURCES: dict[str, Callable[..., Dataset]] = {
    "hh_rlhf": from_hh_rlhf,
    "shp": from_shp,
    "ultrafeedback": from_ultrafeedback,
    "ultrafeedback_binarized": from_ultrafeedback_binarized,
    "alpaca_eval": from_alpaca_eval,
}


def converter(source: str | None) -> Callable[..., Dataset]:
    """Return the function with this name in `SOURCES`, or for None one that changes nothing; else `TrlRealError`."""
    if source is None:
        return lambda dataset: dataset
    if source not in SOURCES:
        raise TrlRealError(f"No source {source!r}; there are {', '.join(SOURCES)}.")
    return SOURCES[source]


def _hh_row(chosen: Any, rejected: Any, prompt: Any = None) -> dict:
    if prompt is not None:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return {REASON: MISSING}
    if ASSISTANT_TURN not in chosen:
        return {REASON: NO_ASSISTANT_TURN}
    prompt = implied_prompt(chosen, rejected)
    rest = without_prompt(rejected, prompt)
    if rest is None:
        return {REASON: PROMPT_MISMATCH}
    return {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rest}


def _group_shp(dataset: Dataset, min_ratio: float | None, reddit_only: bool, skipped: Counter) -> tuple[dict, int]:
    """Return post -> comment -> score, and the number of comments with several scores."""
    pools: dict[str, dict[str, float]] = {}
    conflicts = set()
    for row in iterate(dataset):
        history, answers = row["history"], (row["human_ref_A"], row["human_ref_B"])
        scores = (row["score_A"], row["score_B"])
        reason = NOT_REDDIT if reddit_only and (row["domain"] or "").startswith("stack") else ""
        reason = reason or _shp_reason(history, answers, scores, min_ratio)
        if reason:
            skipped[reason] += 1
            continue
        pool = pools.setdefault(history, {})
        for response, score in zip(map(str.strip, answers), scores, strict=True):
            if pool.setdefault(response, score) != score:
                conflicts.add((history, response))
                pool[response] = max(pool[response], score)
    return pools, len(conflicts)


def _shp_reason(history: str | None, answers: tuple, scores: tuple, min_ratio: float | None) -> str:
    """Return why a row is skipped; empty if it is valid."""
    if history is None or None in answers:
        return MISSING
    distinct = set(map(str.strip, answers))
    if "" in distinct or len(distinct) < 2:
        return EMPTY if "" in distinct else IDENTICAL
    if not all(map(_is_score, scores)):
        return NO_SCORE
    if min_ratio is not None and min(scores) <= 0:
        return NOT_POSITIVE
    return RATIO_TOO_LOW if min_ratio is not None and max(scores) < min_ratio * min(scores) else ""


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shp_row(history: str, pool: dict[str, float]) -> dict:
    """Build a pool row with the prompt format of the DPO authors' loader for SHP."""
    responses = sorted(pool)
    return {
        "prompt": f"\n\nHuman: {history}{ASSISTANT_TURN}",
        "responses": [" " + response for response in responses],
        "scores": [float(pool[response]) for response in responses],
    }


def _ultrafeedback_row(instruction: str | None, completions: list[dict] | None, score: str) -> dict:
    if instruction is None:
        return {REASON: MISSING}
    completions = completions or []
    if sum(completion["response"] is not None for completion in completions) < 2:
        return {REASON: TOO_FEW}
    return {
        "prompt": instruction,
        "responses": [completion["response"] for completion in completions],
        "scores": [float(c[score]) if _is_score(c[score]) else None for c in completions],
        "models": [completion["model"] for completion in completions],
    }


def _binarized_row(prompt: str | Messages | None, chosen: Messages | None, rejected: Messages | None) -> dict:
    if isinstance(prompt, list):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if not is_messages(chosen) or not is_messages(rejected):
        return {REASON: MISSING}
    # The last message of each dialogue is its response, even if both are the same.
    shared = common_start(chosen[:-1], rejected[:-1])
    if not shared or shared[-1].get("role") == "assistant":
        return {REASON: PROMPT_MISMATCH}
    turns = {text_of([message]).strip() for message in shared if message.get("role") == "user"}
    if prompt is not None and prompt.strip() not in turns:
        return {REASON: OTHER_PROMPT}
    return {"prompt": shared, "chosen": chosen[len(shared) :], "rejected": rejected[len(shared) :]}


def _alpaca_row(prompt: str, pool: set[tuple[str, str]]) -> dict:
    answers = sorted(pool)
    return {"prompt": prompt, "responses": [text for _, text in answers], "models": [model for model, _ in answers]}
