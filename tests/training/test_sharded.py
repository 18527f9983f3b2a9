"""Models whose weights are shared out over two processes (`fully_shard`): right, or refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from support.tiny import tiny_model, tiny_tokenizer
from support.training import config
from trl_real import REALDPOTrainer, TrlRealError
from trl_real.training.forward_hooks import Recorder
from trl_real.training.kept_rows import check_unsharded
from trl_real.training.shared_prompts import reason_against


WORKER = """
import sys
import numpy as np
import torch
from datasets import Dataset
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from support.tiny import tiny_model, tiny_tokenizer
from support.training import config, words
from trl_real import EmbeddingPairSelector, REALDPOConfig, REALDPOTrainer, TrlRealError
from trl_real.training.eval_rows import EvalRows

torch.set_num_threads(1)
folder, tokenizer = sys.argv[1], tiny_tokenizer()
PROMPT = "Please tell me in a few words what you know about rain, water and tea. "
rows = [{"prompt": PROMPT + words(i, i), "chosen": words(i, 3 + i), "rejected": words(i + 9, 4)} for i in range(4)]

def made(shard, **changes):
    args = config(folder, REALDPOConfig, per_device_train_batch_size=2, gradient_checkpointing=False, **changes)
    models = {"model": tiny_model(1), "ref_model": tiny_model(2)}
    for model in models.values() if shard else ():
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return REALDPOTrainer(**models, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)

def step(trainer, rank):
    trainer._noise = None
    inputs = trainer.data_collator(list(trainer.train_dataset)[2 * rank : 2 * rank + 2])
    n_read = []
    handle = trainer.model.get_input_embeddings().register_forward_hook(lambda m, a, o: n_read.append(a[0].numel()))
    trainer.shared_prompts
    n_read.clear()
    loss = trainer.compute_loss(trainer.model, inputs)
    handle.remove()
    loss.backward()
    assert sum(n_read) < 0.75 * inputs["input_ids"].numel(), "prompts were not read once"
    return loss.item()

def refused(action, *words):
    try:
        action()
    except TrlRealError as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"nothing refused {words}")

sharded = made(True, shared_prompts=True)
rank = sharded.accelerator.process_index
assert sharded.accelerator.num_processes == 2
assert all(isinstance(p, DTensor) for p in sharded.model.parameters())
loss = step(sharded, rank)
alone = made(False, shared_prompts=True)
losses = [step(alone, i) for i in (0, 1)]
assert abs(loss - losses[rank]) < 1e-6, (loss, losses)
for ours, theirs in zip(sharded.model.parameters(), alone.model.parameters(), strict=True):
    assert torch.allclose(ours.grad.full_tensor(), theirs.grad / 2, rtol=1e-4, atol=1e-6)

def evaluated(trainer, ranks):
    trainer.model.eval()
    trainer._eval_rows = EvalRows()
    with torch.no_grad():
        for i in ranks:
            trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[2 * i : 2 * i + 2]))
    found = trainer._eval_rows.columns()
    trainer._eval_rows = None
    return found

ours, theirs = evaluated(sharded, [rank]), evaluated(alone, [0, 1])  # the other process adds its rows
for name in ("chosen", "rejected", "ref_chosen", "ref_rejected", "loss", "entropy", "top1_chosen"):
    assert torch.allclose(ours[name], theirs[name][[0, 1, 4, 5]], rtol=1e-5, atol=1e-5), name

def smoothed(trainer, i):
    trainer._noise.add(np.linspace(50, 100, 64))  # margins of earlier batches, above those of these pairs
    trainer.model.train()
    return trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[2 * i : 2 * i + 2]))

noise = {"noise_smoothing": 0.2, "noise_share": 50.0}
ours, theirs = (smoothed(made(shard, **noise), rank).item() for shard in (True, False))
assert abs(ours - theirs) < 1e-6 and abs(ours - loss) > 1e-4, (ours, theirs, loss)
extrapolated = made(True, **noise, noise_extrapolation=0.3)
refused(lambda: smoothed(extrapolated, rank), "noise_extrapolation=0", "sharded over processes")
chosen = {"selection_strategy": "easy", "selection_budget": 0.5}
refused(lambda: made(True, **chosen), "is sharded over processes", "Select beforehand")
print("done")
"""


def test_two_processes_with_sharded_weights(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path]), "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(tmp_path / "worker.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0 and done.stdout.count("done") == 2, done.stderr[-4000:]


@pytest.mark.parametrize("stage", [2, 3])
def test_under_deepspeed_prompts_are_read_as_trl_does_and_parts_of_weights_are_refused(stage, tmp_path):
    """DeepSpeed is not installed here: its state is made up, and `ds_id`, with which ZeRO-3 marks weights."""
    rows = [{"prompt": "Tea? ", "chosen": "say tea", "rejected": "rain"}] * 2
    given = {"args": config(tmp_path), "train_dataset": Dataset.from_list(rows), "processing_class": tiny_tokenizer()}
    trainer = REALDPOTrainer(tiny_model(), tiny_model(1), **given)
    trainer.is_deepspeed_enabled = True
    assert "sharded" in reason_against(trainer) and trainer.shared_prompts is None
    with Recorder(trainer.model, None, with_states=True):  # under ZeRO-2 every process has all weights
        check_unsharded(trainer.model)
    if stage == 3:
        trainer.model.lm_head.weight.ds_id = 0
        with pytest.raises(TrlRealError, match="'lm_head.weight' is sharded over processes.*Select beforehand"):
            check_unsharded(trainer.model)
        with pytest.raises(TrlRealError, match="noise_extrapolation=0"):
            Recorder(trainer.model, None, with_states=True)
