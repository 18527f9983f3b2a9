"""Two columns of completions, one judge: how often the one beats the other."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_real.data.columns import to_columns
from trl_real.data.conversation import is_messages, text_of
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.evaluation.completions import add_completions, is_policy
from trl_real.functional.win_rate import win_rate


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Rows a judge sees in one call: enough for many requests at a time, little enough to stay in memory.
ROWS_A_CALL = 256

Judge = Callable[[dict[str, list]], list[float]]


@dataclass
class Comparison:
    """
    What came out when a judge compared a model with a baseline.

    Args:
        model (`str`): Column of the model's completions.
        baseline (`str`): Column of the baseline's completions.
        judge (`str`): Name of the judge.
        rates (`dict`): What `trl_real.functional.win_rate.win_rate` returns.
        model_length (`float`): Mean length of the model's completions, in characters; NaN without rows.
        baseline_length (`float`): Mean length of the baseline's completions, in characters.
        n_identical (`int`): Rows with two identical completions: ties that the judge was not asked about.
        confidence (`float`): Level of the interval.
        seed (`int`, *optional*): The judge's seed, where it has one.
    """

    model: str
    baseline: str
    judge: str
    rates: dict[str, Any]
    model_length: float
    baseline_length: float
    n_identical: int = 0
    confidence: float = 0.95
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is NaN becomes None."""
        values = asdict(self)
        return {name: _plain(value) for name, value in values.items()}

    def summary(self) -> str:
        """Two lines for a person: the rate with its interval and counts, and what was compared."""
        r = self.rates
        controlled = r.get("length_controlled_win_rate", math.nan)
        return (
            f"win rate {r['win_rate']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}] (n={r['n_total']}: "
            f"{r['n_wins']} wins, {r['n_losses']} losses, {r['n_ties']} ties, {r['n_failed']} failed)\n"
            f"{self.model} against {self.baseline}, judged by {self.judge}; "
            f"mean length {self.model_length:.0f} against {self.baseline_length:.0f} characters"
            + ("" if math.isnan(controlled) else f", at equal length {controlled:.2f}")
        )


def compare(
    dataset: "Dataset | IterableDataset",
    judge: Judge,
    *,
    model: str = "response",
    baseline: str = "baseline_response",
    prompt: str = "prompt",
    confidence: float = 0.95,
    tokenizer: Any = None,
    **generation: Any,
) -> Comparison:
    """
    Win rate of a policy, or of a column of completions, against another.

    Two identical completions are a tie, and no request. Several rows of one prompt are one cluster: they make the
    interval no narrower than the prompts allow.

    Args:
        dataset: Rows with a prompt and completions, each a text or messages (of which assistant turns count).
        judge: Called with a batch of columns: those of the dataset, `prompt`, and as texts `response_a` (the model's)
            and `response_b` (the baseline's). Returns a verdict a row: the probability in [0, 1] that `response_a` is
            better, NaN or None if it could not tell. Has a `name`. It alone sees to position bias.
        model: Column of the model's completions; or a policy that writes them, by path, Hub id or loaded.
        baseline: The same for the baseline.
        prompt: Column of the prompts.
        confidence: Level of the interval, in (0, 1).
        tokenizer: For loaded policies.
        generation: For policies: `max_new_tokens`, `temperature`, `seed`, … of `generate_responses`.

    Returns:
        The rates, with lengths and names.

    Raises:
        MissingColumnError: If a column is not there.
        TrlRealError: If a completion is neither a text nor messages, or the judge's verdicts do not fit its rows.
    """
    dataset, model = _with_completions(dataset, model, "model", prompt, tokenizer, generation)
    dataset, baseline = _with_completions(dataset, baseline, "baseline", prompt, tokenizer, generation)
    _check_request(dataset, model, baseline)
    verdicts, prompts, lengths, n_identical = [], [], [], 0
    for rows in dataset.iter(batch_size=ROWS_A_CALL):
        columns = to_columns(rows)
        batch = _pairs(columns, model, baseline, prompt, first_row=len(verdicts))
        same = [a == b for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]
        verdicts += _ask(judge, batch, same)
        prompts += [_key(value) for value in batch["prompt"]]
        lengths += [(len(a), len(b)) for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]
        n_identical += sum(same)
    model_lengths, baseline_lengths = np.array(lengths, dtype=float).reshape(-1, 2).T
    rates = win_rate(
        verdicts, clusters=prompts, confidence=confidence, lengths=model_lengths, baseline_lengths=baseline_lengths
    )
    return Comparison(
        model=model,
        baseline=baseline,
        judge=_name(judge),
        rates=rates,
        model_length=float(model_lengths.mean()) if lengths else math.nan,
        baseline_length=float(baseline_lengths.mean()) if lengths else math.nan,
        n_identical=n_identical,
        confidence=confidence,
        seed=getattr(judge, "seed", None),
    )


