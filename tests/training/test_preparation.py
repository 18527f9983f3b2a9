"""Selection and training read the same responses, and rows that cannot be prepared are told."""

import pytest
from datasets import Dataset
from trl import DPOConfig

from support.tiny import save_tiny, tiny_tokenizer
from support.training import as_dialogues, as_messages, config, pairs
from trl_real import REALDPOTrainer, TrlRealError
from trl_real.data.pairs import EMPTY, SAME_AS_TRAINED, preference_candidates
from trl_real.models.sequences import tokenize_pairs
from trl_real.training.config import check_has_effect


def test_pairs_that_are_trained_as_the_same_tokens_are_counted_and_never_chosen(tmp_path):
    long = "tea rain poem " * 30
    rows = [*pairs(4), {"prompt": "Cut? ", "chosen": long + "yes", "rejected": long + "no"}]
    settings = {"selection_strategy": "hard", "selection_budget": 1.0, "max_length": 40}
    trainer = REALDPOTrainer(
        save_tiny(tmp_path / "model"), args=config(tmp_path, **settings), train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    assert trainer.selected_rows.tolist() == [0, 1, 2, 3]
    assert trainer.selection_record.skipped == {SAME_AS_TRAINED: 1}
    assert trainer.selection_record.n_rows == 5


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_selection_reads_the_two_responses_of_dialogues_of_which_one_begins_the_other(tmp_path, kind):
    rows = [
        {"chosen": f"Question {i}: a town? Paris, yes.", "rejected": f"Question {i}: a town? Paris"} for i in (1, 2)
    ]
    if kind == "messages":
        turns = [{"role": role, "content": f"{role} {i}"} for i in (1, 2) for role in ("user", "assistant")]
        rows = [{"chosen": turns, "rejected": turns[:2]}] * 2
    settings = {"selection_strategy": "easy", "selection_budget": 1.0}
    tokenizer = tiny_tokenizer()
    trainer = REALDPOTrainer(
        save_tiny(tmp_path / "model"), args=config(tmp_path, **settings), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trained = trainer.train_dataset[0]
    pair = preference_candidates(None, rows[0]["chosen"], rows[0]["rejected"])
    for side, response in zip(("chosen_ids", "rejected_ids"), pair.texts, strict=True):
        (read,) = tokenize_pairs(tokenizer, [pair.prompt], [response], 512)
        assert list(read.response) == trained[side]
        assert list(read.prompt) == trained["prompt_ids"]


def test_a_dialogue_without_an_answer_is_told_by_its_row(tmp_path):
    turns = [{"role": "user", "content": "A town?"}, {"role": "assistant", "content": "Paris."}]
    rows = [as_dialogues(row) for row in pairs(2)] + [{"chosen": turns, "rejected": turns[:1]}]
    with pytest.raises(TrlRealError, match="Row 2 of the set 'train'"):
        REALDPOTrainer(
            save_tiny(tmp_path / "model"),
            args=config(tmp_path),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )
    assert preference_candidates(None, turns, turns[:1]).skipped == EMPTY


def test_a_template_that_refuses_a_role_is_told(tmp_path):
    tokenizer = tiny_tokenizer()
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    rows = [as_messages(row) for row in pairs(2)]
    rows = [{**row, "prompt": [{"role": "system", "content": "Short."}, *row["prompt"]]} for row in rows]
    with pytest.raises(TrlRealError, match="no system role"):
        REALDPOTrainer(
            save_tiny(tmp_path / "model"),
            args=config(tmp_path),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    with pytest.raises(TrlRealError, match=r"\['system', 'user'\].*no system role"):
        tokenize_pairs(tokenizer, [rows[0]["prompt"]], ["Fine."], 512)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_set_of_which_the_cut_leaves_nothing_is_told(tmp_path, name):
    rows = {"train": Dataset.from_list(pairs(2)), "eval": Dataset.from_list(pairs(2))}
    rows[name] = rows[name].map(lambda row: {"prompt": row["prompt"] * 40})
    with pytest.raises(TrlRealError, match=f"Nothing is left of the 2 rows of the set '{name}'.*max_length=64"):
        REALDPOTrainer(
            save_tiny(tmp_path / "model"), args=config(tmp_path, max_length=64), train_dataset=rows["train"],
            eval_dataset=rows["eval"],
        )  # fmt: skip


@pytest.mark.parametrize("is_told", [True, False])
def test_a_template_whose_end_is_no_end_of_generations_is_told(tmp_path, caplog, is_told):
    tokenizer = tiny_tokenizer()
    if is_told:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|pad|>")
    rows = Dataset.from_list([as_messages(row) for row in pairs(2)])
    REALDPOTrainer(
        save_tiny(tmp_path / "model"), args=config(tmp_path), train_dataset=rows, processing_class=tokenizer
    )
    assert ("ends a turn with '<|pad|>'" in caplog.text) is is_told


def test_a_token_beyond_the_embeddings_is_told(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(10)])
    rows = Dataset.from_list([{**row, "chosen": "<9>"} for row in pairs(2)])
    with pytest.raises(TrlRealError, match="gives token 309, but the model has 304 embeddings"):
        REALDPOTrainer(
            save_tiny(tmp_path / "model"), args=config(tmp_path), train_dataset=rows, processing_class=tokenizer
        )


def test_a_plain_config_with_a_setting_that_its_loss_ignores_is_refused(tmp_path):
    rows = Dataset.from_list(pairs(2))
    with pytest.raises(TrlRealError, match="label_smoothing=0.1 would be ignored"):
        REALDPOTrainer("no model is loaded", args=config(tmp_path, DPOConfig, label_smoothing=0.1), train_dataset=rows)
    check_has_effect(config(tmp_path, DPOConfig, label_smoothing=0.1, loss_type="robust"))
