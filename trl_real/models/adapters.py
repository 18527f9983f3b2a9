"""LoRA adapter of a PEFT model: parameters under stable names, and taps on the inputs and gradients of its layers."""

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


# Gets the name, the input and the output's gradient of a linear layer, both of shape (..., features).
Sink = Callable[[str, Tensor, Tensor], None]


def active_adapter(model: nn.Module) -> str:
    """
    Return the name of the active adapter.

    Raises:
        TrlRealError: If none or several are active, or the active one is disabled or merged into the weights.
    """
    if not isinstance(model, PeftModel):
        raise TrlRealError(
            f"Gradient features need a LoRA adapter, but the model is a {type(model).__name__}. "
            "Type: peft.get_peft_model(model, LoraConfig(target_modules='all-linear'))"
        )
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise TrlRealError("The PEFT model has no LoRA layer. Gradient features need peft.LoraConfig.")
    if any(layer.disable_adapters for layer in layers):
        raise TrlRealError("The model's adapter is disabled. Type: model.enable_adapter_layers()")
    if any(layer.merged for layer in layers):
        raise TrlRealError("The model's adapter is merged into its weights. Type: model.unmerge_adapter()")
    if len(model.active_adapters) != 1:
        raise TrlRealError(f"Adapters {model.active_adapters} are active. Choose one: model.set_adapter('…')")
    return model.active_adapters[0]


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """
    Return the adapter's parameters, under names without the adapter's name: equal for a new one on the same layers.

    These are LoRA's A and B, and everything else that trains with them (biases, DoRA's magnitudes, full modules).
    """
    name = re.escape(active_adapter(model))
    ours = re.compile(rf"^(.*\.)?(lora_\w+|modules_to_save|trainable_tokens_delta)\.{name}(\..*)?$")
    found = {}
    for full, parameter in model.get_base_model().named_parameters():
        if match := ours.match(full):
            found[(match[1] or "") + match[2] + (match[3] or "")] = parameter
    return found


def tapped_layers(model: PeftModel) -> dict[str, nn.Linear]:
    """Return the adapter's linear layers, A and B of each adapted layer, by the names of their weights."""
    adapter = active_adapter(model)
    layers = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A and adapter not in module.lora_variant:
            layers[f"{name}.lora_A.weight"] = module.lora_A[adapter]
            layers[f"{name}.lora_B.weight"] = module.lora_B[adapter]
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}


def hidden_from_taps(model: PeftModel) -> str:
    """Return why taps on A and B would miss a part of the adapter's gradient; empty if they do not."""
    layers, parameters = tapped_layers(model), adapter_parameters(model)
    missed = sorted(set(parameters) - set(layers))
    if missed:
        return f"{len(missed)} of its parameters are not plain LoRA matrices, such as {missed[0]}"
    if len({id(layer.weight) for layer in layers.values()}) < len(layers):
        return "some of its layers share their matrices"
    head = model.get_base_model().get_output_embeddings()
    if isinstance(head, LoraLayer):
        return "the output layer is adapted too"
    return ""


class _Tap(torch.autograd.Function):
    """Identity on a layer's output; its backward pass gives the layer's input and the gradient to the sink."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, sink: Callable[[Tensor, Tensor], None]) -> Tensor:
        # Saved through autograd, so that gradient checkpointing can drop and recompute it.
        ctx.save_for_backward(x)
        ctx.sink = sink
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.sink(ctx.saved_tensors[0], gradient)
        return gradient, None, None


class _Matrices(NamedTuple):
    """Adapted layer `x -> W x + b + s B A x`, in the precision of its products."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float


class _Adapted(torch.autograd.Function):
    """
    Plain adapted layer with both its taps, without the extra memory passes of PEFT's sums: saves a tenth of the time
    of a forward and backward pass.
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
    Call a sink with `(name, x, gradient)` in the backward pass, once per linear layer of the adapter and forward call.
    The gradient of its weight is `sum_t gradient_t x_t^T`, which is not computed here.

    Args:
        model: PEFT model with one LoRA adapter.
        sink_now: Function that returns the sink; called in the forward pass.
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
                module.forward = forward  # type: ignore[method-assign]  # undone when the taps are removed
                stack.callback(delattr, module, "forward")
        # No parameter requires a gradient (it would be a sum over the batch): the graph begins at the embeddings.
        embeddings = model.get_input_embeddings()
        stack.callback(embeddings.register_forward_hook(lambda _m, _i, output: output.requires_grad_()).remove)
        yield


def _is_plain(module: nn.Module) -> bool:
    """Return whether the layer is PEFT's on torch's Linear, and nothing (such as offloading) replaces its forward."""
    plain = type(module) is Linear and type(module.base_layer) is nn.Linear
    return plain and not any("forward" in vars(part) for part in (module, module.base_layer))


def _matrices(module: Linear, adapter: str, cast_to: torch.dtype | None) -> _Matrices:
    dtype = cast_to or module.base_layer.weight.dtype
    base, a, b = module.base_layer, module.lora_A[adapter], module.lora_B[adapter]
    weight, bias, below, above = _to(dtype, base.weight, base.bias, a.weight, b.weight)
    return _Matrices(weight, bias, below, above, module.scaling[adapter])


def _to(dtype: torch.dtype, *tensors: Any) -> list[Any]:
    return [tensor if tensor is None else tensor.detach().to(dtype) for tensor in tensors]


def _cast(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Run a layer with cast weights; autocast would cast them in every pass, since they require no gradient."""
    return nn.functional.linear(x.to(weight.dtype), weight, bias)


def _adapted(
    layer: _Matrices, names: list[str], sink_now: Callable[[], Sink], x: Tensor, *_args: Any, **_kwargs: Any
) -> Tensor:
    sinks = tuple(partial(sink_now(), name) for name in names)
    with torch.autocast(x.device.type, enabled=False):
        return _Adapted.apply(x, layer, sinks)


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers with gradient checkpointing, which run again in the backward pass."""
    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def measured(model: PeftModel, trainable: list[nn.Parameter], checkpointing: bool = True) -> Iterator[None]:
    """
    Switch to evaluation mode, without dropout, let only `trainable` require gradients, and restore all on leaving.

    Args:
        model: PEFT model in any mode.
        trainable: Parameters that require gradients.
        checkpointing: Whether to keep gradient checkpointing. It works in training mode only, so its layers are put in
            that mode, but not the dropouts inside.
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
