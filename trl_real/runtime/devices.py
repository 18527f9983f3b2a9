"""Devices of this machine. Nothing else in the package asks for an accelerator by its name."""

from typing import Any


def accelerator() -> str | None:
    """Return the type of this machine's accelerator, such as `"cuda"` (also ROCm), `"mps"` or `"xpu"`, or None."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None else None


def default_device(rank: int | None = None) -> str:
    """Return the accelerator, of several the one of this rank, or else the CPU."""
    import torch

    kind = accelerator()
    if kind is None:
        return "cpu"
    return kind if rank is None else f"{kind}:{rank % torch.accelerator.device_count()}"


def bfloat16_is_fast() -> bool:
    """Return whether the accelerator, or without one the CPU, has instructions for bfloat16."""
    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    if accelerator() is not None:
        return is_torch_bf16_gpu_available()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_kernel_compiler(device: Any) -> bool:
    """Return whether torch compiles kernels for a device that are worth it: not for CPUs, nor for Apple's."""
    return device.type not in ("cpu", "mps")


def free_memory(device: Any) -> int | None:
    """Return the number of free bytes on an accelerator; None for a CPU, and for a device that does not tell."""
    import torch

    if device.type == "cpu":
        return None
    try:
        return torch.accelerator.get_memory_info(device)[0]
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):
        return None


def computes_ahead(device: Any) -> bool:
    """Return whether a device works while the caller continues; a CPU does not."""
    return device.type != "cpu"


def send(values: Any, device: Any, **options: Any) -> Any:
    """Return a tensor of the values on a device, without waiting for the copy where the memory can be pinned."""
    import torch

    device, tensor = torch.device(device), torch.as_tensor(values, **options)
    if has_kernel_compiler(device) and torch.accelerator.is_available():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
