"""Turn selected pairs into preferences."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from trl_real.data.chat import as_chat
from trl_real.data.columns import EMBEDDINGS, POOL_COLUMNS
from trl_real.data.conversation import after_prompt, in_form, label_features
from trl_real.data.images import IMAGE_COLUMNS
from trl_real.data.pairs import ready_pairs
from trl_real.labeling.agreement import GoldAgreement, PanelAgreement, gold_agreement, panel_agreement
from trl_real.labeling.people.votes import row_keys
from trl_real.labeling.routed import RoutedJudge, RoutingReport
from trl_real.labeling.selected_pairs import paired_rows
from trl_real.labeling.verdicts import Judge, Report, Verdict, VerdictSummary, ask, evidence_of, name_of, summarize
from trl_real.runtime.digests import sha256
from trl_real.runtime.distributed import gather, once, share
from trl_real.runtime.journal import Journal


logger = logging.getLogger(__name__)


@dataclass
class LabelReport(Report):
    """
    Result of labelling in numbers; `annotate` fills it.

    Args:
        judge: Name of the judge.
        n_rows: Number of input rows.
        n_without_pair: Number of rows without a pair, which no judge saw.
        n_resumed: Number of pairs with a verdict in the journal.
        verdicts: Wins, ties, failures, position bias, tokens and cost.
        gold: Agreement with the gold labels, if there are any.
        panel: Agreement among the judges of a panel.
        routing: What the dear judge of a `RoutedJudge` changed.
        seconds: Duration of this run in seconds.
    """

    judge: str = ""
    n_rows: int = 0
    n_without_pair: int = 0
    n_resumed: int = 0
    verdicts: VerdictSummary = field(default_factory=VerdictSummary)
    gold: GoldAgreement | None = None
    panel: PanelAgreement | None = None
    routing: RoutingReport | None = None
    seconds: float = 0.0

    @property
    def n_labeled(self) -> int:
        """Number of pairs that became preferences."""
        return self.verdicts.n_a + self.verdicts.n_b

    @property
    def counts(self) -> dict[str, int]:
        """Number of pairs by outcome: `labeled`, `ties` and `failed`."""
        return {"labeled": self.n_labeled, "ties": self.verdicts.n_ties, "failed": self.verdicts.n_failed}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return super().to_dict() | self.counts

    def words(self) -> str:
        """Return a summary of a few lines."""
        v = self.verdicts
        first = f"{self.judge}: {self.n_labeled} labeled, {v.n_ties} ties, {v.n_failed} without a verdict"
        if self.n_without_pair:
            first += f"; {self.n_without_pair} rows had no pair"
        others = [part.words() for part in (self.gold, self.panel, self.routing) if part]
        return "\n".join(filter(None, [first, v.words(), *others]))


def annotate(
    dataset: Dataset,
    judge: Judge,
    *,
    responses: str = "responses",
    batch_size: int = 256,
    journal: str | Path | None = None,
    gold: Judge | None = None,
    report: LabelReport | None = None,
    all_processes: bool = False,
    as_messages: bool = False,
) -> Dataset:
    """
    Ask a judge which response of each selected pair is better, and return the answers in TRL's preference format.

    Ties and failures are left out and counted, and never become a loss of either side. Prompts and responses keep
    their form in the pool, with two exceptions: next to messages, a text becomes a message; messages that repeat the
    prompt lose it.

    Args:
        dataset: Output of a selector's `select` or `map`: `prompt`, `responses`, `pair`, `response_a`, …; or ready
            pairs: `prompt`, `response_a`, `response_b`.
        judge: Judge of the pairs, see `trl_real.labeling.verdicts`.
        responses: Column with the list of responses.
        batch_size: Number of rows per call of the judge. With a journal, a judge that runs a model in this process
            gets fewer (its `rows_per_save`): a kill costs the verdicts of one call.
        journal: Path of a file that gets every verdict at once. A second run reuses the verdicts of the same judge and
            asks only for the rest: failures, and rows of which the judge now reads other evidence, such as corrected
            scores.
        gold: Second judge that knows the truth, such as `ScoreJudge("scores")`; the report gives the agreement.
        report: Report to fill in.
        all_processes: Whether all processes of a launcher (`torchrun`, `accelerate launch`) call this together. Each
            process asks about its share of the pairs and gets all the preferences.
        as_messages: Whether text prompts and responses become messages, for chat models (`trl_real.as_chat`).

    Returns:
        Dataset with `prompt`, `chosen`, `rejected`, `label_confidence` (float32 in [0.5, 1]), `label_source` and the
        other columns of the rows, such as `tools` and images, but for the responses and `embeddings`; without the rows
        that have no pair.

    Raises:
        MissingColumnError: If the column of prompts, pairs or responses is missing.
        TrlRealError: If `response_a` and `response_b` are not the responses that `pair` names, or a row is invalid
            otherwise (before anything is asked); if a verdict is not a probability, or a row has no verdict.
    """
    started = time.perf_counter()
    dataset = as_chat(dataset, responses=responses) if as_messages else dataset
    dataset = ready_pairs(dataset, responses)
    plain = paired_rows(dataset, responses)
    report = LabelReport() if report is None else report
    report.judge, report.n_rows, report.n_without_pair = name_of(judge), len(dataset), len(dataset) - len(plain)
    pairs = _Pairs(plain, responses)
    verdicts, report.n_resumed = _verdicts(pairs, judge, batch_size, journal, all_processes)
    report.verdicts, report.panel = summarize(verdicts), panel_agreement(verdicts)
    report.routing = judge.report if isinstance(judge, RoutedJudge) else None
    if gold is not None:
        report.gold = gold_agreement(verdicts, _verdicts(pairs, gold, batch_size, None, False)[0])
    report.seconds = time.perf_counter() - started
    logger.info("%s", report.words())
    kept = [i for i, verdict in enumerate(verdicts) if verdict.outcome in ("a", "b")]
    return _preferences(plain.select(kept), [verdicts[i] for i in kept], name_of(judge), responses)


class _Pairs:
    """Rows with a pair as batches for a judge, which finds the responses in `responses` whatever their column is."""

    def __init__(self, rows: Dataset, responses: str):
        self.rows, self.responses = rows, responses

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        batch = self.rows[numbers]
        return {"responses": batch[self.responses], **batch}

    def keyed(self, judge: Judge, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        """Yield batches with what a journal's keys depend on: other columns may be large."""
        texts = ("prompt", "response_a", "response_b", *IMAGE_COLUMNS)
        names = [name for name in self.rows.column_names if name in texts or hasattr(judge, "evidence")]
        rows = self.rows.select_columns([name for name in names if name != EMBEDDINGS])
        yield from rows.iter(batch_size) if len(rows) else ()


