"""A PEFT model's LoRA adapter: its parameters by stable names, and taps that see what flows through its layers."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from trl_real.errors import TrlRealError


# Sees the input and the gradient of the output of a linear layer, both of shape (..., features).
Sink = Callable[[str, Tensor, Tensor], None]


def active_adapter(model: nn.Module) -> str:
    """
    Name of the one adapter that is on.

    Raises:
        TrlRealError: If the model has none, several, one that is off or one that is merged into the weights.
    """
    if not isinstance(model, PeftModel):
        raise TrlRealError(
            f"Gradient features are those of a LoRA adapter, but the model is a {type(model).__name__}. "
            "Type: peft.get_peft_model(model, LoraConfig(target_modules='all-linear'))"
        )
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise TrlRealError("The PEFT model has no LoRA layer. Gradient features need peft.LoraConfig.")
    if any(layer.disable_adapters for layer in layers):
        raise TrlRealError("The model's adapter is switched off. Type: model.enable_adapter_layers()")
    if any(layer.merged for layer in layers):
        raise TrlRealError("The model's adapter is merged into its weights. Type: model.unmerge_adapter()")
    if len(model.active_adapters) != 1:
        raise TrlRealError(f"Adapters {model.active_adapters} are on. Choose one: model.set_adapter('…')")
    return model.active_adapters[0]


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """
    The adapter's parameters, under names that hold no name of an adapter: a new one on the same layers has the same.

    LoRA's A and B first of all, but also whatever else trains with it (biases, DoRA's magnitudes, whole modules).
    """
    name = re.escape(active_adapter(model))
    ours = re.compile(rf"^(.*\.)?(lora_\w+|modules_to_save|trainable_tokens_delta)\.{name}(\..*)?$")
    found = {}
    for full, parameter in model.get_base_model().named_parameters():
        if match := ours.match(full):
            found[(match[1] or "") + match[2] + (match[3] or "")] = parameter
    return found


def tapped_layers(model: PeftModel) -> dict[str, nn.Linear]:
    """The adapter's linear layers, A and B of each adapted layer, by the names of their weights."""
    adapter = active_adapter(model)
    layers = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A and adapter not in module.lora_variant:
            layers[f"{name}.lora_A.weight"] = module.lora_A[adapter]
            layers[f"{name}.lora_B.weight"] = module.lora_B[adapter]
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}


def hidden_from_taps(model: PeftModel) -> str:
    """Why taps on A and B would miss a part of the adapter's gradient; empty if they see all of it."""
    layers, parameters = tapped_layers(model), adapter_parameters(model)
    missed = sorted(set(parameters) - set(layers))
    if missed:
        return f"{len(missed)} of its parameters are no plain LoRA matrices, such as {missed[0]}"
    if len({id(layer.weight) for layer in layers.values()}) < len(layers):
        return "some of its layers share their matrices"
    head = model.get_base_model().get_output_embeddings()
    if isinstance(head, LoraLayer):
        return "the output layer is adapted, too"
    return ""


class _Tap(torch.autograd.Function):
    """The identity on a layer's output; on the way back it shows the layer's input and the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, sink: Callable[[Tensor, Tensor], None]) -> Tensor:
        # Saved through autograd, so that gradient checkpointing may drop it and compute it again.
        ctx.save_for_backward(x)
        ctx.sink = sink
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.sink(ctx.saved_tensors[0], gradient)
        return gradient, None, None


class _Matrices(NamedTuple):
    """An adapted layer `x -> W x + b + s B A x`, in the precision of its products."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float