def _with_completions(dataset: Any, side: Any, argument: str, prompt: str, tokenizer: Any, generation: dict) -> tuple:
    """The dataset and the name of the side's column, which a policy writes first."""
    if not is_policy(side) or side in (getattr(dataset, "column_names", None) or ()):
        return dataset, side
    column = f"{argument} completions"
    return add_completions(dataset, side, column, tokenizer=tokenizer, prompt=prompt, **generation), column


def _check_request(dataset: Any, model: str, baseline: str) -> None:
    """What would otherwise fail late or say little."""
    if model == baseline:
        raise TrlRealError(f"model and baseline are both {model!r}. Give the names of two columns.")
    if isinstance(dataset, dict):
        raise TrlRealError(f"The dataset has splits {sorted(dataset)}. Give one of them: dataset[{min(dataset)!r}].")


def _pairs(columns: dict[str, list], model: str, baseline: str, prompt: str, first_row: int) -> dict[str, list]:
    """A batch as the judge gets it."""
    for argument, name in (("model", model), ("baseline", baseline), ("prompt", prompt)):
        if name not in columns:
            raise MissingColumnError(name, columns, f"Name the column: compare(…, {argument}='…').")
    return {
        **columns,
        "prompt": columns[prompt],
        "response_a": [_completion(value, model, first_row + i) for i, value in enumerate(columns[model])],
        "response_b": [_completion(value, baseline, first_row + i) for i, value in enumerate(columns[baseline])],
    }


def _completion(value: Any, column: str, row: int) -> str:
    """A completion as text; of messages, the assistant's turns."""
    if isinstance(value, str):
        return value
    turns = [message for message in value if message.get("role") == "assistant"] if is_messages(value) else []
    if not turns:
        found = "messages without an assistant turn" if is_messages(value) else f"of type {type(value).__name__}"
        raise TrlRealError(f"Row {row} of {column!r} is {found}. Give a text, or messages with an assistant turn.")
    return text_of(turns)


def _ask(judge: Judge, batch: dict[str, list], same: list[bool]) -> list[float | None]:
    """Verdicts of a batch: 0.5 where the two are the same, the judge's elsewhere."""
    asked = [i for i, identical in enumerate(same) if not identical]
    verdicts: list[float | None] = [0.5] * len(same)
    if not asked:
        return verdicts
    answers = list(judge({name: [column[i] for i in asked] for name, column in batch.items()}))
    if len(answers) != len(asked):
        raise TrlRealError(
            f"Judge {_name(judge)} returned {len(answers)} verdicts for {len(asked)} rows. "
            "Return one a row, nan where it could not tell."
        )
    for i, answer in zip(asked, answers, strict=True):
        verdicts[i] = answer
    return verdicts


def _name(judge: Judge) -> str:
    """What the judge calls itself; a plain function has its own name."""
    return str(getattr(judge, "name", None) or getattr(judge, "__name__", type(judge).__name__))


def _key(prompt: Any) -> str:
    """Text that two rows share if their prompts are the same."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
