"""Responses sampled from a policy, the same for a prompt and a seed whatever the batch."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList


class SeededSampling(LogitsProcessor):
    """
    Sampling as an argmax: each row adds Gumbel noise of its own generator to its logits (the Gumbel-max trick), so
    that what a row draws does not depend on which rows are beside it.

    Args:
        seeds: One a row of the batch.
        temperature: Divides the logits; 0 for greedy decoding.
        top_p: Smallest set of tokens with at least this probability.
    """

    def __init__(self, seeds: list[int], temperature: float = 1.0, top_p: float = 1.0):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Noisy logits. Shapes `(B, T)` and `(B, V)` to `(B, V)`."""
        if not self.temperature:
            return scores
        scores = scores.float() / self.temperature
        if self.top_p < 1:
            ranked, order = scores.softmax(-1).sort(descending=True)
            beyond = ranked.cumsum(-1) - ranked >= self.top_p
            scores = scores.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
        noise = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self.generators])
        return scores - noise.log().to(scores.device)


def generate_responses(
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
) -> list[list[str]]:
    """
    Sample responses with a causal LM.

    Args:
        model: The policy; a PEFT model samples with its adapter.
        tokenizer: Its tokenizer. Message lists go through its chat template, texts as they are.
        prompts: `N` texts or message lists.
        n: Responses a prompt, `K`.
        max_new_tokens: Tokens after which a response is cut.
        temperature: 0 for greedy decoding.
        top_p: Nucleus.
        batch_size: Sequences at a time.
        seed: Of the draws, with the prompt's text and the number of the response.
        desc: Of the progress bar.

    Returns:
        `N` lists of `K` texts, special tokens left out.
    """
    texts = [prompt if isinstance(prompt, str) else _templated(tokenizer, prompt) for prompt in prompts]
    jobs = [(row, k, text) for row, text in enumerate(texts) for k in range(n)]
    jobs.sort(key=lambda job: -len(job[2]))
    responses = [[""] * n for _ in prompts]
    was_training, side = model.training, tokenizer.padding_side
    model.eval()
    tokenizer.padding_side = "left"
    try:
        for start in tqdm(range(0, len(jobs), batch_size), desc=desc, unit="batch", delay=2):
            batch = jobs[start : start + batch_size]
            seeds = [_seed(seed, text, k) for _, k, text in batch]
            sampling = SeededSampling(seeds, temperature, top_p)
            words = _continue(model, tokenizer, [text for _, _, text in batch], max_new_tokens, sampling)
            for (row, k, _), response in zip(batch, words, strict=True):
                responses[row][k] = response
    finally:
        model.train(was_training)
        tokenizer.padding_side = side
    return responses


def _continue(model: nn.Module, tokenizer: Any, texts: list[str], max_new_tokens: int, sampling) -> list[str]:
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            logits_processor=LogitsProcessorList([sampling]),
            pad_token_id=tokenizer.pad_token_id,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _templated(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _seed(seed: int, text: str, k: int) -> int:
    digest = hashlib.blake2b(f"{seed}|{k}|{text}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "little")
