"""The trainer's evaluation: every row counts once, and every set has its own metric names."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from support.tiny import save_tiny
from support.training import LORA, config, naive_log_probs, pairs
from trl_real import REALDPOTrainer


BETA = 0.1
QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
OURS = {"rewards/margins_" + name for name in QUANTILES} | {"margin_logratio"}
THEIRS = {
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"),
    *("logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "num_tokens"),
}
NOT_MEASURES = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("other"), seed=2)


def held_out(n: int = 7, start: int = 30) -> Dataset:
    return Dataset.from_list(pairs(start + n)[start:])


def trainer(folder, model, other, rows=None, kind=REALDPOTrainer, batch=3, **changes):
    """Policy and reference differ from the start, so that there is something to measure."""
    given = {name: changes.pop(name) for name in ("compute_metrics", "peft_config", "callbacks") if name in changes}
    reference = None if "peft_config" in given else AutoModelForCausalLM.from_pretrained(other)
    args = config(folder, per_device_eval_batch_size=batch, **changes)
    sets = {"train_dataset": Dataset.from_list(pairs(8)), "eval_dataset": held_out() if rows is None else rows}
    return kind(model, ref_model=reference, args=args, **sets, **given)


def measures(metrics: dict, prefix: str = "eval") -> dict:
    found = {name.removeprefix(f"{prefix}_"): x for name, x in metrics.items() if name.startswith(f"{prefix}_")}
    return {name: x for name, x in found.items() if name not in NOT_MEASURES}


def naive(tuner, rows: Dataset, reference) -> dict:
    """From logits of the whole vocabulary, one row at a time, in float64."""
    tuner.model.eval()
    prepared = tuner._prepare_dataset(rows, tuner.processing_class, tuner.args, "naive")
    inputs = [tuner.data_collator([row]) for row in prepared]
    policy = np.array([naive_log_probs([tuner.model], batch) for batch in inputs])[..., 0]
    base = np.array([naive_log_probs([reference], batch) for batch in inputs])[..., 0]
    rewards = BETA * (policy - base)
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "loss": np.logaddexp(0, -margin).mean(),
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": margin.mean(),
        "rewards/accuracies": (margin > 0).mean(),
        "margin_logratio": margin.mean() / BETA,
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        **{f"rewards/margins_{name}": np.quantile(margin, share) for name, share in QUANTILES.items()},
    }


def test_every_metric_equals_a_naive_mean_over_rows(model, other, tmp_path):
    tuner = trainer(tmp_path, model, other)
    found, expected = measures(tuner.evaluate()), naive(tuner, held_out(), tuner.ref_model)
    assert set(found) == OURS | THEIRS
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4 if name.startswith(("logps", "margin_")) else 1e-5), name
    assert found["rewards/margins"] == pytest.approx(BETA * found["margin_logratio"], abs=1e-9)


def test_one_batch_with_all_rows_equals_the_trl_evaluation(model, other, tmp_path):
    ours = measures(trainer(tmp_path, model, other, batch=7).evaluate())
    theirs = measures(trainer(tmp_path, model, other, kind=DPOTrainer, batch=7).evaluate())
    assert set(theirs) == THEIRS
    assert {name: ours[name] for name in THEIRS} == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"peft_config": LORA}, {"precompute_ref_log_probs": True}], ids=str)
def test_metrics_do_not_depend_on_the_batch_size(changes, model, other, tmp_path):
    found = []
    for batch in (1, 2, 3, 7, 50):
        tuner = trainer(tmp_path, model, other, batch=batch, **changes)
        if "peft_config" in changes:
            with torch.no_grad():
                for i, (name, weight) in enumerate(tuner.model.named_parameters()):
                    if "lora_B" in name:
                        weight.fill_(0.01 * (1 + i % 3))
        found.append(measures(tuner.evaluate()))
    assert abs(found[0]["rewards/margins"]) > 1e-3
    for one in found[1:]:
        assert one == pytest.approx(found[0], abs=1e-4)


def test_trl_metrics_depend_on_the_batch_size(model, other, tmp_path):
    found = [measures(trainer(tmp_path, model, other, kind=DPOTrainer, batch=b).evaluate()) for b in (3, 7)]
    assert found[0]["logps/chosen"] != pytest.approx(found[1]["logps/chosen"], abs=1e-2), "TRL has mended it"


def test_returned_and_logged_metrics_have_the_name_of_their_set(model, other, tmp_path):
    sets = {"easy": held_out(5), "hard": held_out(4, start=50)}
    tuner = trainer(tmp_path, model, other, sets, eval_strategy="steps", eval_steps=2, max_steps=2)
    tuner.train()
    logs = {name: x for log in tuner.state.log_history for name, x in log.items() if name.startswith("eval_")}
    returned = tuner.evaluate()
    for name, rows in sets.items():
        expected = naive(tuner, rows, tuner.ref_model)
        for metrics in (logs, returned):
            found = measures(metrics, f"eval_{name}")
            assert set(found) == OURS | THEIRS
            assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert {key for key in returned if key.startswith("eval_")} == {
        key for key in returned if key.startswith(("eval_easy_", "eval_hard_"))
    }
    assert not {key for key in logs if not key.startswith(("eval_easy_", "eval_hard_"))}


def test_sets_given_to_evaluate_and_best_model_selection(model, other, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "rewards/margins", "greater_is_better": True}
    tuner = trainer(tmp_path, model, other, **saving, **best)
    tuner.train()
    margins = [log["eval_rewards/margins"] for log in tuner.state.log_history if "eval_rewards/margins" in log]
    assert tuner.state.best_metric == max(margins) and len(set(margins)) == 3
    later = tuner.evaluate({"later": held_out(3, start=60)}, metric_key_prefix="test")
    assert set(measures(later, "test_later")) == OURS | THEIRS


def test_evaluation_uses_soft_labels_where_training_does(model, other, tmp_path):
    confidence = [1.0, 0.9, 0.5, 0.75, 0.6, 1.0, 0.8]
    sets = {"soft": held_out().add_column("label_confidence", confidence), "hard": held_out()}
    noise = {"noise_smoothing": 0.4, "noise_warmup": 0.0, "noise_window": 2, "noise_share": 50.0}
    tuner = trainer(tmp_path, model, other, sets, **noise)
    tuner._noise.add([1e3, 1e3])
    found = tuner.evaluate()
    assert list(tuner._noise.margins) == [1e3, 1e3], "evaluation votes on no threshold"
    prepared = tuner._prepare_dataset(held_out(), tuner.processing_class, tuner.args, "naive")
    losses = []
    for row, sure in zip(prepared, confidence, strict=True):
        batch = tuner.data_collator([row])
        (chosen, rejected), (ref_chosen, ref_rejected) = (
            naive_log_probs([net], batch) for net in (tuner.model, tuner.ref_model)
        )
        margin = BETA * ((chosen - ref_chosen) - (rejected - ref_rejected))[0]
        losses.append(
            [np.logaddexp(0, -margin), sure * np.logaddexp(0, -margin) + (1 - sure) * np.logaddexp(0, margin)]
        )
    hard, soft = np.mean(losses, axis=0)
    assert found["eval_hard_loss"] == pytest.approx(hard, abs=1e-5)
    assert found["eval_soft_loss"] == pytest.approx(soft, abs=1e-5) and abs(hard - soft) > 1e-3
    assert found["eval_soft_rewards/margins"] == found["eval_hard_rewards/margins"]


def test_other_losses_are_batch_means_weighted_by_rows(model, other, tmp_path):
    tuner = trainer(tmp_path, model, other, batch=3, loss_type="ipo")
    single = trainer(tmp_path, model, other, batch=1, loss_type="ipo").evaluate()
    found = tuner.evaluate()
    assert found["eval_loss"] == pytest.approx(single["eval_loss"], rel=1e-5)
    assert found["eval_rewards/margins"] == pytest.approx(single["eval_rewards/margins"], abs=1e-5)


def test_compute_metrics_and_predict_work_as_in_trl(model, other, tmp_path):
    def shape(prediction):
        return {"logits": list(prediction.predictions.shape), "labels": list(prediction.label_ids.shape)}

    def run(kind):
        return trainer(tmp_path, model, other, held_out(6), kind=kind, compute_metrics=shape)

    ours, theirs = run(REALDPOTrainer), run(DPOTrainer)
    found, expected = ours.evaluate(), theirs.evaluate()
    assert (found["eval_logits"], found["eval_labels"]) == (expected["eval_logits"], expected["eval_labels"])
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5), "two full batches"
    outputs = [tuner.predict(tuner.eval_dataset) for tuner in (ours, theirs)]
    assert np.allclose(outputs[0].predictions, outputs[1].predictions, atol=1e-5)
    assert set(measures(outputs[0].metrics, "test")) == OURS | THEIRS | {"logits", "labels"}
    assert not ours._metrics["eval"], "TRL would log these with the next evaluation"


def test_reported_metrics_have_our_names(model, other, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    reporting = {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    trainer(tmp_path, model, other, {"easy": held_out(3), "hard": held_out(4)}, **reporting).train()
    folder = next((tmp_path / "board").rglob("events.out.tfevents.*")).parent
    board = events.EventAccumulator(str(folder)).Reload()
    for name in ("rewards/margins_p05", "margin_logratio", "rewards/margins", "loss"):
        assert {f"eval/easy_{name}", f"eval/hard_{name}"} <= set(board.Tags()["scalars"])
    assert "eval/rewards/margins" not in board.Tags()["scalars"] and "train/loss" in board.Tags()["scalars"]


# Several processes.

WORKER = """
import json, os, sys
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl_real import REALDPOConfig, REALDPOTrainer

