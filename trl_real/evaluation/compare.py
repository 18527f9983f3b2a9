"""Win rate of a policy, or of a column of completions, against another, by a judge."""

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_real.data.chat import as_chat
from trl_real.data.checks.row_check import check_texts
from trl_real.data.columns import to_columns
from trl_real.data.conversation import is_messages, text_of
from trl_real.data.thoughts import without_thoughts
from trl_real.errors import TrlRealError, check_columns
from trl_real.evaluation.checks import Doubt, cut_doubts, identity_doubts, judge_doubts, rate_doubts, text_doubts
from trl_real.evaluation.comparison import Comparison
from trl_real.evaluation.completions import CUT, add_completions, is_policy
from trl_real.evaluation.people import People, PeopleVerdicts, ask_people, people_rates
from trl_real.functional.statistics.win_rate import win_rate
from trl_real.labeling.verdicts import TIE, Judge, Verdict, VerdictSummary, ask, name_of, summarize
from trl_real.runtime.digests import sha256


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Rows per call of the judge: enough for many parallel requests, few enough for memory.
ROWS_A_CALL = 256


def compare(
    prompts: Sequence[Any],
    completions: Any,
    baseline: Any,
    judge: Judge,
    *,
    columns: dict[str, Sequence[Any]] | None = None,
    names: tuple[str, str] = ("model", "baseline"),
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    **options: Any,
) -> Comparison:
    """
    Compute the win rate of a policy's completions against a baseline's.

    Args:
        prompts: Prompts, as texts or messages.
        completions: Completions of the model, one per prompt (texts, or messages, of which the assistant's turns
            count); or a policy that generates them, as path, Hub id or loaded model.
        baseline: Completions or policy of the baseline, in the same form.
        judge: Any judge of `trl_real.labeling.judges`, or a function of a batch.
        columns: Further columns for the judge, such as `{"scores": …, "pair": …}` for a `ScoreJudge`.
        names: Names of the model and the baseline in the results.
        tokenizer: Tokenizer of a loaded policy.
        generation: Arguments of `generate` for policies: `max_new_tokens`, `temperature`, `seed`, ….
        **options: Arguments of `compare_columns`: `confidence`, `method`, `difficulty`, `seed`, `people`,
            `as_messages`.

    Returns:
        Rates, verdicts, lengths and doubts.

    Raises:
        TrlRealError: If the lists differ in length, or `compare_columns` raises it.
    """
    from datasets import Dataset

    rows: dict[str, list[Any]] = {"prompt": list(prompts)}
    if names[0] == names[1]:
        raise TrlRealError(f"The model and the baseline are both called {names[0]!r}. Give two names=(…, …).")
    policies = {}
    for name, side in zip(names, (completions, baseline), strict=True):
        if isinstance(side, str) or hasattr(side, "generate"):
            policies[name] = side
        else:
            rows[name] = list(side)
    for name, values in {**rows, **(columns or {})}.items():
        if len(values) != len(rows["prompt"]):
            raise TrlRealError(
                f"{len(values)} {name} for {len(rows['prompt'])} prompts. Give one per prompt, in order."
            )
        rows[name] = list(values)
    dataset = Dataset.from_dict(rows)
    if options.pop("as_messages", False):
        dataset = as_chat(dataset)
    for name, policy in policies.items():
        dataset = add_completions(dataset, policy, name, tokenizer=tokenizer, **(generation or {}))
    return compare_columns(dataset, judge, model=names[0], baseline=names[1], **options)


