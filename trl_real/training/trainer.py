"""`REALDPOTrainer`: TRL's `DPOTrainer` with pair selection, soft labels and exact evaluation metrics."""

from contextlib import nullcontext
from functools import cached_property, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from peft import PeftModel
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import DPOConfig, DPOTrainer

from trl_real.errors import TrlRealError
from trl_real.functional.preference import compose_flips, implicit_margin
from trl_real.models.quantization import keep_unpacked
from trl_real.training.config import REALDPOConfig, check_has_effect
from trl_real.training.eval_rows import EvalRows, row_sums
from trl_real.training.forward_hooks import (
    PairLogProbs,
    Recorder,
    check_head,
    check_logits,
    extrapolated_pair,
    pair_log_probs,
)
from trl_real.training.noise.label_confidence import (
    CONFIDENCE,
    ConfidenceCollator,
    check_dataset,
    flip_probability,
    reads_soft_labels,
    without_confidence,
)
from trl_real.training.noise.window import NoiseWindow
from trl_real.training.selecting_trainer import SelectingDPOTrainer, checkpoint_folder
from trl_real.training.shared_prompts import SharedPrompts, shared_prompts_of


class REALDPOTrainer(SelectingDPOTrainer):
    r"""
    [`~trl.DPOTrainer`] that selects the pairs worth training on and learns from uncertain labels. It takes the same
    arguments, with a [`REALDPOConfig`] for the settings below.

    **Selection.** With `selection_strategy` and `selection_budget`, a strategy ranks the pairs by embeddings of their
    responses in the model to train (REAL, arXiv 2409.17169). The selection runs once, at init: after tokenization,
    which may drop rows, and before the reference's log-probabilities are computed, which then only the kept rows need.
    The same rows are kept as by [`EmbeddingPairSelector`] with the same weights (of a vision-language model by its
    language model, from the responses alone): an adapter in the given model counts,
    a new one from `peft_config` changes nothing. Evaluation sets keep all rows. With several processes, the main one
    selects and the others wait: if that could take longer than `ddp_timeout`, select beforehand. Each checkpoint
    contains the row numbers, and a resumed run trains on the same rows.

    **Labels.** A column `label_confidence` gives the probability in [0.5, 1] that `chosen` is the better response. The
    loss of a pair is then `-p log sigmoid(m) - (1 - p) log sigmoid(-m)`. With `noise_smoothing`, the labels of pairs
    with the lowest recent margins are smoothed as well (SPA, arXiv 2406.04412). Both need the loss "sigmoid".

    **Truncated responses.** If a column `chosen_finished` or `rejected_finished` is False, the trainer removes the end
    that TRL appends to the response.

    **Evaluation.** Every row counts once, whatever the batch size and the number of processes. TRL's metrics are
    extended by quantiles of the margin and by `margin_logratio`, the margin without `beta`; each of several evaluation
    sets keeps its name. A loss other than "sigmoid" is TRL's mean over batches, weighted by their number of rows.

    Without these settings and columns the trainer has the same losses as `DPOTrainer`, up to rounding, and faster: the
    prompt of two responses is read once (`shared_prompts=False`: bit for bit). It never sends telemetry.

    ```python
    args = REALDPOConfig("aligned", selection_strategy="easy", selection_budget=0.25)
    trainer = REALDPOTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", args=args, train_dataset=dataset)
    trainer.train()
    ```

    Attributes:
        selection_record (`SelectionRecord`, *optional*):
            Record of the selection, if there was one. It is added to the model card and to every saved model.
        selected_rows (`np.ndarray`, *optional*):
            Numbers of the selected rows in the given training set, ascending.
        evaluation_rows (`dict[str, dict[str, Tensor]]`):
            Values of each pair in the last evaluation, in the order of the dataset, by metric prefix such as `"eval"`
            or `"eval_test"`: log-probabilities `chosen`, `rejected`, `ref_chosen`, `ref_rejected`, and more. Shape
            `(N,)` each.

    Raises:
        TrlRealError: With a selection, if the training set is a stream, lacks a column or has no row with a pair, if
            the budget exceeds its rows, or if the model is sharded; if a `label_confidence` is invalid or the loss
            would ignore it; if the rows of a checkpoint do not belong to the training set.
    """

    _tag_names = [*DPOTrainer._tag_names, "trl-real"]

    _noise: NoiseWindow | None = None
    _head_is_checked = False
    _eval_rows: EvalRows | None = None
    evaluation_rows: dict[str, dict[str, Tensor]] = {}

    if not TYPE_CHECKING:  # type checkers see the arguments of `DPOTrainer`

        @wraps(DPOTrainer.__init__, assigned=())
        def __init__(self, *args, **kwargs):
            given = signature(DPOTrainer).bind(*args, **kwargs).arguments
            check_given(given)
            super().__init__(*args, **kwargs)
            if getattr(self.args, "noise_extrapolation", 0):
                model = self.accelerator.unwrap_model(self.model)
                check_logits(model.config, "Type noise_extrapolation=0.")
            keep_unpacked(self.model)
            self.data_collator = ConfidenceCollator(self.data_collator)
            if _smooths(self.args):
                self._noise = NoiseWindow(self.args.noise_window, self.args.noise_share)
            if getattr(self.args, "shared_prompts", None):
                _ = self.shared_prompts  # an error comes now, not in the first step

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report the run here."""

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Train; a run that resumes from a checkpoint uses its rows and its window of margins."""
        if self._noise is not None:
            self._noise.load(checkpoint_folder(resume_from_checkpoint, self.args))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _save_checkpoint(self, model, trial):
        if self._noise is not None and self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._noise.save(Path(self._get_output_dir(trial=trial)) / folder)
        super()._save_checkpoint(model, trial)

    # The loss.

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if CONFIDENCE not in self._signature_columns:
            self._signature_columns: list[str] = [*self._signature_columns, CONFIDENCE]

    def compute_ref_log_probs(self, model, inputs):
        """Compute TRL's reference log-probabilities of a batch, without its confidences, which no model takes."""
        with self._reading():
            return super().compute_ref_log_probs(model, without_confidence(inputs))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss of a batch; see `shared_prompts` of [`REALDPOConfig`]."""
        with self._reading():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @cached_property
    def shared_prompts(self) -> SharedPrompts | None:
        """How the models read shared prompts once, if they do; checked at first use."""
        return shared_prompts_of(self)

    def _reading(self):
        return nullcontext() if self.shared_prompts is None else self.shared_prompts.reading()

    def _compute_loss(self, model, inputs, return_outputs):
        confidence, inputs = inputs.get(CONFIDENCE), without_confidence(inputs)
        flip = None if confidence is None else flip_probability(confidence, self.args)
        training = self.model.training
        if training and confidence is not None:
            self._log_train("label_confidence", self.accelerator.gather(confidence).mean().item())
        noise, rows = (self._noise, None) if training else (None, self._eval_rows)
        if flip is None and noise is None and rows is None:
            return super()._compute_loss(model, inputs, return_outputs)
        with self._recorder(with_states=noise is not None and self.args.noise_extrapolation > 0) as record:
            result = super()._compute_loss(model, inputs, return_outputs)
            if record.with_states and self.precompute_ref_logps:
                self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        loss = result[0] if return_outputs else result
        pair = pair_log_probs(record, inputs, self.ld_alpha, self.precompute_ref_logps)
        if noise is not None:
            flip = self._with_noise(flip, record, pair, inputs)
        if flip is not None:
            margin = implicit_margin(pair.chosen, pair.rejected, pair.ref_chosen, pair.ref_rejected, self.beta)
            loss = loss + self.loss_weights[0] * (flip * margin).mean()
        if rows is not None:
            rows.add(self.accelerator.gather_for_metrics(row_sums(record, pair, inputs, loss, flip)))
        return (loss, result[1]) if return_outputs else loss

    def _recorder(self, with_states: bool) -> Recorder:
        reference = None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        return Recorder(self.accelerator.unwrap_model(self.model), reference, with_states)

    @torch.no_grad()
    def _with_noise(
        self, flip: Tensor | None, record: Recorder, pair: PairLogProbs, inputs: dict[str, Any]
    ) -> Tensor | None:
        """Return the labels' flip probabilities, with SPA's smoothing of doubtful pairs. Shape `(B,)`, or None."""
        chosen, rejected, ref_chosen, ref_rejected = pair.detached()
        if record.with_states:
            if not self._head_is_checked:
                check_head(record, inputs)
                self._head_is_checked = True
            chosen, rejected = extrapolated_pair(record, inputs, self.args.noise_extrapolation, self.ld_alpha)
        margin = implicit_margin(chosen, rejected, ref_chosen, ref_rejected, self.beta).float()
        margins = self.accelerator.gather(margin).cpu().double().numpy()
        assert self._noise is not None
        threshold = self._noise.threshold  # From earlier batches only.
        self._noise.add(margins)
        if threshold is not None:
            self._log_train("noise/threshold", threshold)
        warming_up = self.state.global_step < self.args.noise_warmup * self.state.max_steps
        if threshold is None or warming_up:
            self._log_train("noise/flagged", 0.0)
            return flip
        self._log_train("noise/flagged", float((margins < threshold).mean()))
        doubtful = (margin.cpu().double() < threshold).to(margin.device)
        if not doubtful.any():
            return flip
        own = torch.zeros_like(margin) if flip is None else flip
        return compose_flips(own, self.args.noise_smoothing * doubtful.float())

    def _log_train(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    # Evaluation.

    def evaluate(self, *args, **kwargs):
        """Evaluate, and log the metrics that callbacks add."""
        metrics = super().evaluate(*args, **kwargs)
        logged = {name for row in self.state.log_history if row["step"] == self.state.global_step for name in row}
        added = {name: value for name, value in metrics.items() if name not in logged}
        if added:
            self.log(added)
        return metrics

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Run the loop of `evaluate` and `predict`, with exact metrics under the prefix of their dataset."""
        self._eval_rows = EvalRows()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            sigmoid = reads_soft_labels(self.args) and not self.aux_loss_enabled
            metrics = self._eval_rows.metrics(self.beta, self.loss_weights[0] if sigmoid else None)
            self.evaluation_rows = {**self.evaluation_rows, metric_key_prefix: self._eval_rows.columns()}
        finally:
            self._eval_rows = None
        # TRL's `log` would add these as means over batches, with the prefix "eval" for every dataset.
        others = {name: sum(values) / len(values) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        output.metrics.update({f"{metric_key_prefix}_{name}": x for name, x in {**others, **metrics}.items()})
        return output


def check_given(given: dict[str, Any]) -> None:
    """
    Check, before a model is loaded, that data and settings fit together.

    Args:
        given: Arguments of the trainer by name.

    Raises:
        TrlRealError: If they do not.
    """
    args = given.get("args")
    if isinstance(args, DPOConfig):
        check_has_effect(args)
    held_out = given.get("eval_dataset")
    held_out = held_out if isinstance(held_out, dict) else {"": held_out}
    check_dataset(given.get("train_dataset"), "the training set", args)
    for name, dataset in held_out.items():
        check_dataset(dataset, f"the evaluation set {name}".strip(), args)
    peft = given.get("peft_config") is not None or isinstance(given.get("model"), PeftModel)
    reruns = peft or given.get("ref_model") is not None
    if _smooths(args) and args.noise_extrapolation and args.precompute_ref_log_probs and not reruns:
        raise TrlRealError(
            f"noise_extrapolation={args.noise_extrapolation} runs the reference in every step, but "
            "precompute_ref_log_probs=True removes it. Type precompute_ref_log_probs=False, or give a ref_model."
        )


def _smooths(args: DPOConfig | None) -> TypeGuard[REALDPOConfig]:
    """Return whether the configuration asks for smoothing of doubtful pairs."""
    return isinstance(args, REALDPOConfig) and args.noise_smoothing > 0
