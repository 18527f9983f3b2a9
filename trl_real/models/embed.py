"""Mean-pooled hidden states of responses, from the backbone of the model that will be aligned."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trl_real.errors import TrlRealError
from trl_real.models.attention.exactness import fits_window, made_up
from trl_real.models.attention.segments import packed
from trl_real.models.memory import halves_batches
from trl_real.models.packing import Pack, Tree, make_packs
from trl_real.models.quantization import check_float32
from trl_real.models.reader import ModelReader, brought, check_lengths, language_part, without_peft
from trl_real.models.sequences import (
    check_prompt,
    length_batches,
    pad,
    prompt_text,
    readable,
    readable_prompt,
    response_texts,
    tell_plain_prompts,
)
from trl_real.runtime.ahead import made_ahead, picked
from trl_real.runtime.devices import send


Context = Literal["response", "prompt+response"]

MEMO_BYTES = 2**25


@dataclass(frozen=True)
class EmbedderOptions:
    """
    Args:
        context: Whether to read the response alone or after its prompt; only response tokens are averaged.
        layer: Index into `hidden_states` (0: the input embeddings), -1 for the last hidden state.
        max_length: Maximum number of tokens to read: of a response from its start, of a prompt from its end.
        batch_tokens: Number of tokens in a forward pass; by default 1024 on a CPU (its caches), elsewhere as
            many as fit, 16384 at most.
        include_bos: Whether to put the BOS token before the response and average it too (REAL's script on Llama).
        include_eos: Whether to put the EOS token after the response and average it too (REAL's script on SHP).

    Raises:
        TrlRealError: If a value is out of range.
    """

    context: Context = "response"
    layer: int = -1
    max_length: int = 512
    batch_tokens: int | None = None
    include_bos: bool = False
    include_eos: bool = False

    def __post_init__(self) -> None:
        if self.context not in get_args(Context):
            raise TrlRealError(f"context={self.context!r} is not one of {', '.join(get_args(Context))}.")
        check_lengths(self.max_length, self.batch_tokens)


@dataclass
class Embeddings:
    """
    Args:
        vectors: Embeddings, one row per response, float32 on the CPU. Shape `(n, d)`.
        truncated: Whether each response was cut. Shape `(n,)`, bool.
        n_tokens: Number of tokens that the model read.
        seconds: Duration.
    """

    vectors: Tensor
    truncated: Tensor
    n_tokens: int = 0
    seconds: float = 0.0


class Embedder(ModelReader):
    r"""
    `f(y) = (1/T) sum_t A(y)_t`, with `A(y)` the last hidden states over the tokens of a response (REAL, Eq. 7).

    The hidden states are those that the LM head reads (after the final norm). Sequences run packed, without padding,
    if a check on this model shows that packing equals one response at a time; else sorted by length and padded.
    Pooling is in float32.

    Args:
        model: Causal LM, PEFT model or backbone.
        tokenizer: Tokenizer of the model.
        options: Options for reading and pooling.
        dtype: Precision of the matrix products; by default the weights'. For float32, half-precision weights are
            copied.
        memoize: Whether to cache recent embeddings, so that an equal text in a later batch is not run again.
    """

    desc, counts_tokens = "Embedding", True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        options: EmbedderOptions | None = None,
        dtype: torch.dtype | None = None,
        memoize: bool = False,
    ):
        self.options = options = options or EmbedderOptions()
        backbone: Any = language_part(without_peft(model).base_model)
        self.original: nn.Module | None = None
        weights = next(backbone.parameters()).dtype
        if dtype == torch.float32:
            check_float32(model, weights)
        if dtype == torch.float32 != weights:
            self.original, self.copied = backbone, _versions(backbone)
            backbone = copy.deepcopy(backbone).float().eval()
        super().__init__(model, tokenizer, backbone, options.batch_tokens, dtype)
        self.before = [tokenizer.bos_token_id] * (options.include_bos and tokenizer.bos_token_id is not None)
        self.after = [tokenizer.eos_token_id] * (options.include_eos and tokenizer.eos_token_id is not None)
        n_texts = 2 if options.context == "prompt+response" else 1
        self.packs_well = None if fits_window(self.config, n_texts * options.max_length) else False
        self.memo: dict[Any, Tensor] | None = {} if memoize else None

    def __call__(self, prompts: list[Any], responses: list[str], progress: bool = True) -> Embeddings:
        """
        Embed responses, which are texts; equal ones (with equal prompts, if these are read) run once.

        Raises:
            TrlRealError: If the model does not have the layer.
        """
        started = time.perf_counter()
        self._renew_copy()
        found: dict[Any, Tensor] = {}
        rows: list[Any] = [None] * len(responses)
        cut = torch.zeros(len(responses), dtype=torch.bool)
        n_tokens = 0
        in_context = self.options.context == "prompt+response"
        for ids, (sequences, truncated) in made_ahead(
            self.device,
            lambda ids: self._tokenize(*picked(ids, prompts, responses)),
            prompts if in_context else [None] * len(responses),
        ):
            distinct = [sequence for sequence in dict.fromkeys(sequences) if sequence not in found]
            vectors: list[Any] = [(self.memo or {}).get(sequence) for sequence in distinct]
            n_tokens += self._embed(distinct, vectors, progress)
            found.update(zip(distinct, vectors, strict=True))
            for i, sequence in zip(ids, sequences, strict=True):
                rows[i] = found[sequence]
            cut[ids] = torch.tensor(truncated, dtype=torch.bool)
        self._add_to_memo(found)
        together = torch.stack(rows) if rows else torch.zeros(0, 0)
        return Embeddings(together, cut, n_tokens, time.perf_counter() - started)

    def _renew_copy(self) -> None:
        """Copy the weights to float32 again if they have changed."""
        if self.original is not None and self.copied != _versions(self.original):
            self.copied = _versions(self.original)
            self.body = copy.deepcopy(self.original).float().eval()

    def _tokenize(self, prompts: list[Any], responses: list[str]) -> tuple[list[tuple], list[bool]]:
        """Return each response as `(prompt ids, response ids)`, and whether it was cut."""
        texts = response_texts(self.tokenizer, prompts, responses)
        read = [readable(self.tokenizer, text, self.options.max_length) for text in texts]
        ids = self.tokenizer(read, add_special_tokens=False)["input_ids"] if responses else []
        prefixes: list[tuple[int, ...]] = [()] * len(responses)
        if self.options.context == "prompt+response" and prompts:
            for prompt in prompts:
                if prompt is None:
                    raise TrlRealError(
                        "context='prompt+response' needs a prompt in every row. Type context='response'."
                    )
                check_prompt(prompt)
            tell_plain_prompts(self.tokenizer, prompts)
            length = self.options.max_length
            prompts = [readable_prompt(self.tokenizer, prompt, length) for prompt in prompts]
            texts = [prompt_text(self.tokenizer, prompt) for prompt in prompts]
            prefixes = [
                tuple(tokens[-self.options.max_length :])
                for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            ]
        cut = [len(tokens) + len(self.before) + len(self.after) > self.options.max_length for tokens in ids]
        bodies = [tuple((self.before + tokens + self.after)[: self.options.max_length]) for tokens in ids]
        return list(zip(prefixes, bodies, strict=True)), cut

    @halves_batches
    def _embed(self, distinct: list[tuple], vectors: list[Tensor | None], progress: bool) -> int:
        """Fill in the missing vectors; return the number of tokens read."""
        trees: dict[tuple, Tree] = {}
        for i, (prompt, response) in enumerate(distinct):
            if vectors[i] is None and response:
                tree = trees.setdefault(prompt or (response,), Tree(prompt, [], []))
                tree.responses.append(response)
                tree.ids.append(i)
            elif vectors[i] is None:
                vectors[i] = torch.full((self.config.hidden_size,), torch.nan)
        work = list(trees.values())
        self.check_trees(work)
        n_tokens = sum(tree.n_tokens for tree in work)
        with self.passes(work, n_tokens, progress) as passes:
            for ids, rows, _ in brought(passes):
                for i, row in zip(ids, rows, strict=True):
                    vectors[i] = row
        return n_tokens

    def check_trees(self, trees: list[Tree]) -> None:
        """Refuse trees with a sequence that is longer than the model reads; raises `TrlRealError`."""
        n_texts = 2 if self.options.context == "prompt+response" else 1
        self.check_length(trees, f"Type max_length={(self.max_tokens or 0) // n_texts}.")

    def _run_packed(self, work: list[Tree]) -> Iterator[tuple[list[int], Tensor, int]]:
        with packed(self.body, self.attention):
            for pack in make_packs(work, self.batch_tokens):
                yield pack.ids, self._run_pack(pack), len(pack.tokens)

    def _run_pack(self, pack: Pack) -> Tensor:
        hidden = hidden_states(self.body, self.options.layer, **pack.inputs(self.device))
        return segment_mean(hidden[0], send(pack.owners, self.device), len(pack.ids))

    def _run_padded(self, work: list[Tree]) -> Iterator[tuple[list[int], Tensor, int]]:
        """Use half the budget per batch, which was the fastest with padding."""
        flat = [(t.prompt + r, len(t.prompt), i) for t in work for r, i in zip(t.responses, t.ids, strict=True)]
        for batch in length_batches([tokens for tokens, _, _ in flat], self.batch_tokens // 2):
            sequences, n_prompts, ids = zip(*(flat[i] for i in batch), strict=True)
            tokens, mask = pad(list(sequences))
            columns, first = torch.arange(tokens.shape[1]), torch.tensor(n_prompts)[:, None]
            owners = torch.where((columns >= first) & mask.bool(), torch.arange(len(batch))[:, None], -1)
            inputs = {"input_ids": tokens, "attention_mask": mask}
            hidden = hidden_states(
                self.body, self.options.layer, **{name: send(tensor, self.device) for name, tensor in inputs.items()}
            )
            vectors = segment_mean(hidden.flatten(0, 1), send(owners.flatten(), self.device), len(batch))
            yield list(ids), vectors, int(mask.sum())

    def _trial(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        ids = made_up(self.config.vocab_size, (7, 4, 4, 3, 9))
        trees = [Tree((), [ids[1]], [0]), Tree((), [ids[2][::-1]], [1]), Tree(ids[0], ids[3:], [2, 3])]

        def together() -> Tensor:
            with packed(self.body, self.attention):
                (pack,) = make_packs(trees, 10**6)
                return self._run_pack(pack)[torch.tensor(pack.ids).argsort()]

        def alone() -> Tensor:
            pairs = [(len(tree.prompt), tree.prompt + response) for tree in trees for response in tree.responses]
            runs = [
                (n, hidden_states(self.body, self.options.layer, input_ids=torch.tensor([ids], device=self.device)))
                for n, ids in pairs
            ]
            return torch.stack([hidden[0, n:].float().mean(0) for n, hidden in runs])

        return together, alone

    def _add_to_memo(self, found: dict[Any, Tensor]) -> None:
        if self.memo is None or not found:
            return
        self.memo.update(found)
        limit = MEMO_BYTES // (4 * len(next(iter(found.values()))))
        for sequence in list(self.memo)[: max(0, len(self.memo) - limit)]:
            del self.memo[sequence]


def hidden_states(body: Any, layer: int, **inputs: Any) -> Tensor:
    """
    Return the hidden states of a layer. Shape `(B, T, d)`.

    Raises:
        TrlRealError: If the model has no such layer.
    """
    if layer == -1:
        return body(**inputs, use_cache=False).last_hidden_state
    states = body(**inputs, use_cache=False, output_hidden_states=[layer]).hidden_states
    if not -len(states) <= layer < len(states):
        raise TrlRealError(f"layer={layer}, but the model has hidden states 0 to {len(states) - 1} (or -1).")
    return states[layer]


def segment_mean(hidden: Tensor, owners: Tensor, n_rows: int) -> Tensor:
    """Average the tokens of each owner in float32, except owner -1. Shapes `(T, d)`, `(T,)` to `(R, d)`."""
    sums = hidden.new_zeros(n_rows + 1, hidden.shape[-1], dtype=torch.float32)
    counts = sums.new_zeros(n_rows + 1)
    owners = torch.where(owners < 0, n_rows, owners)
    sums.index_add_(0, owners, hidden.float())
    counts.index_add_(0, owners, torch.ones_like(owners, dtype=torch.float32))
    return sums[:n_rows] / counts[:n_rows, None]


def _versions(module: nn.Module) -> list[tuple[int, int]]:
    return [(parameter.data_ptr(), parameter._version) for parameter in module.parameters()]