def compare_columns(
    dataset: "Dataset | IterableDataset",
    judge: Judge,
    *,
    model: str = "response",
    baseline: str = "baseline_response",
    prompt: str = "prompt",
    confidence: float = 0.95,
    method: str = "auto",
    difficulty: Sequence[float] | None = None,
    seed: int = 42,
    people: People | Judge | str | Path | None = None,
    tokenizer: Any = None,
    as_messages: bool = False,
    **generation: Any,
) -> Comparison:
    """
    Compute the win rate of a column of completions, or of a policy, against another.

    Thoughts in a completion (`<think>`, channels, …) are neither judged nor measured. Two identical completions are a
    tie, without a request to the judge. Several rows of one prompt form one cluster,
    so that they do not make the interval too narrow.

    Args:
        dataset: Rows with a prompt and completions, each a text or messages (of which assistant turns count).
        judge: Function of a batch of columns: those of the dataset, `prompt`, and as texts `response_a` (the model's)
            and `response_b` (the baseline's). It returns one verdict per row: the probability in [0, 1] that
            `response_a` is better, NaN or None without a verdict. It has a `name`, and is responsible for correcting
            its position bias.
        model: Column of the model's completions; or a policy that generates them, as path, Hub id or loaded model.
        baseline: Column or policy of the baseline.
        prompt: Column of the prompts.
        confidence: Confidence level of the interval, in (0, 1).
        method, difficulty, seed: Arguments of `trl_real.functional.statistics.win_rate.win_rate`.
        people: People's votes on some of the pairs, or `People`, which draws the pairs for them. The rates are then
            those by people, estimated with the help of the judge, see `people_win_rate`.
        tokenizer: Tokenizer of a loaded policy.
        as_messages: Whether text prompts become messages of the user, for chat models.
        generation: Arguments of `generate` for policies: `max_new_tokens`, `temperature`, ….

    Returns:
        Rates, verdicts, lengths and doubts.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If a completion is neither a text nor messages, or the verdicts do not match the rows.
    """
    dataset = as_chat(dataset, prompt) if as_messages else dataset
    dataset, model = _with_completions(dataset, model, "model", prompt, tokenizer, generation)
    dataset, baseline = _with_completions(dataset, baseline, "baseline", prompt, tokenizer, generation)
    _check_request(dataset, model, baseline)
    check_texts(dataset, (prompt, model, baseline))
    found = _Rows()
    batches = partial(_batches, dataset, model, baseline, prompt)
    for batch in batches():
        found.add(judge, batch)
        for cut, side in zip(found.cut, (model, baseline), strict=True):
            cut += batch.get(side + CUT, [])
    if people is not None:
        found.people = ask_people(people, batches, found.preferences, np.array(found.same, dtype=bool))
    lengths, baseline_lengths = found.lengths()
    rates = win_rate(
        [verdict.probability for verdict in found.verdicts],
        clusters=found.prompts,
        confidence=confidence,
        lengths=lengths,
        baseline_lengths=baseline_lengths,
        difficulty=difficulty,
        method=method if found.people is None else "auto",
        seed=seed,
    )
    summary = summarize([verdict for verdict, same in zip(found.verdicts, found.same, strict=True) if not same])
    means = [float(values.mean()) if len(values) else math.nan for values in (lengths, baseline_lengths)]
    return Comparison(
        model=model,
        baseline=baseline,
        judge=name_of(judge),
        rates=found.rates_by_people(confidence, method) or rates,
        people=found.people.name if found.people else "",
        model_length=means[0],
        baseline_length=means[1],
        n_identical=sum(found.same),
        n_prompts=len(set(found.prompts)),
        confidence=confidence,
        seed=getattr(judge, "seed", None),
        verdicts=summary,
        doubts=found.doubts(model, baseline, rates, (means[0], means[1]), summary),
        rows=found.columns(),
    )


