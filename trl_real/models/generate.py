"""Sampling of responses with a causal LM: equal for a prompt and a seed in any batch, and resumable."""

import hashlib
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from trl_real.data.chat import prompt_messages
from trl_real.data.template import chat_ids
from trl_real.errors import TrlRealError
from trl_real.models.generation.decoding import Decoder, Response, Sampler, decodes_well
from trl_real.models.generation.journal import Completion, GenerationCache, columns
from trl_real.models.generation.paged import decode_paged, pages_well
from trl_real.models.load import object_digest
from trl_real.models.memory import halved
from trl_real.models.quantization import keep_unpacked
from trl_real.models.reader import evaluating
from trl_real.models.sequences import Ids, pad, prompt_text, tell_plain_prompts
from trl_real.runtime.distributed import gather, rank, share


PART = 1024  # responses that transformers generates before any is kept


@dataclass
class Generations:
    """
    Responses to `N` prompts, `K` each.

    Args:
        texts: `N` lists of `K` texts.
        finish_reasons: Why each ended: `"stop"` if the policy ended it, `"length"` if it was cut.
        n_tokens: Number of tokens generated in this call, without those from the journal.
        seconds: Duration.
        n_kept: Number of tokens of the responses from the journal.
    """

    texts: list[list[str]]
    finish_reasons: list[list[str]]
    n_tokens: int
    seconds: float
    n_kept: int = 0


def generate_responses(model: nn.Module, tokenizer: Any, prompts: list[Any], **settings: Any) -> list[list[str]]:
    """Return the texts of `generate`, which has the same arguments: `N` lists of `K` texts."""
    return generate(model, tokenizer, prompts, **settings).texts


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: list[Any],
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 42,
    desc: str = "Generating",
    journal: str | Path | None = None,
    all_processes: bool = False,
    as_messages: bool = False,
) -> Generations:
    """
    Sample responses with a causal LM.

    Prompts are sorted by length, a prompt is read once for all its responses, and a finished response is replaced by
    the next one (continuous batching), if a check on this model shows that this equals one text at a time; else
    `model.generate` runs in batches. Greedy decoding on an accelerator is transformers' own continuous batching, if a
    check shows the same. Except for rounding, texts do not depend on the batch: if the two best tokens are
    closer than the rounding error, the other one may win. In float32 that is rare; bfloat16 rounds so coarsely that
    sampled texts change with the batch.

    Args:
        model: Policy; a PEFT model samples with its adapter. Its generation config is ignored, except its EOS tokens.
        tokenizer: Tokenizer of the policy. Message lists go through its chat template, with the generation prompt;
            texts are read unchanged, after the BOS token if the tokenizer adds one, see `as_messages`.
        prompts: `N` texts or message lists.
        n: Number of responses per prompt, `K`.
        max_new_tokens: Maximum number of tokens of a response; fewer, if the model's context is full.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_p: Probability of the nucleus: the smallest set of tokens with at least this probability is sampled from.
        batch_size: Number of responses at a time.
        seed: Seed of the samples, combined with the prompt's text and the number of the response.
        desc: Text before the progress bar.
        journal: Path of a file to which each finished response is appended. A second run with the same policy and
            settings generates only the missing ones.
        all_processes: Whether all processes of a launcher (`torchrun`, `accelerate launch`) call this together: each
            generates for its share of the prompts, and all get all the texts.
        as_messages: Whether to read a text as a message of the user, for chat models.

    Raises:
        TrlRealError: If a setting is out of range, or a prompt is empty, or longer than the model reads.
    """
    started = time.perf_counter()
    keep_unpacked(model)
    check_settings(n, max_new_tokens, temperature, top_p, batch_size=batch_size)
    prompts = [prompt_messages(prompt) for prompt in prompts] if as_messages else prompts
    tell_plain_prompts(tokenizer, prompts)
    texts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    asked = _asked(model, texts, _ids(tokenizer, prompts, texts), n, max_new_tokens, seed)
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    found = GenerationCache(journal, lambda: {"policy": object_digest(model), **settings}, all_processes)
    different = {_key(each): each for each in asked}
    n_kept = sum(found.n_tokens(*key) for key in different)
    missing = [response for key, response in different.items() if not found.has(*key)]
    missing.sort(key=lambda response: (-len(response.prompt), response.prompt, response.label[1]))
    mine = set(share(list(dict.fromkeys(response.prompt for response in missing)), all_processes))
    missing = [response for response in missing if response.prompt in mine]
    sampler, ends, n_tokens = Sampler(temperature, top_p), ends_of(model, tokenizer), 0
    bar = tqdm(total=len(asked), initial=len(asked) - len(missing), desc=desc, unit="response", delay=2)
    with found, evaluating(model), bar, closing(_write(model, sampler, ends, batch_size, missing)) as written:
        for response in written:
            ended = response.ended(ends)
            text = tokenizer.decode(response.tokens[: -1 if ended else None], skip_special_tokens=True)
            completion = Completion(text, "stop" if ended else "length", len(response.tokens))
            found.add(*_key(response), completions=[completion])
            n_tokens += completion.n_tokens
            bar.set_postfix_str(f"{n_tokens / (time.perf_counter() - started):.0f} tokens/s", refresh=False)
            bar.update()
    found.entries |= gather(found.entries, all_processes)
    n_tokens = sum(gather({rank(): n_tokens}, all_processes).values())
    rows = [[found.get(*_key(response))[0] for response in asked[i : i + n]] for i in range(0, len(asked), n)]
    return Generations(*columns(rows), n_tokens, time.perf_counter() - started, n_kept)


