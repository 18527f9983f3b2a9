"""The win rate while a model is trained, beside the length of what it writes."""

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
    Win rate of the model in training against completions that are there already, at each evaluation.

    Works with any `Trainer` (DPO, SFT, …) and needs none: the baseline's completions are data, and the model comes
    with the event. The rates join the metrics of the evaluation (`eval_win_rate`, `eval_win_rate_low`,
    `eval_win_rate_high`, `eval_completion_length`), so that `metric_for_best_model="eval_win_rate"` works; they are
    appended to `output_dir/win_rates.jsonl` and drawn in `output_dir/win_rates.png`. With `REALDPOTrainer` they reach
    the trackers, too.

    Args:
        prompts: Texts or messages.
        baseline: The baseline's completions, one a prompt; often those of the model before training
            (`generate`).
        judge: Any judge that reads texts.
        n: Prompts that are judged at most: drawn once, from the seed and the prompts' texts.
        generate: Takes a list of prompts and returns a completion each, for models that are served elsewhere or
            sharded; by default the model in training answers, on all processes.
        seed: Of the draw and the sampling.
        **generation: Of `generate`: `max_new_tokens`, `temperature`, `batch_size`, ….

    Raises:
        TrlRealError: If there is not one completion a prompt, or none at all.
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
                f"{len(baseline)} completions for {len(prompts)} prompts, n={n}. Give one a prompt, and n=1 or more."
            )
        kept = _drawn(prompts, n, seed)
        self.prompts, self.baseline = ([values[i] for i in kept] for values in (prompts, baseline))
        self.judge, self.generate = judge, generate
        self.generation = {"seed": seed, **generation}
        self.history: list[dict[str, Any]] = []
        self.last_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **events: Any) -> None:
        """Take up the history of a run that is resumed; of a step that was done twice the last line counts."""
        file = Path(args.output_dir) / WIN_RATES_FILE
        known = {row["step"]: row for row in Journal(file).read() if row["step"] <= state.global_step}
        self.history = [known[step] for step in sorted(known)]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **events: Any) -> None:
        """Generate, judge, and add to the metrics; once a step, also where there are several evaluation sets."""
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
        self.history = [known for known in self.history if known["step"] != row["step"]] + [row]
        metrics.update({f"eval_{name}": row[name] for name in _METRICS if row[name] is not None})

    def on_train_end(self, args: Any, state: Any, control: Any, **events: Any) -> None:
        """Draw what came out."""
        if state.is_world_process_zero and self.history:
            from trl_real.evaluation.plots import history_figure
            from trl_real.reports.figures import save_png

            save_png(history_figure(self.history), Path(args.output_dir) / PICTURE)

    def _completions(self, model: Any, tokenizer: Any) -> list[str]:
        """The model's answers; each process writes its share of them."""
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
    """Rows that a hash of seed and text puts first, in their own order."""

    def draw(row: int) -> bytes:
        return sha256(seed, dialogue(prompts[row]))

    return sorted(sorted(range(len(prompts)), key=draw)[:n])


def _check_whole(model: Any) -> None:
    """
    Raises:
        TrlRealError: If the parameters are spread over processes, so that none can generate.
    """
    sharded = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if sharded or "FullyShardedDataParallel" in type(model).__name__ or "FSDP" in type(model).__name__:
        raise TrlRealError(
            "A sharded model cannot write the completions of WinRateCallback. Serve its checkpoints and give "
            "generate=…, or compare after training: trl-real win-rate."
        )