torch.set_num_threads(1)
folder, model, other, settings, rank = *sys.argv[1:4], json.loads(sys.argv[4]), os.environ["RANK"]
read = lambda name: Dataset.from_parquet(f"{folder}/{name}.parquet", cache_dir=f"{folder}/cache{rank}")
trainer = REALDPOTrainer(
    model, AutoModelForCausalLM.from_pretrained(other), REALDPOConfig(folder, ddp_backend="gloo", **settings),
    train_dataset=read("train"), eval_dataset=read("eval"),
)
before = trainer.evaluate()
trainer.train()
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump([before, trainer.state.log_history, list(trainer._noise.margins)], file)
# Leave without the interpreter's clean-up: threads of gloo that still run then abort the process now and then
# ("terminate called without an active exception"). The files are closed, and the barrier keeps both ranks until then.
torch.distributed.barrier()
os._exit(0)
"""


def test_two_processes_evaluate_and_flag_the_same_as_one(model, other, tmp_path):
    """Seven rows in batches of two on two processes: the last one has three, of which accelerate makes four."""
    rows = [{**row, "label_confidence": 1 - 0.1 * (i % 4)} for i, row in enumerate(pairs(24))]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    held_out(7).to_parquet(tmp_path / "eval.parquet")
    noise = {"noise_smoothing": 0.3, "noise_share": 30.0, "noise_window": 20, "noise_extrapolation": 0.5}
    same = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "learning_rate": 1e-3}
    settings = {**same, **noise, "logging_steps": 1, "max_steps": 14, "max_grad_norm": 0.0, "disable_tqdm": True}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(tmp_path / "worker.py"), str(tmp_path), model, other, json.dumps({**settings, **sizes})]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert measures(ranks[0][0]) == measures(ranks[1][0]) and ranks[0][2] == ranks[1][2]

    alone = trainer(tmp_path, model, other, batch=7, **{**settings, "per_device_train_batch_size": 4})
    alone.train_dataset = alone._prepare_dataset(Dataset.from_list(rows), alone.processing_class, alone.args, "again")
    before = measures(alone.evaluate())
    assert measures(ranks[0][0]) == pytest.approx(before, abs=1e-4)
    alone.train()
    assert ranks[0][2] == pytest.approx(list(alone._noise.margins), abs=1e-4), "in rank order, extrapolated"
    both = [[log for log in logs if "loss" in log] for logs in (ranks[0][1], alone.state.log_history)]
    for name in ("loss", "noise/flagged", "noise/threshold", "label_confidence", "rewards/margins"):
        two, one = ([log[name] for log in logs if name in log] for logs in both)
        assert two == pytest.approx(one, abs=1e-4) and len(two) > 5, name
    assert 0.1 < np.mean([log["noise/flagged"] for log in both[0][6:]]) < 0.6
