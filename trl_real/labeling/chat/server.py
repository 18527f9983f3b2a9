"""A chat model behind an OpenAI-compatible server: vLLM, llama.cpp, TGI, a router, OpenAI itself."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.question import Answer, Question
from trl_real.runtime.openai_client import NotAnswered, Requests, key_for, without_password


CHARACTERS_A_TOKEN = 3.0  # of a Latin script rather more: the estimates are high
TOP_TOKENS = 20  # what OpenAI and vLLM give at most


class Price(NamedTuple):
    """Money for a million tokens read and written, in any currency."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Money for so many tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class Endpoint:
    """
    Answers questions over HTTP: bounded concurrency, retries, and a cache on disk that every answer is in before it
    is used, so that nothing is paid for twice.

    Args:
        model: Name by which the server knows it.
        base_url: Such as `http://127.0.0.1:8000/v1`.
        api_key: By default `TRL_REAL_JUDGE_API_KEY`; `OPENAI_API_KEY` is sent to OpenAI alone.
        cache: Path of the cache, or one that is open; by default one file for all judges, beside the Hub's cache.
        concurrency: Questions at a time.
        timeout, deadline: Seconds for a try, and for a question with all its tries.
        max_retries: Tries after the first one.
        max_tokens: Longest answer.
        price: Money for a million tokens read and written.
        max_cost: The most that the answers used may cost together, those from the cache included.
        options: Further fields of the request; None takes a field out
            (`{"max_tokens": None, "max_completion_tokens": 2000}`).
        seed: Sent along.
        served_as: Name that the answers bear, where it is neither `model` nor a longer form of it.

    Raises:
        MissingExtraError: If the `openai` client is not installed.
        TrlRealError: If a number is out of range, or `max_cost` comes without a price.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        cache: str | Path | AnswerCache | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        deadline: float = 600.0,
        max_retries: int = 8,
        max_tokens: int = 16,
        price: tuple[float, float] | None = None,
        max_cost: float | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 42,
        served_as: str | None = None,
    ):
        _check(concurrency, timeout, deadline, max_retries, max_tokens, price, max_cost)
        url = without_password(base_url)
        self.name = f"{os.path.basename(model) if os.path.isabs(model) else model}@{urlsplit(url).netloc}"
        self.model, self.concurrency, self.max_tokens = model, concurrency, max_tokens
        self.price, self.max_cost = Price(*price) if price else None, max_cost
        self.requests = Requests(
            base_url, key_for(api_key, base_url), served_as or model, timeout, deadline, max_retries
        )
        self.fields = {"temperature": 0, "max_tokens": max_tokens, "seed": seed, **(options or {})}
        self.identity = {"model": model, "base_url": url, **self.fields}
        self.cache = cache if isinstance(cache, AnswerCache) else AnswerCache(cache or default_cache())
        self.tells_probabilities = True
        self.spent = 0.0
        self._reserved: list[float] = []  # for the questions that are on their way
        self._counted: set[str] = set()
        self._money = threading.Condition()

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """
        An answer to each question, in order; those without one tell why.

        Raises:
            TrlRealError: If no question can be answered, an answer cannot be kept, or the next one would cost too
                much. What was answered before is in the cache.
        """
        keys = [self.key(question) for question in questions]
        found = {key: read_answer(kept, cached=True) for key, kept in self.cache.get(keys).items()}
        for key, answer in found.items():
            self._count(key, answer.cost)
        missing = {k: q for k, q in zip(keys, questions, strict=True) if k not in found}
        for key, answer in self._ask_all(missing):
            found[key] = answer
        seen: set[str] = set()
        return [_once(found[key], key, seen) for key in keys]

    def key(self, question: Question) -> str:
        """Hash of everything that the answer hangs on; whether probabilities come along is no part of it."""
        said = json.dumps([self.identity, question.messages], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def body(self, question: Question) -> dict[str, Any]:
        """The request."""
        body = {"model": self.model, "messages": question.messages, **self.fields}
        if self.tells_probabilities:
            body |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
        return {name: value for name, value in body.items() if value is not None}

    def estimate(self, questions: Iterable[Question]) -> dict[str, float]:
        """What asking would take, rather too high: `n_asked`, `n_cached`, `input_tokens`, `output_tokens`, `cost`."""
        by_key = {self.key(question): question for question in questions}
        cached = self.cache.get(by_key)
        asked = [question for key, question in by_key.items() if key not in cached]
        read = sum(_input_tokens(question) for question in asked)
        written = self.max_tokens * len(asked)
        cost = self.price.of(read, written) if self.price else 0.0
        counts = {"n_asked": len(asked), "n_cached": len(cached)}
        return {**counts, "input_tokens": read, "output_tokens": written, "cost": cost}

    def _ask_all(self, questions: dict[str, Question]) -> Iterator[tuple[str, Answer]]:
        """Ask for what is missing; the first error that concerns all of them ends it."""
        if not questions:
            return
        self.requests.stopped.clear()
        with ThreadPoolExecutor(min(self.concurrency, len(questions))) as pool:
            try:
                futures = {pool.submit(self._ask, key, question): key for key, question in questions.items()}
                with tqdm(total=len(futures), desc="Judging", unit="answer", delay=2, leave=False) as bar:
                    for future in futures:
                        future.add_done_callback(lambda _: bar.update())
                    wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done() and (error := future.exception()):
                        raise error
            except BaseException:
                self.requests.stopped.set()  # wakes those that wait for their next try
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        yield from ((key, future.result()) for future, key in futures.items())

    def _ask(self, key: str, question: Question) -> Answer:
        reserve = self._reserve(question)
        try:
            try:
                completion = self._complete(question)
            except NotAnswered as error:
                return Answer(failure=str(error))
            kept = self.keep(key, question, completion)
            return read_answer(kept, cached=False)
        finally:
            with self._money:
                if reserve in self._reserved:
                    self._reserved.remove(reserve)
                self._money.notify_all()

    def _complete(self, question: Question) -> dict[str, Any]:
        """The completion; a server that refuses to tell probabilities is not asked for them again."""
        body = self.body(question)
        try:
            return self.requests.ask(body)
        except NotAnswered as error:
            if not ("logprobs" in body and "logprob" in str(error)):
                raise
            self.tells_probabilities = False
            return self.requests.ask(self.body(question))

    def keep(self, key: str, question: Question | None, completion: dict[str, Any]) -> dict[str, Any]:
        """Put the parts of a completion that matter into the cache, before anyone reads them."""
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        text = choice["message"]["content"] or ""
        read = usage.get("prompt_tokens") or (_input_tokens(question) if question else 0)
        written = usage.get("completion_tokens") or round(len(text) / CHARACTERS_A_TOKEN)
        kept = {
            "text": text,
            "top": _top(choice.get("logprobs")),
            "finish_reason": choice.get("finish_reason"),
            "model": completion.get("model"),
            "input_tokens": read,
            "output_tokens": written,
            "cost": self.price.of(read, written) if self.price else 0.0,
        }
        self.cache.put(key, kept)
        self._count(key, kept["cost"])
        return kept

    def _reserve(self, question: Question) -> float:
        """Set money aside for a question that is about to be asked; wait for what is on its way to be cheaper."""
        if self.max_cost is None or self.price is None:
            return 0.0
        needed = self.price.of(_input_tokens(question), self.max_tokens)
        with self._money:
            while self._reserved and self.spent + sum(self._reserved) + needed > self.max_cost:
                self._money.wait()
            if self.spent + needed > self.max_cost:
                raise TrlRealError(
                    f"max_cost={self.max_cost:g} would be passed: {self.spent:.4g} are spent. What was answered is "
                    "kept; raise max_cost and run again."
                )
            self._reserved.append(needed)
        return needed

    def _count(self, key: str, cost: float) -> None:
        with self._money:
            if key not in self._counted:
                self._counted.add(key)
                self.spent += cost


def read_answer(kept: dict[str, Any], cached: bool) -> Answer:
    """An answer from what the cache holds."""
    return Answer(
        top=tuple((token, value) for token, value in kept["top"]) if kept["top"] else None,
        text=kept["text"],
        failure="the answer was cut off" if kept["finish_reason"] == "length" and not kept["top"] else "",
        cached=cached,
        input_tokens=kept["input_tokens"],
        output_tokens=kept["output_tokens"],
        cost=kept["cost"],
    )


def default_cache() -> Path:
    """One file for all judges, beside what the Hub's client keeps."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "trl_real" / "answers.sqlite"


