"""Implicit rewards of responses: log-probability ratios of a policy and its reference model."""

import hashlib
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from trl_real.errors import TrlRealError
from trl_real.models.adapters import active_adapter, measured
from trl_real.models.lazy_model import LazyModel
from trl_real.models.load import is_adapter_off, object_digest, weights_digest
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.passes import Row
from trl_real.models.reader import check_lengths
from trl_real.models.sequences import Sequence, tokenize_pairs
from trl_real.runtime.ahead import picked, read_in_parts


class Sums(dict[str, float]):
    """Sums that a model has read just now, by their keys; `read` holds the counts of `ImplicitRewards` for them."""

    read: dict[str, int]


@dataclass
class ImplicitRewards:
    """
    Args:
        values: `policy - reference`, in nats; NaN if one of them is not finite, or no token is scored. Shape `(N,)`,
            float64.
        policy: Log-probabilities of the responses under the policy, summed over tokens. Shape `(N,)`, float64.
        reference: Log-probabilities under the reference. Shape `(N,)`, float64.
        n_scored: Number of tokens in each sum. Shape `(N,)`.
        truncated: Whether each response was cut here. Shape `(N,)`, bool.
        n_tokens: Number of tokens that the models read.
        n_policy: Number of responses that the policy read; cached ones are not read again.
        n_reference: Number of responses that the reference read.
        seconds: Duration.
    """

    values: Tensor
    policy: Tensor
    reference: Tensor
    n_scored: Tensor
    truncated: Tensor
    n_tokens: int = 0
    n_policy: int = 0
    n_reference: int = 0
    seconds: float = 0.0


