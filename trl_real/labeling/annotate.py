"""Selected pairs become preferences."""

import logging
import math
from collections import Counter
from typing import Any

from datasets import Dataset, Features, Value

from trl_real.data.columns import POOL_COLUMNS
from trl_real.data.conversation import as_messages
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.judges import Judge


logger = logging.getLogger(__name__)

LABELED, TIES, FAILED = "labeled", "ties", "failed"


def annotate(
    dataset: Dataset,
    judge: Judge,
    *,
    responses: str = "responses",
    batch_size: int = 256,
    counts: Counter | None = None,
) -> Dataset:
    """
    Ask a judge which response of each selected pair is better, and bring the answers into TRL's preference format.

    Ties and failures are left out and counted: they are never turned into a loss of either side. A response becomes
    `chosen` in the form in which the pool has it; beside a conversational prompt a text becomes an assistant message.

    Args:
        dataset: What a selector's `select` or `map` returned: `prompt`, `responses`, `pair`, `response_a`, ….
        judge: Verdicts as in `trl_real.labeling.judges`.
        responses: Column that holds the list of responses.
        batch_size: Rows a judge is given at a time.
        counts: Is given how many rows were `labeled`, `ties` and `failed`.

    Returns:
        Columns `prompt`, `chosen`, `rejected`, `label_confidence` (float32 in [0.5, 1]), `label_source` and what the
        selection added; the rows without a pair are left out.

    Raises:
        MissingColumnError: If there is no prompt or no pair.
        TrlRealError: If a verdict is no probability, or there is none for a row.
    """
    _check(dataset, responses)
    plain = dataset.with_format(None)
    paired = [i for i, pair in enumerate(plain["pair"]) if pair[0] >= 0]
    plain = plain if len(paired) == len(plain) else plain.select(paired)
    kept: list[int] = []
    verdicts: list[float] = []
    tally = Counter({LABELED: 0, TIES: 0, FAILED: 0})
    for start in range(0, len(plain), batch_size):
        answers = _checked(judge(plain[start : start + batch_size]), min(batch_size, len(plain) - start), start, judge)
        for row, verdict in enumerate(answers, start):
            outcome = FAILED if math.isnan(verdict) else TIES if verdict == 0.5 else LABELED
            tally[outcome] += 1
            if outcome == LABELED:
                kept.append(row)
                verdicts.append(verdict)
    if counts is not None:
        counts.update(tally)
    logger.info("%s: %s", judge.name, ", ".join(f"{n} {outcome}" for outcome, n in tally.items()))
    return _preferences(plain.select(kept), verdicts, judge.name, responses)


def _preferences(pairs: Dataset, verdicts: list[float], source: str, responses: str) -> Dataset:
    prompt = pairs.features["prompt"]
    conversational = not isinstance(prompt, Value)
    response = pairs.features[responses].feature
    if conversational and isinstance(response, Value):
        response = prompt

    def label(row: dict[str, Any], index: int) -> dict[str, Any]:
        first, second = (row[responses][i] for i in row["pair"])
        if conversational:
            first, second = as_messages(first), as_messages(second)
        better, worse = (first, second) if verdicts[index] > 0.5 else (second, first)
        confidence = max(verdicts[index], 1 - verdicts[index])
        return {"chosen": better, "rejected": worse, "label_confidence": confidence, "label_source": source}

    added = {"chosen": response, "rejected": response, "label_confidence": Value("float32")}
    added["label_source"] = Value("string")
    selection = {name: pairs.features[name] for name in POOL_COLUMNS if name in pairs.features}
    features = Features({"prompt": prompt, **added, **selection})
    if not len(pairs):
        return Dataset.from_dict({name: [] for name in features}, features=features)
    labeled = pairs.map(
        label,
        with_indices=True,
        remove_columns=[name for name in pairs.column_names if name not in features],
        features=features,
        desc="Labeling pairs",
        load_from_cache_file=False,
    )
    return labeled.select_columns(list(features))


def _check(dataset: Dataset, responses: str) -> None:
    if "pair" not in dataset.column_names:
        fix = "Select pairs first: EmbeddingPairSelector(…).select(dataset)"
        if "chosen" in dataset.column_names:
            fix = "These rows are labelled already; train on them as they are."
        raise MissingColumnError("pair", dataset.column_names, fix)
    for name in ("prompt", responses):
        if name not in dataset.column_names:
            fix = f"Preferences need it. Rename yours: dataset.rename_column('…', {name!r})"
            raise MissingColumnError(name, dataset.column_names, fix)


def _checked(answers: Any, expected: int, start: int, judge: Judge) -> list[float]:
    answers = [float("nan" if answer is None else answer) for answer in answers]
    if len(answers) != expected:
        raise TrlRealError(f"Judge {judge.name!r} gave {len(answers)} verdicts on {expected} rows. Give one a row.")
    for row, answer in enumerate(answers, start):
        if not math.isnan(answer) and not 0 <= answer <= 1:
            raise TrlRealError(
                f"Judge {judge.name!r} said {answer} on row {row}; a verdict is a probability in [0, 1], or NaN."
            )
    return answers
