"""ActiveDPO end to end: choose, label, train, and again with what was learned (arXiv 2505.19241, Algorithm 1)."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from trl_real.data.conversation import after_prompt, in_form
from trl_real.data.convert import from_rows, iterate
from trl_real.data.digest import told
from trl_real.data.files import load, save
from trl_real.errors import TooFewPairsError, TrlRealError
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.labeling.people.votes import pair_key
from trl_real.labeling.verdicts import TIE, Judge
from trl_real.rounds.base import NothingLeft, Rounds, Run, drawn, phases_of, setting_of
from trl_real.rounds.selectors import ROUND_SELECTORS, Chooser
from trl_real.rounds.training import round_config, train_adapter
from trl_real.runtime.run_folder import SETTINGS_FILE, Round
from trl_real.training.adapters import revision_of, save_adapter


logger = logging.getLogger(__name__)

HISTORY = ("prompt", "chosen", "rejected", "label_confidence")


@dataclass(kw_only=True)
class ActiveRounds(Rounds):
    """
    ActiveDPO's rounds: choose, label, train, test. No label is asked for twice, however often a run is killed.

    Args:
        pool: `prompt` and `responses`; with `generation` the prompts suffice.
        judge: Labels the pairs that are chosen: any judge, a page for people included (`PageJudge`), which the round
            waits for.
        model: Hub id or path of the model before alignment: where every round starts, and the reference of all.
        args: Of the trainer.
        output_dir: Folder of the run.
        selector: A name in `ROUND_SELECTORS`.
        budget: Labels a round.
        peft_config: Of the adapter; rank 16 on all linear layers by default.
        restart: Whether each round trains a fresh adapter on all labels (what the theory fits) or goes on with the
            last one.
        eval_dataset: Labelled pairs that every round is tested on.
        generation: Settings of `generate`, `n` among them: each round's policy writes new responses.
        n_prompts: Prompts that a round may choose from, drawn by seed and text; all by default.
        evaluate: Takes the policy and its tokenizer, returns further metrics, such as a win rate.
        selector_settings: Further arguments of the selector.
        responses: Column of the responses.
        seed: Of everything that is drawn.

    Raises:
        TrlRealError: If a setting is out of range.
    """

    pool: Dataset
    judge: Judge
    selector: str = "gradient"
    budget: int = 50
    restart: bool = True
    generation: dict[str, Any] | None = None
    n_prompts: int | None = None
    selector_settings: dict[str, Any] = field(default_factory=dict)
    responses: str = "responses"

    @property
    def name(self) -> str:
        """The selector's."""
        return self.selector

    def check(self) -> None:
        """Refuse an unknown selector and empty rounds."""
        if self.selector not in ROUND_SELECTORS:
            raise TrlRealError(f"No selector {self.selector!r}; there are {', '.join(ROUND_SELECTORS)}.")
        if self.budget < 1 or (self.n_prompts is not None and self.n_prompts < 1):
            raise TrlRealError(f"budget={self.budget}, n_prompts={self.n_prompts}: give 1 or more of each.")

    def settings(self) -> dict[str, Any]:
        """What every round hangs on, as plain values."""
        return {
            "selector": self.selector,
            "selector_settings": {k: repr(v) for k, v in sorted(self.selector_settings.items())},
            "budget": self.budget,
            "judge": setting_of(self.judge),
            "restart": self.restart,
            "generation": self.generation,
            "n_prompts": self.n_prompts,
            "pool": told(self.pool if self.generation is None else self.pool.select_columns(["prompt"])),
        }

    def start(self) -> list[dict[str, Any]]:
        """Round 0: the fresh adapter, and what it scores."""
        return [{"round": 0, "n_asked": 0, "n_labels": 0, **self.begin("adapter"), "phases": {}}]

    def round(self, number: int, before: dict[str, Any]) -> dict[str, Any]:
        """Generate if need be, choose, label, train and test."""
        this, last = self.runs.round(number), self.runs.round(number - 1)
        if self.generation is not None:
            this.step("generate", lambda: self._generate(this, last))
        this.step("select", lambda: self._select(this, last))
        labeled = this.step("label", lambda: self._label(this))
        this.step("train", lambda: self._train(this, last))
        this.clear("trainer")
        tested = this.step("test", lambda: self.test(this))
        counts = {"n_asked": labeled["n_asked"], "n_labels": labeled["labeled"]}
        spent = {name: before[name] + value for name, value in counts.items()}
        return {"round": number, **spent, **tested["metrics"], "phases": phases_of(this)}

    def _generate(self, this: Round, last: Round) -> dict[str, Any]:
        """New responses to the round's prompts, by the policy of the round before."""
        from trl_real.models.generate import generate

        rows = self._prompts(this.number)
        policy, tokenizer = self.policy(last)
        settings = {"n": 3, **(self.generation or {}), "seed": self.seed + this.number}
        found = generate(policy, tokenizer, rows["prompt"][:], journal=this / "responses.jsonl", **settings)
        save(rows.select_columns(["prompt"]).add_column(self.responses, found.texts), this / "pool")
        return {"n_tokens": found.n_tokens, "n_prompts": len(rows)}

    def _select(self, this: Round, last: Round) -> dict[str, Any]:
        pool = load(str(this / "pool")) if self.generation is not None else self._prompts(this.number)
        policy, tokenizer = self.policy(last)
        chooser = Chooser(
            self.model,
            policy,
            tokenizer,
            self.responses,
            self.seed + this.number,
            dict(self.selector_settings),
            revision_of(self.args.model_init_kwargs),
        )
        selector = ROUND_SELECTORS[self.selector](self.selector, chooser)
        history = self._history(this.number)
        try:
            chosen = selector.select(pool, self.budget, history=history)
        except TooFewPairsError as error:
            if not error.room:
                raise NothingLeft from error
            logger.warning("Round %d has %d pairs to choose from, not %d.", this.number, error.room, self.budget)
            chosen = selector.select(pool, error.room, history=history)
        save(chosen, this / "selected")
        record = selector.record.to_dict()
        return {"n_tokens": record.get("tokens", 0), "n_selected": len(chosen), "record": record}

    def _label(self, this: Round) -> dict[str, Any]:
        report = LabelReport()
        journal = self.runs.folder / "verdicts.jsonl"  # one for all rounds: a pair is never asked about twice
        chosen = load(str(this / "selected"))
        save(annotate(chosen, self.judge, responses=self.responses, journal=journal, report=report), this / "labels")
        verdicts = report.verdicts
        return {"n_asked": verdicts.n, **report.counts, "n_tokens": verdicts.input_tokens + verdicts.output_tokens}

    def _train(self, this: Round, last: Round) -> dict[str, Any]:
        labels = self._labels(this.number)
        new = labels if self.restart else load(str(this / "labels"))
        if not len(new):  # all of them ties: nothing to learn
            policy, tokenizer = self.policy(last)
            save_adapter(policy, this / "adapter")
            return {"n_tokens": 0, "n_steps": 0}
        start = (self.runs.round(0) if self.restart else last) / "adapter"
        base, tokenizer = self.base()
        config = round_config(self.args, this / "trainer", self.seed)
        trained = train_adapter(base, tokenizer, new, start, config, self.peft_config)
        save_adapter(trained.policy, this / "adapter")
        return trained.told

    def _prompts(self, number: int) -> Dataset:
        """The pool's rows that a round may choose from: all, or those that a draw of its own puts first."""
        if self.n_prompts is None or self.n_prompts >= len(self.pool):
            return self.pool
        rows = drawn(self.pool.with_format(None)["prompt"], self.seed, number)
        return self.pool.select(sorted(i for of_prompt in rows[: self.n_prompts] for i in of_prompt))

    def _labels(self, number: int) -> Dataset:
        """The labels of all rounds so far."""
        return concatenate_datasets([load(str(self.runs.round(n) / "labels")) for n in range(1, number + 1)])

    def _history(self, number: int) -> Dataset | None:
        """Every pair that was judged before a round, as labels; a tie or a failure is one of confidence 1/2."""
        earlier = [self.runs.round(n) for n in range(1, number)]
        if not earlier:
            return None
        labels = self._labels(number - 1)
        decided = {pair_key(row["prompt"], row["response_a"], row["response_b"]) for row in iterate(labels)}
        rows = [{name: row[name] for name in HISTORY} for row in iterate(labels)]
        question, said = labels.features["prompt"], labels.features["chosen"]
        for this in earlier:
            for row in iterate(load(str(this / "selected"))):
                prompt = in_form(question, row["prompt"], "user")
                if pair_key(prompt, row["response_a"], row["response_b"]) not in decided:
                    both = (after_prompt(row[self.responses][i], row["prompt"]) for i in row["pair"])
                    first, second = (in_form(said, response) for response in both)
                    rows.append({"prompt": prompt, "chosen": first, "rejected": second, "label_confidence": TIE})
        return from_rows(rows, {name: labels.features[name] for name in HISTORY})


def active_rounds(pool: Dataset, judge: Judge, *, rounds: int = 5, **settings: Any) -> Run:
    """
    Choose, label and train in rounds: `ActiveRounds(pool=pool, judge=judge, **settings).run(rounds)`.

    Args:
        pool: Prompts with responses.
        judge: Labels the pairs that are chosen.
        rounds: In all; those that are done are not done again.
        **settings: Of `ActiveRounds`.
    """
    return ActiveRounds(pool=pool, judge=judge, **settings).run(rounds)


def labels_of_run(folder: str | Path) -> Dataset | None:
    """
    All labels of an active run, such as the seed of self-annotation; None if the folder holds no such run.

    Args:
        folder: Of the run: the selector's and seed's, not the one of all arms.
    """
    folders = sorted(Path(folder).glob("round-*/labels")) if (Path(folder) / SETTINGS_FILE).exists() else []
    return concatenate_datasets([load(str(labels)) for labels in folders]) if folders else None
