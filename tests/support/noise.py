"""Training with labels that can be wrong, and a naive computation of its losses."""

import math

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM

from support.training import LORA, config, naive_log_probs, words
from trl_real import REALDPOConfig, REALDPOTrainer


MODES = ["plain", "lora", "precompute", "lora precompute", "reference", "streaming", "accumulation", "ld_alpha"]

BETA = 0.1


def short_pairs(n: int = 24) -> list[dict]:
    """Of few words, so that sums of log-probabilities in float32 are right to 1e-6."""
    return [
        {"prompt": f"{i}? ", "chosen": words(i, 1 + i % 2), "rejected": words(i + 50, 1 + i % 3)} for i in range(n)
    ]


def soft_pairs(n: int = 24) -> list[dict]:
    return [{**row, "label_confidence": [1.0, 0.9, 0.5, 0.75][i % 4]} for i, row in enumerate(short_pairs(n))]


def naive_quantile(margins, share):
    """The order statistic number `share (h + 1)`, between two of them by the straight line."""
    ordered, place = sorted(margins), share / 100 * (len(margins) + 1)
    low = min(max(math.floor(place), 1), len(ordered))
    high = min(max(math.ceil(place), 1), len(ordered))
    return ordered[low - 1] + (place - math.floor(place)) * (ordered[high - 1] - ordered[low - 1])


def naive_loss(margin, flip):
    log_sigmoid = -np.logaddexp(0, -margin)
    return -(1 - flip) * log_sigmoid - flip * (log_sigmoid - margin)


class Checking(REALDPOTrainer):
    """Works out every step's loss from logits before it is taken, with the weights that it is taken at."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = {name: value.clone() for name, value in inputs.items()}
        alpha = 1.0 if self.ld_alpha is None else self.ld_alpha
        policy = naive_log_probs([self.model], inputs, ld_alpha=alpha)
        reference = naive_log_probs([self.reference], inputs, ld_alpha=alpha)
        margin = BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
        flip = (
            1 - inputs["label_confidence"].double().numpy() if "label_confidence" in inputs else np.zeros(len(margin))
        )
        self.plain.append(naive_loss(margin, 0 * flip).mean())
        if self._noise is not None:
            flip = self.naive_smoothing(inputs, margin, reference, flip, alpha)
        self.expected.append(naive_loss(margin, flip).mean())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.found.append(loss.item() * self.current_gradient_accumulation_steps)
        return loss

    def naive_smoothing(self, inputs, margin, reference, flip, alpha):
        args, detected = self.args, margin
        if args.noise_extrapolation:
            extrapolated = naive_log_probs([self.model, self.reference], inputs, args.noise_extrapolation, alpha)
            detected = BETA * ((extrapolated[0] - reference[0]) - (extrapolated[1] - reference[1]))
        known, self.seen = self.seen[-args.noise_window :], [*self.seen, *detected]
        late = self.state.global_step >= args.noise_warmup * self.state.max_steps
        if len(known) < min(args.noise_window, 50):
            return flip
        threshold = naive_quantile(known, args.noise_share)
        self.thresholds.append(threshold)
        doubtful = (detected < threshold) & late
        self.flagged.append(doubtful.mean())
        smoothing = args.noise_smoothing * doubtful
        return flip * (1 - smoothing) + (1 - flip) * smoothing


def checking(mode, folder, model, other, rows, kind=REALDPOConfig, **changes):
    """A trainer in a mode, which is given the reference's weights for its own sums."""
    dataset = Dataset.from_list(rows)
    given = {"peft_config": LORA} if "lora" in mode else {}
    reference = AutoModelForCausalLM.from_pretrained(other if mode == "reference" else model)
    if mode == "reference":
        given["ref_model"] = AutoModelForCausalLM.from_pretrained(other)
    settings = {"precompute_ref_log_probs": "precompute" in mode, "gradient_checkpointing": False, **changes}
    settings |= {"accumulation": {"gradient_accumulation_steps": 3}, "ld_alpha": {"ld_alpha": 0.4}}.get(mode, {})
    if mode == "streaming":
        dataset = dataset.to_iterable_dataset()
    trainer = Checking(model, args=config(folder, kind, **settings), train_dataset=dataset, **given)
    trainer.reference = reference.eval()
    for name in ("found", "expected", "plain", "flagged", "thresholds", "seen"):
        setattr(trainer, name, [])
    return trainer
