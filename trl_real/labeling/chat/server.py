"""Chat model behind an OpenAI-compatible server: vLLM, llama.cpp, TGI, a router, or OpenAI."""

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.claims import PAUSE, Claims
from trl_real.labeling.chat.question import Answer, Question
from trl_real.runtime.digests import sha256
from trl_real.runtime.openai_client import NotAnswered, Requests, key_for, key_in, without_password
from trl_real.runtime.words import printable


CHARACTERS_PER_TOKEN = 3.0  # more in Latin script, so estimates are high
MOST_TOKENS = 10**8  # of one answer: more is a mistake or a lie
TOP_TOKENS = 20  # maximum of OpenAI and vLLM


class Price(NamedTuple):
    """Price of a million tokens read and generated, in any currency."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class Endpoint:
    """
    Chat model that answers over HTTP, with bounded concurrency, retries and an on-disk cache; every answer is on disk
    before it is used, so that nothing is paid for twice.

    Args:
        model: Name of the model on the server.
        base_url: URL of the server, such as `http://127.0.0.1:8000/v1`.
        api_key: Key sent to the server, stored nowhere; `$TRL_REAL_JUDGE_API_KEY` by default. `$OPENAI_API_KEY` is
            sent to OpenAI only.
        api_key_file: Path of a file with the key, which no list of processes shows.
        cache: Path of the cache of answers; by default one file for all judges, in the Hub's cache folder. Or an open
            cache.
        concurrency: Number of questions asked at a time.
        timeout: Seconds per attempt.
        deadline: Seconds per question, all attempts included.
        max_retries: Number of attempts after the first one.
        max_tokens: Maximum number of tokens of an answer.
        price: Price of a million tokens read, and of a million tokens generated.
        max_cost: Maximum total cost of the answers, cached ones included. It needs a price.
        options: Further fields of the request; None removes a field
            (`{"max_tokens": None, "max_completion_tokens": 2000}`).
        seed: Seed sent to the server.
        served_as: Model name in the answers, if it is neither `model` nor a longer form of it.

    Raises:
        MissingExtraError: If the `openai` client is not installed.
        TrlRealError: If a number is out of range, or `max_cost` is given without a price.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        api_key_file: str | None = None,
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
        from huggingface_hub.constants import HF_HOME

        _check(concurrency, timeout, deadline, max_retries, max_tokens, price, max_cost)
        url = without_password(base_url)
        self.name = f"{os.path.basename(model) if os.path.isabs(model) else model}@{urlsplit(url).netloc}"
        self.model, self.concurrency, self.max_tokens = model, concurrency, max_tokens
        self.price, self.max_cost = Price(*price) if price else None, max_cost
        self.requests = Requests(
            base_url,
            key_for(key_in(api_key, api_key_file), base_url),
            served_as or model,
            timeout,
            deadline,
            max_retries,
        )
        self.fields = {"temperature": 0, "max_tokens": max_tokens, "seed": seed, **(options or {})}
        self.identity = {"model": model, "base_url": url, **self.fields}
        default_cache = Path(HF_HOME) / "trl_real" / "answers.sqlite"
        self.cache = cache if isinstance(cache, AnswerCache) else AnswerCache(cache or default_cache)
        self.claims = Claims(self.cache, deadline + timeout)
        self.gives_probabilities = True
        self.spent = 0.0
        self._reserved: list[float] = []  # for questions in flight
        self._counted: set[str] = set()
        self._money = threading.Condition()

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """
        Answer each question, in order; a missing answer has a `failure`.

        Raises:
            TrlRealError: If no question can be answered, an answer cannot be stored, or the next one would exceed
                `max_cost`. Earlier answers are in the cache.
        """
        keys = [self.key(question) for question in questions]
        known = self.cache.get(keys).items()
        found = {key: read_answer(kept, cached=True) for key, kept in known if is_answer(kept)}
        for key, answer in found.items():
            self._count(key, answer.cost)
        missing = {k: q for k, q in zip(keys, questions, strict=True) if k not in found}
        found |= self._ask_all(missing)
        answers = []
        for key in keys:
            answers.append(found[key])  # a repeated question is free
            found[key] = replace(found[key], cached=True, input_tokens=0, output_tokens=0, cost=0.0)
        return answers

    def key(self, question: Question) -> str:
        """Hash of everything that the answer depends on, except whether probabilities are requested."""
        return sha256(json.dumps([self.identity, question.messages], sort_keys=True)).hex()

    def body(self, question: Question) -> dict[str, Any]:
        """Return the body of the request."""
        body = {"model": self.model, "messages": question.messages, **self.fields}
        if self.gives_probabilities:
            body |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
        return {name: value for name, value in body.items() if value is not None}

    def estimate(self, questions: Iterable[Question]) -> dict[str, float]:
        """Estimate, rather too high: `n_asked`, `n_cached`, `input_tokens`, `output_tokens` and `cost`."""
        by_key = {self.key(question): question for question in questions}
        cached = self.cache.get(by_key)
        asked = [question for key, question in by_key.items() if key not in cached]
        read = sum(_input_tokens(question) for question in asked)
        written = self.max_tokens * len(asked)
        cost = self.price.of(read, written) if self.price else 0.0
        counts = {"n_asked": len(asked), "n_cached": len(cached)}
        return {**counts, "input_tokens": read, "output_tokens": written, "cost": cost}

    def _ask_all(self, questions: dict[str, Question]) -> Iterator[tuple[str, Answer]]:
        """Ask the questions; the first error that concerns all of them stops it."""
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
                self.requests.stopped.set()  # wakes threads that wait for their next attempt
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        yield from ((key, future.result()) for future, key in futures.items())

    def _ask(self, key: str, question: Question) -> Answer:
        """Ask a question, or wait for the answer that another process is asking for."""
        while not self.requests.stopped.is_set():
            claimed = self.claims.take(key)
            try:
                kept = self.cache.get([key]).get(key)  # after the claim: its answer comes before its end
                if kept is not None and is_answer(kept):
                    self._count(key, kept["cost"])
                    return read_answer(kept, cached=True)
                if claimed:
                    return self._pay(key, question)
            finally:
                if claimed:
                    self.claims.release(key)
            self.requests.stopped.wait(PAUSE)
        return Answer(failure="stopped")

    def _pay(self, key: str, question: Question) -> Answer:
        reserve = self._reserve(question)
        try:
            return read_answer(self.keep(key, question, self._complete(question)), cached=False)
        except NotAnswered as error:
            return Answer(failure=str(error))
        finally:
            with self._money:
                if reserve in self._reserved:
                    self._reserved.remove(reserve)
                self._money.notify_all()

    def _complete(self, question: Question) -> dict[str, Any]:
        """Return the completion; a server that refuses log-probabilities is not asked for them again."""
        body = self.body(question)
        try:
            return self.requests.ask(body)
        except NotAnswered as error:
            if not ("logprobs" in body and "logprob" in str(error)):
                raise
            self.gives_probabilities = False
            return self.requests.ask(self.body(question))

    def keep(self, key: str, question: Question | None, completion: dict[str, Any]) -> dict[str, Any]:
        """Store the relevant parts of a completion in the cache, and return them."""
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        text = choice["message"]["content"] or ""
        read = _counted(usage, "prompt_tokens") or (_input_tokens(question) if question else 0)
        written = _counted(usage, "completion_tokens") or round(len(text) / CHARACTERS_PER_TOKEN)
        kept = {
            "text": text,
            "top": _top(choice.get("logprobs")),
            "finish_reason": choice.get("finish_reason"),
            "model": completion.get("model"),
            "input_tokens": read,
            "output_tokens": written,
            "cost": self.price.of(read, written) if self.price else 0.0,
        }
        if not is_answer(kept):
            raise NotAnswered("an answer of another form")
        self.cache.put(key, kept)
        self._count(key, kept["cost"])
        return kept

    def _reserve(self, question: Question) -> float:
        """Reserve the cost of a question; wait while questions in flight might exceed `max_cost` with it."""
        if self.max_cost is None or self.price is None:
            return 0.0
        needed = self.price.of(_input_tokens(question), self.max_tokens)
        with self._money:
            while self._reserved and self.spent + sum(self._reserved) + needed > self.max_cost:
                self._money.wait()
            if self.spent + needed > self.max_cost:
                raise TrlRealError(
                    f"The next question would exceed max_cost={self.max_cost:g}: {self.spent:.4g} are spent. "
                    "The answers so far are cached; raise max_cost and run again."
                )
            self._reserved.append(needed)
        return needed

    def _count(self, key: str, cost: float) -> None:
        with self._money:
            if key not in self._counted:
                self._counted.add(key)
                self.spent += cost


