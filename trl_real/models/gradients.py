"""Per-response gradients of the log-probability in a LoRA adapter's parameters, many in one backward pass."""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trl_real.functional.projection import Projection, make_projection
from trl_real.models.adapters import Sink, adapter_parameters, checkpointed_layers, hidden_from_taps, measured, taps
from trl_real.models.attention.exactness import fits_window, gives_the_same, made_up
from trl_real.models.attention.segments import packed
from trl_real.models.memory import halves_batches
from trl_real.models.passes import LabelLogProbs, Pass, Row, packed_passes, padded_passes
from trl_real.models.reader import ModelReader, brought, check_lengths
from trl_real.models.sequences import Sequence, common_prefix, tokenize_pairs
from trl_real.runtime.ahead import picked, read_in_parts
from trl_real.runtime.devices import send
from trl_real.runtime.distributed import share, sum_over_processes


logger = logging.getLogger(__name__)

# Maximum number of logits in a pass: 256 MB in float32, and as much again for their gradient.
MAX_LOGITS = 2**26


@dataclass(frozen=True)
class GradientOptions:
    """
    Args:
        projection: Name in `PROJECTIONS`.
        projection_dim: Length of a vector, `d`; None for full gradients.
        max_length: Maximum number of tokens: of a response from its start, of a prompt from its end.
        batch_tokens: Number of tokens in a forward pass; by default 1024 on a CPU (its caches), elsewhere as
            many as fit, 16384 at most.
        seed: Seed of the projection.
        all_processes: Whether all processes of the group (`torchrun`, `accelerate launch`) pass the same responses:
            each runs its share of the prompts, and all get all the vectors.

    Raises:
        TrlRealError: If a value is out of range.
    """

    projection: str | None = "count_sketch"
    projection_dim: int | None = 8192
    max_length: int = 512
    batch_tokens: int | None = None
    seed: int = 42
    all_processes: bool = False

    def __post_init__(self) -> None:
        make_projection(self.projection, {}, self.projection_dim, self.seed)
        check_lengths(self.max_length, self.batch_tokens)


@dataclass
class Gradients:
    """
    Args:
        vectors: Projected gradients, not normalised (`functional.design.pair_features` does that); zeros for a
            response with no token to score. On the CPU. Shape `(n, d)`.
        norms: Norms of the vectors, which grow with the length of the response. Shape `(n,)`.
        n_scored: Number of scored tokens of each response. Shape `(n,)`.
        truncated: Whether each response was cut. Shape `(n,)`, bool.
        fingerprint: Fingerprint of the projection: only vectors with the same one may be compared.
        n_tokens: Number of tokens that the model read, in all processes.
        seconds: Duration.
    """

    vectors: Tensor
    norms: Tensor
    n_scored: Tensor
    truncated: Tensor
    fingerprint: str
    n_tokens: int = 0
    seconds: float = 0.0


