"""A run resumes from its newest complete checkpoint, on the same weights, and reports all its tokens."""

import json
import shutil

import pytest
from datasets import Dataset

from support.rounds import active
from support.tiny import save_tiny
from support.training import config, pairs
from trl_real import REALDPOTrainer, TrlRealError
from trl_real.training.resume import checkpoint_of_run, last_checkpoint, train_from


pytestmark = pytest.mark.usefixtures("one_thread")
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


@pytest.fixture
def model(tmp_path):
    return str(save_tiny(tmp_path / "model"))


def resumed(model, folder, rows=None, **changes):
    """Train as `trl-real train` does."""
    rows, args = rows or Dataset.from_list(pairs()), config(folder, **{**SAVING, **changes})
    checkpoint = checkpoint_of_run(args, model, rows)
    trainer = REALDPOTrainer(model, args=args, train_dataset=rows)
    train_from(trainer, checkpoint)
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a model and a function that gives an unkilled run and its folder, made when first asked for."""
    folder, runs = tmp_path_factory.mktemp("finished"), {}
    model = str(save_tiny(folder / "model"))

    def of(logging_steps=1):
        place = folder / str(logging_steps)
        if logging_steps not in runs:
            runs[logging_steps] = resumed(model, place, logging_steps=logging_steps)
        return runs[logging_steps], place

    return model, of


def torn(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BREAKS = {
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "torn state": lambda folder: torn(folder / "trainer_state.json"),
    "state of another step": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 1}'),
    "state of another shape": lambda folder: (folder / "trainer_state.json").write_text("[]"),
    "torn weights": lambda folder: torn(folder / "model.safetensors"),
    "torn optimizer": lambda folder: torn(folder / "optimizer.pt"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_run_goes_on_from_the_newest_complete_checkpoint(name, finished, tmp_path, caplog):
    model, run = finished
    whole, folder = run()[0], shutil.copytree(run()[1], tmp_path / "run")
    BREAKS[name](folder / "checkpoint-4")
    assert last_checkpoint(folder) == str(folder / "checkpoint-3")
    again = resumed(model, folder)
    assert "checkpoint-4 is incomplete" in caplog.text and (folder / "incomplete-checkpoint-4").is_dir()
    losses = [[log["loss"] for log in run.state.log_history if "loss" in log] for run in (whole, again)]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("killed_at", [1, 3, 4])
@pytest.mark.parametrize("logging_steps", [1, 2, 100])
def test_a_resumed_run_reports_the_tokens_of_all_its_parts(killed_at, logging_steps, finished, tmp_path):
    model, run = finished
    whole, folder = run(logging_steps)[0], shutil.copytree(run(logging_steps)[1], tmp_path / "run")
    for number in range(killed_at + 1, 5):
        (folder / f"checkpoint-{number}/trainer_state.json").unlink()
    again = resumed(model, folder, logging_steps=logging_steps)
    assert again._total_train_tokens == whole._total_train_tokens > 0
    tokens = [[log["num_tokens"] for log in run.state.log_history if "num_tokens" in log] for run in (whole, again)]
    assert tokens[0][-1] == tokens[1][-1] == whole._total_train_tokens


def test_a_checkpoint_of_an_older_version_counts_from_its_last_log(model, tmp_path):
    whole = resumed(model, tmp_path)
    file = tmp_path / "checkpoint-4/trainer_state.json"
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["trl_real_token_count"]
    file.write_text(json.dumps(state))
    assert resumed(model, tmp_path)._total_train_tokens == whole._total_train_tokens


def test_other_weights_at_the_same_path_are_refused(model, tmp_path):
    resumed(model, tmp_path / "train")
    active(model, tmp_path, rounds=1)
    save_tiny(tmp_path / "model", seed=1)
    with pytest.raises(TrlRealError, match="training with weights='sha256:.*not 'sha256:"):
        resumed(model, tmp_path / "train")
    with pytest.raises(TrlRealError, match="run with weights='sha256:.*not 'sha256:"):
        active(model, tmp_path, rounds=2)


def test_a_run_folder_that_does_not_know_its_weights_is_continued(model, tmp_path):
    active(model, tmp_path, rounds=1)
    file = tmp_path / "run/rounds.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "weights"}))
    active(model, tmp_path, rounds=1)