def is_answer(kept: dict[str, Any]) -> bool:
    """Return whether a cache entry, or what is about to become one, can be read as an answer."""
    counts = [kept.get(name) for name in ("input_tokens", "output_tokens", "cost")]
    if not all(isinstance(count, float | int) and 0 <= count < math.inf for count in counts):
        return False
    top = kept.get("top")
    pairs = all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and _is_log_probability(pair[1])
        for pair in (top if isinstance(top, list) else [])
    )
    return isinstance(kept.get("text"), str) and isinstance(top, list | None) and pairs and "finish_reason" in kept


def _is_log_probability(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and -math.inf <= value <= 1e-3


def read_answer(kept: dict[str, Any], cached: bool) -> Answer:
    """Return the answer of a cache entry."""
    return Answer(
        top=tuple((token, value) for token, value in kept["top"]) if kept["top"] else None,
        text=kept["text"],
        failure="the answer was cut off" if kept["finish_reason"] == "length" and not kept["top"] else "",
        cached=cached,
        input_tokens=kept["input_tokens"],
        output_tokens=kept["output_tokens"],
        cost=kept["cost"],
    )


def _top(log_probabilities: dict[str, Any] | None) -> list[list] | None:
    """Return tokens and log-probabilities at the first position that is not white space."""
    for place in (log_probabilities or {}).get("content") or []:
        if place.get("top_logprobs") and place.get("token", "").strip():
            return [[top["token"], top["logprob"]] for top in place["top_logprobs"]]
    return None


def _counted(usage: Any, name: str) -> int:
    """
    Return a number of tokens that a server reports; 0 if it reports none.

    Raises:
        NotAnswered: If it is no number of tokens that an answer can have.
    """
    found = usage.get(name) if isinstance(usage, dict) else None
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MOST_TOKENS:
        raise NotAnswered(f"an answer that reports {printable(str(found), 20)} tokens")
    return found


def _input_tokens(question: Question) -> int:
    return round(sum(len(message["content"]) for message in question.messages) / CHARACTERS_PER_TOKEN)


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
        raise TrlRealError(
            f"price={price}: give the prices of a million tokens read and generated, such as price=(0.15, 0.6)."
        )
    if max_cost is not None and price is None:
        raise TrlRealError("max_cost needs the prices of a million tokens read and generated: price=(0.15, 0.6).")
