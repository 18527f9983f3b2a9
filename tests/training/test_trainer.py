"""REALDPOTrainer: DPOTrainer without selection, and otherwise DPOTrainer on the selected rows."""

import json
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
import trl.trainer.base_trainer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, TrlParser
from trl.trainer.dpo_trainer import DataCollatorForPreference

from support.tiny import save_tiny, tiny_tokenizer
from support.training import LORA, as_dialogues, as_messages, config, history, pairs
from trl_real import EmbeddingPairSelector, REALDPOConfig, REALDPOTrainer, SelectionRecord, TrlRealError
from trl_real.functional.similarity import candidate_pairs
from trl_real.models.sequences import tokenize_pairs


MODES = {"plain": {}, "lora": {"peft_config": LORA}, "precompute": {"precompute_ref_log_probs": True}}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Weights by which the end that TRL writes after each text would change what is selected."""
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(autouse=True)
def reports(monkeypatch) -> list:
    """What TRL would have told its makers."""
    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda **report: sent.append(report))
    return sent


def selecting(folder, model, dataset, trainer=REALDPOTrainer, **changes):
    settings = {"selection_strategy": "easy", "selection_budget": 0.5, **changes}
    given = {name: settings.pop(name) for name in ("peft_config", "eval_dataset", "data_collator") if name in settings}
    return trainer(model, args=config(folder, **settings), train_dataset=dataset, **given)


def stand_alone(model: str, dataset: Dataset, budget=0.5, strategy="easy") -> Dataset:
    return EmbeddingPairSelector(model, strategy=strategy, seed=42).select(dataset, budget)


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
    expected = stand_alone(model, dataset, 5, strategy)
    trainer = selecting(tmp_path, model, dataset, selection_strategy=strategy, selection_budget=5)
    assert list(trainer.train_dataset["prompt"]) == list(expected["prompt"])
    assert trainer.selection_record.strategy == strategy and trainer.selection_record.seed == 42


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


# What is said about it.


def test_selection_record_is_in_the_card_and_next_to_every_saved_model(model, tmp_path):
    dataset = Dataset.from_list([*pairs(), {"prompt": "Same? ", "chosen": "yes", "rejected": "yes"}])
    out = tmp_path / "out"
    trainer = selecting(out, model, dataset, selection_budget=6, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "elsewhere"))
    record = trainer.selection_record
    assert (record.n_rows, record.n_kept, record.n_not_chosen) == (17, 6, 10)
    assert record.skipped == {"identical responses": 1}
    for folder in (out, out / "checkpoint-2", tmp_path / "elsewhere"):
        assert SelectionRecord.load(folder) == record
    card = (out / "README.md").read_text()
    assert card.count("## Selection") == 1 and "## Citations" in card
    assert "| all | 17 |\n| kept | 6 |\n| not chosen | 10 |\n| skipped: identical responses | 1 |\n" in card
    assert "introduced in [REAL: Response Embedding-based Alignment for LLMs]" in card
    assert "zhang2024real" in card and "rafailov2023direct" in card and "- trl-real\n" in card


def test_published_files_contain_no_local_path(model, tmp_path):
    trainer = selecting(tmp_path, model, Dataset.from_list(pairs()))
    trainer.save_model()
    trainer.create_model_card()
    assert trainer.selection_record.model == Path(model).name
    for name in ("README.md", "selection_record.json"):
        assert str(Path(model).parent) not in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "settings", [{}, {"selection_strategy": "random", "selection_budget": 4}], ids=["off", "random"]
)
def test_card_names_real_only_for_selection_by_embeddings(settings, model, tmp_path):
    trainer = REALDPOTrainer(model, args=config(tmp_path, **settings), train_dataset=Dataset.from_list(pairs()))
    trainer.create_model_card("tiny", "user/data", "mine")
    card = (tmp_path / "README.md").read_text()
    assert "trained with DPO" in card and "2409.17169" not in card
    assert ("## Selection" in card) == bool(settings) and ("from chance" in card) == bool(settings)
    assert (tmp_path / "selection_record.json").exists() == bool(settings)


def test_killed_run_resumes_on_the_same_rows(model, tmp_path):
    dataset, saving = Dataset.from_list(pairs()), {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = history(selecting(tmp_path, model, dataset, **saving))
    resumed = selecting(tmp_path, model, dataset, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    losses = [log["loss"] for log in resumed.state.log_history if "loss" in log]
    assert losses == [log["loss"] for log in whole if "loss" in log]


def shifted(model: str, folder: Path) -> str:
    """The model as training might have left it: its embeddings, and so its selection, are others."""
    trained = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for i, weight in enumerate(trained.parameters()):
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    trained.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "selection_budget": 6}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_resumed_run_uses_the_rows_of_the_checkpoint(mode, model, tmp_path):
    dataset = Dataset.from_list(pairs(40))
    first = selecting(tmp_path, model, dataset, **SAVING, **mode)
    first.train()
    for folder in (tmp_path / "checkpoint-2", tmp_path / "checkpoint-4", tmp_path):
        assert folder == tmp_path or (folder / "selected_rows.npy").exists()
    prompts, rows = list(first.train_dataset["prompt"]), first.selected_rows.tolist()
    assert [dataset[i]["prompt"] for i in rows] == prompts and rows == sorted(rows)
    other = shifted(model, tmp_path / "shifted")
    for checkpoint in (str(tmp_path / "checkpoint-2"), True):
        resumed = selecting(tmp_path, other, dataset, **SAVING, **mode)
        assert list(resumed.train_dataset["prompt"]) != prompts, "the other model selects the same"
        shutil.rmtree(tmp_path / "checkpoint-4")
        with pytest.warns(UserWarning, match="it is not the model that the run began with"):
            resumed.train(resume_from_checkpoint=checkpoint)
        assert list(resumed.train_dataset["prompt"]) == prompts and resumed.selected_rows.tolist() == rows
        assert resumed.selection_record == SelectionRecord.load(tmp_path / "checkpoint-2")
        assert resumed.state.global_step == 4


def test_resuming_from_the_start_embeds_nothing_again(model, tmp_path, monkeypatch):
    dataset = Dataset.from_list(pairs())
    first = selecting(tmp_path, model, dataset, **SAVING)
    whole = history(first)
    monkeypatch.setattr(EmbeddingPairSelector, "select", lambda *_: pytest.fail("selected again"))
    for checkpoint in (str(tmp_path / "checkpoint-2"), True):
        again = selecting(tmp_path, model, dataset, resume_from_checkpoint=checkpoint, **SAVING)
        assert again.train_dataset[:] == first.train_dataset[:]
        assert again.selected_rows.tolist() == first.selected_rows.tolist()
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert [log["loss"] for log in again.state.log_history[:-1]] == [log["loss"] for log in whole[:-1]]


def test_row_numbers_refer_to_the_dataset_as_given(model, tmp_path):
    rows = pairs()
    rows[3]["prompt"] = "Question? " * 40
    trainer = selecting(tmp_path, model, Dataset.from_list(rows), selection_budget=6, max_length=64)
    trainer.save_model()
    kept = np.load(tmp_path / "selected_rows.npy")
    assert 3 not in kept and [rows[i]["prompt"] for i in kept] == list(trainer.train_dataset["prompt"])
    assert not list(tmp_path.glob("*.partial"))


def test_checkpoint_of_another_training_set_gets_a_one_line_error(model, tmp_path):
    dataset = Dataset.from_list(pairs())
    selecting(tmp_path, model, dataset, **SAVING).train()
    checkpoint = str(tmp_path / "checkpoint-2")

    def refused(message, rows=dataset, **changes):
        with pytest.raises(TrlRealError, match=message) as raised:
            trainer = selecting(tmp_path, model, rows, **{**SAVING, **changes})
            trainer.train(resume_from_checkpoint=checkpoint)
        assert "\n" not in str(raised.value)

    fewer = dataset.select(range(15))
    refused("6 rows of a training set of 16, but this one has 15 rows. Give the training set of that run", fewer)
    refused("has 15 rows", fewer, resume_from_checkpoint=checkpoint)
    long = [{**row, "prompt": "Question? " * 40} for row in pairs()]
    mixed = Dataset.from_list([*pairs(2), *long[2:]])
    refused("its prompt now fills max_length", mixed, max_length=64, selection_budget=1.0)
    unselected = {"selection_strategy": None, "selection_budget": None}
    refused("Give the whole training set and type selection_strategy='easy', selection_budget=6", **unselected)


# Several processes.

WORKER = """
import json, os, sys
import torch
from datasets import Dataset
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError

