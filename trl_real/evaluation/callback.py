"""Callback that measures the win rate and the length of completions during training."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trl_real.data.conversation import dialogue
from trl_real.errors import TrlRealError
from trl_real.evaluation.compare import compare
from trl_real.evaluation.comparison import Comparison
from trl_real.labeling.verdicts import Judge
from trl_real.runtime.digests import sha256
from trl_real.runtime.journal import Journal


WIN_RATES_FILE, PICTURE = "win_rates.jsonl", "win_rates.png"


class WinRateCallback(TrainerCallback):
    """
    Callback that measures, at each evaluation, the win rate of the model in training against given completions.

    Works with any `Trainer` (DPO, SFT, …). The rates are added to the metrics of the evaluation (`eval_win_rate`,
    `eval_win_rate_low`, `eval_win_rate_high`, `eval_completion_length`), so that
    `metric_for_best_model="eval_win_rate"` works; they are appended to `output_dir/win_rates.jsonl` and drawn in
    `output_dir/win_rates.png`. With `REALDPOTrainer` they are also logged to the trackers.

    Args:
        prompts: Prompts, as texts or messages.
        baseline: Completions of the baseline, one per prompt; often those of the model before training
            (`generate`).
        judge: Any judge that reads texts.
        n: Maximum number of prompts to judge; drawn once, from the seed and the texts of the prompts.
        generate: Function that takes a list of prompts and returns one completion each, for models that are sharded
            or served elsewhere; by default the model in training generates, on all processes.
        seed: Seed of the draw and of the sampling.
        **generation: Arguments of `generate`: `max_new_tokens`, `temperature`, `batch_size`, ….

    Raises:
        TrlRealError: If the numbers of prompts and completions differ or are 0, or `n` is below 1.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        baseline: Sequence[Any],
        judge: Judge,
        *,
        n: int = 64,
        generate: Callable[[list[Any]], list[str]] | None = None,
        seed: int = 42,
        **generation: Any,
    ):
        prompts, baseline = list(prompts), list(baseline)
        if len(prompts) != len(baseline) or not prompts or n < 1:
            raise TrlRealError(
                f"{len(baseline)} completions for {len(prompts)} prompts, n={n}. Give one per prompt, and n=1 or more."
            )
        kept = _drawn(prompts, n, seed)
        self.prompts, self.baseline = ([values[i] for i in kept] for values in (prompts, baseline))
        self.judge, self.generate = judge, generate
        self.generation = {"seed": seed, **generation}
        self.history: list[dict[str, Any]] = []
        self.last_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **events: Any) -> None:
        """Load the history of a resumed run; for a repeated step the last line counts."""
        file = Path(args.output_dir) / WIN_RATES_FILE
        rows = {row["step"]: row for row in Journal(file).read() if isinstance(row.get("step"), int)}
        self.history = [rows[step] for step in sorted(rows) if step <= state.global_step]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **events: Any) -> None:
        """Generate, judge, and add the rates to the metrics; once per step, also with several evaluation sets."""
        if state.global_step == self.last_step:
            return
        self.last_step, started = state.global_step, time.perf_counter()
        completions = self._completions(events["model"], events.get("processing_class"))
        if not state.is_world_process_zero:
            return
        comparison = compare(self.prompts, completions, self.baseline, self.judge)
        row = _row(comparison, state, time.perf_counter() - started)
        with Journal(Path(args.output_dir) / WIN_RATES_FILE) as journal:
            journal.append(row)
        self.history = [earlier for earlier in self.history if earlier["step"] != row["step"]] + [row]
        metrics.update({f"eval_{name}": row[name] for name in _METRICS if row[name] is not None})

    def on_train_end(self, args: Any, state: Any, control: Any, **events: Any) -> None:
        """Draw the history."""
        if state.is_world_process_zero and self.history:
            from trl_real.evaluation.plots import history_figure
            from trl_real.reports.figures import save_png

            save_png(history_figure(self.history), Path(args.output_dir) / PICTURE)

    def _completions(self, model: Any, tokenizer: Any) -> list[str]:
        """Generate the model's completions; each process generates its share."""
        if self.generate is not None:
            return list(self.generate(self.prompts))
        from accelerate import PartialState
        from accelerate.utils import extract_model_from_parallel, gather_object

        from trl_real.models.generate import generate_responses

        _check_whole(model)
        with PartialState().split_between_processes(list(enumerate(self.prompts))) as share:
            model = extract_model_from_parallel(model)
            texts = generate_responses(model, tokenizer, [prompt for _, prompt in share], **self.generation)
            mine = [(number, text) for (number, _), (text,) in zip(share, texts, strict=True)]
        return [text for _, text in sorted(gather_object(mine))]


_METRICS = ("win_rate", "win_rate_low", "win_rate_high", "completion_length")


def _row(comparison: Comparison, state: Any, seconds: float) -> dict[str, Any]:
    rates = comparison.to_dict()["rates"]
    return {
        "step": state.global_step,
        "epoch": state.epoch,
        "win_rate": rates["win_rate"],
        "win_rate_low": rates["ci_low"],
        "win_rate_high": rates["ci_high"],
        "n": rates["n_total"],
        "n_failed": rates["n_failed"],
        "completion_length": comparison.model_length,
        "baseline_length": comparison.baseline_length,
        "judge": comparison.judge,
        "position_bias": comparison.verdicts.to_dict()["position_bias"],
        "doubts": [doubt.words for doubt in comparison.doubts],
        "seconds": seconds,
    }


def _drawn(prompts: list[Any], n: int, seed: int) -> list[int]:
    """Return up to `n` rows, chosen by a hash of seed and text, in their original order."""
    digests = [sha256(seed, dialogue(prompt)) for prompt in prompts]
    return sorted(sorted(range(len(prompts)), key=digests.__getitem__)[:n])


def _check_whole(model: Any) -> None:
    """Check that the model is not sharded: a process with a part of the parameters cannot generate."""
    sharded = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if sharded or "FullyShardedDataParallel" in type(model).__name__ or "FSDP" in type(model).__name__:
        raise TrlRealError(
            "WinRateCallback cannot generate with a sharded model. Serve its checkpoints and give "
            "generate=…, or compare after training: trl-real win-rate."
        )
