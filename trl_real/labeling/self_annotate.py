"""Turn a policy's own generations into preferences, judged by the policy itself (SPA, arXiv 2406.04412)."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from trl_real.data.conversation import (
    TEMPLATE_COLUMNS,
    after_prompt,
    in_form,
    is_messages,
    label_features,
    text_of,
    with_template,
)
from trl_real.data.convert import from_rows, iterate
from trl_real.data.pairs import pool_candidates
from trl_real.errors import TrlRealError, check_columns
from trl_real.labeling.agreement import gold_agreement
from trl_real.labeling.implicit_reward import UNFINISHED, UNUSABLE, ImplicitRewardJudge
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.labeling.verdicts import TIE, Judge, Verdict, ask
from trl_real.runtime.digests import sha256


logger = logging.getLogger(__name__)

TIED = "equal scores"
CUT = "unfinished responses"

# Returns the indices of two different responses, in either order.
Pick = Callable[[Sequence[str], Sequence[float], int], tuple[int, int]]


def best_worst(texts: Sequence[str], scores: Sequence[float], seed: int) -> tuple[int, int]:
    """
    Pick the responses with the highest and the lowest score.

    Args:
        texts: `K` different texts, sorted.
        scores: `K` finite numbers; of equal scores, the first is taken.
        seed: Seed of the draw; not used.
    """
    places = range(len(scores))
    return max(places, key=scores.__getitem__), min(places, key=scores.__getitem__)


def best_random(texts: Sequence[str], scores: Sequence[float], seed: int) -> tuple[int, int]:
    """Pick the highest score and another response, drawn by the texts (the authors' `max_vs_random`)."""
    best = max(range(len(scores)), key=scores.__getitem__)

    def drawn(i: int) -> bytes:
        return sha256(seed, texts[best], texts[i])

    return best, min((i for i in range(len(scores)) if i != best), key=drawn)


PICKS: dict[str, Pick] = {"best_worst": best_worst, "best_random": best_random}


@dataclass
class Annotated:
    """
    Row during self-annotation, with its `K` candidate responses sorted by text.

    Args:
        row: Input row.
        number: Row number in the dataset.
        dropped: Reason for a missing label; empty while a label is possible.
        places: Index of each candidate in the row's list of responses.
        texts: Text of each candidate.
        ended: Whether each candidate is complete.
        scores: Implicit reward of each candidate.
        n_scored: Number of scored tokens of each candidate.
        winner, loser: Indices in `texts`.
        confidence: Probability that the winner is better.
    """

    row: dict[str, Any]
    number: int
    dropped: str = ""
    places: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    n_scored: list[int] = field(default_factory=list)
    winner: int = -1
    loser: int = -1
    confidence: float = math.nan


def self_annotate(
    dataset: Dataset,
    judge: ImplicitRewardJudge,
    *,
    responses: str = "responses",
    pick: str | Pick = "best_worst",
    drop_unfinished: bool = False,
    finish_reasons: str = "finish_reasons",
    batch_size: int = 256,
    gold: Judge | None = None,
    seed: int = 42,
    report: SelfAnnotationReport | None = None,
) -> Dataset:
    r"""
    Label generations by the policy's implicit reward: `chosen` is the response with the higher `log pi(y | x) -
    log pi_init(y | x)` (SPA, Eq. 8). Of more than two responses, the highest and the lowest score form the pair.

    Blank responses, repetitions (surrounding spaces aside) and responses without a finite score are left out first. A
    row with fewer than two responses left is dropped, and so is a pair with a score difference below the judge's
    `min_gap`. The order of a row's responses has no effect: of equal texts, and of equal scores, the first in sorted
    order is taken.

    With a judge that has a `cache` file, an interrupted run continues and gives the same labels.

    Args:
        dataset: Rows with `prompt` and a list of `responses`. An optional list of `finish_reasons` marks responses
            that were cut (`"length"`).
        judge: Judge of the policy against the initial model.
        responses: Column with the list of responses.
        pick: Name in `PICKS`, or a function with the same arguments.
        drop_unfinished: Whether to leave out responses that were cut; otherwise they are scored without EOS.
        finish_reasons: Column with the finish reasons.
        batch_size: Number of rows scored together; an interrupted run loses at most this many.
        gold: Judge that knows the truth, such as `ScoreJudge("scores")`; the report gives the agreement on the pairs
            that it decides.
        seed: Seed of the draws of `"best_random"`.
        report: Report to fill in.

    Returns:
        Dataset in the order of the rows with `prompt`, `chosen`, `rejected` (in their form in the pool; next to
        messages, a text becomes a message), `label_confidence` (float32 in [0.5, 1], the judge's sigmoid),
        `label_source`, `score_chosen` and `score_rejected` (float32, in the judge's unit), and, with finish reasons,
        `chosen_finished` and `rejected_finished`.

    Raises:
        MissingColumnError: If the column of prompts or responses is missing.
        TrlRealError: If the pick is unknown, or a row does not have one finish reason per response.
    """
    from trl_real.models.sequences import n_with_control_tokens

    started = time.perf_counter()
    features = _features(dataset, responses, finish_reasons)
    choose = _picked(pick)
    report = SelfAnnotationReport() if report is None else report
    report.judge = judge.name
    labels, verdicts, truths = [], [], []
    rows = (_read(row, i, responses, finish_reasons, drop_unfinished) for i, row in enumerate(iterate(dataset)))
    rows = iter(tqdm(rows, desc="Self-annotating", unit="prompt", total=len(dataset), delay=2))
    while some := list(islice(rows, batch_size)):
        report.add_scored(_score(some, judge), [end for one in some for end in one.ended])
        for one in some:
            _decide(one, judge, choose, seed)
        report.add_rows(some)
        done = [one for one in some if not one.dropped]
        labels += [_label(one, judge.name, responses, features) for one in done]
        if gold is not None and done:
            verdicts += [Verdict(one.confidence) for one in done]
            truths += ask(gold, _columns(done, responses), [one.number for one in done])
    if gold is not None:
        found = gold_agreement(verdicts, truths)
        report.gold = found if report.gold is None else report.gold + found
    preferences = from_rows(labels, features)
    if labels:
        report.n_with_control_tokens += n_with_control_tokens(judge.reader.policy.load(adapters=True)[1], preferences)
    report.seconds += time.perf_counter() - started
    logger.info("%s", report.words())
    return preferences


def _read(row: dict[str, Any], number: int, responses: str, finish_reasons: str, drop_unfinished: bool) -> Annotated:
    """Return the candidates of a row; of equal responses, the first in sorted order."""
    given = row[responses] or []
    if not isinstance(given, list):
        pool_candidates(row["prompt"], given, responses)  # raises the error
    reasons = row.get(finish_reasons) or [""] * len(given)
    if len(reasons) != len(given):
        raise TrlRealError(
            f"Row {number} has {len(given)} responses and {len(reasons)} values in {finish_reasons!r}. "
            "Give one per response, None if it is unknown."
        )
    ended = [reason != UNFINISHED for reason in reasons]
    order = sorted(range(len(given)), key=lambda i: (_text(given[i]), not ended[i]))
    kept = [i for i in order if ended[i] or not drop_unfinished]
    found = pool_candidates(row["prompt"], [given[i] for i in kept], responses)
    if found.skipped:
        return Annotated(row, number, CUT if len(kept) < len(given) else found.skipped)
    places = [kept[i] for i in found.indices]
    return Annotated(row, number, "", places, found.texts, [ended[i] for i in places])


def _score(rows: list[Annotated], judge: ImplicitRewardJudge) -> Any:
    """Set the scores of each row, and return the rewards."""
    templates = [{name: one.row.get(name) for name in TEMPLATE_COLUMNS} for one in rows]
    asked = [with_template(one.row["prompt"], **own) for one, own in zip(rows, templates, strict=True)]
    prompts = [prompt for prompt, one in zip(asked, rows, strict=True) for _ in one.texts]
    texts = [text for one in rows for text in one.texts]
    found = judge.rewards(prompts, texts, [end for one in rows for end in one.ended])
    scores, n_scored = iter(judge.scores_of(found)), iter(found.n_scored.tolist())
    for one in rows:
        one.scores = [next(scores) for _ in one.texts]
        one.n_scored = [next(n_scored) for _ in one.texts]
    return found


def _decide(one: Annotated, judge: ImplicitRewardJudge, choose: Pick, seed: int) -> None:
    """Set the winner and the loser of a row, or the reason why it is dropped."""
    usable = [i for i, score in enumerate(one.scores) if math.isfinite(score)]
    if one.dropped or len(usable) < 2:
        one.dropped = one.dropped or UNUSABLE
        return
    picked = choose([one.texts[i] for i in usable], [one.scores[i] for i in usable], seed)
    one.winner, one.loser = sorted((usable[i] for i in picked), key=lambda i: -one.scores[i])
    one.confidence = judge.probability(one.scores[one.winner] - one.scores[one.loser])
    one.dropped = TIED if one.confidence == TIE else ""


def _label(one: Annotated, source: str, responses: str, features: Features) -> dict[str, Any]:
    sides = {"chosen": one.winner, "rejected": one.loser}
    prompt = one.row["prompt"]
    label = {"prompt": in_form(features["prompt"], prompt, "user"), "label_confidence": one.confidence}
    label["label_source"] = source
    for side, i in sides.items():
        label[side] = in_form(features[side], after_prompt(one.row[responses][one.places[i]], prompt))
        label[f"score_{side}"], label[f"{side}_finished"] = one.scores[i], one.ended[i]
    return label


def _columns(rows: list[Annotated], responses: str) -> dict[str, list[Any]]:
    """Return the pairs as a batch for a judge, winners first."""
    columns = {name: [one.row[name] for one in rows] for name in rows[0].row}
    columns["pair"] = [[one.places[one.winner], one.places[one.loser]] for one in rows]
    columns["response_a"] = [one.texts[one.winner] for one in rows]
    columns["response_b"] = [one.texts[one.loser] for one in rows]
    return columns


def _features(dataset: Dataset, responses: str, finish_reasons: str) -> dict[str, Any]:
    """Return the features of the labels."""
    for name in ("prompt", responses):
        fix = f"Self-annotation needs it. Rename your column: dataset.rename_column('…', {name!r})"
        check_columns(dataset.column_names, [name], fix)
    response = getattr(dataset.features[responses], "feature", Value("string"))
    prompt, response = label_features(dataset.features["prompt"], response)
    label = {"chosen": response, "rejected": response, "label_confidence": Value("float32")}
    label |= {"label_source": Value("string"), "score_chosen": Value("float32"), "score_rejected": Value("float32")}
    if finish_reasons in dataset.column_names:
        label |= {"chosen_finished": Value("bool"), "rejected_finished": Value("bool")}
    return {"prompt": prompt, **label}


def _picked(pick: str | Pick) -> Pick:
    if callable(pick):
        return pick
    if pick not in PICKS:
        raise TrlRealError(f"Unknown pick {pick!r}: choose from {', '.join(PICKS)}.")
    return PICKS[pick]


def _text(response: Any) -> str:
    return text_of(response) if isinstance(response, str) or is_messages(response) else ""
