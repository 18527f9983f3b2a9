"""SPA in rounds: train on a few labels, then generate, self-annotate and train in rounds (arXiv 2406.04412)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import load_peft_weights

from trl_real.data.checks.row_check import check_texts
from trl_real.data.conversation import dialogue
from trl_real.data.digest import dataset_digest
from trl_real.data.files import load, save
from trl_real.errors import TrlRealError, check_columns
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.implicit_reward import ImplicitRewardJudge, KeptSums
from trl_real.labeling.relabel import relabel
from trl_real.labeling.self_annotate import PICKS, self_annotate
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.labeling.verdicts import Judge
from trl_real.models.generate import generate
from trl_real.rounds.ablations import ABLATIONS, NOISE_OFF, noise_settings
from trl_real.rounds.base import Rounds, RoundsResult, drawn, phases_of, setting_of
from trl_real.rounds.training import Trained, adapter_digest, round_config, train_adapter
from trl_real.runtime.atomic_files import read_json
from trl_real.runtime.run_folder import SETTINGS_FILE, Round, check_settings
from trl_real.training.adapters import save_adapter
from trl_real.training.config import REALDPOConfig
from trl_real.training.forward_hooks import check_logits
from trl_real.training.preparation import FINISHED


GENERATION = {"n": 2, "temperature": 0.7, "max_new_tokens": 300}
PREFERENCE = ("prompt", "chosen", "rejected", "label_confidence", *FINISHED.values())


@dataclass(kw_only=True)
class SelfAnnotationRounds(Rounds):
    """Run of SPA in rounds, with round 0 on the seed labels. `self_annotation_rounds` describes the settings."""

    seed_labels: Dataset
    prompts: Dataset
    n_prompts: int | Sequence[int]
    ablation: str = "detection"
    noise_extrapolation: Sequence[float] = (0.5, 0.25, 0.125)
    seed_epochs: float = 3.0
    epochs: float = 1.0
    generation: dict[str, Any] = field(default_factory=dict)
    pick: str = "best_worst"
    length_normalize: bool = False
    drop_unfinished: bool = False
    soft_labels: bool = False
    relabel_judge: Judge | None = None
    relabel_budget: float | int = 0.1

    @property
    def name(self) -> str:
        """Name of the ablation."""
        return self.ablation

    def check(self) -> None:
        """Check names, columns and sizes."""
        for name, table in (("ablation", ABLATIONS), ("pick", PICKS)):
            if getattr(self, name) not in table:
                raise TrlRealError(f"Unknown {name} {getattr(self, name)!r}. Choose one of {', '.join(table)}.")
        preference, fix = ("prompt", "chosen", "rejected"), "seed_labels needs labelled pairs."
        check_columns(self.seed_labels.column_names, preference, fix)
        check_columns(self.prompts.column_names, ["prompt"], "Rename the column with rename_column.")
        check_texts(self.seed_labels, preference, alike=True)
        check_texts(self.prompts, ("prompt",))
        if not len(self.seed_labels):
            raise TrlRealError("seed_labels has no rows. Give labelled pairs, for example 100.")
        sizes = [self.n_prompts] if isinstance(self.n_prompts, int) else list(self.n_prompts)
        if not sizes or min(sizes) < 1:
            raise TrlRealError(f"n_prompts={self.n_prompts}: each round needs 1 or more.")
        if self.generation_settings["n"] < 2:
            raise TrlRealError(
                f"n={self.generation_settings['n']} response per prompt does not make a pair. Type n=2 or more."
            )
        if self.args.loss_type != ["sigmoid"] and ABLATIONS[self.ablation].refines:
            raise TrlRealError(f"ablation={self.ablation!r} only smooths DPO's own loss. Type loss_type='sigmoid'.")

    @property
    def generation_settings(self) -> dict[str, Any]:
        """Settings of `generate`, with defaults."""
        return {**GENERATION, **self.generation}

    def settings(self) -> dict[str, Any]:
        """Return the settings that every round depends on, as plain values."""
        own = ("ablation", "seed_epochs", "epochs", "pick", "length_normalize", "drop_unfinished", "soft_labels")
        return {
            **{name: getattr(self, name) for name in own},
            "generation": {name: value for name, value in self.generation_settings.items() if name != "batch_size"},
            "seed_labels": dataset_digest(self.seed_labels),
            "prompts": dataset_digest(self.prompts),
            "relabel": self.relabel_judge and [setting_of(self.relabel_judge), self.relabel_budget],
        }

    def run(self, rounds: int, on_round: Callable[[int], None] = lambda number: None) -> RoundsResult:
        """
        Run the rounds that are not finished yet, up to the given total.

        Raises:
            TrlRealError: If there are too few values of `noise_extrapolation`, or too few prompts.
        """
        if ABLATIONS[self.ablation].extrapolates and len(self.noise_extrapolation) < rounds:
            given = list(self.noise_extrapolation)
            raise TrlRealError(
                f"noise_extrapolation={given} is too short for {rounds} rounds. Give one value per round."
            )
        needed, available = sum(self._size(i) for i in range(1, rounds + 1)), len(self._left(set()))
        if needed > available:
            raise TrlRealError(
                f"{rounds} rounds need {needed} prompts, but prompts has {available} different ones that are not in "
                f"the seed labels. Type n_prompts={available // rounds}, or give more prompts."
            )
        return super().run(rounds, on_round)

    def begin_like(self, other: str | Path) -> None:
        """Copy round 0, and round 1 up to its labels, from a run in which only the ablation differs."""
        settings = {**read_json(self.runs.folder / SETTINGS_FILE), "ablation": None}
        check_settings({**read_json(Path(other) / SETTINGS_FILE), "ablation": None}, settings, other, "run")
        for number, steps in ((0, ("start", "train", "test")), (1, ("generate", "label", "relabel"))):
            self.runs.round(number).take(Path(other), steps)

    def start(self) -> list[dict[str, Any]]:
        """Return the metrics of the model before alignment, and of round 0, which trains on the seed labels."""
        untrained = self.begin("start")  # before `round(0)`, which reads the saved state
        zero = self.runs.round(0)
        initial = {"stage": "initial", "round": 0, "n_labels": 0, "n_pairs": 0, **untrained, "phases": {}}
        trained = zero.step("train", lambda: self._train_on_seed(zero))
        zero.clear("trainer")
        tested, n = zero.step("test", lambda: self.test(zero))["metrics"], trained["n_pairs"]
        return [
            initial,
            {**initial, "stage": "seed", "n_labels": n, "n_pairs": n, **tested, "phases": phases_of(zero)},
        ]

    def round(self, number: int, before: dict[str, Any]) -> dict[str, Any]:
        """Generate, label, train and test."""
        this, last = self.runs.round(number), self.runs.round(number - 1)
        this.step("generate", lambda: self._generate(this, last), n_prompts=self._size(number))
        labeled = this.step("label", lambda: self._label(this, last))
        asked = this.step("relabel", lambda: self._relabel(this)) if self.relabel_judge is not None else {}
        noise = noise_settings(self.ablation, self.args.noise_smoothing, self.noise_extrapolation, number)
        trained = this.step("train", lambda: self._train(this, last, noise), **noise)
        this.clear("trainer")
        metrics = this.step("test", lambda: self.test(this))["metrics"]
        return {
            "stage": f"round {number}",
            "round": number,
            "n_labels": before["n_labels"] + asked.get("labeled", 0),
            "n_pairs": before["n_pairs"] + trained["n_pairs"],
            **metrics,
            "annotation": {**labeled["report"], "flagged": trained["flagged"]},
            "phases": phases_of(this),
        }

    def _generate(self, this: Round, last: Round) -> dict[str, Any]:
        rows = self._prompts(this.number)
        policy, tokenizer = self.policy(last)
        settings = {**self.generation_settings, "seed": self.seed + this.number, "journal": this / "responses.jsonl"}
        found = generate(policy, tokenizer, rows["prompt"][:], **settings)
        pool = rows.add_column("responses", found.texts).add_column("finish_reasons", found.finish_reasons)
        save(pool, this / "pool")
        return {"n_tokens": found.n_tokens + found.n_kept}

    def _label(self, this: Round, last: Round) -> dict[str, Any]:
        policy, tokenizer = self.policy(last)
        sums = KeptSums(self.runs.folder / "sums.jsonl", this.folder.name)
        judge = ImplicitRewardJudge(
            policy,
            tokenizer=tokenizer,
            beta=self.args.beta,
            length_normalize=self.length_normalize,
            max_length=self.args.max_length or 2**20,
            dtype=torch.bfloat16 if self.args.bf16 else None,
            cache=sums,
        )
        earlier: dict[str, Any] = sums.read  # by a process that was killed in this step
        report = SelfAnnotationReport(**earlier)
        settings: dict[str, Any] = {"pick": self.pick, "drop_unfinished": self.drop_unfinished}
        settings["seed"] = self.seed + this.number
        save(self_annotate(load(str(this / "pool")), judge, report=report, **settings), this / "self_labels")
        found = {**report.to_dict(), "judge": "implicit_reward"}
        return {"n_tokens": report.n_tokens, "reference": judge.reference_digest, "report": found}

    def _relabel(self, this: Round) -> dict[str, Any]:
        report, own = LabelReport(), load(str(this / "self_labels"))
        assert self.relabel_judge is not None
        settings: dict[str, Any] = {"journal": self.runs.folder / "verdicts.jsonl", "report": report}
        save(relabel(own, self.relabel_judge, self.relabel_budget, **settings), this / "labels")
        verdicts = report.verdicts
        return {"n_asked": verdicts.n, **report.counts, "n_tokens": verdicts.input_tokens + verdicts.output_tokens}

    def _train_on_seed(self, zero: Round) -> dict[str, Any]:
        base, tokenizer = self.base()
        if ABLATIONS[self.ablation].extrapolates:
            check_logits(base.config, "Type ablation='refinement'.")
        config = round_config(self.args, zero / "trainer", self.seed, num_train_epochs=self.seed_epochs, **NOISE_OFF)
        labels = self._preferences(self.seed_labels, "label_confidence" in self.seed_labels.column_names)
        trained = train_adapter(base, tokenizer, labels, zero / "start", config, self.peft_config)
        return self._saved(trained, zero, len(labels))

    def _train(self, this: Round, last: Round, noise: dict[str, float]) -> dict[str, Any]:
        name = "labels" if self.relabel_judge is not None else "self_labels"
        labels = self._preferences(load(str(this / name)), self.soft_labels)
        if not len(labels):
            reasons = ", ".join(f"{n} {why}" for why, n in this.state["label"]["report"]["dropped"].items())
            raise TrlRealError(
                f"Round {this.number} has no label ({reasons}). Equal scores mean that the seed labels had no effect: "
                "raise learning_rate. Otherwise give more prompts, or a higher temperature."
            )
        base, tokenizer = self.base()
        settings = {"num_train_epochs": self.epochs, **noise}
        config = round_config(self.args, this / "trainer", self.seed + this.number, **settings)
        trained = train_adapter(base, tokenizer, labels, last / "adapter", config)
        if trained.reference != adapter_digest(load_peft_weights(str(last / "adapter"))):
            raise TrlRealError(f"The reference of round {this.number} is not the policy of the previous round.")
        return self._saved(trained, this, len(labels))

    def _saved(self, trained: Trained, this: Round, n_pairs: int) -> dict[str, Any]:
        save_adapter(trained.policy, this / "adapter")
        return {"n_pairs": n_pairs, **trained.summary}

    def _preferences(self, labels: Dataset, soft: bool) -> Dataset:
        """Return the columns that the trainer reads; without a confidence, labels are trusted."""
        names = [name for name in PREFERENCE if name in labels.column_names and (soft or name != "label_confidence")]
        return labels.select_columns(names)

    def _size(self, number: int) -> int:
        """Return the number of prompts of a round; the last number of a list also holds for later rounds."""
        if isinstance(self.n_prompts, int):
            return self.n_prompts
        return self.n_prompts[min(number, len(self.n_prompts)) - 1]

    def _prompts(self, number: int) -> Dataset:
        """Return the next prompts in random order that no earlier round took."""
        taken = {dialogue(p) for i in range(1, number) for p in load(str(self.runs.round(i) / "pool"))["prompt"]}
        return self.prompts.select(sorted(self._left(taken)[: self._size(number)])).select_columns(["prompt"])

    def _left(self, taken: set[str]) -> list[int]:
        """Return the rows of prompts that are neither taken nor in the seed labels, in random order."""
        taken = taken | {dialogue(prompt) for prompt in self.seed_labels.with_format(None)["prompt"]}
        prompts = self.prompts.with_format(None)["prompt"][:]
        return [rows[0] for rows in drawn(prompts, self.seed) if dialogue(prompts[rows[0]]) not in taken]


def self_annotation_rounds(
    seed_labels: Dataset, prompts: Dataset, model: str, args: REALDPOConfig, *, rounds: int = 3, **settings: Any
) -> RoundsResult:
    """
    Run SPA in rounds. Round 0 is DPO on the seed labels. In each later round the policy writes responses to new
    prompts, labels them by its implicit reward against the model before alignment, and trains on them; the policy at
    the start of the round is the reference.

    All rounds share one base model: without an adapter it is the model before alignment; the policy and its reference
    are adapters on it.

    Args:
        seed_labels: Preferences from people or a judge, for example those of an active run (`labels_of_run`).
        prompts: Dataset with a column `prompt`. Each round takes new prompts in a random order; duplicates and the
            prompts of the seed labels are left out.
        n_prompts: Number of prompts per round, or a list with the number of each round.
        model: Hub id or path of the model before alignment, the paper's initial model.
        args: Arguments of the trainer, with `beta` and `noise_share`; a `noise_smoothing` of 0 means 0.1.
        output_dir: Folder of the run; a killed run continues from there.
        ablation: Name in `ABLATIONS`: `"expansion"` only, with self-`"refinement"`, or with de-coupled noise
            `"detection"` as well, which is the full method.
        noise_extrapolation: SPA's lambda of each round.
        seed_epochs, epochs: Number of epochs over the seed labels, and over the labels of a round. `args.max_steps`
            overrides both.
        generation: Settings of `generate`; by default the paper's 2 responses of up to 300 tokens at temperature 0.7.
        pick: Name in `PICKS`: the rule that picks two of more than two responses.
        length_normalize: Whether to judge by the mean log-ratio per token instead of the sum.
        drop_unfinished: Whether to leave out truncated responses; else they are trained on without an end.
        soft_labels: Whether to train on the judge's probabilities; the paper trains on its verdicts.
        relabel_judge: Other judge, such as people, for the least confident labels of each round.
        relabel_budget: Share in (0, 1], or number, of the labels per round to ask the other judge about.
        peft_config: Configuration of the adapter; rank 16 on all linear layers by default.
        eval_dataset: Labelled pairs to test each round on; `accuracy` is how often the policy, as a judge, agrees.
        evaluate: Function of the policy and its tokenizer that returns more metrics, such as a win rate.
        seed: Seed of all random draws.
        rounds: Number of rounds after the seed round; finished rounds are not repeated.

    Raises:
        TrlRealError: If a setting is out of range.
    """
    settings |= {"seed_labels": seed_labels, "prompts": prompts, "model": model, "args": args}
    return SelfAnnotationRounds(**settings).run(rounds)
