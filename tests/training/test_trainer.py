"""REALDPOTrainer: DPOTrainer without selection, and otherwise DPOTrainer on the selected rows."""

from inspect import signature

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from support.selecting_trainer import MODES, selecting, stand_alone
from support.tiny import save_tiny, tiny_tokenizer
from support.training import LORA, as_dialogues, as_messages, config, history, pairs
from trl_real import EmbeddingPairSelector, REALDPOConfig, REALDPOTrainer
from trl_real.functional.similarity import candidate_pairs
from trl_real.models.sequences import tokenize_pairs


pytestmark = pytest.mark.usefixtures("one_thread")


# Nothing selected: it is DPOTrainer.


@pytest.mark.parametrize("mode", ["plain", "lora", "precompute", "reference", "streaming"])
def test_without_selection_every_logged_number_equals_dpotrainer(mode, model, tmp_path):
    def run(trainer, kind):
        dataset = Dataset.from_list(pairs(8))
        given = {"lora": {"peft_config": LORA}}.get(mode, {})
        if mode == "reference":
            given = {"ref_model": AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "reference", seed=2))}
        if mode == "streaming":
            dataset = dataset.to_iterable_dataset()
        own = {"shared_prompts": False} if kind is REALDPOConfig else {}
        args = config(tmp_path / kind.__name__, kind, precompute_ref_log_probs=mode == "precompute", **own)
        return history(trainer(model, args=args, train_dataset=dataset, **given))

    ours, theirs = run(REALDPOTrainer, REALDPOConfig), run(DPOTrainer, DPOConfig)
    assert ours == theirs
    assert len({log["loss"] for log in ours[:3]}) == 3, "nothing was learned, so nothing was compared"


def test_a_plain_dpoconfig_is_accepted_and_selects_nothing(model, tmp_path):
    trainer = REALDPOTrainer(model, args=config(tmp_path, DPOConfig), train_dataset=Dataset.from_list(pairs(4)))
    assert trainer.selection_record is None and len(trainer.train_dataset) == 4


def test_arguments_match_dpotrainer_by_name_and_position(model, tmp_path):
    assert signature(REALDPOTrainer) == signature(DPOTrainer)
    dataset = Dataset.from_list(pairs(8))
    args = config(tmp_path, selection_strategy="easy", selection_budget=2)
    trainer = REALDPOTrainer(model, None, args, None, dataset)
    assert len(trainer.train_dataset) == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'tokenizer'"):
        REALDPOTrainer(model, args=args, train_dataset=dataset, tokenizer=None)


def test_no_telemetry_leaves_the_machine(model, tmp_path, reports):
    REALDPOTrainer(model, args=config(tmp_path), train_dataset=Dataset.from_list(pairs(4)))
    assert reports == []
    DPOTrainer(model, args=config(tmp_path, DPOConfig), train_dataset=Dataset.from_list(pairs(4)))
    assert len(reports) == 1, "TRL reports in another way now, which this test does not see"


# What is selected.


