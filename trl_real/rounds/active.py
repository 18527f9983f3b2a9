"""ActiveDPO in rounds: select pairs, label them, train, and repeat with the new policy (arXiv 2505.19241, Alg. 1)."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Value, concatenate_datasets

from trl_real.data.checks.row_check import check_pool
from trl_real.data.conversation import after_prompt, in_form
from trl_real.data.convert import from_rows, iterate
from trl_real.data.digest import dataset_digest
from trl_real.data.files import load, save
from trl_real.errors import TooFewPairsError, TrlRealError
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.labeling.people.votes import pair_key
from trl_real.labeling.verdicts import TIE, Judge
from trl_real.rounds.base import NothingLeft, Rounds, RoundsResult, drawn, phases_of, setting_of
from trl_real.rounds.race import ROUND, SELECTED_BY
from trl_real.rounds.selectors import ROUND_SELECTORS, Chooser
from trl_real.rounds.training import round_config, train_adapter
from trl_real.runtime.run_folder import SETTINGS_FILE, Round
from trl_real.training.adapters import revision_of, save_adapter


logger = logging.getLogger(__name__)

HISTORY = ("prompt", "chosen", "rejected", "label_confidence")


@dataclass(kw_only=True)
class ActiveRounds(Rounds):
    """Run of ActiveDPO in rounds: select, label, train, test. `active_rounds` describes the settings."""

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
        """Name of the selector."""
        return self.selector

    def check(self) -> None:
        """Check the name of the selector and the sizes of a round."""
        if self.selector not in ROUND_SELECTORS:
            raise TrlRealError(f"Unknown selector {self.selector!r}. Choose one of {', '.join(ROUND_SELECTORS)}.")
        if self.budget < 1 or (self.n_prompts is not None and self.n_prompts < 1):
            raise TrlRealError(f"budget={self.budget}, n_prompts={self.n_prompts}: both must be 1 or more.")
        check_pool(self.pool, None if self.generation is not None else self.responses)

    def settings(self) -> dict[str, Any]:
        """Return the settings that every round depends on, as plain values."""
        own = ("selector", "budget", "restart", "generation", "n_prompts")
        return {
            **{name: getattr(self, name) for name in own},
            "selector_settings": {k: repr(v) for k, v in sorted(self.selector_settings.items())},
            "judge": setting_of(self.judge),
            "pool": dataset_digest(self.pool if self.generation is None else self.pool.select_columns(["prompt"])),
        }

    def start(self) -> list[dict[str, Any]]:
        """Create the first adapter, and return its metrics as round 0."""
        return [{"round": 0, "n_asked": 0, "n_labels": 0, **self.begin("adapter"), "phases": {}}]

    def round(self, number: int, before: dict[str, Any]) -> dict[str, Any]:
        """Generate if asked for, select, label, train and test."""
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
        race = this.state["select"]["record"].get("settings", {}).get("race")
        told = {"race": race} if race else {}
        return {"round": number, **spent, **tested["metrics"], **told, "phases": phases_of(this)}

    def _generate(self, this: Round, last: Round) -> dict[str, Any]:
        """Generate responses to the round's prompts with the policy of the previous round."""
        from trl_real.models.generate import generate

        rows = self._prompts(this.number)
        policy, tokenizer = self.policy(last)
        settings = {"n": 3, **(self.generation or {}), "seed": self.seed + this.number}
        found = generate(policy, tokenizer, rows["prompt"][:], journal=this / "responses.jsonl", **settings)
        save(rows.select_columns(["prompt"]).add_column(self.responses, found.texts), this / "pool")
        return {"n_tokens": found.n_tokens + found.n_kept, "n_prompts": len(rows)}

    def _select(self, this: Round, last: Round) -> dict[str, Any]:
        pool = load(str(this / "pool")) if self.generation is not None else self._prompts(this.number)
        policy, tokenizer = self.policy(last)
        settings, revision = self.selector_settings, revision_of(self.args.model_init_kwargs)
        chooser = Chooser(self.model, policy, tokenizer, self.responses, self.seed + this.number, settings, revision)
        selector = ROUND_SELECTORS[self.selector](self.selector, chooser)
        history = self._history(this.number)
        try:
            selected = selector.select(pool, self.budget, history=history)
        except TooFewPairsError as error:
            if not error.room:
                raise NothingLeft from error
            logger.warning(
                "Round %d selects from %d pairs, fewer than the budget of %d.", this.number, error.room, self.budget
            )
            selected = selector.select(pool, error.room, history=history)
        save(selected, this / "selected")
        record = selector.record.to_dict()
        return {"n_tokens": record.get("tokens", 0), "n_selected": len(selected), "record": record}

    def _label(self, this: Round) -> dict[str, Any]:
        report = LabelReport()
        journal = self.runs.folder / "verdicts.jsonl"  # one for all rounds, so that no pair is judged twice
        selected = load(str(this / "selected"))
        save(annotate(selected, self.judge, responses=self.responses, journal=journal, report=report), this / "labels")
        verdicts = report.verdicts
        return {"n_asked": verdicts.n, **report.counts, "n_tokens": verdicts.input_tokens + verdicts.output_tokens}

    def _train(self, this: Round, last: Round) -> dict[str, Any]:
        labels = self._labels(this.number)
        new = labels if self.restart else load(str(this / "labels"))
        if not len(new):  # only ties: nothing to learn
            policy, tokenizer = self.policy(last)
            save_adapter(policy, this / "adapter")
            return {"n_tokens": 0, "n_steps": 0}
        start = (self.runs.round(0) if self.restart else last) / "adapter"
        base, tokenizer = self.base()
        config = round_config(self.args, this / "trainer", self.seed)
        trained = train_adapter(base, tokenizer, new, start, config, self.peft_config)
        save_adapter(trained.policy, this / "adapter")
        return trained.summary

    def _prompts(self, number: int) -> Dataset:
        """Return the pool's rows that a round selects from: all, or those of the prompts that it draws."""
        if self.n_prompts is None or self.n_prompts >= len(self.pool):
            return self.pool
        rows = drawn(self.pool.with_format(None)["prompt"], self.seed, number)
        return self.pool.select(sorted(i for of_prompt in rows[: self.n_prompts] for i in of_prompt))

    def _labels(self, number: int) -> Dataset:
        """Return the labels of all rounds up to this one."""
        return concatenate_datasets([load(str(self.runs.round(n) / "labels")) for n in range(1, number + 1)])

    def _history(self, number: int) -> Dataset | None:
        """Return all pairs judged before a round, as labels; a tie or failed judgement has confidence 1/2."""
        earlier = [self.runs.round(n) for n in range(1, number)]
        if not earlier:
            return None
        labels = self._labels(number - 1)
        mixed = [SELECTED_BY] if SELECTED_BY in labels.column_names else []
        names = [*HISTORY, *mixed]
        prompt_type, response_type = labels.features["prompt"], labels.features["chosen"]
        rows = []
        for this in earlier:
            found = list(iterate(load(str(this / "labels"))))
            decided = {pair_key(row["prompt"], row["response_a"], row["response_b"]) for row in found}
            rows += [{**{name: row[name] for name in names}, ROUND: this.number} for row in found]
            for row in iterate(load(str(this / "selected"))):
                prompt = in_form(prompt_type, row["prompt"], "user")
                if pair_key(prompt, row["response_a"], row["response_b"]) not in decided:
                    both = (after_prompt(row[self.responses][i], row["prompt"]) for i in row["pair"])
                    first, second = (in_form(response_type, response) for response in both)
                    tie = {"prompt": prompt, "chosen": first, "rejected": second, "label_confidence": TIE}
                    rows.append({**tie, **{name: row[name] for name in mixed}, ROUND: this.number})
        return from_rows(rows, {**{name: labels.features[name] for name in names}, ROUND: Value("int32")})


