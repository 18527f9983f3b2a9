"""End-to-end runs with conversations in place of texts, in every layout of pools and labels."""

import pytest
from datasets import Dataset, load_from_disk
from peft import LoraConfig

from support.tiny import save_tiny
from support.training import as_messages, config, pairs
from trl_real import (
    EmbeddingPairSelector,
    REALDPOConfig,
    REALDPOTrainer,
    ScoreJudge,
    WinRateCallback,
    active_rounds,
    annotate,
    compare,
    run_study,
    self_annotation_rounds,
)
from trl_real.runtime.journal import Journal
from trl_real.study.dpo import DPOCells


pytestmark = pytest.mark.usefixtures("one_thread")

PEFT = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def said(text: str, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": text}]


def asked(text: str) -> list[dict]:
    """Two turns before the question, so that nothing takes the last message for all of it."""
    return said("Hello!", "user") + said("Hello.") + said(text, "user")


# What a prompt's responses look like beside it.
FORMS = {"responses are texts": str, "responses are messages": said}


def whole(text: str) -> list[dict]:
    """A response as a dialogue, which begins with the prompt of its row."""
    question = f"Question {int(text.split()[-1]) // 10}?"
    return [*said(question, "user"), *said(text)]


# Of prompts and responses.
MIXED = {
    **{name: (asked, form) for name, form in FORMS.items()},
    "prompts are texts": (str, said),
    "dialogues": (str, whole),
}


def pool(form, n: int = 8, k: int = 3, ask=asked) -> Dataset:
    rows = pairs(n * k)
    return Dataset.from_dict(
        {
            "prompt": [ask(f"Question {i}?") for i in range(n)],
            "responses": [[form(rows[k * i + j]["chosen"] + f" {10 * i + j}") for j in range(k)] for i in range(n)],
            "scores": [[float((i + j) % 2) for j in range(k)] for i in range(n)],
        }
    )


def labels(n: int = 8) -> Dataset:
    return Dataset.from_list([as_messages(row) for row in pairs(n)])


def longer(batch: dict) -> list[float]:
    """A judge that likes length, and ties."""
    sides = zip(map(str, batch["response_a"]), map(str, batch["response_b"]), strict=True)
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in sides]


@pytest.mark.parametrize(("ask", "form"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("generation", [None, {"n": 3, "max_new_tokens": 6, "temperature": 1.0}], ids=["pool", "own"])
def test_active_rounds(ask, form, generation, model, tmp_path):
    run = active_rounds(
        pool=pool(form, ask=ask), judge=longer, model=model, args=config(tmp_path / "unused", max_steps=1),
        output_dir=tmp_path / "run", budget=4, peft_config=PEFT, eval_dataset=labels(4), generation=generation,
        n_prompts=6, rounds=2,
    )  # fmt: skip
    assert [row["n_asked"] for row in run.rounds] == [0, 4, 8]
    kept = load_from_disk(str(tmp_path / "run" / "round-02" / "labels"))
    if ask is asked or generation is None:
        assert all(row["prompt"][-1]["role"] == "user" and row["chosen"][0]["role"] == "assistant" for row in kept)
    keys = [line["key"] for line in Journal(tmp_path / "run" / "verdicts.jsonl").read()]
    assert len(set(keys)) == len(keys) == 8


@pytest.mark.parametrize("seed", [labels(), Dataset.from_list(pairs(8))], ids=["seed of chats", "seed of texts"])
def test_self_annotation_with_a_second_opinion(seed, model, tmp_path):
    run = self_annotation_rounds(
        seed_labels=seed, prompts=pool(str, 16).select_columns("prompt"), n_prompts=6, model=model,
        args=config(tmp_path / "unused", max_steps=2), output_dir=tmp_path / "run", peft_config=PEFT,
        generation={"max_new_tokens": 6, "temperature": 1.0}, eval_dataset=labels(4),
        relabel_judge=lambda batch: [1.0] * len(batch["prompt"]), relabel_budget=0.5, rounds=2,
    )  # fmt: skip
    assert [row["stage"] for row in run.rounds] == ["initial", "seed", "round 1", "round 2"]
    own = load_from_disk(str(tmp_path / "run" / "round-02" / "self_labels"))
    assert all(row["chosen"][0]["role"] == "assistant" for row in own)


@pytest.mark.parametrize("dataset", [labels(24), pool(str, 24), pool(said, 24)], ids=["labels", *FORMS])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_a_study(dataset, trained, model, tmp_path):
    args = REALDPOConfig(str(tmp_path / "unused"), use_cpu=True, bf16=False, report_to="none", num_train_epochs=1)
    trainer = DPOCells(model, args, peft_config=PEFT, learning_rates=[1e-3], n_evaluations=1) if trained else None
    study = run_study(
        dataset, model, tmp_path / "s", trainer=trainer, arms=["random", "easy"], budgets=[0.5], seeds=[0], n_test=6
    )
    assert set(study.curves["loss"]) == {"random", "easy"}


def test_a_study_with_a_chat_without_a_prompt(model, tmp_path):
    rows = [{**row, "prompt": row["prompt"] if i else None} for i, row in enumerate(labels(12).to_list())]
    args = REALDPOConfig(str(tmp_path / "unused"), use_cpu=True, bf16=False, report_to="none", num_train_epochs=1)
    trainer = DPOCells(model, args, peft_config=PEFT, learning_rates=[1e-3], n_evaluations=1)
    grid = {"arms": ["random"], "budgets": [1.0], "seeds": [0], "n_folds": 2, "n_validation": 0}
    assert run_study(Dataset.from_list(rows), model, tmp_path / "s", trainer=trainer, **grid).n_test == 12


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_select_label_train_and_compare(form, model, tmp_path):
    chosen = EmbeddingPairSelector(model).select(pool(form), 0.5)
    preferences = annotate(chosen, ScoreJudge())
    prompts, baseline = preferences["prompt"][:], preferences["rejected"][:]
    callback = WinRateCallback(prompts, baseline, longer, n=2, max_new_tokens=4)
    data = {"train_dataset": preferences, "eval_dataset": labels(4)}
    trainer = REALDPOTrainer(model, args=config(tmp_path, max_steps=1), callbacks=[callback], **data)
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_win_rate"] <= 1
    found = compare(prompts, preferences["chosen"][:], baseline, longer)
    assert len(found.rows["prompt"]) == len(preferences)
