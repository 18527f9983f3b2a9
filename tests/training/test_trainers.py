"""Labels feed TRL's other trainers: each reads what `rows_for` gives, and its confidence where it reads one."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from support.training import as_dialogues, as_messages, config, history, pairs
from trl_real import EmbeddingPairSelector, RewardModelJudge, ScoreJudge, annotate, rows_for
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.training.trainers import TRAINER_ROWS, RewardModelTrainer


pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = {"texts": dict, "messages": as_messages, "implicit prompt": as_dialogues}


def labels(layout: str = "texts", n: int = 8) -> Dataset:
    """What `annotate` returns: half of the labels are doubtful."""
    sure = {"label_confidence": 1.0, "label_source": "judge"}
    rows = [{**LAYOUTS[layout](row), **sure} for row in pairs(n)]
    for row in rows[::2]:
        row["label_confidence"] = 0.75
    return Dataset.from_list(rows)


def reward_model(seed: int = 0):
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = tiny_model().config
        made.num_labels = 1
        return AutoModelForSequenceClassification.from_config(made).eval()


def cpo(folder, rows):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(tiny_model(), args=config(folder, CPOConfig), train_dataset=rows,
                      processing_class=tiny_tokenizer())  # fmt: skip


def orpo(folder, rows):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer(tiny_model(), args=config(folder, ORPOConfig), train_dataset=rows,
                       processing_class=tiny_tokenizer())  # fmt: skip


def kto(folder, rows):
    model = save_tiny(folder / "model")
    return KTOTrainer(model, args=config(folder, KTOConfig), train_dataset=rows, processing_class=tiny_tokenizer())


def reward(folder, rows):
    args = config(folder, RewardConfig)
    return RewardTrainer(reward_model(), args=args, train_dataset=rows, processing_class=tiny_tokenizer())


def grpo(folder, rows):
    sizes = {"num_generations": 2, "max_completion_length": 4, "per_device_train_batch_size": 2, "max_steps": 1}
    return GRPOTrainer(save_tiny(folder / "model"), reward_model(), args=config(folder, GRPOConfig, **sizes),
                       reward_processing_classes=tiny_tokenizer(), train_dataset=rows,
                       processing_class=tiny_tokenizer())  # fmt: skip


MAKERS = {"reward": reward, "kto": kto, "cpo": cpo, "orpo": orpo, "grpo": grpo}


def test_every_trainer_of_the_table_is_tested():
    assert {*MAKERS, "dpo"} == set(TRAINER_ROWS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MAKERS)
def test_trainer_of_trl_trains_on_the_labels(name, layout, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = MAKERS[name](tmp_path, rows_for(labels(layout), name))
    before = {key: weight.clone() for key, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = [key for key, weight in trainer.model.named_parameters() if not torch.equal(weight, before[key])]
    assert changed or name == "grpo"  # two equal rewards have no advantage
    assert trainer.state.global_step >= 1


def test_certain_labels_are_the_plain_loss_of_a_reward_model(tmp_path):
    plain = labels().remove_columns("label_confidence")
    certain = plain.add_column("label_confidence", [1.0] * len(plain))
    assert history(reward(tmp_path / "a", rows_for(plain, "reward"))) == history(
        reward(tmp_path / "b", rows_for(certain, "reward"))
    )


def test_doubtful_labels_have_a_lower_margin(tmp_path):
    rows = rows_for(labels(), "reward")
    assert rows["margin"][:4] == [-0.5, 0.0, -0.5, 0.0] and "label_source" not in rows.column_names
    trainer = reward(tmp_path, rows)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        better, worse = trainer.model(**{k: v for k, v in batch.items() if k != "margin"}).logits[:, 0].chunk(2)
        loss = trainer.compute_loss(trainer.model, batch)
    expected = -torch.nn.functional.logsigmoid(better - worse + torch.tensor([0.5, 0.0, 0.5, 0.0])).mean()
    torch.testing.assert_close(loss, expected)


def test_own_margin_stays():
    own = labels().add_column("margin", [0.25] * 8)
    assert rows_for(own, "reward")["margin"][:] == [0.25] * 8


def test_unpaired_rows_keep_every_response_with_its_side():
    rows = rows_for(labels(n=5), "kto")
    sides = {(row["prompt"], row["completion"], row["label"]) for row in rows}
    assert sides == {
        (row["prompt"], row[name], name == "chosen") for row in pairs(5) for name in ("chosen", "rejected")
    }


def test_prompts_for_rewards_stand_once_with_their_tools():
    rows = [{**as_messages(row), "tools": tools} for row in pairs(3) for tools in ('[{"a": 1}]', '[{"a": 2}]')]
    found = rows_for(Dataset.from_list(rows * 2), "grpo")
    assert found.column_names == ["prompt", "tools"] and len(found) == 6
    assert found["tools"][:2] == ['[{"a": 1}]', '[{"a": 2}]']


def test_what_cannot_be_read_is_told():
    with pytest.raises(TrlRealError, match="No rows for the trainer 'ppo'; there are dpo, reward, kto"):
        rows_for(labels(), "ppo")
    with pytest.raises(MissingColumnError, match="Label the pairs first"):
        rows_for(Dataset.from_dict({"prompt": ["a"]}), "kto")
    with pytest.raises(TrlRealError, match="'label_confidence' is 0.25 in row 1 of the labels"):
        rows_for(labels().remove_columns("label_confidence").add_column("label_confidence", [1.0, 0.25] * 4), "reward")


def test_labels_of_a_judge_feed_a_reward_model_that_agrees_with_it(tmp_path):
    words = ["tea", "rain", "poem", "lock"]
    pool = Dataset.from_list(
        [
            {"prompt": f"Say {word} {i}.", "responses": [f"good {word}", f"no {word}"], "scores": [1.0, 0.0]}
            for i in range(4)
            for word in words
        ]
    )
    chosen = EmbeddingPairSelector(strategy="random").select(pool)
    rows = rows_for(annotate(chosen, ScoreJudge()), "reward")
    args = config(tmp_path, RewardConfig, max_steps=12, per_device_train_batch_size=8)
    trainer = RewardModelTrainer(save_tiny(tmp_path / "model"), args=args, train_dataset=rows,
                                 processing_class=tiny_tokenizer())  # fmt: skip
    trainer.train()
    trainer.save_model()
    judge = RewardModelJudge(str(tmp_path))
    texts = (chosen["prompt"][:], chosen["response_a"][:])
    assert all(probability > 0.5 for probability in judge(chosen[:]))
    # the judge reads a text as the trainer did
    ids = trainer.train_dataset["chosen_ids"][0]
    with torch.no_grad():
        score = trainer.model.eval()(input_ids=torch.tensor([ids])).logits.item()
    assert judge.score([texts[0][0]], [texts[1][0]])[0] == pytest.approx(score, abs=1e-4)
