"""Sampling of responses from a policy behind an OpenAI-compatible server, such as vLLM."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from trl_real.data.conversation import as_messages
from trl_real.errors import TrlRealError
from trl_real.models.generate import Generations, check_settings, seed_of
from trl_real.models.generation.journal import Completion, GenerationCache, columns
from trl_real.runtime.openai_client import NotAnswered, Requests, key_for, without_password
from trl_real.runtime.server_words import reported_tokens, text_and_thoughts


CHARACTERS_A_TOKEN = 3.0  # if a server does not report the number of tokens
SEEDS = 2**31  # servers accept smaller seeds only


def generate_from_server(
    base_url: str,
    model_name: str,
    prompts: list[Any],
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 42,
    desc: str = "Generating",
    journal: str | Path | None = None,
    api_key: str | None = None,
    concurrency: int = 8,
    timeout: float = 600.0,
    deadline: float = 3600.0,
    max_retries: int = 8,
    options: dict[str, Any] | None = None,
) -> Generations:
    """
    Sample responses from a served chat model.

    A request asks for all `K` responses to a prompt, with a seed per prompt; if a server returns fewer, a second
    request asks for the rest. Equal seeds give equal texts only if the server respects them.

    Args:
        base_url: URL of the server, such as `http://127.0.0.1:8000/v1`.
        model_name: Name of the policy on the server, or of an adapter.
        prompts: `N` message lists; a text is sent as a user message. The server applies its chat template.
        n, max_new_tokens, temperature, top_p, seed, desc: As in `generate`.
        journal: Path of a file to which the responses to a prompt are appended when all are received. A second run
            with the same settings requests only the missing prompts.
        api_key: API key; by default from the environment, as for a judge.
        concurrency: Number of requests at a time.
        timeout, deadline: Seconds for one attempt, and for a request with all its attempts.
        max_retries: Number of attempts after the first one.
        options: Further fields of the request, such as `{"top_k": 0}`.

    Raises:
        MissingExtraError: If the `openai` client is not installed.
        TrlRealError: If a setting is out of range, the server refuses, or a prompt gets no response after all
            attempts. Responses received before are in the journal.
    """
    started = time.perf_counter()
    check_settings(n, max_new_tokens, temperature, top_p, concurrency=concurrency)
    fields = {"model": model_name, "max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    fields |= {"extra_body": options} if options else {}
    requests = Requests(base_url, key_for(api_key, base_url), model_name, timeout, deadline, max_retries)
    asked = [_messages(prompt, row) for row, prompt in enumerate(prompts)]
    found = GenerationCache(journal, lambda: {"base_url": without_password(base_url), **fields})
    different = {repr(messages): messages for messages in asked}
    n_kept = sum(found.n_tokens(messages, n, seed) for messages in different.values())
    missing = [messages for messages in different.values() if not found.has(messages, n, seed)]
    lock, n_tokens = threading.Lock(), 0

    def ask(messages: list[dict[str, Any]]) -> int:
        completions = _sample(requests, fields, messages, n, seed)
        with lock:
            found.add(messages, n, seed, completions=completions)
        return sum(each.n_tokens for each in completions)

    bar = tqdm(total=len(asked), initial=len(asked) - len(missing), desc=desc, unit="prompt", delay=2)
    with found, bar, ThreadPoolExecutor(concurrency) as pool:
        try:
            for future in as_completed([pool.submit(ask, messages) for messages in missing]):
                n_tokens += future.result()
                bar.set_postfix_str(f"{n_tokens / (time.perf_counter() - started):.0f} tokens/s", refresh=False)
                bar.update()
        except BaseException:
            requests.stopped.set()  # wakes threads that wait for their next attempt
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    rows = [found.get(messages, n, seed) for messages in asked]
    return Generations(*columns(rows), n_tokens, time.perf_counter() - started, n_kept)


def _sample(
    requests: Requests, fields: dict[str, Any], messages: list[dict[str, Any]], n: int, seed: int
) -> list[Completion]:
    """Return `n` responses to a prompt. `fields` are sent with each request, whose tokens count at its first text."""
    completions: list[Completion] = []
    while len(completions) < n:
        first = len(completions)
        body = {**fields, "messages": messages, "n": n - first}
        body["seed"] = seed_of(seed, repr(messages), first) % SEEDS
        try:
            completion = requests.ask(body)
        except NotAnswered as error:
            raise TrlRealError(
                f"No response from {requests.shown_url}: {error}. Responses received before are in the journal, if "
                "there is one; run again."
            ) from error
        completions += [_completion(choice) for choice in completion["choices"][: n - first]]
        letters = sum(len(each.text) for each in completions[first:])
        told = reported_tokens(completion, "completion_tokens")
        completions[first].n_tokens = told or round(letters / CHARACTERS_A_TOKEN)
    return completions


def _completion(choice: dict[str, Any]) -> Completion:
    text, _ = text_and_thoughts(choice["message"].get("content"))
    return Completion(text, "length" if choice.get("finish_reason") == "length" else "stop")


def _messages(prompt: Any, row: int) -> list[dict[str, Any]]:
    if not prompt:
        raise TrlRealError(f"Prompt {row} is empty. Remove it, or give it a text.")
    return as_messages(prompt, "user")
