"""Run all steps with a small real model: pool, selection at two budgets and random, labels, DPO, win rate, report."""

import argparse
import dataclasses
import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from trl_real.cli.options import TimeLeft, add_config, result, say
from trl_real.demo.task import TASK, TEST_TOPICS, TRAIN_TOPICS, prompts, sentiment, whole_sentences
from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.runtime.devices import accelerator, bfloat16_is_fast, default_device


STRATEGIES = ("easy", "random")
SETTINGS = "settings.json"
DEFAULTS = {
    "model": None,
    "budgets": [16, 40],
    "n_prompts": 64,
    "n_responses": 4,
    "n_samples": 4,
    "max_new_tokens": 40,
    "num_train_epochs": 3.0,
    "learning_rate": 2e-4,
    "seed": 42,
}


def register(parser: argparse.ArgumentParser) -> None:
    """Add flags for the sizes; the defaults take about ten minutes on two cores."""
    parser.add_argument("--output_dir", default="demo_output", help="output folder; a second run continues there")
    parser.add_argument("--model", help="Hub id or path of a chat model (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--budgets", type=int, nargs="+", help="labels per arm (default: 16 40)")
    parser.add_argument("--n_prompts", type=int, help="prompts in the pool, at most 80 (default: 64)")
    parser.add_argument("--n_responses", type=int, help="responses per prompt in the pool (default: 4)")
    parser.add_argument("--n_samples", type=int, help="responses per test prompt (default: 4)")
    parser.add_argument("--max_new_tokens", type=int, help="maximum tokens per response (default: 40)")
    parser.add_argument("--num_train_epochs", type=float, help="epochs of DPO (default: 3)")
    parser.add_argument("--learning_rate", type=float, help="learning rate of DPO (default: 2e-4)")
    parser.add_argument("--seed", type=int)
    add_config(parser)
    parser.set_defaults(**DEFAULTS)


def run(args: argparse.Namespace) -> None:
    """Run every step that is not in `output_dir` yet, then print the table and the path of the report."""
    started = time.perf_counter()
    demo = Demo(args)
    wanted = [(strategy, budget) for budget in args.budgets for strategy in STRATEGIES]
    arms, progress = [], TimeLeft(len(wanted))
    for number, (strategy, budget) in enumerate(wanted):
        progress.tell(f"{strategy}, {budget} labels (arm {number + 1} of {len(wanted)})", number)
        arms.append(demo.arm(strategy, budget))
    report = demo.report(arms)
    say(f"Done in {(time.perf_counter() - started) / 60:.1f} minutes.")
    values = [{**arm, "record": arm["record"].to_dict(), "comparison": arm["comparison"].to_dict()} for arm in arms]
    for arm in values:
        del arm["after"]
    result(args, {"report": str(report), "arms": values}, _table(arms, report))


