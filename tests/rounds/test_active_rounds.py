"""Tests of runs in rounds: each step runs once, also after a kill, and always against the same reference."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Value, concatenate_datasets, load_from_disk
from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict

from support.crashes import KILLED, in_child
from support.rounds import active, killed_while_generating, pool
from support.tiny import save_tiny
from support.training import config, pairs
from trl_real import ScoreJudge, TrlRealError
from trl_real.data.digest import dataset_digest
from trl_real.rounds.selectors import ROUND_SELECTORS
from trl_real.runtime.journal import Journal
from trl_real.training.adapters import adapter_settings


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def without_times(rounds):
    return [{k: v for k, v in row.items() if k != "phases"} for row in rounds]


def weights(folder, number):
    return load_peft_weights(str(folder / "run" / f"round-{number:02d}" / "adapter"))


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("selector", ROUND_SELECTORS)
def test_every_selector_runs_all_rounds_and_asks_for_no_pair_twice(selector, model, tmp_path):
    found = active(model, tmp_path, selector=selector)
    assert [row["n_asked"] for row in found.rounds] == [0, 4, 8]
    assert all({"loss", "accuracy", "margin"} <= row.keys() for row in found.rounds)
    assert {"select", "label", "train", "test"} == found.rounds[1]["phases"].keys()
    asked = [line["key"] for line in Journal(tmp_path / "run" / "verdicts.jsonl").read()]
    assert len(asked) == len(set(asked)) == 8
    again = active(model, tmp_path, selector=selector)
    assert again.rounds == found.rounds


@pytest.mark.parametrize(
    ("selector", "asked"), [("easy", [0, 4, 6]), ("random", [0, 4, 6]), ("certainty", [0, 4, 8, 9])]
)
def test_rounds_use_up_the_pool_and_never_repeat_a_pair(selector, asked, model, tmp_path):
    """Of three responses a row a baseline takes one pair, since none stands in two of them; the others take all."""
    rows = 6 if asked[-1] == 6 else 3
    found = active(model, tmp_path, rounds=5, selector=selector, pool=pool(n=rows, k=3), budget=4)
    keys = [line["key"] for line in Journal(tmp_path / "run" / "verdicts.jsonl").read()]
    assert len(keys) == len(set(keys)) and [row["n_asked"] for row in found.rounds] == asked


def test_more_rounds_resume_the_run_and_other_settings_are_refused(model, tmp_path):
    two = active(model, tmp_path)
    three = active(model, tmp_path, rounds=3)
    assert three.rounds[:3] == two.rounds and three.rounds[3]["n_asked"] == 12
    with pytest.raises(TrlRealError, match="holds a run with budget=4, not 5"):
        active(model, tmp_path, budget=5)
    with pytest.raises(TrlRealError, match="Unknown selector 'esay'. Choose one of gradient"):
        active(model, tmp_path, selector="esay")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(TrlRealError, match="holds files, but not a run"):
        active(model, tmp_path, output_dir=tmp_path / "other")


def test_same_rows_from_another_file_resume_the_run_and_other_rows_do_not(model, tmp_path):
    active(model, tmp_path, pool=pool(), rounds=1)
    pool().to_json(str(tmp_path / "copy.jsonl"))
    copy = Dataset.from_json(str(tmp_path / "copy.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert len(active(model, tmp_path, pool=copy, rounds=2).rounds) == 3
    with pytest.raises(TrlRealError, match="pool='14 rows, "):
        active(model, tmp_path, pool=pool().map(lambda row: {"prompt": row["prompt"].upper()}), rounds=2)


def test_other_judge_gap_is_another_run(model, tmp_path):
    active(model, tmp_path, judge=ScoreJudge(), rounds=1)
    with pytest.raises(TrlRealError, match="judge='score:scores, "):
        active(model, tmp_path, judge=ScoreJudge(min_gap=2.0), rounds=2)


def test_dataset_digest_depends_only_on_the_rows(tmp_path):
    texts = [(f"{i} " + "tea " * 200, [f"a{i}" * 50, f"b{i}" * 50]) for i in range(2500)]
    rows = [{"prompt": prompt, "responses": both, "x": i / 8} for i, (prompt, both) in enumerate(texts)]
    first = Dataset.from_list(rows)  # more than a page of Parquet
    halves = concatenate_datasets([Dataset.from_list(rows[:700]), Dataset.from_list(rows[700:])])
    first.to_json(str(tmp_path / "rows.jsonl"))
    first.to_parquet(str(tmp_path / "rows.parquet"))
    read = [
        Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache")),
        Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache")),
        first.cast_column("prompt", Value("large_string")),
        first.with_format("numpy"),
        halves,
    ]
    assert {dataset_digest(dataset) for dataset in read} == {dataset_digest(first)}
    assert (
        dataset_digest(first.select(range(2499)))
        != dataset_digest(first)
        != dataset_digest(first.select([*range(2499), 0]))
    )


def test_adapter_settings_do_not_depend_on_their_order_in_peft():
    targets = {"target_modules": ["q_proj", "v_proj", "k_proj"], "r": 4}
    config = LoraConfig(**targets, task_type="CAUSAL_LM")
    found = adapter_settings(config)
    assert found["adapter.target_modules"] == ["k_proj", "q_proj", "v_proj"] and found["adapter.r"] == 4
    config.base_model_name_or_path, config.peft_version = "elsewhere", "99"
    assert adapter_settings(config) == found == adapter_settings(LoraConfig(**targets, task_type="CAUSAL_LM"))
    assert adapter_settings(None) == {"adapter": None} != adapter_settings(LoraConfig())


def test_one_lora_config_can_be_used_for_several_runs(model, tmp_path):
    """PEFT writes into the object that it is given."""
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    for _ in range(2):
        for arm in ("a", "b"):
            active(model, tmp_path, rounds=1, peft_config=config, output_dir=tmp_path / arm)
    assert config.target_modules == "all-linear"


def test_other_generation_prompts_are_another_run(model, tmp_path):
    settings = {"generation": {"n": 2, "max_new_tokens": 4, "temperature": 1.0}, "n_prompts": 4, "budget": 1}
    settings["judge"] = lambda batch: [1.0] * len(batch["prompt"])
    active(model, tmp_path, rounds=1, **settings)
    with pytest.raises(TrlRealError, match="pool="):
        active(model, tmp_path, pool=pool().map(lambda row: {"prompt": row["prompt"].upper()}), rounds=2, **settings)


def test_a_restart_trains_on_all_labels_from_the_same_weights(model, tmp_path):
    """So the last round is one training on all labels, whatever happened in between."""
    active(model, tmp_path)
    from trl_real.rounds.training import round_config, train_adapter
    from trl_real.training.adapters import load_base

    run = tmp_path / "run"
    labels = [load_from_disk(str(run / f"round-0{n}" / "labels")) for n in (1, 2)]
    base, tokenizer = load_base(model, None, cpu=True)
    all_labels = Dataset.from_list([row for part in labels for row in part], features=labels[0].features)
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = round_config(config(tmp_path / "x", max_steps=2), tmp_path / "x", 1)
    trained = train_adapter(base, tokenizer, all_labels, run / "round-00" / "adapter", settings, peft_config)
    trained.policy.save_pretrained(str(tmp_path / "alone"))
    assert equal(load_peft_weights(str(tmp_path / "alone")), weights(tmp_path, 2))
    assert not equal(weights(tmp_path, 1), weights(tmp_path, 2))


def test_metrics_of_rounds_equal_those_of_the_trainer(model, tmp_path):
    # TRL takes what chosen and rejected share as the prompt: one more token where the next is glued to its last space.
    held_out = Dataset.from_list([{**row, "prompt": row["prompt"].strip() + "\n"} for row in pairs(6)])
    found = active(model, tmp_path, eval_dataset=held_out)
    from trl_real import REALDPOTrainer
    from trl_real.training.adapters import load_base

    base, tokenizer = load_base(model, None, cpu=True)
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = REALDPOTrainer(
        base,
        args=config(tmp_path / "x"),
        train_dataset=Dataset.from_list(pairs(6)),
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    set_peft_model_state_dict(trainer.model, weights(tmp_path, 2))
    expected = trainer.evaluate()
    for name, of_trl in (("loss", "loss"), ("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
        assert found.rounds[2][name] == pytest.approx(expected[f"eval_{of_trl}"], rel=1e-4, abs=1e-7)


def test_untrained_policy_has_accuracy_one_half(model, tmp_path):
    ties = pool().map(lambda row: {"scores": [1.0, 1.0, 1.0]})
    for row in active(model, tmp_path, pool=ties).rounds:
        assert row["loss"] == pytest.approx(np.log(2)) and (row["accuracy"], row["margin"]) == (0.5, 0.0)


def test_without_restart_training_continues_from_the_last_adapter(model, tmp_path):
    found = active(model, tmp_path, restart=False)
    state = json.loads((tmp_path / "run" / "round-02" / "state.json").read_text())
    assert state["train"]["n_steps"] == 2 and found.rounds[2]["margin"] != found.rounds[1]["margin"]


@pytest.mark.parametrize("own_reference", [False, True])
def test_interrupted_training_resumes_from_its_checkpoint(own_reference, model, tmp_path):
    from trl_real.rounds.training import adapter_digest, round_config, train_adapter
    from trl_real.training.adapters import fresh_adapter, load_base, save_adapter

    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    save_adapter(fresh_adapter(load_base(model, None, cpu=True)[0], peft_config, 1), tmp_path / "start")
    given = config(tmp_path, save_strategy="steps", save_steps=1, max_steps=4)

    def trained(folder):
        base, tokenizer = load_base(model, None, cpu=True)
        settings = round_config(given, tmp_path / folder, 1)
        of = None if own_reference else peft_config
        return train_adapter(base, tokenizer, Dataset.from_list(pairs(8)), tmp_path / "start", settings, of)

    whole = trained("whole")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "whole" / f"checkpoint-{step}")
    resumed = trained("whole")
    assert resumed.n_steps == 4
    assert equal(*({k: v for k, v in x.policy.state_dict().items() if "lora" in k} for x in (whole, resumed)))
    start = adapter_digest(load_peft_weights(str(tmp_path / "start")))
    assert whole.reference == resumed.reference == (start if own_reference else "")


def test_ties_use_the_budget_and_are_not_asked_again(model, tmp_path):
    ties = pool().map(lambda row: {"scores": [1.0, 1.0, 1.0]})
    found = active(model, tmp_path, pool=ties, judge=ScoreJudge())
    assert [row["n_asked"] for row in found.rounds] == [0, 4, 8] and found.rounds[2]["n_labels"] == 0
    assert equal(weights(tmp_path, 0), weights(tmp_path, 2))
    asked = [line["key"] for line in Journal(tmp_path / "run" / "verdicts.jsonl").read()]
    assert len(set(asked)) == 8


@pytest.mark.parametrize("selector", ROUND_SELECTORS)
def test_chat_pairs_are_asked_only_once(selector, model, tmp_path):
    """Prompts are messages and responses texts: labels hold messages, and what the next round knows must fit both."""
    texts = pool(6, 4).map(lambda row, i: {"scores": [1.0, 1.0, 0.0, 1.0] if i % 2 else [1.0] * 4}, with_indices=True)
    chats = texts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    found = active(model, tmp_path, pool=chats, selector=selector)
    labels, asked = found.rounds[-1]["n_labels"], found.rounds[-1]["n_asked"]
    assert 0 < labels < asked == 8
    keys = [line["key"] for line in Journal(tmp_path / "run" / "verdicts.jsonl").read()]
    assert len(set(keys)) == len(keys) == asked


def test_policy_of_each_round_generates_new_responses(model, tmp_path):
    class Longer:
        name = "longer"

        def __call__(self, batch):
            return [float(len(a) > len(b)) for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]

    settings = {"judge": Longer(), "generation": {"n": 3, "max_new_tokens": 6, "batch_size": 32}, "n_prompts": 8}
    settings["pool"] = pool().select_columns("prompt")
    (tmp_path / "killed").mkdir()
    killed_while_generating(lambda: active(model, tmp_path / "killed", **settings), tmp_path / "killed", 24)
    found = active(model, tmp_path, **settings)
    first, second = (load_from_disk(str(tmp_path / "run" / f"round-0{n}" / "pool")) for n in (1, 2))
    assert len(first) == len(second) == 8 and set(first["prompt"]) != set(second["prompt"])
    again = active(model, tmp_path / "killed", rounds=1, **settings)
    tokens, resumed = (run.rounds[1]["phases"]["generate"]["n_tokens"] for run in (found, again))
    assert resumed == tokens > 0


def test_custom_metrics_come_from_a_function_of_the_policy(model, tmp_path):
    found = active(
        model, tmp_path, evaluate=lambda policy, tokenizer: {"size": float(len(tokenizer))}, eval_dataset=None
    )
    assert [row["size"] for row in found.rounds] == [found.rounds[0]["size"]] * 3 and "loss" not in found.rounds[0]


def test_run_killed_at_any_moment_resumes_to_the_same_picks_labels_and_weights(model, tmp_path):
    expected = active(model, tmp_path / "whole", rounds=3)
    (tmp_path / "killed").mkdir()

    def run() -> int:
        active(model, tmp_path / "killed", rounds=3)
        return 0

    for point, failure in ((9, "die"), (23, "torn"), (23, "die"), (31, "torn"), (31, "die")):
        assert in_child(run, tmp_path / "killed", point, failure)[0] == KILLED
    found = active(model, tmp_path / "killed", rounds=3)
    assert without_times(found.rounds) == without_times(expected.rounds)
    for number in (1, 2, 3):
        assert equal(weights(tmp_path / "whole", number), weights(tmp_path / "killed", number))
    asked = [line["key"] for line in Journal(tmp_path / "killed" / "run" / "verdicts.jsonl").read()]
    assert len(asked) == len(set(asked)) == 12
