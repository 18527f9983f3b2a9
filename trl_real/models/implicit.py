"""Implicit rewards of responses: what a policy says of them, over what the model that it came from says."""

import hashlib
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from trl_real.errors import TrlRealError
from trl_real.models.adapters import active_adapter, measured
from trl_real.models.lazy_model import LazyModel
from trl_real.models.load import object_digest, weights_digest
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.passes import Row
from trl_real.models.reader import check_lengths
from trl_real.models.sequences import Sequence, tokenize_pairs


@dataclass
class ImplicitRewards:
    """
    Args:
        values: `policy - reference`, in nats; NaN where one of them is not finite, or no token is scored. Shape
            `(N,)`, float64.
        policy: Log-probabilities of the responses under the policy, summed over tokens. Shape `(N,)`, float64.
        reference: The same under the reference. Shape `(N,)`, float64.
        n_scored: Tokens that were summed up. Shape `(N,)`.
        truncated: Responses that were cut here. Shape `(N,)`, bool.
        n_tokens: That went through the models.
        n_policy: Responses that the policy read; those that are known already are not read again.
        n_reference: Responses that the reference read.
        seconds: Time it took.
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

    Both models read the same tokens, the policy's tokenizer's. A PEFT model without a `reference` is its own, with the
    adapter switched off: one set of base weights serves both.

    Args:
        policy: A causal LM or a PEFT model with a LoRA adapter, loaded, or a path or Hub id of one.
        reference: The same; None for the policy without its adapter.
        tokenizer: For loaded models; it serves both.
        revision: Branch, tag or commit of the policy, for a Hub id.
        max_length: Tokens of a response that are scored, and of a prompt that are read.
        batch_tokens: Tokens in a forward pass; by default 1024 on a CPU and 16384 elsewhere.
        dtype: Precision: of the weights of models given by name, of a loaded model's matrix products.
        device: For models given by name; a loaded one stays where it is.
        cache: Sums of log-probabilities by what they hang on: weights, precision and tokens. What is in it is not
            computed again; what is computed is put in, with one `update` a model and call. None for no memory.

    Raises:
        TrlRealError: If a setting is out of range, or the policy has no reference, or one that it shares layers with.
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
        _check_apart(policy, reference)
        self.policy = LazyModel(policy, tokenizer, revision, dtype, device)
        self.reference = None if reference is None else LazyModel(reference, tokenizer, None, dtype, device)
        self.max_length, self.batch_tokens, self.cache = max_length, batch_tokens, cache
        self._scorers: dict[int, ResponseLogProbs] = {}
        self._digests: dict[tuple[int, bool], tuple[Any, str]] = {}

    def __call__(
        self, prompts: list[Any], responses: list[Any], ended: list[bool] | None = None, progress: bool = True
    ) -> ImplicitRewards:
        """
        Rewards of responses; each one is read once by each model.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts or message lists.
            ended: Whether each response came to its end: see `tokenize_pairs`.
            progress: Show a bar, from the third second on.

        Raises:
            TrlRealError: If a prompt is neither text nor messages, or a sequence is longer than a model reads.
        """
        started = time.perf_counter()
        model, tokenizer = self.policy.load(adapters=True)
        sequences = tokenize_pairs(tokenizer, prompts, responses, self.max_length, ended)
        policy, n_policy, policy_tokens = self._sums(model, self.policy, sequences, progress)
        with self._opened_reference() as (other, source):
            reference, n_reference, reference_tokens = self._sums(other, source, sequences, progress)
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
            time.perf_counter() - started,
        )

    @property
    def reference_digest(self) -> str:
        """Of the reference's weights: what `trl_real.models.load.weights_digest` says of the model that it is."""
        with self._opened_reference() as (model, _):
            return self._digest(model).partition("-")[0]

    @property
    def identity(self) -> dict[str, Any]:
        """What the rewards hang on."""
        reference = self.reference.identity if self.reference else "the policy without its adapter"
        return {"policy": self.policy.identity, "reference": reference, "max_length": self.max_length}

    @contextmanager
    def _opened_reference(self) -> Iterator[tuple[nn.Module, LazyModel]]:
        """The reference, and how it was given; an adapter that is switched off for it is on again afterwards."""
        if self.reference is not None:
            yield self.reference.load(adapters=True)[0], self.reference
            return
        model, _ = self.policy.load(adapters=True)
        _check_own_reference(model)
        with without_adapter(model):
            yield model, self.policy

    def _sums(
        self, model: nn.Module, source: LazyModel, sequences: list[Sequence], progress: bool
    ) -> tuple[Tensor, int, int]:
        """Log-probabilities of the sequences, how many of them were read for it, and the tokens that this took."""
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
            self.cache.update({key: value for key, value in new.items() if np.isfinite(value)})
        return _column({**found, **new}, keys), len(missing), read.n_tokens

    def _digest(self, model: Any) -> str:
        """Of the model as it is now; computed again when a weight was written to, or another adapter is on."""
        adapted = isinstance(model, PeftModel)
        off, on = adapted and _is_off(model), list(model.active_adapters) if adapted else []
        state = (on, [(p.data_ptr(), p._version) for p in model.parameters()])
        known, digest = self._digests.get((id(model), off), (None, ""))
        if known != state:
            digest = weights_digest(_base_of(model)) if off else object_digest(model)
            self._digests[id(model), off] = (state, digest)
        return digest

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorers": {}, "_digests": {}}


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """The model that the adapter was put on; what may be trained is the same afterwards (PEFT alone resets it)."""
    with measured(model, []), model.disable_adapter():
        yield


def _check_own_reference(policy: Any) -> None:
    if not isinstance(policy, PeftModel):
        raise TrlRealError(
            f"The policy is a {type(policy).__name__} without an adapter to leave off. Give reference=…, the model "
            "that it was trained from."
        )
    active_adapter(policy)
    if getattr(policy.active_peft_config, "bias", "none") != "none":
        raise TrlRealError("The adapter trains biases of the base, which stay on without it. Give reference=….")


def _check_apart(policy: Any, reference: Any) -> None:
    if isinstance(policy, PeftModel) and reference in (policy, policy.get_base_model()):
        raise TrlRealError(
            "The reference is the very model that the policy's adapter was put into, and has it, too. Leave reference "
            "out: the policy without its adapter is taken."
        )


def _is_off(model: PeftModel) -> bool:
    return any(getattr(module, "disable_adapters", False) is True for module in model.modules())


def _base_of(model: PeftModel) -> Any:
    """What `weights_digest` reads of the model that the adapters were put on, under the names that it had then."""
    tuned = ("lora_", "modules_to_save.", "trainable_tokens_")
    tensors = model.get_base_model().state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in tuned)}
    plain = {name.replace(".base_layer.", ".").replace(".original_module.", "."): kept[name] for name in kept}
    return SimpleNamespace(state_dict=lambda: plain)


def _row(sequence: Sequence) -> Row:
    return Row(sequence.prompt, (sequence.response,))


def _key(tag: str, sequence: Sequence) -> str:
    ids = np.array((len(sequence.prompt), *sequence.prompt, *sequence.response), dtype=np.int64)
    return hashlib.sha256(tag.encode() + ids.tobytes()).hexdigest()[:32]


def _column(sums: dict[str, float], keys: list[str]) -> Tensor:
    """The sums of the sequences, 0 for blank ones. Shape `(N,)`."""
    return torch.tensor([sums.get(key, 0.0) for key in keys], dtype=torch.float64)