def _verdicts(
    pairs: _Pairs, judge: Judge, batch_size: int, journal: str | Path | None, together: bool
) -> tuple[list[Verdict], int]:
    """Return one verdict per row, and how many of them come from the journal."""
    if isinstance(judge, RoutedJudge):
        return _routed(pairs, judge, batch_size, journal, together)
    if journal is None:
        starts = range(0, len(pairs), batch_size)
        batches = [range(start, min(start + batch_size, len(pairs))) for start in starts]
        found: dict[int, Verdict] = {}
        for rows in share(batches, together):
            found |= zip(rows, ask(judge, pairs[rows], rows), strict=True)
        found = gather(found, together)
        return [found[row] for row in range(len(pairs))], 0
    with Journal(journal) as lines:
        identity = identity_of(judge)
        read = once(lines.read, together)
        lines_read = ((str(line.get("key")), _from_line(line)) for line in read if line.get("judge") == identity)
        known = {key: verdict for key, verdict in lines_read if verdict is not None}
        keys = _keys(pairs, judge, batch_size)
        first_rows: dict[str, int] = {}
        for i, key in enumerate(keys):
            first_rows.setdefault(key, i)
        missing = share([i for key, i in first_rows.items() if key not in known], together)
        n_resumed = sum(key in known for key in keys)
        asked: dict[str, Verdict] = {}
        size = min(batch_size, getattr(judge, "rows_per_save", None) or batch_size)
        for start in tqdm(range(0, len(missing), size), desc="Labeling", unit="batch", delay=2):
            batch = missing[start : start + size]
            for row, verdict in zip(batch, ask(judge, pairs[batch], batch), strict=True):
                if not verdict.failure and verdict.outcome != "failed":
                    lines.append(_to_line(keys[row], identity, name_of(judge), verdict))
                asked[keys[row]] = verdict
        known |= gather(asked, together)
    return [known[key] for key in keys], n_resumed


