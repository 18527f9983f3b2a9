"""Greedy decoding by transformers' continuous batching, with its paged cache: for accelerators."""

import logging
from collections.abc import Collection
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from trl_real.models.attention.exactness import made_up
from trl_real.models.generation.decoding import Response, Sampler
from trl_real.runtime.devices import computes_ahead, free_memory


PAGE = 256  # tokens

logger = logging.getLogger(__name__)


def pages_well(model: Any, sampler: Sampler) -> bool:
    """
    Return whether to use transformers' continuous batching: on an accelerator, if made-up prompts give the same tokens
    as `generate`. Its requests share one random state, so that samples would depend on the batch: it is for greedy
    decoding.
    """
    if sampler.temperature or not computes_ahead(model.device) or not hasattr(model, "generate_batch"):
        return False
    rows = [Response(ids, 4, 0) for ids in made_up(model.config.get_text_config().vocab_size, (5, 2, 9))]
    try:
        decode_paged(model, (), 2, rows)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        logger.info("No continuous batching by transformers: %s", error)
        return False
    return all(row.tokens == _alone(model, row) for row in rows)


def decode_paged(model: Any, ends: Collection[int], batch_size: int, responses: list[Response]) -> None:
    """Generate the responses' tokens, `batch_size` at a time; those that transformers gives up on have none."""
    limit = max(response.limit for response in responses)
    options: dict[str, Any] = {"max_requests_per_batch": batch_size}
    if free_memory(model.device) is None:  # transformers would take most of a CPU's memory for its cache
        longest = max(len(response.prompt) for response in responses) + limit
        options |= {"num_blocks": batch_size * (longest // PAGE + 2), "page_size": PAGE, "max_batch_tokens": 4 * PAGE}
    with torch.inference_mode(False), torch.no_grad():  # its thread writes to tensors that are made here
        found = model.generate_batch(
            [list(response.prompt) for response in responses],
            generation_config=_greedy(limit, ends),
            continuous_batching_config=ContinuousBatchingConfig(**options),
        )
    # Numbered in the order of the prompts, and kept in the order in which they end.
    for name, output in found.items():
        response = responses[int(name.rpartition("_")[2])]
        response.tokens = [] if output.error else list(output.generated_tokens[: response.limit])


def _alone(model: Any, response: Response) -> list[int]:
    prompt = torch.tensor([response.prompt], device=model.device)
    output = model.generate(input_ids=prompt, generation_config=_greedy(response.limit, ()))
    return output[0, prompt.shape[1] :].tolist()


def _greedy(n_tokens: int, ends: Collection[int]) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=n_tokens, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0
    )
