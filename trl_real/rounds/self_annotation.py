"""SPA end to end: learn from a few labels, write, label what was written, learn from it (arXiv 2406.04412)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import load_peft_weights

from trl_real.data.conversation import dialogue
from trl_real.data.digest import told
from trl_real.data.files import load, save
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.implicit_reward import ImplicitRewardJudge
from trl_real.labeling.relabel import relabel
from trl_real.labeling.self_annotate import PICKS, self_annotate
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.labeling.verdicts import Judge
from trl_real.models.generate import generate
from trl_real.rounds.ablations import ABLATIONS, doubting, trusting
from trl_real.rounds.base import Rounds, Run, drawn, phases_of, setting_of
from trl_real.rounds.training import Trained, adapter_digest, round_config, train_adapter
from trl_real.runtime.atomic_files import read_json
from trl_real.runtime.run_folder import SETTINGS_FILE, Round, check_settings
from trl_real.training.adapters import save_adapter
from trl_real.training.config import REALDPOConfig
from trl_real.training.truncated_responses import FINISHED


GENERATION = {"n": 2, "temperature": 0.7, "max_new_tokens": 300}
PREFERENCE = ("prompt", "chosen", "rejected", "label_confidence", *FINISHED.values())


@dataclass(kw_only=True)
class SelfAnnotationRounds(Rounds):
    """
    SPA's rounds. Round 0 is DPO on the seed labels. In each further round the policy writes responses to new prompts,
    labels them by its implicit reward against the model before alignment, and learns from them with itself as the
    reference.

    One base model serves all: without an adapter it is the model before alignment; the policy and its reference are
    adapters on it.

    Args:
        seed_labels: Preferences, from people or a judge, such as an active run's (`labels_of_run`).
        prompts: A column `prompt`. A round takes the next ones of a draw, so that no prompt comes twice; equal ones,
            and those of the seed labels, are left out.
        n_prompts: Prompts a round; a list gives each round its own number.
        model: Hub id or path of the model before alignment: the paper's initial model.
        args: Of the trainer; `beta` and `noise_share` are its own, `noise_smoothing` is 0.1 where it is not set.
        output_dir: Folder of the run; a run that was killed goes on from there.
        ablation: A name in `ABLATIONS`: the expansion alone, with self-refinement, or also with de-coupled noise
            detection, which is the whole method.
        noise_extrapolation: SPA's lambda of each round.
        seed_epochs, epochs: Over the seed labels and over a round's own, unless `args.max_steps` is set.
        generation: Settings of `generate` other than the paper's two responses at temperature 0.7 of 300 tokens.
        pick: A name in `PICKS`: which two of more than two responses.
        length_normalize: Judge by the mean log-ratio of a token, not the sum.
        drop_unfinished: Leave out responses that were cut; else they are learned from without an end.
        soft_labels: Learn from the judge's probabilities; the paper learns from its verdicts.
        relabel_judge: Another judge, such as people, for the least confident labels of each round.
        relabel_budget: Share in (0, 1], or number, of a round's labels that it is asked about.
        peft_config: Of the adapter; rank 16 on all linear layers by default.
        eval_dataset: Labelled pairs that every round is tested on; `accuracy` is how often the policy, as a judge,
            agrees with them.
        evaluate: Takes the policy and its tokenizer, returns further metrics, such as a win rate.
        seed: Of everything that is drawn.

    Raises:
        TrlRealError: If a setting is out of range.
    """

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
        """The ablation's."""
        return self.ablation

    def check(self) -> None:
        """Refuse unknown names, missing columns and sizes that select nothing."""
        for name, table in (("ablation", ABLATIONS), ("pick", PICKS)):
            if getattr(self, name) not in table:
                raise TrlRealError(f"No {name} {getattr(self, name)!r}; there are {', '.join(table)}.")
        for column in ("prompt", "chosen", "rejected"):
            if column not in self.seed_labels.column_names:
                raise MissingColumnError(column, self.seed_labels.column_names, "Give labelled pairs.")
        if "prompt" not in self.prompts.column_names:
            raise MissingColumnError("prompt", self.prompts.column_names, "Rename the column: rename_column(…).")
        if not len(self.seed_labels):
            raise TrlRealError("seed_labels has no rows. Give some labelled pairs: a hundred are a start.")
        sizes = [self.n_prompts] if isinstance(self.n_prompts, int) else list(self.n_prompts)
        if not sizes or min(sizes) < 1:
            raise TrlRealError(f"n_prompts={self.n_prompts}: give each round 1 or more.")
        if self.settled["n"] < 2:
            raise TrlRealError(f"n={self.settled['n']} response a prompt is no pair. Type n=2 or more.")
        if self.args.loss_type != ["sigmoid"] and ABLATIONS[self.ablation].refines:
            raise TrlRealError(f"ablation={self.ablation!r} smooths DPO's own loss. Type loss_type='sigmoid'.")

    @property
    def settled(self) -> dict[str, Any]:
        """The settings of `generate`."""
        return {**GENERATION, **self.generation}

    def settings(self) -> dict[str, Any]:
        """What every round hangs on, as plain values."""
        own = ("ablation", "seed_epochs", "epochs", "pick", "length_normalize", "drop_unfinished", "soft_labels")
        return {
            **{name: getattr(self, name) for name in own},
            "generation": {name: value for name, value in self.settled.items() if name != "batch_size"},
            "seed_labels": told(self.seed_labels),
            "prompts": told(self.prompts),
            "relabel": self.relabel_judge and [setting_of(self.relabel_judge), self.relabel_budget],
        }

    def run(self, rounds: int) -> Run:
        """
        Do the rounds that are not done yet, of so many in all.

        Raises:
            TrlRealError: If the schedules or the prompts do not suffice.
        """
        if ABLATIONS[self.ablation].extrapolates and len(self.noise_extrapolation) < rounds:
            given = list(self.noise_extrapolation)
            raise TrlRealError(f"noise_extrapolation={given} is too short for {rounds} rounds. Give each a value.")
        needed, there = sum(self._size(i) for i in range(1, rounds + 1)), len(self._left(set()))
        if needed > there:
            raise TrlRealError(
                f"{rounds} rounds take {needed} prompts, but there are {there} different ones that are not among the "
                f"seed labels'. Type n_prompts={there // rounds}, or give more."
            )
        return super().run(rounds)

    def begin_like(self, other: str | Path) -> None:
        """Take round 0, and what round 1 wrote and labelled, from a run that differs in its ablation alone."""
        settings = {**read_json(self.runs.folder / SETTINGS_FILE), "ablation": None}
        check_settings({**read_json(Path(other) / SETTINGS_FILE), "ablation": None}, settings, other, "run")
        for number, steps in ((0, ("start", "train", "test")), (1, ("generate", "label", "relabel"))):
            self.runs.round(number).take(Path(other), steps)

    def start(self) -> list[dict[str, Any]]:
        """The model before alignment, and round 0: what it makes of the seed labels."""
        untrained = self.begin("start")  # before the round is read: its state is on disk then
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
        """Write, label, learn, test."""
        this, last = self.runs.round(number), self.runs.round(number - 1)
        this.step("generate", lambda: self._generate(this, last), n_prompts=self._size(number))
        labeled = this.step("label", lambda: self._label(this, last))
        asked = this.step("relabel", lambda: self._relabel(this)) if self.relabel_judge is not None else {}
        noise = doubting(self.ablation, self.args.noise_smoothing, self.noise_extrapolation, number)
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
        settings = {**self.settled, "seed": self.seed + this.number, "journal": this / "responses.jsonl"}
        found = generate(policy, tokenizer, rows["prompt"][:], **settings)
        written = rows.add_column("responses", found.texts).add_column("finish_reasons", found.finish_reasons)
        save(written, this / "pool")
        return {"n_tokens": found.n_tokens}

    def _label(self, this: Round, last: Round) -> dict[str, Any]:
        policy, tokenizer = self.policy(last)
        judge = ImplicitRewardJudge(
            policy,
            tokenizer=tokenizer,
            beta=self.args.beta,
            length_normalize=self.length_normalize,
            max_length=self.args.max_length or 2**20,
            dtype=torch.bfloat16 if self.args.bf16 else None,
            cache=self.runs.folder / "sums.jsonl",
        )
        report = SelfAnnotationReport()
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
        config = round_config(self.args, zero / "trainer", self.seed, num_train_epochs=self.seed_epochs, **trusting())
        labels = self._preferences(self.seed_labels, "label_confidence" in self.seed_labels.column_names)
        trained = train_adapter(base, tokenizer, labels, zero / "start", config, self.peft_config)
        return self._kept(trained, zero, len(labels))

    def _train(self, this: Round, last: Round, noise: dict[str, float]) -> dict[str, Any]:
        name = "labels" if self.relabel_judge is not None else "self_labels"
        labels = self._preferences(load(str(this / name)), self.soft_labels)
        if not len(labels):
            reasons = ", ".join(f"{n} {why}" for why, n in this.state["label"]["report"]["dropped"].items())
            raise TrlRealError(
                f"Round {this.number} has no label ({reasons}). Equal scores mean that the seed taught nothing: raise "
                "learning_rate; else give more prompts, or a higher temperature."
            )
        base, tokenizer = self.base()
        settings = {"num_train_epochs": self.epochs, **noise}
        config = round_config(self.args, this / "trainer", self.seed + this.number, **settings)
        trained = train_adapter(base, tokenizer, labels, last / "adapter", config)
        if trained.reference != adapter_digest(load_peft_weights(str(last / "adapter"))):
            raise TrlRealError(f"Round {this.number} trained against another reference than the policy before it.")
        return self._kept(trained, this, len(labels))

    def _kept(self, trained: Trained, this: Round, n_pairs: int) -> dict[str, Any]:
        save_adapter(trained.policy, this / "adapter")
        return {"n_pairs": n_pairs, **trained.told}

    def _preferences(self, labels: Dataset, soft: bool) -> Dataset:
        """What the trainer reads; without their confidence labels are taken at their word."""
        kept = [name for name in PREFERENCE if name in labels.column_names and (soft or name != "label_confidence")]
        return labels.select_columns(kept)

    def _size(self, number: int) -> int:
        """Prompts of a round; a list that is too short ends with its last number."""
        if isinstance(self.n_prompts, int):
            return self.n_prompts
        return self.n_prompts[min(number, len(self.n_prompts)) - 1]

    def _prompts(self, number: int) -> Dataset:
        """The next prompts of the draw: those that no round before has taken."""
        taken = {dialogue(p) for i in range(1, number) for p in load(str(self.runs.round(i) / "pool"))["prompt"]}
        return self.prompts.select(sorted(self._left(taken)[: self._size(number)])).select_columns(["prompt"])

    def _left(self, taken: set[str]) -> list[int]:
        """Rows of the prompts that are neither taken nor the seed labels', in the order of the draw."""
        taken = taken | {dialogue(prompt) for prompt in self.seed_labels.with_format(None)["prompt"]}
        prompts = self.prompts.with_format(None)["prompt"][:]
        return [rows[0] for rows in drawn(prompts, self.seed) if dialogue(prompts[rows[0]]) not in taken]


def self_annotation_rounds(
    seed_labels: Dataset, prompts: Dataset, model: str, args: REALDPOConfig, *, rounds: int = 3, **settings: Any
) -> Run:
    """
    SPA in one call: `SelfAnnotationRounds(…, **settings).run(rounds)`.

    Args:
        seed_labels: Preferences.
        prompts: A column `prompt`.
        model: Hub id or path of the model before alignment.
        args: Of the trainer.
        rounds: After the seed's; those that are done are not done again.
        **settings: Of `SelfAnnotationRounds`.
    """
    own = {"seed_labels": seed_labels, "prompts": prompts, "model": model, "args": args}
    return SelfAnnotationRounds(**own, **settings).run(rounds)
