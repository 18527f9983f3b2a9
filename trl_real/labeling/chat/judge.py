"""Judge that asks a chat model which of two responses is better, in this process or on a server."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.base import ROWS_PER_SAVE, VerdictJudge
from trl_real.labeling.chat.question import Answer, ChatModel, Question
from trl_real.labeling.chat.reading import MIN_LABEL_MASS
from trl_real.labeling.chat.templates import JudgeTemplate, as_template
from trl_real.labeling.verdicts import TIE, Verdict, drawn_swap, mean_known


CUT = " […]"
UNREAD = 300  # characters of an answer that could not be read
FIRST_PAIRS, MIN_BATCH_FOR_FAILURE_RATE = 10, 20


def mean(a_first: float, b_first: float) -> float:
    """Return the mean of the two orders, which cancels a position bias."""
    return (a_first + b_first) / 2


def agree(a_first: float, b_first: float) -> float:
    """Return a win if both orders name the same winner, else a tie (the rule of MT-bench)."""
    sides = {a_first > TIE, b_first > TIE}
    return TIE if len(sides) > 1 or TIE in (a_first, b_first) else float(sides.pop())


RULES: dict[str, Callable[[float, float], float]] = {"mean": mean, "agree": agree}


class ChatJudge(VerdictJudge):
    """
    Judge that asks a chat model in both orders and reads the probability of the label that names a response.

    Args:
        model: Hub id or path of a chat model; with `base_url`, the server's name for it. Or a loaded model with its
            `tokenizer`, or any object with `name` and `answers` (see `ChatModel`).
        base_url: URL of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`.
        template: Judge prompt: `"pairwise"` (ties allowed), `"alpaca_eval"`, `"real"` (REAL's appendix D), or the path
            of a YAML file. Or a `JudgeTemplate`.
        orders: Orders per pair: `"both"`, or `"one"` at half the price, drawn from the seed and the texts. With one
            order, a position bias only averages out over pairs.
        rule: Rule that combines two orders: `"mean"` of the probabilities, or `"agree"` (a win if both name the same
            winner, else a tie, as in MT-bench).
        tie_margin: Largest distance from 0.5 at which a verdict becomes a tie.
        calibration: Temperature that divides the log-odds, as estimated by `check`.
        max_chars: Maximum number of characters of the prompt (from its end) and of each response (from its start).
        max_failure_rate: Maximum share of failed pairs in a batch of 20 or more; above it, judging stops.
        min_label_mass: Smallest probability that all labels together have where an answer names one; below it, the
            answer is a failure.
        seed: Seed of the order; also sent to the server.
        **settings: Arguments of `trl_real.labeling.chat.server.Endpoint` (`api_key`, `cache`, `concurrency`, `price`,
            `max_cost`, …), or of `trl_real.labeling.chat.local.LocalChat` (`tokenizer`, `dtype`, `device`,
            `batch_tokens`, …).

    Raises:
        TrlRealError: If a setting is out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        base_url: str | None = None,
        template: str | JudgeTemplate = "pairwise",
        orders: str = "both",
        rule: str = "mean",
        tie_margin: float = 0.0,
        calibration: float = 1.0,
        max_chars: int = 8000,
        max_failure_rate: float = 0.2,
        min_label_mass: float = MIN_LABEL_MASS,
        seed: int = 42,
        **settings: Any,
    ):
        for name, value, known in (("orders", orders, ("both", "one")), ("rule", rule, tuple(RULES))):
            if value not in known:
                raise TrlRealError(f"{name}={value!r} is not one of {', '.join(known)}.")
        if not 0 <= min_label_mass < 1:
            raise TrlRealError(f"min_label_mass={min_label_mass} is out of range. Give a probability in [0, 1).")
        if not (0 <= tie_margin < 0.5 and calibration > 0 and max_chars > 0 and 0 <= max_failure_rate <= 1):
            raise TrlRealError(
                f"tie_margin={tie_margin}, calibration={calibration}, max_chars={max_chars}, "
                f"max_failure_rate={max_failure_rate}: give [0, 0.5), above 0, above 0 and [0, 1]."
            )
        self.template, self.orders, self.rule = as_template(template), orders, rule
        self.tie_margin, self.calibration, self.max_chars = tie_margin, calibration, max_chars
        self.max_failure_rate, self.min_label_mass, self.seed = max_failure_rate, min_label_mass, seed
        self.model = _chat_model(model, base_url, seed, settings)
        self.name = f"chat:{self.model.name}"
        self._is_trusted = False  # whether a batch had few failures
        self.rows_per_save = None if hasattr(self.model, "cache") else ROWS_PER_SAVE

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the verdicts depend on."""
        own = ("orders", "rule", "tie_margin", "calibration", "max_chars", "seed")
        settings = {name: getattr(self, name) for name in own}
        if self.min_label_mass != MIN_LABEL_MASS:
            settings["min_label_mass"] = self.min_label_mass
        model = getattr(self.model, "identity", self.model.name)
        return {"model": model, "template": self.template.digest, **settings}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """
        Judge a batch of pairs, two questions each (one with `orders="one"`).

        Raises:
            TrlRealError: If too many pairs failed; also the errors of the model.
        """
        pairs = self._pairs(batch)
        found: list[Verdict] = []
        if not self._is_trusted and len(pairs) > FIRST_PAIRS:  # a wrong template or model is told early
            found = self._ask(pairs[:FIRST_PAIRS])
            failures = sum(bool(verdict.failure) for verdict in found)
            if wilson_interval(failures, len(found), 0.95)[0] > self.max_failure_rate:
                raise self._too_many_failures(found)
        found += self._ask(pairs[len(found) :])
        failures = sum(bool(verdict.failure) for verdict in found)
        if len(found) >= MIN_BATCH_FOR_FAILURE_RATE and failures > self.max_failure_rate * len(found):
            raise self._too_many_failures(found)
        self._is_trusted = True
        return found

    def _ask(self, pairs: list["_Pair"]) -> list[Verdict]:
        answers = iter(
            self.model.answers([self._question(pair, swap) for pair in pairs for swap in self._orders(pair)])
        )
        return [self._verdict(pair, {swapped: next(answers) for swapped in self._orders(pair)}) for pair in pairs]

    def _too_many_failures(self, found: list[Verdict]) -> TrlRealError:
        failures = [verdict.failure for verdict in found if verdict.failure]
        unread = next((verdict.unread for verdict in found if verdict.unread), "")
        answer = (
            f" It answered {unread[-100:]!r}; expected was one of {', '.join(self.template.labels)}." if unread else ""
        )
        return TrlRealError(
            f"{len(failures)} of {len(found)} pairs got no verdict from {self.name}; most often: "
            f"{max(set(failures), key=failures.count)}.{answer} Fix that, or raise max_failure_rate."
        )

    def questions(self, batch: dict[str, list[Any]]) -> list[Question]:
        """Return the questions that `verdicts` would ask."""
        return [self._question(pair, swapped) for pair in self._pairs(batch) for swapped in self._orders(pair)]

    def estimate(self, batch: dict[str, list[Any]]) -> dict[str, float]:
        """
        Estimate, rather too high, what judging would take: `n_asked`, `n_cached`, `input_tokens`, `output_tokens` and
        `cost` (0 without prices). For a model in this process only the number of questions is known.
        """
        questions = self.questions(batch)
        if hasattr(self.model, "estimate"):
            return self.model.estimate(questions)
        return {"n_asked": len(questions), "n_cached": 0, "input_tokens": 0, "output_tokens": 0, "cost": 0.0}

    def _pairs(self, batch: dict[str, list[Any]]) -> list["_Pair"]:
        from trl_real.data.conversation import dialogue, text_of
        from trl_real.data.images import data_url, images_of, refuse_images

        if not getattr(self.model, "sees_images", False):
            refuse_images(batch, self.name)
        rows = zip(batch["prompt"], batch["response_a"], batch["response_b"], images_of(batch), strict=True)
        return [
            _Pair.cut(dialogue(prompt), text_of(a), text_of(b), self.max_chars)._replace(
                images=tuple(map(data_url, images))
            )
            for prompt, a, b, images in rows
        ]

    def _orders(self, pair: "_Pair") -> tuple[bool, ...]:
        """Return whether `response_b` is shown first, for each time that the pair is shown."""
        if self.orders == "both":
            return False, True
        return (drawn_swap(pair.a, pair.b, self.seed, pair.prompt),)

    def _question(self, pair: "_Pair", swapped: bool) -> Question:
        first, second = (pair.b, pair.a) if swapped else (pair.a, pair.b)
        question = Question(self.template.messages(pair.prompt, first, second), self.template.labels)
        return question.with_images(pair.images)

    def _verdict(self, pair: "_Pair", answers: dict[bool, Answer]) -> Verdict:
        read = {swapped: answer.read(self.template.labels, self.min_label_mass) for swapped, answer in answers.items()}
        failures = [swapped for swapped, reading in read.items() if reading.failure]
        first = {swapped: self.template.probability(r.shares) for swapped, r in read.items() if not r.failure}
        a_first, b_first = first.get(False, math.nan), 1 - first.get(True, math.nan)
        probability = math.nan if failures else self._combine(a_first, b_first)
        totals = ("input_tokens", "output_tokens", "cost")
        return Verdict(
            probability=probability,
            a_first=a_first,
            b_first=b_first,
            failure=read[failures[0]].failure if failures else "",
            unread=answers[failures[0]].text[:UNREAD] if failures else "",
            truncated=pair.truncated,
            source=self.name,
            n_asked=sum(not answer.cached for answer in answers.values()),
            n_cached=sum(answer.cached for answer in answers.values()),
            label_mass=mean_known(reading.mass for reading in read.values()),
            **{name: sum(getattr(answer, name) for answer in answers.values()) for name in totals},
        )

    def _combine(self, a_first: float, b_first: float) -> float:
        both = not (math.isnan(a_first) or math.isnan(b_first))
        value = RULES[self.rule](a_first, b_first) if both else a_first if math.isnan(b_first) else b_first
        value = calibrated(value, self.calibration)
        return TIE if abs(value - TIE) <= self.tie_margin else value


class _Pair(NamedTuple):
    prompt: str
    a: str
    b: str
    truncated: bool
    images: tuple[str, ...] = ()

    @classmethod
    def cut(cls, prompt: str, a: str, b: str, length: int) -> "_Pair":
        """Keep the end of the prompt and the starts of the responses, with a mark where text is missing."""
        # Servers reject lone surrogates.
        prompt, a, b = (text.encode("utf-8", "replace").decode() for text in (prompt, a, b))
        short = CUT.strip() + prompt[-length:] if len(prompt) > length else prompt
        first, second = (text if len(text) <= length else text[:length] + CUT for text in (a, b))
        return cls(short, first, second, max(map(len, (prompt, a, b))) > length)


def calibrated(probability: float, temperature: float) -> float:
    """Return `sigmoid(logit(p) / temperature)`; above 1, less certain. 0, 0.5 and 1 do not change."""
    if temperature == 1 or probability in (0, TIE, 1):
        return probability
    return 1 / (1 + math.exp(-math.log(probability / (1 - probability)) / temperature))


def _chat_model(model: Any, base_url: str | None, seed: int, settings: dict[str, Any]) -> ChatModel:
    if hasattr(model, "answers"):
        return model
    if base_url is not None:
        from trl_real.labeling.chat.server import Endpoint

        return Endpoint(model, base_url, seed=seed, **settings)
    from trl_real.labeling.chat.local import LocalChat

    return LocalChat(model, **settings)
