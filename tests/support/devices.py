"""Accelerators that this machine does not have."""

import torch


def made_up_accelerator(monkeypatch, kind: str | None, n: int = 4) -> None:
    """Let torch report `n` accelerators of a type, or None; those of type `"meta"` hold models without numbers."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: kind and torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: n if kind else 0)
