"""A prompt that a pair's responses share is read once: the forward pass under TRL's loss, without padding."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput
from trl import DPOTrainer
from trl.trainer import utils as head

from trl_real.errors import TrlRealError
from trl_real.models.adapters import measured
from trl_real.models.attention.exactness import gives_the_same, made_up
from trl_real.models.attention.segments import attend_within_given_segments, attentions_for
from trl_real.models.passes import CHUNK
from trl_real.models.prefixes import LEAST
from trl_real.models.read_once import fits, is_random, lay_out


logger = logging.getLogger(__name__)

# What TRL gives to a model of texts; with any other input, such as images or a prompt adapter's, all is TRL's.
INPUTS = {"input_ids", "attention_mask", "use_cache", "return_dict", "labels", "fused_lm_head"}
WORDS = "_CHUNKED_LOGPROB_CHUNK_SIZE"  # of `trl.trainer.utils`: number of words whose logits are computed together
WINDOW = "a row is longer than the model's attention window, or than the length at which its positions change"


class SharedPrompts:
    """
    Reads each token of a batch once: the tokens that rows have in common at their beginning, no padding, and the
    model's head only at labels. All that TRL computes from log-probabilities stays TRL's.

    Args:
        models: Causal language models with TRL's fused head, as `reading` takes them.
        required: Whether to read so in any case: with dropout, rows then share the mask of their common tokens.
    """

    def __init__(self, models: list[nn.Module], required: bool = False):
        self.models, self.required = models, required
        self.random = {model: is_random(model) for model in models}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the models read each token once, where they are called with TRL's fused head."""
        with ExitStack() as stack:
            for model in self.models:
                stack.enter_context(self._installed(model))
            yield

    def is_exact(self, model: Any) -> bool:
        """Return whether log-probabilities and gradients of made-up pairs are those of padded rows."""
        vocabulary = min(997, model.get_input_embeddings().weight.shape[0])
        a, b, c, d, e = made_up(vocabulary, (LEAST + 4, 5, 3, 9, 7))
        if not fits(model.config.get_text_config(), len(a + b)):
            return False
        inputs = _padded([a + b, d, a + c, e], model.device)

        @cache
        def found(name: str = "") -> tuple[Tensor, Tensor]:
            with self._installed(model) if name else nullcontext():
                return _log_probs_and_gradients(model, inputs, vocabulary)

        def agree(i: int) -> bool:
            return gives_the_same(lambda: found(name)[i], lambda: found()[i], model.dtype == torch.float32)

        names = attentions_for(model.device)
        with measured(model, []), torch.enable_grad(), torch.autocast(model.device.type, enabled=False):
            for name in names[-1:] if self.random[model] else names:  # the last one has dropout
                attend_within_given_segments(_backbone(model), name)
                if agree(0) and agree(1):
                    return True
        return False

    @contextmanager
    def _installed(self, model: nn.Module) -> Iterator[None]:
        own = model.forward
        model.forward = partial(self._forward, model, own)
        try:
            yield
        finally:
            model.forward = own

    def _forward(self, model: nn.Module, own: Callable[..., Any], *args: Any, **inputs: Any) -> Any:
        """Run `own`, the model's forward pass, on a layout of the batch, and put its outputs back at their places."""
        given = {name: value for name, value in inputs.items() if value is not None}
        if args or not given.get("fused_lm_head") or not {"labels", "attention_mask"} <= given.keys() <= INPUTS:
            return own(*args, **inputs)
        if self.random[model] and model.training and not self.required:
            return own(**inputs)
        tokens, labels = given["input_ids"], given["labels"][:, 1:]
        labelled = labels != -100
        found = lay_out(tokens, given["attention_mask"], labelled)
        if found is None:
            return own(**inputs)
        layout, before = found
        if not fits(model.config.get_text_config(), tokens.shape[1]):  # type: ignore[union-attr, operator]
            if self.required:
                raise TrlRealError(f"shared_prompts=True: {WINDOW}. Type shared_prompts=None, or a lower max_length.")
            return own(**inputs)
        with _kept(_backbone(model), before), _cached_tiles(len(before), tokens.device):
            rest = {"fused_lm_head": True, "shift_labels": labels[labelled][None], "use_cache": False}
            return _put_back(own(**layout.inputs(tokens.device), **rest), labelled)