class ImplicitRewardReader:
    r"""
    `r(x, y) = log pi(y | x) - log pi_ref(y | x)`, summed over the tokens of the response: DPO's implicit reward
    (arXiv 2305.18290, Eq. 5) without its factor `beta` and up to a constant of the prompt.

    Both models read the ids of the policy's tokenizer. Without a `reference`, the PEFT model with its adapter disabled
    is the reference: both share one set of base weights.

    Args:
        policy: Causal LM or PEFT model with a LoRA adapter, loaded, or a path or Hub id of one.
        reference: Reference model, in the same forms; None for the policy without its adapter.
        tokenizer: Tokenizer of both, for loaded models.
        revision: Branch, tag or commit of the policy, for a Hub id.
        max_length: Maximum number of tokens, of a response and of a prompt.
        batch_tokens: Number of tokens in a forward pass; by default 1024 on a CPU, elsewhere as many as fit,
            16384 at most.
        dtype: Precision: of the weights of models given by name, of a loaded model's matrix products.
        device: Device of models given by name; a loaded one stays where it is.
        cache: Summed log-probabilities, keyed by weights, precision and tokens. Cached sums are not computed again;
            new ones are added with one `update` per model and call. None for no cache.

    Raises:
        TrlRealError: If a setting is out of range, or the reference is missing or contains the policy's adapter.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any = None,
        tokenizer: Any = None,
        *,
        revision: str | None = None,
        max_length: int = 512,
        batch_tokens: int | None = None,
        dtype: Any = None,
        device: str | None = None,
        cache: MutableMapping[str, float] | None = None,
    ):
        check_lengths(max_length, batch_tokens)
        if reference is None and not isinstance(policy, str | os.PathLike):
            _check_own_reference(policy)
        if isinstance(policy, PeftModel) and reference in (policy, policy.get_base_model()):
            raise TrlRealError(
                "The reference is the model that contains the policy's adapter. Leave reference out: the default is "
                "the policy without its adapter."
            )
        self.policy = LazyModel(policy, tokenizer, revision, dtype, device)
        self.reference = None if reference is None else LazyModel(reference, tokenizer, None, dtype, device)
        self.max_length, self.batch_tokens, self.cache = max_length, batch_tokens, cache
        self._scorers: dict[int, ResponseLogProbs] = {}  # by `id(model)`
        self._digests: dict[tuple[int, bool], tuple[Any, str]] = {}

    def __call__(
        self, prompts: list[Any], responses: list[Any], ended: list[bool] | None = None, progress: bool = True
    ) -> ImplicitRewards:
        """
        Return the rewards of responses, given as in `tokenize_pairs`; each one is read once by each model.

        Raises:
            TrlRealError: If a prompt is neither text nor messages, or a sequence is longer than a model reads.
        """
        model, tokenizer = self.policy.load(adapters=True)
        whole = [True] * len(responses) if ended is None else ended

        def tokenize(rows: list[int]) -> list[Sequence]:
            read, texts, ends = picked(rows, prompts, responses, whole)
            return tokenize_pairs(tokenizer, read, texts, self.max_length, ends)

        device = next(model.parameters()).device
        return read_in_parts(device, tokenize, partial(self._rewards, model, progress), prompts)

    def _rewards(self, model: nn.Module, progress: bool, sequences: list[Sequence]) -> ImplicitRewards:
        policy, n_policy, policy_tokens = self._sums(model, self.policy, sequences, progress, "n_policy")
        with self._opened_reference() as (other, source):
            reference, n_reference, reference_tokens = self._sums(other, source, sequences, progress, "n_reference")
        n_scored = torch.tensor([_row(s).n_scored for s in sequences], dtype=torch.long)
        values = policy - reference
        return ImplicitRewards(
            torch.where((n_scored > 0) & values.isfinite(), values, torch.nan),
            policy,
            reference,
            n_scored,
            torch.tensor([s.truncated for s in sequences], dtype=torch.bool),
            policy_tokens + reference_tokens,
            n_policy,
            n_reference,
        )

    @property
    def reference_digest(self) -> str:
        """Digest of the reference's weights, as `trl_real.models.load.weights_digest` computes it."""
        with self._opened_reference() as (model, _):
            return self._digest(model).partition("-")[0]

    @property
    def used_batch_tokens(self) -> int | None:
        """Number of tokens in a forward pass, the smaller one of policy and reference; what was asked for, before."""
        return min((scorer.batch_tokens for scorer in self._scorers.values()), default=self.batch_tokens)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the rewards depend on."""
        reference = self.reference.identity if self.reference else "the policy without its adapter"
        return {"policy": self.policy.identity, "reference": reference, "max_length": self.max_length}

    @contextmanager
    def _opened_reference(self) -> Iterator[tuple[nn.Module, LazyModel]]:
        """Yield the reference and its source; an adapter that is disabled for it is enabled again on leaving."""
        if self.reference is not None:
            yield self.reference.load(adapters=True)[0], self.reference
            return
        model, _ = self.policy.load(adapters=True)
        _check_own_reference(model)
        with without_adapter(model):
            yield model, self.policy

    def _sums(
        self, model: nn.Module, source: LazyModel, sequences: list[Sequence], progress: bool, count: str
    ) -> tuple[Tensor, int, int]:
        """Return the log-probabilities of sequences, and the numbers of sequences and tokens that were read."""
        tag = f"{self._digest(model)} {source.cast_to}" if self.cache is not None else ""
        keys = [_key(tag, sequence) for sequence in sequences]
        found = {key: self.cache[key] for key in dict.fromkeys(keys) if self.cache and key in self.cache}
        missing = {key: s for key, s in zip(keys, sequences, strict=True) if key not in found and _row(s).n_scored}
        if not missing:
            return _column(found, keys), 0, 0
        if id(model) not in self._scorers:
            settings = (self.policy.tokenizer, self.max_length, self.batch_tokens, source.cast_to)
            self._scorers[id(model)] = ResponseLogProbs(model, *settings)
        read = self._scorers[id(model)].score(list(missing.values()), progress)
        new = dict(zip(missing, read.sums.tolist(), strict=True))
        if self.cache is not None:
            finite = Sums((key, value) for key, value in new.items() if np.isfinite(value))
            finite.read = {"n_tokens": read.n_tokens, count: len(missing)}
            self.cache.update(finite)
        return _column({**found, **new}, keys), len(missing), read.n_tokens

    def _digest(self, model: Any) -> str:
        """Return the model's digest, computed again if a weight was written to or another adapter is active."""
        adapted = isinstance(model, PeftModel)
        off, active = adapted and is_adapter_off(model), list(model.active_adapters) if adapted else []
        state = (active, [(p.data_ptr(), p._version) for p in model.parameters()])
        last_state, digest = self._digests.get((id(model), off), (None, ""))
        if last_state != state:
            digest = weights_digest(_base_of(model)) if off else object_digest(model)
            self._digests[id(model), off] = (state, digest)
        return digest

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorers": {}, "_digests": {}}


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """Disable the adapter; on leaving, the same parameters are trainable as before (PEFT alone resets them)."""
    with measured(model, []), model.disable_adapter():
        yield


def _check_own_reference(policy: Any) -> None:
    if not isinstance(policy, PeftModel):
        raise TrlRealError(
            f"The policy is a {type(policy).__name__} without an adapter to disable. Give reference=…, the model "
            "that it was trained from."
        )
    active_adapter(policy)
    if getattr(policy.active_peft_config, "bias", "none") != "none":
        raise TrlRealError("The adapter trains biases of the base, which stay active without it. Give reference=….")


def _base_of(model: PeftModel) -> Any:
    """Return the base model without adapters, under its original names, as `weights_digest` reads it."""
    tuned = ("lora_", "modules_to_save.", "trainable_tokens_")
    tensors = model.get_base_model().state_dict()
    base = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in tuned)}
    plain = {name.replace(".base_layer.", ".").replace(".original_module.", "."): base[name] for name in base}
    return SimpleNamespace(state_dict=lambda: plain)


def _row(sequence: Sequence) -> Row:
    return Row(sequence.prompt, (sequence.response,))


def _key(tag: str, sequence: Sequence) -> str:
    ids = np.array((len(sequence.prompt), *sequence.prompt, *sequence.response), dtype=np.int64)
    return hashlib.sha256(tag.encode() + ids.tobytes()).hexdigest()[:32]


def _column(sums: dict[str, float], keys: list[str]) -> Tensor:
    """Return the sums of the sequences, 0 for blank ones. Shape `(N,)`."""
    return torch.tensor([sums.get(key, 0.0) for key in keys], dtype=torch.float64)
