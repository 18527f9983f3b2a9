"""Embeddings of responses after prompts with images, by the processor and the whole vision-language model."""

import time
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trl_real.data.conversation import as_messages
from trl_real.data.images import as_image, with_placeholders
from trl_real.errors import TrlRealError
from trl_real.models.embed import EmbedderOptions, Embeddings, hidden_states, segment_mean
from trl_real.models.memory import halves_batches
from trl_real.models.reader import ModelReader, without_peft
from trl_real.models.sequences import Ids, length_batches, readable


BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # what a processor gives a token


class ImageEmbedder(ModelReader):
    """
    Average of the last hidden states over the tokens of a response that follows a prompt with images, as `Embedder`
    gives it for texts. Rows are padded; images and prompts go through the processor, as TRL's trainers do it.

    Args:
        model: Vision-language model, or a PEFT model of one.
        processor: Processor of the model, with its tokenizer.
        options: Options for reading and pooling. `max_length` applies to responses: a prompt with images is never cut.
        dtype: Precision of the matrix products; by default the weights'.
    """

    desc = "Embedding"

    def __init__(self, model: nn.Module, processor: Any, options: EmbedderOptions, dtype: torch.dtype | None = None):
        whole: Any = without_peft(model)
        super().__init__(model, processor.tokenizer, whole.base_model, options.batch_tokens, dtype)
        self.processor, self.options = processor, options

    @halves_batches
    def __call__(self, prompts: list[Any], responses: list[str], images: list[list[Any]]) -> Embeddings:
        """
        Embed responses.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts.
            images: Images of each prompt, as PIL images or as `datasets` gives them.

        Raises:
            TrlRealError: If the images do not fit the messages, or a row is longer than the model reads.
        """
        started = time.perf_counter()
        texts = [self._prompt(prompt, len(shown)) for prompt, shown in zip(prompts, images, strict=True)]
        read = [readable(self.tokenizer, str(response), self.options.max_length) for response in responses]
        ids = self.tokenizer(read, add_special_tokens=False)["input_ids"]
        cut = [len(tokens) > self.options.max_length for tokens in ids]
        rows = [tuple(tokens[: self.options.max_length]) for tokens in ids]
        self.work = list(zip(texts, images, rows, strict=True))
        vectors: list[Any] = [torch.full((self.config.hidden_size,), torch.nan)] * len(rows)
        n_tokens = 0
        with self.passes(rows, len(rows), True) as passes:
            for numbers, found, count in passes:
                n_tokens += count
                for i, vector in zip(numbers, found.cpu(), strict=True):
                    vectors[i] = vector
        return Embeddings(torch.stack(vectors), torch.tensor(cut), n_tokens, time.perf_counter() - started)

    def _prompt(self, prompt: Any, n_images: int) -> str:
        """Return the text of a prompt with a mark for each image; a text holds its own marks."""
        if isinstance(prompt, str) and not getattr(self.processor, "chat_template", None):
            return prompt
        chat = with_placeholders(as_messages(prompt, "user"), n_images)
        return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    def _run(self, work: list[Ids]) -> Generator[tuple[list[int], Tensor, int], None, None]:
        for batch in length_batches(work, self.batch_tokens // 2):
            yield batch, *self._vectors([self.work[i] for i in batch])

    def _vectors(self, rows: Sequence[tuple[str, list[Any], Ids]]) -> tuple[Tensor, int]:
        """Return the vectors of a batch, and its number of tokens."""
        texts, images, responses = zip(*rows, strict=True)
        shown = [list(map(as_image, each)) for each in images]
        inputs = self.processor(images=shown, text=list(texts), padding=True, padding_side="left",
                                return_tensors="pt", add_special_tokens=False)  # fmt: skip
        lengths = torch.tensor(list(map(len, responses)))
        after = torch.arange(int(lengths.max()))
        mask = torch.cat([inputs["attention_mask"], (after < lengths[:, None]).long()], 1)
        order = mask.sort(dim=1, descending=True, stable=True).indices  # padding goes to the end
        n_prompt, longest = inputs["input_ids"].shape[1], mask.shape[1]
        if self.max_tokens and int(mask.sum(1).max()) > self.max_tokens:
            raise TrlRealError(
                f"A prompt with its images and a response has {int(mask.sum(1).max())} tokens, but the model reads "
                f"{self.max_tokens}. Give smaller images, or type context='response'."
            )
        by_token = [name for name in BY_TOKEN if name in inputs]
        for name in by_token:
            fill = inputs[name].new_zeros(len(rows), longest - n_prompt)
            inputs[name] = torch.cat([inputs[name], fill], 1)
        for i, tokens in enumerate(responses):
            inputs["input_ids"][i, n_prompt : n_prompt + len(tokens)] = torch.tensor(tokens)
        inputs["attention_mask"] = mask
        owners = torch.where(torch.arange(longest) >= n_prompt, torch.arange(len(rows))[:, None], -1)
        owners = torch.where(mask.bool(), owners, -1).gather(1, order)
        for name in by_token:
            inputs[name] = inputs[name].gather(1, order)
        hidden = hidden_states(self.body, self.options.layer, **inputs.to(self.device))
        return segment_mean(hidden.flatten(0, 1), owners.flatten().to(self.device), len(rows)), int(mask.sum())
