"""What a trainer with a selection writes: card, record and checkpoints, and runs that resume from them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.selecting_trainer import MODES, selecting, stand_alone
from support.training import config, history, pairs
from trl_real import EmbeddingPairSelector, REALDPOTrainer, SelectionRecord, TrlRealError


pytestmark = pytest.mark.usefixtures("one_thread")


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
