"""Chat model behind an OpenAI-compatible server: vLLM, llama.cpp, TGI, a router, or OpenAI."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.claims import PAUSE, Claims, Ledger
from trl_real.labeling.chat.completion import message_of, tokens_of
from trl_real.labeling.chat.dialect import FIRST_BUDGET, RAISED_BUDGET, Dialect, refused_field
from trl_real.labeling.chat.kept import answer_of, bill_of, is_entry, number, read_answer
from trl_real.labeling.chat.purse import Bill, Purse
from trl_real.labeling.chat.question import Answer, Question
from trl_real.labeling.chat.reading import CUT
from trl_real.runtime.digests import sha256
from trl_real.runtime.openai_client import NotAnswered, Refused, Requests, key_for, key_in, without_password


SILENT = 3  # questions without an answer, before the first answer, that end a run


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
        max_tokens: Maximum number of tokens of an answer. By default 16, and 4096 once an answer was cut off, as those
            of models that think are.
        price: Price of a million tokens read, and of a million tokens generated.
        max_cost: Maximum total cost of the answers, cached ones included. Processes that ask the same model through
            the same cache at the same time share it, but for the questions in flight. It needs a price.
        options: Further fields of the request; None removes a field
            (`{"max_tokens": None, "max_completion_tokens": 2000}`). Fields of our own that the server refuses are
            replaced or left out without it.
        seed: Seed sent to the server.
        served_as: Model name in the answers, if it is neither `model` nor another form of it.

    Raises:
        MissingExtraError: If the `openai` client is not installed.
        TrlRealError: If a number is out of range, or `max_cost` is given without a price.
    """

    sees_images = True  # if the model on the server does

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        api_key_file: str | None = None,
        cache: str | Path | AnswerCache | None = None,
        concurrency: int = 8,
        timeout: float = 300.0,
        deadline: float = 1200.0,
        max_retries: int = 8,
        max_tokens: int | None = None,
        price: tuple[float, float] | None = None,
        max_cost: float | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 42,
        served_as: str | None = None,
    ):
        from huggingface_hub.constants import HF_HOME

        _check(concurrency, timeout, deadline, max_retries, max_tokens)
        url = without_password(base_url)
        self.name = f"{os.path.basename(model) if os.path.isabs(model) else model}@{urlsplit(url).netloc}"
        self.model, self.concurrency, options = model, concurrency, options or {}
        self.requests = Requests(
            base_url,
            key_for(key_in(api_key, api_key_file), base_url),
            served_as or model,
            timeout,
            deadline,
            max_retries,
        )
        own: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens or FIRST_BUDGET, "seed": seed}
        self.fields = {**own, **options}
        self.identity = {"model": model, "base_url": url, **self.fields}
        may_raise = max_tokens is None and not {"max_tokens", "max_completion_tokens"} & options.keys()
        self.dialect = Dialect(self.name, own.keys() - options.keys(), may_raise)
        default_cache = Path(HF_HOME) / "trl_real" / "answers.sqlite"
        self.cache = cache if isinstance(cache, AnswerCache) else AnswerCache(cache or default_cache)
        self.claims = Claims(self.cache, deadline + timeout)
        job = sha256(json.dumps(self.identity, sort_keys=True)).hex()
        self.purse = Purse(price, max_cost, lambda: Ledger(self.cache, deadline + timeout, job))

    @property
    def spent(self) -> float:
        """Cost of all answers so far, useless ones and those from the cache included."""
        return self.purse.spent

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """
        Answer each question, in order; a missing answer has a `failure`.

        Raises:
            TrlRealError: If no question can be answered, an answer cannot be stored, or the next one would exceed
                `max_cost`. Earlier answers are in the cache.
        """
        keys = [self.key(question) for question in questions]
        asked = dict(zip(keys, questions, strict=True))
        kept = self._entries(keys)
        for key, entry in kept.items():
            self._count(key, entry)
        found = {key: read_answer(entry, cached=True) for key, entry in kept.items()}
        found = {key: answer for key, answer in found.items() if not self._would_go_on(answer, asked[key])}
        self.requests.is_known |= any(not answer.failure for answer in found.values())
        bills = {key: bill_of(kept[key]) for key in kept.keys() - found.keys()}
        found |= self._ask_all({key: question for key, question in asked.items() if key not in found}, bills)
        answers = []
        for key in keys:
            answers.append(found[key])  # a repeated question is free
            found[key] = replace(found[key], cached=True, input_tokens=0, output_tokens=0, cost=0.0)
        return answers

    def key(self, question: Question) -> str:
        """Hash of everything that the answer depends on, except whether probabilities are requested."""
        return sha256(json.dumps([self.identity, question.messages], sort_keys=True)).hex()

    def body(self, question: Question) -> dict[str, Any]:
        """Return the body of the request, in the form that the server accepts."""
        return self.dialect.of({"model": self.model, "messages": question.messages, **self.fields})

    def estimate(self, questions: Iterable[Question]) -> dict[str, float]:
        """Estimate, rather too high: `n_asked`, `n_cached`, `input_tokens`, `output_tokens` and `cost`."""
        by_key = {self.key(question): question for question in questions}
        cached = self._entries(by_key)
        asked = [question for key, question in by_key.items() if key not in cached]
        read = sum(question.n_tokens for question in asked)
        written = sum(_budget(self.body(question)) for question in asked)
        cost = self.purse.price.of(read, written)
        counts = {"n_asked": len(asked), "n_cached": len(cached)}
        return {**counts, "input_tokens": read, "output_tokens": written, "cost": cost}

    def _entries(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what the cache holds by key, without what cannot be read as an answer."""
        return {key: entry for key, entry in self.cache.get(keys).items() if is_entry(entry)}

    def _ask_all(self, questions: dict[str, Question], bills: dict[str, Bill]) -> Iterator[tuple[str, Answer]]:
        """Ask one question after another until one is answered, then the others at once."""
        self.requests.stopped.clear()
        waiting, n_silent = dict(questions), 0
        while waiting and not (self.requests.ever_answered or self.requests.is_known):
            key, question = next(iter(waiting.items()))
            answer = self._ask(key, waiting.pop(key), bills.get(key, Bill()))
            yield key, answer
            is_silent = bool(answer.failure or not answer.text and answer.finish_reason.lower() in CUT)
            n_silent += is_silent
            if n_silent == SILENT:
                why = answer.read(question.labels).failure
                raise TrlRealError(
                    f"{self.name} answered none of the first {SILENT} questions; the last time: {why}. Fix that, and "
                    "run again."
                )
            self.requests.ever_answered = not is_silent
        if waiting:
            yield from self._ask_at_once(waiting, bills)

    def _ask_at_once(self, questions: dict[str, Question], bills: dict[str, Bill]) -> Iterator[tuple[str, Answer]]:
        """Ask the questions; the first error that concerns all of them stops it."""
        with ThreadPoolExecutor(min(self.concurrency, len(questions))) as pool:
            try:
                futures = {pool.submit(self._ask, k, q, bills.get(k, Bill())): k for k, q in questions.items()}
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

    def _ask(self, key: str, question: Question, bill: Bill) -> Answer:
        """Ask a question, or wait for the answer that another process is asking for."""
        while not self.requests.stopped.is_set():
            claimed = self.claims.take(key)
            try:
                entry = self._entries([key]).get(key)  # after the claim: its answer comes before its end
                if entry is not None:
                    answer = read_answer(entry, cached=True)
                    if not self._would_go_on(answer, question):
                        self._count(key, entry)
                        return answer
                if claimed:
                    return self._pay_for(key, question, bill)
            finally:
                if claimed:
                    self.claims.release(key)
            self.requests.stopped.wait(PAUSE)
        return Answer(failure="stopped")

    def _pay_for(self, key: str, question: Question, bill: Bill) -> Answer:
        try:
            return read_answer(self.keep(key, question, self._complete(question, bill), bill), cached=False)
        except NotAnswered as error:
            if not (self.requests.ever_answered or self.requests.is_known) and not isinstance(error, Refused):
                raise TrlRealError(f"No answer from {self.requests.shown_url}: {error}.") from error
            return Answer(failure=str(error), **asdict(bill))

    def _complete(self, question: Question, bill: Bill) -> dict[str, Any]:
        """Return the completion, asked again without fields that the server refuses, and with more tokens if cut."""
        while True:
            body = self.body(question)
            try:
                with self.purse.reserving(question.n_tokens, _budget(body)):
                    completion = self.requests.ask(body, lambda found: self._pay(bill, question, found))
            except Refused as error:
                if self.dialect.learn(body, error.answer):
                    continue
                self._give_up(body, error)
                raise
            message = message_of(completion, question.labels)
            if not (self._would_go_on(answer_of(message), question) and self.dialect.raise_budget(_budget(body))):
                return completion

    def _give_up(self, body: dict[str, Any], error: Refused) -> None:
        """Raise the refusal as an error of the whole run, if nothing was answered and no question can be."""
        field = refused_field(error.answer, body)
        if self.requests.ever_answered or self.requests.is_known or not (field or error.ends_all):
            return
        fix = (
            f" To leave a field out, or to change it: --option {field}=null, options={{{field!r}: None}}."
            if field
            else ""
        )
        raise TrlRealError(f"{self.requests.shown_url} refuses the question ({error}).{fix}") from error

    def _would_go_on(self, answer: Answer, question: Question) -> bool:
        """Return whether an answer was cut off before its verdict, and asking with more tokens is possible."""
        if not self.dialect.may_raise or answer.failure or answer.finish_reason.lower() not in CUT:
            return False
        is_short = answer.output_tokens <= FIRST_BUDGET and bool(answer.read(question.labels, 0.0).failure)
        return is_short and self.purse.affords(question.n_tokens, RAISED_BUDGET)

    def _count(self, key: str, entry: dict[str, Any]) -> None:
        self.purse.count(key, number(entry.get("cost")), number(entry.get("paid_at")))

    def _pay(self, bill: Bill, question: Question | None, completion: dict[str, Any]) -> None:
        read, written = tokens_of(completion)
        self.purse.pay(bill, read or (question.n_tokens if question else 0), written)

    def keep(
        self, key: str, question: Question | None, completion: dict[str, Any], bill: Bill | None = None
    ) -> dict[str, Any]:
        """
        Store the relevant parts of a completion in the cache, and return them.

        Args:
            key: Key of the question.
            question: Question, if it is known.
            completion: Answer of the server.
            bill: What the question has cost, if it is paid already.
        """
        if bill is None:
            bill = Bill()
            self._pay(bill, question, completion)
        message = message_of(completion, question.labels if question else ())
        kept = {**message._asdict(), "model": completion.get("model"), **asdict(bill), **self.purse.mark()}
        self.cache.put(key, kept)
        self.purse.count(key)
        return kept


def _budget(body: dict[str, Any]) -> int:
    """Return the largest number of tokens of an answer."""
    return body.get("max_tokens") or body.get("max_completion_tokens") or RAISED_BUDGET


def _check(
    concurrency: int,
    timeout: float,
    deadline: float,
    max_retries: int,
    max_tokens: int | None,
) -> None:
    least = {
        "concurrency": (concurrency, 1),
        "max_retries": (max_retries, 0),
        "max_tokens": (1 if max_tokens is None else max_tokens, 1),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise TrlRealError(f"{name}={value} is too small. Give {smallest} or more.")
    for name, seconds in {"timeout": timeout, "deadline": deadline}.items():
        if not seconds > 0:
            raise TrlRealError(f"{name}={seconds} leaves no time. Give seconds, such as {name}=60.")