@pytest.mark.parametrize("layout", [dict, as_messages, as_dialogues], ids=["text", "messages", "dialogues"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_training_rows_equal_those_of_a_selector_with_the_same_weights(layout, mode, model, tmp_path):
    dataset = Dataset.from_list([layout(row) for row in pairs()])
    expected = stand_alone(model, dataset)
    trainer = selecting(tmp_path, model, dataset, **mode)
    assert [text_of(row) for row in trainer.train_dataset] == [text_of(row) for row in expected]
    assert set(trainer.train_dataset.column_names) - set(dataset.column_names) <= {
        *("prompt", "prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
    }


def text_of(row: dict) -> str:
    """The chosen answer, without the end that TRL writes after it."""
    chosen = row["chosen"] if isinstance(row["chosen"], str) else row["chosen"][-1]["content"]
    return chosen.removesuffix("<|im_end|>")


def by_length(embeddings, draws):
    """A user's strategy, here one that looks at the norms."""
    first, second = candidate_pairs(embeddings.shape[1])
    norms = embeddings.double().norm(dim=-1)
    return (norms[:, first] - norms[:, second]).abs() / norms.amax()


@pytest.mark.parametrize(
    "strategy",
    ["easy@centered", by_length, lambda e, d: -by_length(e, d), "auto", {"easy": 0.6, "random": 0.4}],
    ids=["geometry", "function", "lambda", "mixture", "shares"],
)
def test_strategy_with_a_geometry_a_function_or_a_mixture_selects_as_the_selector_does(strategy, model, tmp_path):
    dataset = Dataset.from_list(pairs())
    args = {"selection_strategy": strategy, "selection_budget": 5, "max_steps": 2, "save_strategy": "steps"}
    trainer = selecting(tmp_path, model, dataset, save_steps=1, **args)
    selector = EmbeddingPairSelector(
        AutoModelForCausalLM.from_pretrained(model), tokenizer=tiny_tokenizer(), strategy=strategy
    )
    assert [text_of(row) for row in trainer.train_dataset] == [text_of(row) for row in selector.select(dataset, 5)]
    trainer.train()
    trainer.create_model_card()
    card, folder = (tmp_path / "README.md").read_text(), str(tmp_path / "checkpoint-1")
    assert f"by strategy `{strategy if isinstance(strategy, str) else trainer.args.selection_strategy}`" in card
    again = selecting(tmp_path, model, dataset, **args)
    again.train(resume_from_checkpoint=folder)
    assert again.selected_rows.tolist() == trainer.selected_rows.tolist()


@pytest.mark.parametrize("strategy", ["hard", "random"])
def test_strategy_and_seed_come_from_the_config(strategy, model, tmp_path):
    dataset = Dataset.from_list(pairs())
    expected = stand_alone(model, dataset, 5, strategy, seed=7)
    trainer = selecting(tmp_path, model, dataset, selection_strategy=strategy, selection_budget=5, seed=7)
    assert list(trainer.train_dataset["prompt"]) == list(expected["prompt"])
    assert trainer.selection_record.strategy == strategy and trainer.selection_record.seed == 7


def test_adapter_of_the_given_model_is_used_for_selection(model, tmp_path):
    def adapted():
        torch.manual_seed(3)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, init_lora_weights=False))

    dataset, tokenizer = Dataset.from_list(pairs(40)), AutoTokenizer.from_pretrained(model)
    expected = EmbeddingPairSelector(adapted(), tokenizer=tokenizer).select(dataset, 10)
    trainer = selecting(tmp_path, adapted(), dataset, selection_budget=10)
    assert list(trainer.train_dataset["prompt"]) == list(expected["prompt"])
    assert list(expected["prompt"]) != list(stand_alone(model, dataset, 10)["prompt"]), "the adapter changed nothing"


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_training_equals_dpotrainer_on_the_selected_rows(mode, model, tmp_path):
    dataset = Dataset.from_list(pairs())
    ours = history(selecting(tmp_path, model, dataset, shared_prompts=False, **mode))
    given = {name: mode[name] for name in ("peft_config",) if name in mode}
    args = config(tmp_path, DPOConfig, precompute_ref_log_probs="precompute_ref_log_probs" in mode)
    rows = stand_alone(model, dataset).select_columns(["prompt", "chosen", "rejected"])
    assert ours == history(DPOTrainer(model, args=args, train_dataset=rows, **given))


def test_epoch_has_each_selected_row_once_and_no_other(model, tmp_path):
    class Recording(DataCollatorForPreference):
        def torch_call(self, examples):
            seen.extend(tuple(example["prompt_ids"]) for example in examples)
            return super().torch_call(examples)

    seen, dataset = [], Dataset.from_list([as_messages(row) for row in pairs()])
    epoch = {"max_steps": -1, "num_train_epochs": 1, "selection_budget": 6, "data_collator": Recording(pad_token_id=0)}
    selecting(tmp_path, model, dataset, **epoch).train()
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        for prompt in stand_alone(model, dataset, 6)["prompt"]
    ]
    expected = [tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert sorted(seen) == sorted(expected)


def test_reference_log_probs_are_precomputed_for_selected_rows_and_cached(model, tmp_path, monkeypatch):
    Dataset.from_list(pairs()).to_parquet(tmp_path / "pairs.parquet")
    dataset = Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache")).shuffle(seed=1)
    compute, counted = DPOTrainer.compute_ref_log_probs, []

    def counting(trainer, reference, inputs):
        counted.append(len(inputs["input_ids"]) // 2)
        return compute(trainer, reference, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", counting)
    first = selecting(tmp_path, model, dataset, selection_budget=6, precompute_ref_log_probs=True)
    assert len(first.train_dataset["ref_chosen_logps"]) == sum(counted) == 6
    assert list(first.train_dataset["prompt"]) == list(stand_alone(model, dataset, 6)["prompt"])
    other = selecting(tmp_path, model, dataset, selection_budget=9, precompute_ref_log_probs=True)
    assert len(other.train_dataset["ref_chosen_logps"]) == 9
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", lambda *_: pytest.fail("computed again"))
    again = selecting(tmp_path, model, dataset, selection_budget=6, precompute_ref_log_probs=True)
    assert again.train_dataset[:] == first.train_dataset[:]


def test_rows_dropped_by_trl_do_not_use_the_budget_and_are_counted(model, tmp_path):
    rows = pairs()
    for i in (0, 3, 9):
        rows[i]["prompt"] = "Question? " * 40
    dataset = Dataset.from_list(rows)
    expected = stand_alone(model, dataset.select([i for i in range(16) if i not in (0, 3, 9)]), 6)
    trainer = selecting(tmp_path, model, dataset, selection_budget=6, max_length=64)
    record = trainer.selection_record
    assert list(trainer.train_dataset["prompt"]) == list(expected["prompt"])
    assert (record.n_rows, record.n_kept, record.n_not_chosen) == (16, 6, 7)
    assert record.skipped == {"prompt fills max_length": 3}


def test_user_columns_change_nothing_and_are_kept(model, tmp_path):
    extra = [{"similarity": f"s{i}", "responses": ["x"], "embeddings": [0.0], "pair": i} for i in range(16)]
    dataset = Dataset.from_list([{**row, **more} for row, more in zip(pairs(), extra, strict=True)])
    trainer = selecting(tmp_path, model, dataset)
    expected = stand_alone(model, Dataset.from_list(pairs()))
    assert list(trainer.train_dataset["prompt"]) == list(expected["prompt"])
    assert [f"s{int(i)}" for i in trainer.train_dataset["pair"]] == list(trainer.train_dataset["similarity"])
    assert len(history(trainer)) == 4


@pytest.mark.parametrize("precompute", [False, True])
def test_evaluation_sets_with_any_name_are_not_selected_from(precompute, model, tmp_path):
    held_out = {"train": Dataset.from_list(pairs(5)), "other": Dataset.from_list(pairs(4))}
    changes = {"selection_budget": 3, "eval_dataset": held_out, "precompute_ref_log_probs": precompute}
    trainer = selecting(tmp_path, model, Dataset.from_list(pairs()), **changes)
    assert len(trainer.train_dataset) == 3
    assert {name: len(split) for name, split in trainer.eval_dataset.items()} == {"train": 5, "other": 4}
    assert trainer.evaluate()["eval_train_loss"] == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("mode", [MODES["plain"], MODES["lora"]], ids=["plain", "lora"])
def test_selection_does_not_change_the_model(mode, model, tmp_path):
    def state(trained):
        modules = dict(trained.named_modules())
        flags = {name: (m.training, getattr(m, "gradient_checkpointing", None)) for name, m in modules.items()}
        weights = {name: (p.requires_grad, p.detach().clone()) for name, p in trained.named_parameters()}
        return flags, trained.config._attn_implementation, weights, torch.get_rng_state()

    class Watching(REALDPOTrainer):
        def _select(self, prepared):
            before = state(self.model)
            prepared = super()._select(prepared)
            after = state(self.model)
            assert after[:2] == before[:2] and torch.equal(after[3], before[3])
            for name, (trainable, weight) in before[2].items():
                assert after[2][name][0] == trainable and torch.equal(after[2][name][1], weight)
            return prepared

    trainer = selecting(tmp_path, model, Dataset.from_list(pairs()), trainer=Watching, **mode)
    assert trainer.selection_record.n_kept == 8


@pytest.mark.parametrize("as_what", [dict, as_messages])
def test_truncated_responses_get_no_eos(as_what, model, tmp_path):
    rows = [{**as_what(row), "chosen_finished": i != 1, "rejected_finished": i != 2} for i, row in enumerate(pairs(4))]
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    sets = [Dataset.from_list(given) for given in (rows, plain)]
    told, untold = (
        REALDPOTrainer(model, args=config(tmp_path), train_dataset=given, eval_dataset=given) for given in sets
    )
    for found, expected in ((told.train_dataset, untold.train_dataset), (told.eval_dataset, untold.eval_dataset)):
        for i, (row, whole) in enumerate(zip(found, expected, strict=True)):
            assert [row[x] != whole[x] for x in ("chosen_ids", "rejected_ids")] == [i == 1, i == 2]
    tokenizer = told.processing_class
    for i, side in ((1, "chosen"), (2, "rejected")):
        ids = told.train_dataset[i][f"{side}_ids"]
        (open_end,) = tokenize_pairs(tokenizer, [plain[i]["prompt"]], [plain[i][side]], 512, ended=[False])
        assert tuple(ids[-len(open_end.response) :]) == open_end.response and tokenizer.eos_token_id not in ids
    told.train()