class GradientFeatures(ModelReader):
    r"""
    `g(x, y) = Pi grad_theta sum_t log pi_theta(y_t | x, y_<t)`, over the tokens of the response, its end included; the
    prompt is context (ActiveDPO, arXiv 2505.19241). `theta` is the model's own LoRA adapter, `Pi` a random projection.

    The implicit reward of DPO is `r(x, y) = beta (log pi_theta(y | x) - log pi_ref(y | x))`. Its reference does not
    depend on `theta`: its gradient is exactly 0, and the reference model is never run. Normalisation removes the
    factor `beta`; without normalisation `beta` rescales the ridge of the design: `(beta phi, lambda)` and
    `(phi, lambda / beta^2)` select the same pairs. Both are left out. The log-probabilities are summed, not averaged,
    as in the reward.

    Many responses share a pass, and responses to one prompt share the forward pass over it. Taps on A and B of every
    adapted layer see the layer's inputs `x_t` and the gradients `gamma_t` of its outputs, compute
    `sum_t gamma_t x_t^T` per response in float32, and project it immediately: a full gradient is never stored, and the
    adapter's own `.grad` stays empty. Sequences run packed, without padding, if a check on this model shows that this
    equals one response at a time; else padded. If taps miss a part (DoRA, fully trained modules, shared adapters),
    responses run one at a time, with a warning. Except for rounding (1e-5, relative, in float32), a vector does not
    depend on the rest of the batch.

    A fresh adapter has `B = 0`, so the gradients in A are exactly 0: the scores of a first round are valid, but half
    of the coordinates are 0.

    Args:
        model: PEFT model with one active LoRA adapter.
        tokenizer: Tokenizer of the model.
        options: Options for reading and projecting.
        dtype: Precision of the matrix products, as in `ModelReader`. Gradients are always summed in float32.

    Raises:
        TrlRealError: If the model has no such adapter.
    """

    desc, counts_tokens, has_backward = "Gradients", True, True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        options: GradientOptions | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.options = options = options or GradientOptions()
        rows = {name: _as_rows(p[None]) for name, p in adapter_parameters(model).items()}
        shapes = {name: (row.shape[1], row.shape[2]) for name, row in rows.items()}
        self.projection: Projection = make_projection(options.projection, shapes, options.projection_dim, options.seed)
        super().__init__(model, tokenizer, model.get_base_model(), options.batch_tokens, dtype)
        self.batch_tokens = max(1, min(self.batch_tokens, MAX_LOGITS // self.config.vocab_size))
        self._method: str | None = None

    def __call__(self, prompts: list[Any], responses: list[Any], progress: bool = True) -> Gradients:
        """
        Return the gradients of responses; equal ones to equal prompts run once. Prompts and responses are those of
        `tokenize_pairs`.

        Raises:
            TrlRealError: If a sequence is longer than the model reads.
        """

        def tokenize(rows: list[int]) -> tuple[list[Row], list[bool]]:
            read, texts = picked(rows, prompts, responses)
            sequences = tokenize_pairs(self.tokenizer, read, texts, self.options.max_length)
            return [Row(s.prompt, (s.response,)) for s in sequences], [s.truncated for s in sequences]

        return read_in_parts(self.device, tokenize, partial(self._gradients, progress), prompts)

    def differences(self, prompts: list[Any], first: list[Any], second: list[Any], progress: bool = True) -> Gradients:
        """
        Return gradients of the difference of two responses' rewards, `g(x, y_1) - g(x, y_2)`, from one backward pass
        that reads each prompt once: for features that are not normalised per response. One prompt per pair.
        """

        def tokenize(rows: list[int]) -> tuple[list[Row], list[bool]]:
            columns = picked(rows, prompts, first, second)
            both = [tokenize_pairs(self.tokenizer, columns[0], side, self.options.max_length) for side in columns[1:]]
            pairs = list(zip(*both, strict=True))
            return [_pair_row(*pair) for pair in pairs], [a.truncated or b.truncated for a, b in pairs]

        return read_in_parts(self.device, tokenize, partial(self._gradients, progress), prompts)

    @property
    def method(self) -> str:
        """Method of the passes: the first of "packed" and "padded" that is exact on this model, or "one by one"."""
        if self._method is None:
            reason = hidden_from_taps(self.model)
            self._method = "one by one" if reason else self._first_exact()
            if self._method == "one by one":
                reason = reason or "other methods give other values"
                logger.warning("The adapter's gradients are computed one response at a time, slowly: %s.", reason)
        return self._method

    @halves_batches
    def _gradients(self, progress: bool, made: tuple[list[Row], list[bool]]) -> Gradients:
        rows, truncated = made
        distinct = {row: i for i, row in enumerate(dict.fromkeys(row for row in rows if row.n_scored))}
        self.check_length(list(distinct), f"Type max_length={(self.max_tokens or 0) // 2}.")
        vectors = torch.zeros(len(distinct) + 1, self.projection.dim, dtype=self.sum_in)  # last: blank responses
        prompts = sorted({row.prompt for row in distinct}, key=lambda prompt: (len(prompt), prompt))
        my_prompts = set(share(prompts, self.options.all_processes))
        mine = [row for row in distinct if row.prompt in my_prompts]
        places = torch.tensor([distinct[row] for row in mine], dtype=torch.long)
        n_tokens = torch.zeros(1, 1, dtype=torch.long)
        total = sum(map(len, my_prompts)) + sum(row.n_tokens - len(row.prompt) for row in mine)  # each prompt once
        with self.passes(mine, total, progress) as passes:
            for ids, found, n_done in brought(passes):
                vectors.index_add_(0, places[ids], found)
                n_tokens += n_done
        if self.options.all_processes:
            sum_over_processes(vectors, self.device)
            sum_over_processes(n_tokens, self.device)
        vectors = vectors[[distinct.get(row, -1) for row in rows]]
        n_scored = torch.tensor([row.n_scored for row in rows], dtype=torch.long)
        cut = torch.tensor(truncated, dtype=torch.bool)
        return Gradients(vectors, vectors.norm(dim=1), n_scored, cut, self.projection.fingerprint, int(n_tokens))

    @contextmanager
    def _mode(self) -> Iterator[None]:
        yield  # each method sets its own

    def _first_exact(self) -> str:
        """Return the fastest method that equals one at a time on made-up sequences; models may ignore packing."""
        a, b, c, d, e = made_up(self.config.vocab_size, (7, 4, 5, 3, 9))
        rows = [Row(a, (b,)), Row((), (e,)), Row(d, (c,)), Row(a, (e, c[::-1]))]
        alone = self._collect("one by one", rows)
        fits = fits_window(self.config, 2 * self.options.max_length)
        if fits and self._is_exact(partial(self._collect, "packed", rows), lambda: alone, rough=1e-1):
            return "packed"
        padded = partial(self._collect, "padded", rows)
        return "padded" if gives_the_same(padded, lambda: alone, self.exact, rough=1e-1) else "one by one"

    def _collect(self, method: str, rows: list[Row]) -> Tensor:
        vectors = torch.zeros(len(rows), self.projection.dim, dtype=self.sum_in)
        for ids, found, _ in brought(self._run_by(method, rows)):
            vectors.index_add_(0, torch.tensor(ids), found)
        return vectors

    def _run(self, work: list[Row]) -> Generator[tuple[list[int], Tensor, int], None, None]:
        if work:
            yield from self._run_by(self.method, work)

    def _run_by(self, method: str, rows: list[Row]) -> Iterator[tuple[list[int], Tensor, int]]:
        """Yield row numbers, their vectors and the number of tokens, one pass at a time."""
        parameters = adapter_parameters(self.model)
        if method == "one by one":
            with measured(self.model, list(parameters.values()), checkpointing=False):
                for step in padded_passes(rows, 1):
                    yield step.ids, self._one(step, parameters), step.n_tokens
            return
        passes: Callable[..., Iterator[Pass]] = padded_passes
        attention: AbstractContextManager = nullcontext()
        if method == "packed":
            passes = partial(packed_passes, share=not checkpointed_layers(self.model))
            attention = packed(self.body, self.attention)
        now: dict[str, Any] = {}

        def project(of_context: bool, name: str, x: Tensor, gradient: Tensor) -> None:
            products = now["pass"].products(gradient.to(self.sum_in), x.to(self.sum_in), of_context)
            self.projection.add(now["buffer"], name, products.to(self.device))

        def sink() -> Sink:
            return partial(project, now["of context"])

        with measured(self.model, []), taps(self.model, sink, self.cast_to), attention:
            for step in passes(rows, self.batch_tokens):
                now["pass"], now["buffer"] = step, self.projection.buffer(len(step.ids), self.sum_in, self.device)
                if step.context and not step.context.extra["kept"]:
                    now["of context"] = True
                    self._logits(step.context)  # without logits: only its keys and values are used
                now["of context"] = False
                self._objective(step).backward(retain_graph=not step.last)
                yield step.ids, self.projection.finish(now["buffer"]), step.n_tokens

    def _one(self, step: Pass, parameters: dict[str, nn.Parameter]) -> Tensor:
        """Return the vector of a batch of one row by ordinary autograd. Shape `(1, d)`."""
        buffer = self.projection.buffer(1, self.sum_in, self.device)
        found = torch.autograd.grad(self._objective(step), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                self.projection.add(buffer, name, _as_rows(gradient[None]).to(buffer))
        return self.projection.finish(buffer)

    def _objective(self, step: Pass) -> Tensor:
        """Return the signed sum, not the mean, of the log-probabilities of all scored tokens."""
        logits = self._logits(step)
        labels, signs = (send(values, self.device) for values in (step.labels, step.signs))
        return LabelLogProbs.apply(step.scored(logits), labels, self.sum_in) @ signs.to(self.sum_in)

    def _logits(self, step: Pass) -> Tensor:
        with self._autocast():
            return self.body(**step.inputs(self.device), use_cache=False).logits


def _pair_row(first: Sequence, second: Sequence) -> Row:
    """Return a pair after its common prompt: all of the prompt, unless tokens merge across the boundary."""
    if not first.response or not second.response:
        return Row((), ())
    n = common_prefix(first.prompt, second.prompt)
    return Row(first.prompt[:n], (first.prompt[n:] + first.response, second.prompt[n:] + second.response))


def _as_rows(gradients: Tensor) -> Tensor:
    """Reshape gradients of any parameter to those of a matrix. Shape `(B, ...)` to `(B, m, n)`."""
    return gradients.flatten(2) if gradients.ndim > 2 else gradients[:, None]