def _once(answer: Answer, key: str, seen: set[str]) -> Answer:
    """The same question asked twice in a batch is paid for once."""
    from dataclasses import replace

    if key not in seen:
        seen.add(key)
        return answer
    return replace(answer, cached=True, input_tokens=0, output_tokens=0, cost=0.0)


def _top(log_probabilities: dict[str, Any] | None) -> list[list] | None:
    """Tokens and log-probabilities at the first place of an answer that is no white space."""
    for place in (log_probabilities or {}).get("content") or []:
        if place.get("top_logprobs") and place.get("token", "").strip():
            return [[top["token"], top["logprob"]] for top in place["top_logprobs"]]
    return None


def _input_tokens(question: Question) -> int:
    return round(sum(len(message["content"]) for message in question.messages) / CHARACTERS_A_TOKEN)


def _check(
    concurrency: int,
    timeout: float,
    deadline: float,
    max_retries: int,
    max_tokens: int,
    price: tuple[float, float] | None,
    max_cost: float | None,
) -> None:
    least = {"concurrency": (concurrency, 1), "max_retries": (max_retries, 0), "max_tokens": (max_tokens, 1)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise TrlRealError(f"{name}={value} is too small. Give {smallest} or more.")
    for name, seconds in {"timeout": timeout, "deadline": deadline}.items():
        if not seconds > 0:
            raise TrlRealError(f"{name}={seconds} leaves no time. Give seconds, such as {name}=60.")
    if price is not None and not (len(price) == 2 and min(price) >= 0):
        raise TrlRealError(f"price={price}. Give what a million tokens cost, read and written: price=(0.15, 0.6).")
    if max_cost is not None and price is None:
        raise TrlRealError("max_cost needs the price of a million tokens, read and written: price=(0.15, 0.6).")