class Demo:
    """
    Steps of the demo; each runs once, and results in `output_dir` are reused.

    Args:
        args: Parsed flags of `register`.

    Raises:
        TrlRealError: If `output_dir` has a run with other settings.
    """

    def __init__(self, args: argparse.Namespace):
        from trl_real.demo.model import demo_model
        from trl_real.reports.render import check_extras

        check_extras()
        self.args, self.folder = args, Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        self.name = args.model or demo_model()
        self.pool = self._pool()
        self.before = self._completions("before", self._load)

    def arm(self, strategy: str, budget: int) -> dict[str, Any]:
        """Select, label, train and evaluate at one budget; return record, comparison and counts by name."""
        from trl_real.labeling.annotate import LabelReport, annotate
        from trl_real.labeling.judges import ScoreJudge
        from trl_real.selection.selector import EmbeddingPairSelector

        selector = EmbeddingPairSelector(self.name, strategy=strategy, seed=self.args.seed)
        subset = selector.select(self.pool, budget)
        say(selector.record.summary())
        labels = LabelReport()
        preferences = annotate(subset, ScoreJudge(), report=labels)
        if not len(preferences):
            raise TrlRealError(f"All {len(subset)} labels of {strategy} {budget} are ties. Give larger --budgets.")
        run = self.folder / f"{strategy}-{budget}"
        seconds = self._train(preferences, run)
        after = self._completions(run.name, lambda: self._load(run))
        comparison, scores = self._compare(after)
        say(comparison.summary())
        return {
            "name": f"{strategy} {budget}",
            "strategy": strategy,
            "budget": budget,
            "n_labels": len(subset),
            "record": selector.record,
            "comparison": dataclasses.replace(comparison, model=f"{strategy} {budget}"),
            "seconds": seconds,
            "mean_score": scores,
            "label_counts": labels.counts,
            "after": after,
        }

    def report(self, arms: list[dict[str, Any]]) -> Path:
        """Write `report.html`: each arm against the model before training, and each strategy against random."""
        from trl_real.evaluation.report import example_rows, write_comparison_report

        facts = {"task": TASK, "rows": len(self.pool), "responses": self.args.n_prompts * self.args.n_responses}
        facts |= {"model": Path(self.name).name, "seed": self.args.seed, "DPO epochs": self.args.num_train_epochs}
        facts |= {"learning rate": self.args.learning_rate, "beta": 0.1, "LoRA rank": 16}
        for arm in arms:
            facts[arm["name"]] = f"{arm['record'].summary()}; mean reward {arm['mean_score']['after']:+.2f}"
        by_name = {arm["name"]: arm["comparison"] for arm in arms}
        paired = {}
        for arm in arms:
            other = f"random {arm['budget']}"
            if arm["name"] != other and other in by_name:
                test = arm["comparison"].against(by_name[other], seed=self.args.seed)
                paired[f"{arm['name']} : {other}"] = f"{test.outcome}; {test.words()}"
        title = "Which pairs are worth a label? A run on controlled sentiment"
        questions = [question for question in prompts(TEST_TOPICS) for _ in range(self.args.n_samples)]
        before = sum(self.before, [])
        examples = {
            arm["name"]: example_rows(arm["comparison"], questions, sum(arm["after"], []), before, n=1) for arm in arms
        }
        about: dict[str, Any] = {"title": title, "paired": paired, "facts": facts, "examples": examples}
        return write_comparison_report(self.folder, list(by_name.values()), **about)

    def _check_settings(self) -> None:
        own = {name: value for name, value in vars(self.args).items() if name in DEFAULTS}
        path = self.folder / SETTINGS
        if not path.exists():
            write_json(path, own)
        elif (found := read_json(path)) != own:
            changed = sorted(name for name in own if own[name] != found.get(name))
            raise TrlRealError(f"{str(self.folder)!r} has a run with another {changed[0]}. Give a new --output_dir.")

    def _load(self, adapter: Path | None = None) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from trl_real.training.adapters import load_tokenizer

        model = AutoModelForCausalLM.from_pretrained(self.name, dtype=torch.float32, trust_remote_code=False)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
        return model.to(default_device()), load_tokenizer(self.name, None)

    def _pool(self) -> Any:
        """Return prompts with responses sampled from the model, and their true rewards as scores."""
        from datasets import Dataset

        from trl_real.data.files import load, save

        if not (self.folder / "pool").exists():
            questions = prompts(TRAIN_TOPICS)[: self.args.n_prompts]
            model, tokenizer = self._load()
            responses = self._sample(model, tokenizer, questions, self.args.n_responses, "Sampling the pool")
            columns = {"prompt": questions, "responses": responses, "scores": [sentiment(r) for r in responses]}
            save(Dataset.from_dict(columns), self.folder / "pool")
        # Always read from disk: only then does `datasets` cache the computations on it.
        return load(self.folder / "pool")

    def _completions(self, name: str, load_model: Callable[[], tuple[Any, Any]]) -> list[list[str]]:
        """Return responses to the test prompts, `n_samples` each."""
        path = self.folder / f"completions-{name}.json"
        if not path.exists():
            found = self._sample(*load_model(), prompts(TEST_TOPICS), self.args.n_samples, f"Sampling ({name})")
            write_json(path, found)
        return read_json(path, list)

    def _sample(self, model: Any, tokenizer: Any, questions: list, n: int, desc: str) -> list[list[str]]:
        import torch

        from trl_real.models.generate import generate_responses

        size = {"max_new_tokens": self.args.max_new_tokens, "batch_size": 128, "seed": self.args.seed}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16_is_fast()):
            found = generate_responses(model, tokenizer, questions, n=n, desc=desc, **size)
        return [[whole_sentences(text) for text in texts] for texts in found]

    def _train(self, preferences: Any, run: Path) -> float:
        """Train DPO with LoRA unless `run` has the result; return the seconds of the training."""
        log = run / "log_history.json"
        if not log.exists():
            started = time.perf_counter()
            history = train_lora(self.name, preferences, run, self.args)
            write_json(log, {"log_history": history, "seconds": time.perf_counter() - started})
        return read_json(log)["seconds"]

    def _compare(self, after: list[list[str]]) -> tuple[Any, dict[str, float]]:
        """Compare the trained model with the model before training, by the true reward of their replies."""
        from datasets import Dataset

        from trl_real.evaluation.compare import compare_columns
        from trl_real.labeling.judges import ScoreJudge

        flat = {"after": sum(after, []), "before": sum(self.before, [])}
        scores = {name: sentiment(texts) for name, texts in flat.items()}
        questions = [question for question in prompts(TEST_TOPICS) for _ in range(self.args.n_samples)]
        two = [list(pair) for pair in zip(scores["after"], scores["before"], strict=True)]
        rows = Dataset.from_dict({"prompt": questions, **flat, "scores": two, "pair": [[0, 1]] * len(two)})
        means = {name: sum(values) / len(values) for name, values in scores.items()}
        return compare_columns(rows, ScoreJudge(), model="after", baseline="before"), means


def train_lora(name: str, preferences: Any, run: Path, args: argparse.Namespace) -> list[dict]:
    """Train an adapter with REALDPOTrainer and save it; return the log."""
    from peft import LoraConfig

    from trl_real.training.adapters import load_tokenizer
    from trl_real.training.config import REALDPOConfig
    from trl_real.training.trainer import REALDPOTrainer

    config = REALDPOConfig(
        output_dir=str(run),
        use_cpu=accelerator() is None,
        bf16=bfloat16_is_fast(),
        per_device_train_batch_size=8,
        num_train_epochs=args.num_train_epochs,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        max_length=256,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = REALDPOTrainer(
        name,
        args=config,
        train_dataset=preferences,
        processing_class=load_tokenizer(name, None),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    with redirect_stdout(io.StringIO()):  # the trainer prints its log, which is also in the report
        trainer.train()
    trainer.save_model()
    return trainer.state.log_history


def _table(arms: list, report: Path) -> str:
    lines = [f"{'arm':<12} {'labels':>6}  {'win rate against the model before':<34} {'reward':>7}"]
    for arm in arms:
        r = arm["comparison"].rates
        rate = f"{r['win_rate']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}] (n={r['n_total']})"
        lines.append(f"{arm['name']:<12} {arm['n_labels']:>6}  {rate:<34} {arm['mean_score']['after']:>+7.2f}")
    before = arms[0]["mean_score"]["before"]
    return "\n".join([*lines, f"reward before training: {before:+.2f}", f"report: {report}"])