def trainer(file="pairs", **changes):
    settings = {"selection_strategy": "easy", "selection_budget": 0.5, "use_cpu": True, "bf16": False, "max_steps": 1,
                "report_to": "none", "save_strategy": "no", "ddp_backend": "gloo", "per_device_train_batch_size": 2}
    dataset = Dataset.from_parquet(f"{folder}/{file}.parquet", cache_dir=f"{folder}/cache")
    return REALDPOTrainer(model, args=REALDPOConfig(folder, **{**settings, **changes}), train_dataset=dataset)

model, folder, rank = sys.argv[1], sys.argv[2], os.environ["RANK"]
plain, precomputed = trainer(), trainer(precompute_ref_log_probs=True)
plain.train()
found = [[list(t.train_dataset["prompt"]), t.selection_record.to_dict()] for t in (plain, precomputed)]
try:
    trainer("useless")
except TrlRealError as error:
    found.append(str(error))
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump(found, file)
# Leave without the interpreter's clean-up: threads of gloo that still run then abort the process now and then
# ("terminate called without an active exception"). The files are closed, and the barrier keeps both ranks until then.
torch.distributed.barrier()
os._exit(0)
"""


def test_two_processes_select_what_one_selects_and_fail_together(model, tmp_path):
    dataset = Dataset.from_list(pairs())
    dataset.to_parquet(tmp_path / "pairs.parquet")
    Dataset.from_list([{**row, "rejected": row["chosen"]} for row in pairs(6)]).to_parquet(
        tmp_path / "useless.parquet"
    )
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(tmp_path / "worker.py"), model, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    expected = list(stand_alone(model, dataset)["prompt"])
    assert [prompts for prompts, _ in ranks[0][:2]] == [expected, expected]
    assert ranks[0][2].startswith("No row of the training set has a pair")


# What a user can get wrong.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"selection_strategy": "esay", "selection_budget": 0.5},
            "No selection_strategy 'esay'; there are easy, hard",
        ),
        ({"selection_strategy": "easy"}, "without selection_budget would keep every pair. Give a share"),
        ({"selection_budget": 0.5}, "without selection_strategy would be ignored. Give selection_strategy='easy'"),
        *(
            ({"selection_strategy": "easy", "selection_budget": budget}, "is neither a share in (0, 1] nor a whole")
            for budget in (0, -1, 1.5, float("nan"), float("inf"), True, "a quarter")
        ),
    ],
)
def test_invalid_setting_gets_a_one_line_error(settings, message, tmp_path):
    with pytest.raises(TrlRealError) as raised:
        config(tmp_path, **settings)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "kept", "kind"),
    [
        (0.25, 0.25, float),
        (1, 1.0, float),
        (1.0, 1.0, float),
        (2, 2, int),
        (100.0, 100, int),
        (None, None, type(None)),
    ],
)
def test_budget_up_to_one_is_a_share_and_above_it_a_number_of_rows(given, kept, kind, tmp_path):
    args = config(tmp_path, selection_strategy="easy" if given else None, selection_budget=given)
    assert args.selection_budget == kept and type(args.selection_budget) is kind


@pytest.mark.parametrize(("written", "kept"), [("0.25", 0.25), ("1", 1.0), ("100", 100), ("1.0", 1.0), ("1e3", 1000)])
def test_flags_and_yaml_mean_the_same(written, kept, tmp_path):
    parser = TrlParser(REALDPOConfig)
    (tmp_path / "run.yaml").write_text(
        f"output_dir: out\nuse_cpu: true\nselection_strategy: hard\nselection_budget: {written}\nbeta: 0.2\n"
    )
    flags = ["--output_dir", "out", "--use_cpu", "--selection_strategy", "hard", "--selection_budget", written]
    for arguments in (["--config", str(tmp_path / "run.yaml")], [*flags, "--beta", "0.2"]):
        (args,) = parser.parse_args_and_config(arguments)
        assert (args.selection_strategy, args.selection_budget, args.beta) == ("hard", kept, 0.2)
        assert type(args.selection_budget) is type(kept)


def useless(n: int = 4) -> Dataset:
    return Dataset.from_list([{**row, "rejected": row["chosen"]} for row in pairs(n)])


@pytest.mark.parametrize(
    ("dataset", "budget", "message"),
    [
        (lambda: Dataset.from_list(pairs()).to_iterable_dataset(), 0.5, "but this one is a stream"),
        (lambda: Dataset.from_list(pairs()).rename_column("chosen", "better"), 0.5, "No column 'chosen'"),
        (lambda: Dataset.from_list(pairs(4)), 5, "selection_budget=5, but the training set has 4 rows"),
        (lambda: Dataset.from_list([*pairs(4), *useless()]), 6, "selection_budget=6, but only 4 rows have a pair"),
        (lambda: useless(), 0.5, "4 rows in: 0 kept, 0 not chosen, 4 skipped (4 identical responses)"),
    ],
)
def test_unusable_dataset_gets_a_one_line_error(dataset, budget, message, model, tmp_path):
    with pytest.raises(TrlRealError) as raised:
        selecting(tmp_path, model, dataset(), selection_budget=budget, max_steps=1)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_sharded_model_is_refused(model, tmp_path):
    sharded = AutoModelForCausalLM.from_pretrained(model)
    sharded.model.norm.weight.ds_id = 0
    with pytest.raises(TrlRealError, match="Weight 'model.norm.weight' is sharded over processes.*Select beforehand"):
        selecting(tmp_path, sharded, Dataset.from_list(pairs()))


# What we lean on.


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_send_telemetry", ["self"]),
        ("create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
        ("train", ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_set_signature_columns_if_needed", ["self"]),
        ("compute_ref_log_probs", ["self", "model", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs", "return_outputs"]),
        (
            "evaluation_loop",
            ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
        ),
    ],
)
def test_overridden_trl_methods_have_the_expected_signature(method, parameters):
    theirs = getattr(DPOTrainer, method, None)
    assert theirs is not None, f"DPOTrainer.{method} is gone: look at trl_real/training"
    assert list(signature(theirs).parameters) == parameters
    assert list(signature(getattr(REALDPOTrainer, method)).parameters) == parameters


def test_trl_attributes_used_by_the_card_exist():
    assert DPOTrainer._name == "DPO" and set(DPOTrainer._paper) == {"title", "id", "citation"}
    assert REALDPOTrainer._tag_names == ["trl", "dpo", "trl-real"]


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
