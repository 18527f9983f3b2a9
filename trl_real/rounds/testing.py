"""Tests of each round on labelled pairs; their reference log-probabilities are computed once per run."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from trl_real.data.convert import iterate
from trl_real.data.files import load, save
from trl_real.data.pairs import preference_candidates
from trl_real.errors import TrlRealError
from trl_real.functional.preference import implicit_margin, soft_label_loss
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.training.config import REALDPOConfig


REFERENCE = ("ref_chosen", "ref_rejected")


def save_test_pairs(pairs: Dataset, reference: Any, tokenizer: Any, config: REALDPOConfig, folder: Path) -> None:
    """
    Save the preferences with their log-probabilities under the reference, without rows that have no pair.

    Raises:
        TrlRealError: If no row has a pair.
    """
    rows = []
    for row in iterate(pairs):
        pair = preference_candidates(row.get("prompt"), row["chosen"], row["rejected"])
        if not pair.skipped:
            rows.append({"prompt": pair.prompt, "chosen": pair.texts[0], "rejected": pair.texts[1]})
    if not rows:
        raise TrlRealError(f"None of the {len(pairs)} rows of eval_dataset has two different responses. Give others.")
    found = Dataset.from_list(rows)
    for name, sums in zip(REFERENCE, _log_probs(reference, tokenizer, rows, config).tolist(), strict=True):
        found = found.add_column(name, sums)
    save(found, folder)


def metrics_on_test_pairs(policy: Any, tokenizer: Any, config: REALDPOConfig, folder: Path) -> dict[str, float]:
    """
    Return the metrics of a policy on the pairs of `save_test_pairs`, as in `DPOTrainer.evaluate`.

    Responses share the forward pass of their prompt, and the reference is not run again.

    Returns:
        `loss` (DPO's own, also if another loss is trained with), `accuracy` (a tie counts 1/2) and `margin`.
    """
    rows = list(iterate(load(str(folder))))
    reference = torch.tensor([[row[name] for row in rows] for name in REFERENCE], dtype=torch.float64)
    chosen, rejected = _log_probs(policy, tokenizer, rows, config)
    margin = implicit_margin(chosen, rejected, reference[0], reference[1], config.beta)
    right = (margin > 0).double() + (margin == 0).double() / 2
    found = {"loss": soft_label_loss(margin, 0.0), "accuracy": right, "margin": margin}
    return {name: values.mean().item() for name, values in found.items()}


def _log_probs(model: Any, tokenizer: Any, rows: list[dict[str, Any]], config: REALDPOConfig) -> torch.Tensor:
    """Return the log-probabilities of the chosen and of the rejected responses. Shape `(2, n)`."""
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    score = ResponseLogProbs(model, tokenizer, config.max_length or 2**20, dtype=dtype)
    texts = [row[name] for name in ("chosen", "rejected") for row in rows]
    return score([row["prompt"] for row in rows] * 2, texts).sums.view(2, -1)