def shared_prompts_of(trainer: DPOTrainer) -> SharedPrompts | None:
    """
    Return how the trainer's models read shared prompts once, or None if they do not; say which, and why.

    Raises:
        TrlRealError: If the setting `shared_prompts` is True and they cannot.
    """
    asked, reason = getattr(trainer.args, "shared_prompts", None), reason_against(trainer)
    if asked is False:
        return None
    if reason is None:
        models = [trainer.model] if trainer.ref_model is None else [trainer.model, trainer.ref_model]
        shared = SharedPrompts([_causal_lm(trainer.accelerator.unwrap_model(model)) for model in models], bool(asked))
        if all(map(shared.is_exact, shared.models)):
            only = any(shared.random.values()) and not asked
            logger.info("Prompts are read once%s.", " in evaluation; in training there is dropout" if only else "")
            return shared
        reason = "on made-up pairs it differs from padding, as with a short window or attention of the model's own"
    if asked:
        raise TrlRealError(f"shared_prompts=True: {reason}. Type shared_prompts=None.")
    logger.warning("Prompts are not read once: %s.", reason)
    return None


def reason_against(trainer: DPOTrainer) -> str | None:
    """Return why prompts cannot be read once, as far as settings tell, or None."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    router_loss = trainer.aux_loss_enabled or getattr(model.config.get_text_config(), "output_router_logits", False)
    compiled = trainer.args.torch_compile or trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    reasons = {
        "the model is compiled": compiled,
        "the model reads images": trainer._is_vlm or trainer._is_vision_dataset,
        "the adapter puts tokens of its own before each row": any(config.is_prompt_learning for config in configs),
        "the router's loss counts padded tokens": router_loss,
        "the model or its batches are sharded": sharded or trainer.accelerator.parallelism_config is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _causal_lm(model: Any) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _backbone(model: Any) -> nn.Module:
    return model.base_model


@contextmanager
def _kept(backbone: nn.Module, places: list[int]) -> Iterator[None]:
    """Let only the last hidden states at these places out of the backbone, before other hooks see them."""

    def keep(_module: nn.Module, _args: tuple, outputs: ModelOutput) -> ModelOutput:
        outputs["last_hidden_state"] = outputs["last_hidden_state"][:, places]
        return outputs

    handle = backbone.register_forward_hook(keep, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _cached_tiles(n_labels: int, device: torch.device) -> Iterator[None]:
    """
    Let TRL's head take as many words at a time as fit into a CPU's cache with these labels. TRL's 32,768 take twice as
    long there, mostly to get memory from the system and give it back.
    """
    before = getattr(head, WORDS, None)
    if before is not None and device.type == "cpu":
        setattr(head, WORDS, min(before, max(512, CHUNK // n_labels)))
    try:
        yield
    finally:
        if before is not None:
            setattr(head, WORDS, before)


def _put_back(outputs: ModelOutput, labelled: Tensor) -> ModelOutput:
    """Return the outputs with each value per label at its place. Shape `(1, T)` to `(B, L - 1)`, 0 elsewhere."""
    for name, values in list(outputs.items()):
        if isinstance(values, Tensor) and values.ndim == 2:
            mask = labelled.to(values.device)
            outputs[name] = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return outputs


def _padded(rows: list[tuple[int, ...]], device: torch.device) -> dict[str, Any]:
    """Return the inputs for rows whose first two tokens have no label."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]
    column = torch.arange(longest, device=device)
    labels = tokens.masked_fill((column < 2) | (column >= lengths), -100)
    return {"input_ids": tokens, "attention_mask": (column < lengths).long(), "labels": labels, "fused_lm_head": True}


def _log_probs_and_gradients(model: Any, inputs: dict[str, Any], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities, shape `(B, L - 1)`, and the gradient of their sum per input token, shape `(V, d)`."""
    seen: list[tuple[Tensor, Tensor]] = []

    def embedded(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        seen.append((args[0].flatten(), output.detach().requires_grad_()))
        return seen[0][1]

    handle = model.get_input_embeddings().register_forward_hook(embedded)
    try:
        log_probs = model(**inputs).log_probs  # with its hooks, which gather sharded weights
    finally:
        handle.remove()
    tokens, states = seen[0]
    (gradient,) = torch.autograd.grad(log_probs.sum(), states)
    summed = torch.zeros(vocabulary, states.shape[-1], device=tokens.device)
    return log_probs.detach(), summed.index_add_(0, tokens, gradient.flatten(0, 1).float())