def _routed(
    pairs: _Pairs, judge: RoutedJudge, batch_size: int, journal: str | Path | None, together: bool
) -> tuple[list[Verdict], int]:
    """Ask the cheap judge about all pairs and the dear one about some of them, as `_verdicts`, with one journal."""
    found, n_resumed = _verdicts(pairs, judge.cheap, batch_size, journal, together)
    texts = {name: pairs.rows[name][:] for name in ("prompt", "response_a", "response_b")}
    rows = judge.rows_for_dear(texts, found)
    some = _Pairs(pairs.rows.select(rows), pairs.responses)
    dear, n_more = _verdicts(some, judge.dear, batch_size, journal, together)
    return judge.merged(found, rows, dear), n_resumed + n_more


def _keys(pairs: _Pairs, judge: Judge, batch_size: int) -> list[str]:
    """Return the journal key of each row: a hash of its texts, its images and what else the judge reads."""
    keys = []
    for batch in pairs.keyed(judge, batch_size):
        rows = zip(row_keys(batch), evidence_of(judge, batch), strict=True)
        keys += [key if read is None else _digest([key, read])[:32] for (key, _), read in rows]
    return keys


def identity_of(judge: Judge, ignore: Sequence[str] = ()) -> str:
    """
    Short hash of everything that a judge's verdicts depend on: of its `identity`, or else of its name.

    The identity keys in `ignore` are left out, also for the members of a panel.
    """

    def counting(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: counting(part) for name, part in value.items() if name not in ignore}
        return [counting(part) for part in value] if isinstance(value, list) else value

    return _digest(counting(getattr(judge, "identity", {"name": name_of(judge)})))[:16]


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str)).hex()


def _to_line(key: str, identity: str, name: str, verdict: Verdict) -> dict[str, Any]:
    values = {name: value if value == value else None for name, value in asdict(verdict).items()}
    return {"key": key, "judge": identity, "name": name, **values}


def _from_line(line: dict[str, Any]) -> Verdict | None:
    """Return the verdict of a journal line, of which all answers count as cached; None if it holds no verdict."""
    values = {f.name: line[f.name] for f in fields(Verdict) if f.name in line}
    values = {name: float("nan") if value is None else value for name, value in values.items()}
    try:
        n_cached = values.get("n_asked", 0) + values.get("n_cached", 0)
        members = tuple(map(float, values.get("members", ())))
        found = Verdict(**{**values, "members": members, "n_asked": 0, "n_cached": n_cached})
        return found if 0 <= found.probability <= 1 else None
    except TypeError:
        return None


def _preferences(pairs: Dataset, verdicts: Sequence[Verdict], source: str, responses: str) -> Dataset:
    prompt, response = label_features(pairs.features["prompt"], pairs.features[responses].feature)

    def label(row: dict[str, Any], index: int) -> dict[str, Any]:
        first, second = (in_form(response, after_prompt(row[responses][i], row["prompt"])) for i in row["pair"])
        verdict = verdicts[index]
        better, worse = (first, second) if verdict.outcome == "a" else (second, first)
        confidence = max(verdict.probability, 1 - verdict.probability)
        judge = verdict.source or source
        columns = {"chosen": better, "rejected": worse, "label_confidence": confidence, "label_source": judge}
        return {"prompt": in_form(prompt, row["prompt"], "user"), **columns}

    added = {"chosen": response, "rejected": response, "label_confidence": Value("float32")}
    added["label_source"] = Value("string")
    replaced = ("prompt", responses, EMBEDDINGS, *added)
    first = [name for name in (*POOL_COLUMNS, "uncertainty") if name in pairs.features]
    names = dict.fromkeys([*first, *pairs.features])
    carried = {name: pairs.features[name] for name in names if name not in replaced}
    features = Features({"prompt": prompt, **added, **carried})
    if not len(pairs):
        return Dataset.from_dict({name: [] for name in features}, features=features)
    labeled = pairs.map(
        label,
        with_indices=True,
        remove_columns=[name for name in pairs.column_names if name not in features],
        features=features,
        desc="Writing labels",
        load_from_cache_file=False,
    )
    return labeled.select_columns(list(features))
