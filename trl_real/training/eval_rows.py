"""Exact evaluation metrics: every row counts once, whatever the batch size and the number of processes."""

from typing import Any

import torch
from torch import Tensor

from trl_real.functional.preference import preference_metrics
from trl_real.training.forward_hooks import PairLogProbs, Recorder, aligned


COLUMNS = (
    "chosen", "rejected", "ref_chosen", "ref_rejected", "flip", "loss", "entropy",
    "tokens_chosen", "tokens_rejected", "logits_chosen", "logits_rejected", "top1_chosen",
)  # fmt: skip


def row_sums(
    record: Recorder, pair: PairLogProbs, inputs: dict[str, Any], loss: Tensor, flip: Tensor | None
) -> Tensor:
    """
    Return the values of each pair of a batch, from which `EvalRows` computes the metrics.

    Args:
        loss: Mean loss of the batch, used as the loss of each row.
        flip: Probability that a label is wrong. Shape `(B,)`; None for 0.

    Returns:
        One row per pair, with the columns of `COLUMNS`. Shape `(B, 12)`, float32.
    """
    mask = inputs["completion_mask"][:, 1:]

    def sums(name: str) -> Tensor:
        return (aligned(getattr(record.policy.outputs, name).detach(), mask).float() * mask).sum(1).view(2, -1)

    chosen = pair.chosen.detach().float()
    tokens, logits = mask.sum(1).view(2, -1), sums("mean_logits")
    columns = [
        *pair.detached(),
        torch.zeros_like(chosen) if flip is None else flip,
        loss.detach().expand_as(chosen),
        sums("entropy").sum(0),
        *tokens,
        *logits,
        sums("is_top1")[0],
    ]
    return torch.stack([column.float() for column in columns], 1)


class EvalRows:
    """Values of all pairs of an evaluation set, gathered from all processes."""

    def __init__(self):
        self.batches: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add a batch of all processes, without the rows that were repeated to fill it. Shape `(n, 12)`."""
        self.batches.append(rows.cpu())

    def columns(self) -> dict[str, Tensor]:
        """Return the values of all pairs by column, float64. Shape `(N,)` each; {} without rows."""
        if not self.batches:
            return {}
        return dict(zip(COLUMNS, torch.cat(self.batches).double().unbind(1), strict=True))

    def metrics(self, beta: float, loss_weight: float | None) -> dict[str, float]:
        """
        Return TRL's and REAL's metrics by name, as means over rows and tokens instead of batches; {} without rows.

        Args:
            loss_weight: Weight of DPO's loss, which is then exact. None for another loss, which is the mean over
                batches, weighted by their number of rows.
        """
        rows = self.columns()
        if not rows:
            return {}
        logps = [rows[name] for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")]
        metrics = preference_metrics(logps[0], logps[1], logps[2], logps[3], beta, rows["flip"])
        exact = metrics["loss"] * (loss_weight or 0.0)
        total = {name: rows[name].sum().item() for name in COLUMNS}
        n_tokens = total["tokens_chosen"] + total["tokens_rejected"]
        return metrics | {
            "loss": rows["loss"].mean().item() if loss_weight is None else exact,
            "entropy": _ratio(total["entropy"], n_tokens),
            "logits/chosen": _ratio(total["logits_chosen"], total["tokens_chosen"]),
            "logits/rejected": _ratio(total["logits_rejected"], total["tokens_rejected"]),
            "mean_token_accuracy": _ratio(total["top1_chosen"], total["tokens_chosen"]),
        }


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0