def check_settings(n: int, max_new_tokens: int, temperature: float, top_p: float, **counts: int) -> None:
    """
    Refuse arguments of `generate` that generate nothing or are out of range, and `counts` below 1.

    Raises:
        TrlRealError: If one is out of range.
    """
    for name, value in {"n": n, "max_new_tokens": max_new_tokens, **counts}.items():
        if value < 1:
            raise TrlRealError(f"{name}={value} generates nothing. Give 1 or more.")
    if not 0 <= temperature < float("inf"):
        raise TrlRealError(
            f"temperature={temperature} is out of range. Give 0 (greedy) or more; 1 leaves logits as they are."
        )
    if not 0 < top_p <= 1:
        raise TrlRealError(f"top_p={top_p} is out of range. Give a probability in (0, 1]; 1 keeps all tokens.")


def seed_of(seed: int, text: str, k: int) -> int:
    """Return a seed for the `k`-th response to a prompt, in `[0, 2 ** 56)`."""
    digest = hashlib.blake2b(f"{seed}|{k}|{text}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "little")


class _OwnSampling(LogitsProcessor):
    """Samples a token per row with its own seed, and masks all others for `model.generate`."""

    def __init__(self, sampler: Sampler, seeds: list[int]):
        self.sampler, self.states = sampler, [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = torch.tensor(self.sampler(scores, self.states), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _write(
    model: nn.Module, sampler: Sampler, ends: Collection[int], batch_size: int, responses: list[Response]
) -> Generator[Response, None, None]:
    """Yield responses as they are finished; after a lack of memory the others begin again, half as many at a time."""
    left = {response.label: response for response in responses}
    while left:
        try:
            for response in _batches(model, sampler, ends, batch_size, list(left.values())):
                del left[response.label]
                yield response
        except RuntimeError as error:
            batch_size = halved(min(batch_size, len(left)), "responses at a time", error)
            for response in left.values():
                response.tokens = []


def _batches(
    model: nn.Module, sampler: Sampler, ends: Collection[int], batch_size: int, responses: list[Response]
) -> Iterator[Response]:
    if pages_well(model, sampler):
        for start in range(0, len(responses), PART):
            part = responses[start : start + PART]
            decode_paged(model, ends, batch_size, part)
            yield from (response for response in part if response.tokens)
        responses = [response for response in responses if not response.tokens]  # transformers gave up on them
    if decodes_well(model):
        yield from Decoder(model, sampler, ends, min(batch_size, len(responses)))(responses)
        return
    for start in range(0, len(responses), batch_size):
        yield from _by_library(model, sampler, ends, responses[start : start + batch_size])


def _by_library(
    model: Any, sampler: Sampler, ends: Collection[int], batch: list[Response]
) -> Generator[Response, None, None]:
    """Generate a batch with `model.generate`."""
    ids, mask = pad([response.prompt for response in batch], left=True)
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        logits_processor=LogitsProcessorList([_OwnSampling(sampler, [response.seed for response in batch])]),
        max_new_tokens=max(response.limit for response in batch),
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
        **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0},
    )
    for response, tokens in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
        tokens = tokens[: response.limit]
        end = next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
        response.tokens = tokens[:end]
        yield response


def _asked(model: Any, texts: list[str], ids: list[Ids], n: int, max_new_tokens: int, seed: int) -> list[Response]:
    """Return all responses, in order; their labels are the row and the number of the response."""
    reads = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    asked = []
    for row, (text, prompt) in enumerate(zip(texts, ids, strict=True)):
        if not prompt:
            raise TrlRealError(f"Prompt {row} is empty. Remove it, or give it a text.")
        room = max_new_tokens if reads is None else min(max_new_tokens, reads - len(prompt))
        if room < 1:
            raise TrlRealError(f"Prompt {row} has {len(prompt)} tokens, but the model reads {reads}. Shorten it.")
        asked += [Response(prompt, room, seed_of(seed, text, k), label=(row, k)) for k in range(n)]
    return asked


def _key(response: Response) -> tuple[Ids, int]:
    return response.prompt, response.seed


def ends_of(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Return the EOS ids: those of the generation config, and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    ids = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _ids(tokenizer: Any, prompts: list[Any], texts: list[str]) -> list[Ids]:
    """
    Return the ids of the prompts. A template writes its own BOS token, and control tokens in messages are plain text;
    a text gets the special tokens that the tokenizer adds, except a second BOS token and an EOS token.
    """
    found: list[Ids] = []
    for prompt, text in zip(prompts, texts, strict=True):
        if not isinstance(prompt, str):
            found.append(tuple(chat_ids(tokenizer, [prompt], add_generation_prompt=True)[0]))
            continue
        is_text = bool(prompt)
        has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=is_text and not has_bos)["input_ids"]
        ends_itself = is_text and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
        found.append(tuple(ids[:-1] if ends_itself else ids))
    return found