class _Rows:
    """Verdicts and texts of all rows, collected batch by batch."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.prompts: list[str] = []
        self.same: list[bool] = []
        self.texts: tuple[list[str], list[str]] = ([], [])
        self.cut: tuple[list[bool], list[bool]] = ([], [])
        self.people: PeopleVerdicts | None = None

    def add(self, judge: Judge, batch: dict[str, list]) -> None:
        """Judge a batch; identical completions are ties and not sent to the judge."""
        same = [a == b for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]
        asked = [i for i, identical in enumerate(same) if not identical]
        found = [Verdict(TIE)] * len(same)
        if asked:
            shown = {name: [column[i] for i in asked] for name, column in batch.items()}
            answers = ask(judge, shown, [len(self.same) + i for i in asked])
            for i, answer in zip(asked, answers, strict=True):
                found[i] = answer
        self.verdicts += found
        self.same += same
        self.prompts += [_key(value) for value in batch["prompt"]]
        for texts, name in zip(self.texts, ("response_a", "response_b"), strict=True):
            texts += batch[name]

    @property
    def preferences(self) -> np.ndarray:
        """Probabilities of the judge, NaN for none. Shape `(N,)`."""
        return np.array([verdict.probability for verdict in self.verdicts], dtype=float)

    def rates_by_people(self, confidence: float, method: str) -> dict[str, Any] | None:
        """Return the rates by people; None if nobody was asked."""
        if self.people is None:
            return None
        same = np.array(self.same, dtype=bool)
        return people_rates(self.people, self.preferences, self.prompts, same, confidence=confidence, method=method)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths in characters of the model's and the baseline's completions. Shape `(N,)` each."""
        model, baseline = (np.array([len(text) for text in texts], dtype=float) for texts in self.texts)
        return model, baseline

    def doubts(
        self, model: str, baseline: str, rates: dict[str, Any], lengths: tuple[float, float], summary: VerdictSummary
    ) -> list[Doubt]:
        """Return all reasons to doubt the rate, grave ones first."""
        found = []
        for name, texts, cut in zip((model, baseline), self.texts, self.cut, strict=True):
            found += text_doubts(name, self.prompts, texts) + cut_doubts(name, cut)
        found += identity_doubts(self.same)
        found += rate_doubts(rates, *lengths, len(set(self.prompts))) + judge_doubts(summary)
        found += self.people.doubts() if self.people else []
        return sorted(found, key=lambda doubt: not doubt.grave)

    def columns(self) -> dict[str, list]:
        """Return the columns of `Comparison.rows`."""
        lengths, baseline_lengths = self.lengths()
        return {
            "prompt": self.prompts,
            "preference": [verdict.probability for verdict in self.verdicts],
            "a_first": [verdict.a_first for verdict in self.verdicts],
            "b_first": [verdict.b_first for verdict in self.verdicts],
            "failure": [verdict.failure for verdict in self.verdicts],
            "length": lengths.astype(int).tolist(),
            "baseline_length": baseline_lengths.astype(int).tolist(),
        } | (self.people.columns() if self.people else {})


def _with_completions(dataset: Any, side: Any, argument: str, prompt: str, tokenizer: Any, generation: dict) -> tuple:
    """Return the dataset and the name of the side's column; a policy generates the column first."""
    if not is_policy(side) or side in (getattr(dataset, "column_names", None) or ()):
        return dataset, side
    column = f"{argument} completions"
    return add_completions(dataset, side, column, tokenizer=tokenizer, prompt=prompt, **generation), column


def _check_request(dataset: Any, model: str, baseline: str) -> None:
    """Check the arguments early, with clear messages."""
    if model == baseline:
        raise TrlRealError(f"model and baseline are both {model!r}. Give the names of two columns.")
    if isinstance(dataset, dict):
        raise TrlRealError(f"The dataset has splits {sorted(dataset)}. Give one of them: dataset[{min(dataset)!r}].")


def _batches(dataset: Any, model: str, baseline: str, prompt: str) -> Iterator[dict[str, list]]:
    """Yield the batches for the judge."""
    first_row = 0
    for rows in dataset.iter(batch_size=ROWS_A_CALL):
        yield _pairs(to_columns(rows), model, baseline, prompt, first_row)
        first_row += len(rows[prompt])


def _pairs(columns: dict[str, list], model: str, baseline: str, prompt: str, first_row: int) -> dict[str, list]:
    """Build the batch for the judge."""
    for argument, name in (("model", model), ("baseline", baseline), ("prompt", prompt)):
        check_columns(columns, [name], f"Name the column: compare(…, {argument}='…').")
    return {
        **columns,
        "prompt": columns[prompt],
        "response_a": [_completion(value, model, first_row + i) for i, value in enumerate(columns[model])],
        "response_b": [_completion(value, baseline, first_row + i) for i, value in enumerate(columns[baseline])],
    }


def _completion(value: Any, column: str, row: int) -> str:
    """Return a completion as text without its thoughts; for messages, the assistant's turns."""
    if isinstance(value, str):
        said = without_thoughts(value).text
        return value if said == value else said.strip()
    turns = [message for message in value if message.get("role") == "assistant"] if is_messages(value) else []
    if not turns:
        found = "messages without an assistant turn" if is_messages(value) else f"of type {type(value).__name__}"
        raise TrlRealError(f"Row {row} of {column!r} is {found}. Give a text, or messages with an assistant turn.")
    return _completion(text_of(turns), column, row)


def _key(prompt: Any) -> str:
    """Return a hash of the prompt."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return sha256(text).hex()[:16]
