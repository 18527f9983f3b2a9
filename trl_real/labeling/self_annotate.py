"""A policy's own generations become preferences, judged by the policy itself (SPA, arXiv 2406.04412)."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from trl_real.data.conversation import after_prompt, in_form, is_messages, label_features, text_of
from trl_real.data.convert import from_rows, iterate
from trl_real.data.pairs import pool_candidates
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.agreement import gold_agreement
from trl_real.labeling.implicit_reward import UNFINISHED, UNUSABLE, ImplicitRewardJudge
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.labeling.verdicts import TIE, Judge, Verdict, ask
from trl_real.runtime.digests import sha256


logger = logging.getLogger(__name__)

TIED = "equal scores"
CUT = "unfinished responses"

# Places of two different responses; which of them is better is for their scores to say.
Pick = Callable[[Sequence[str], Sequence[float], int], tuple[int, int]]


def best_worst(texts: Sequence[str], scores: Sequence[float], seed: int) -> tuple[int, int]:
    """
    The highest score against the lowest.

    Args:
        texts: Different ones, ascending. `K` of them.
        scores: `K` finite numbers; of equal ones the first is taken.
        seed: Of what is drawn.
    """
    places = range(len(scores))
    return max(places, key=scores.__getitem__), min(places, key=scores.__getitem__)


def best_random(texts: Sequence[str], scores: Sequence[float], seed: int) -> tuple[int, int]:
    """The highest score against another response, drawn by the texts (the authors' `max_vs_random`)."""
    best = max(range(len(scores)), key=scores.__getitem__)

    def drawn(i: int) -> bytes:
        return sha256(seed, texts[best], texts[i])

    return best, min((i for i in range(len(scores)) if i != best), key=drawn)


PICKS: dict[str, Pick] = {"best_worst": best_worst, "best_random": best_random}


@dataclass
class Annotated:
    """
    A row on its way: the responses that can stand in a pair, by ascending text.

    Args:
        row: As it came.
        number: In the dataset.
        dropped: Why there is no label; empty as long as there may be one.
        places: Where each of the responses stands in the row. `K` of them, as of the following.
        texts: What they say.
        ended: Whether they came to their end.
        scores: Implicit rewards.
        n_scored: Tokens.
        winner, loser: Places in `texts`.
        confidence: Probability that the winner is the better one.
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
    log pi_init(y | x)` (SPA, Eq. 8); of more than two responses, the highest stands against the lowest.

    Blank responses, all but one of equal ones (spaces around them aside) and those without a finite score are left
    out first. A row with fewer than two left is dropped, and so is one whose two scores are nearer than the judge's
    `min_gap`. The order of a row's responses plays no role: of equal texts the one that sorts first stands for all,
    and so of equal scores.

    Killed and run again with a judge that has a `cache` file, it goes on where it stood, and gives the same labels.

    Args:
        dataset: `prompt` and a list of `responses` a row. A list of `finish_reasons`, where there is one, tells which
            responses were cut (`"length"`).
        judge: The policy against the initial model.
        responses: Column that holds the list of responses.
        pick: A name in `PICKS`, or a function of texts, scores and seed as they are.
        drop_unfinished: Leave responses out that were cut; else they are kept, and scored without an end.
        finish_reasons: Column of the finish reasons.
        batch_size: Rows that are scored together, and the most that a kill takes from the judge's file.
        gold: A judge that knows the truth, such as `ScoreJudge("scores")`: the report tells the agreement on those
            of the pairs on which it says something.
        seed: Of what `"best_random"` draws.
        report: Is filled in.

    Returns:
        `prompt`, `chosen`, `rejected` (as the pool has them; a text beside messages becomes one, too),
        `label_confidence` (float32 in [0.5, 1], the judge's sigmoid), `label_source`, `score_chosen` and
        `score_rejected` (float32, in the judge's unit), and with finish reasons `chosen_finished` and
        `rejected_finished`; in the order of the rows.

    Raises:
        MissingColumnError: If there is no prompt, or there are no responses.
        TrlRealError: If there is no such pick, or a row has not one finish reason a response.
    """
    started = time.perf_counter()
    features = _features(dataset, responses, finish_reasons)
    choose = _picked(pick)
    report = SelfAnnotationReport() if report is None else report
    report.judge = judge.name
    labels, verdicts, truths = [], [], []
    rows = (_read(row, i, responses, finish_reasons, drop_unfinished) for i, row in enumerate(iterate(dataset)))
    for some in _batches(tqdm(rows, desc="Self-annotating", unit="prompt", total=len(dataset), delay=2), batch_size):
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
    report.seconds += time.perf_counter() - started
    logger.info("%s", report.words())
    return from_rows(labels, features)


def _read(row: dict[str, Any], number: int, responses: str, finish_reasons: str, drop_unfinished: bool) -> Annotated:
    """The row's candidates: of responses that are equal, the one that sorts first."""
    said = row[responses] or []
    if not isinstance(said, list):
        pool_candidates(row["prompt"], said, responses)  # tells what is wrong with it
    reasons = row.get(finish_reasons) or [""] * len(said)
    if len(reasons) != len(said):
        raise TrlRealError(
            f"Row {number} has {len(said)} responses and {len(reasons)} values in {finish_reasons!r}. "
            "Give one a response, None where it is not known."
        )
    ended = [reason != UNFINISHED for reason in reasons]
    order = sorted(range(len(said)), key=lambda i: (_text(said[i]), not ended[i]))
    kept = [i for i in order if ended[i] or not drop_unfinished]
    found = pool_candidates(row["prompt"], [said[i] for i in kept], responses)
    if found.skipped:
        return Annotated(row, number, CUT if len(kept) < len(said) else found.skipped)
    places = [kept[i] for i in found.indices]
    return Annotated(row, number, "", places, found.texts, [ended[i] for i in places])


def _score(rows: list[Annotated], judge: ImplicitRewardJudge) -> Any:
    """Give each row its scores; returns the rewards that they are made of."""
    prompts = [one.row["prompt"] for one in rows for _ in one.texts]
    texts = [text for one in rows for text in one.texts]
    found = judge.rewards(prompts, texts, [end for one in rows for end in one.ended])
    scores, n_scored = iter(judge.scores_of(found)), iter(found.n_scored.tolist())
    for one in rows:
        one.scores = [next(scores) for _ in one.texts]
        one.n_scored = [next(n_scored) for _ in one.texts]
    return found


def _decide(one: Annotated, judge: ImplicitRewardJudge, choose: Pick, seed: int) -> None:
    """The winner and the loser of a row, or why there are none."""
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
    """The pairs as a judge takes them, the winners first."""
    columns = {name: [one.row[name] for one in rows] for name in rows[0].row}
    columns["pair"] = [[one.places[one.winner], one.places[one.loser]] for one in rows]
    columns["response_a"] = [one.texts[one.winner] for one in rows]
    columns["response_b"] = [one.texts[one.loser] for one in rows]
    return columns


def _features(dataset: Dataset, responses: str, finish_reasons: str) -> dict[str, Any]:
    """Of the labels."""
    for name in ("prompt", responses):
        if name not in dataset.column_names:
            fix = f"Self-annotation needs it. Rename yours: dataset.rename_column('…', {name!r})"
            raise MissingColumnError(name, dataset.column_names, fix)
    response = getattr(dataset.features[responses], "feature", Value("string"))
    prompt, response = label_features(dataset.features["prompt"], response)
    told = {"chosen": response, "rejected": response, "label_confidence": Value("float32")}
    told |= {"label_source": Value("string"), "score_chosen": Value("float32"), "score_rejected": Value("float32")}
    if finish_reasons in dataset.column_names:
        told |= {"chosen_finished": Value("bool"), "rejected_finished": Value("bool")}
    return {"prompt": prompt, **told}


def _picked(pick: str | Pick) -> Pick:
    if callable(pick):
        return pick
    if pick not in PICKS:
        raise TrlRealError(f"No pick {pick!r}; there are {', '.join(PICKS)}.")
    return PICKS[pick]


def _batches(rows: Iterable[Annotated], size: int) -> Iterator[list[Annotated]]:
    rows = iter(rows)
    while some := list(islice(rows, size)):
        yield some


def _text(response: Any) -> str:
    return text_of(response) if isinstance(response, str) or is_messages(response) else ""