def active_rounds(pool: Dataset, judge: Judge, *, rounds: int = 5, **settings: Any) -> RoundsResult:
    """
    Run ActiveDPO: choose, label and train in rounds. A killed run continues, and asks for no label twice.

    Args:
        pool: Dataset with `prompt` and `responses`; with `generation`, `prompt` is enough.
        judge: Judge that labels the selected pairs. With `PageJudge`, the round waits for people.
        model: Hub id or path of the model before alignment: the start of the training and the reference of all rounds.
        args: Arguments of the trainer.
        output_dir: Folder of the run.
        selector: Name in `ROUND_SELECTORS`; `"auto"` races its parts, and each round says under `race` what it chose.
        budget: Number of pairs to label per round.
        peft_config: Configuration of the adapter; rank 16 on all linear layers by default.
        restart: Whether each round trains a new adapter on all labels, as in the theory, or continues training the
            last adapter on the new labels.
        eval_dataset: Labelled pairs to test each round on.
        generation: Settings of `generate`, including `n`, with which each round's policy writes new responses.
        n_prompts: Number of prompts that a round selects from, drawn by seed and text; all by default.
        evaluate: Function of the policy and its tokenizer that returns more metrics, such as a win rate.
        selector_settings: More arguments of the selector.
        responses: Column with the responses.
        seed: Seed of all random draws.
        rounds: Number of rounds in total; finished rounds are not repeated.

    Raises:
        TrlRealError: If a setting is out of range.
    """
    return ActiveRounds(pool=pool, judge=judge, **settings).run(rounds)


def labels_of_run(folder: str | Path) -> Dataset | None:
    """
    Return all labels of an active run, for example as the seed of self-annotation; None if the folder has no run.

    Args:
        folder: Folder of one run (a selector and a seed), not the folder of all arms.
    """
    folders = sorted(Path(folder).glob("round-*/labels")) if (Path(folder) / SETTINGS_FILE).exists() else []
    return concatenate_datasets([load(str(labels)) for labels in folders]) if folders else None