class _Adapted(torch.autograd.Function):
    """
    A plain adapted layer and both its taps in one, without the passes over memory that PEFT's own sums take: a tenth
    of the time of a forward and backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Matrices, sinks: tuple[Callable, Callable]) -> Tensor:
        flat = x.detach().to(layer.weight.dtype).flatten(0, -2)  # (T, n)
        inner = flat @ layer.a.T  # (T, r)
        output = nn.functional.linear(flat, layer.weight, layer.bias).addmm_(inner, layer.b.T, alpha=layer.scale)
        ctx.save_for_backward(flat, inner)
        ctx.layer, ctx.sinks, ctx.shape, ctx.dtype = layer, sinks, x.shape[:-1], x.dtype
        return output.view(*ctx.shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (flat, inner), layer, shape = ctx.saved_tensors, ctx.layer, ctx.shape
        gradient = gradient.flatten(0, -2).to(flat)  # (T, m)
        back = (gradient @ layer.b).mul_(layer.scale)  # (T, r)
        for sink, x, found in zip(ctx.sinks, (flat, inner * layer.scale), (back, gradient), strict=True):
            sink(x.view(*shape, -1), found.view(*shape, -1))
        below = (gradient @ layer.weight).addmm_(back, layer.a)  # (T, n)
        return below.view(*shape, -1).to(ctx.dtype), None, None


@contextmanager
def taps(model: PeftModel, sink_now: Callable[[], Sink], cast_to: torch.dtype | None = None) -> Iterator[None]:
    """
    While entered, a backward pass calls its sink with `(name, x, gradient)` once for each of the adapter's linear
    layers and each time it ran: the gradient in its weight is `sum_t gradient_t x_t^T`, which is not formed.

    Args:
        model: With one LoRA adapter.
        sink_now: Gives what to do with them; asked in the forward pass.
        cast_to: Precision of the products, by default that of the weights.
    """

    def tap(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _Tap.apply(output, inputs[0].detach(), partial(sink_now(), name))

    adapter, layers = active_adapter(model), tapped_layers(model)
    with ExitStack() as stack:
        for name, module in model.get_base_model().named_modules():
            names = [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]
            if names[0] in layers and _is_plain(module):
                module.forward = partial(_adapted, _matrices(module, adapter, cast_to), names, sink_now)
                stack.callback(delattr, module, "forward")
            elif names[0] in layers:
                for full in names:
                    stack.callback(layers[full].register_forward_hook(partial(tap, full)).remove)
            elif cast_to and type(module) is nn.Linear and "forward" not in vars(module) and ".lora_" not in name:
                forward = partial(_cast, *_to(cast_to, module.weight, module.bias))
                module.forward = forward  # type: ignore[method-assign]  # of this layer only, until the taps go
                stack.callback(delattr, module, "forward")
        # No parameter takes a gradient (it would be a sum over the batch): the graph begins at the embeddings.
        embeddings = model.get_input_embeddings()
        stack.callback(embeddings.register_forward_hook(lambda _m, _i, output: output.requires_grad_()).remove)
        yield


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer is PEFT's and torch's own, and nobody (offloading, say) has put a hand in between."""
    whole = type(module) is Linear and type(module.base_layer) is nn.Linear
    return whole and not any("forward" in vars(part) for part in (module, module.base_layer))


def _matrices(module: Linear, adapter: str, cast_to: torch.dtype | None) -> _Matrices:
    dtype = cast_to or module.base_layer.weight.dtype
    base, a, b = module.base_layer, module.lora_A[adapter], module.lora_B[adapter]
    weight, bias, below, above = _to(dtype, base.weight, base.bias, a.weight, b.weight)
    return _Matrices(weight, bias, below, above, module.scaling[adapter])


def _to(dtype: torch.dtype, *tensors: Any) -> list[Any]:
    return [tensor if tensor is None else tensor.detach().to(dtype) for tensor in tensors]


def _cast(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """A layer whose weights autocast would cast again in every pass, since none of them takes a gradient."""
    return nn.functional.linear(x.to(weight.dtype), weight, bias)


def _adapted(
    layer: _Matrices, names: list[str], sink_now: Callable[[], Sink], x: Tensor, *_args: Any, **_kwargs: Any
) -> Tensor:
    sinks = tuple(partial(sink_now(), name) for name in names)
    with torch.autocast(x.device.type, enabled=False):
        return _Adapted.apply(x, layer, sinks)


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that keep no activations and run again on the way back."""
    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def measured(model: PeftModel, trainable: list[nn.Parameter], checkpointing: bool = True) -> Iterator[None]:
    """
    Put the model in evaluation mode, without dropout, let `trainable` alone take gradients, and undo it all after.

    Args:
        model: With whatever was switched on.
        trainable: Parameters.
        checkpointing: Keep to gradient checkpointing where it is on. Its layers know it in training mode only, so they
            alone, and not the dropouts within them, are put in it.
    """
    training = [module for module in model.modules() if module.training]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    model.eval()
    checkpointed = checkpointed_layers(model) if checkpointing else []
    try:
        for module in checkpointed:
            module.training = True
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        for module in checkpointed:
            module.training = False
        for module in training:
            module.training = True
        for parameter, required, gradient in parameters:
            parameter.requires_grad_(required)
            parameter.grad = gradient
