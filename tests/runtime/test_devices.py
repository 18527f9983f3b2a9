"""Devices: every place takes the accelerator that the machine has, and none asks for one by its name."""

import re
from pathlib import Path

import accelerate
import pytest
import torch

import trl_real
from support.devices import made_up_accelerator
from support.tiny import save_tiny
from trl_real import TrlRealError
from trl_real.cli.train import parsed
from trl_real.models.lazy_model import LazyModel
from trl_real.models.load import pick_device
from trl_real.runtime import devices, distributed
from trl_real.training.adapters import load_base
from trl_real.training.config import REALDPOConfig


KINDS = ("cuda", "mps", "xpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("asked", "rank", "device"),
    [(None, None, "{}"), (None, 0, "{}:0"), (None, 3, "{}:3"), (None, 5, "{}:1"), ("cpu", 2, "cpu")],
)
def test_each_rank_uses_its_own_device(kind, asked, rank, device, monkeypatch):
    made_up_accelerator(monkeypatch, kind)
    assert pick_device(asked, rank) == device.format(kind)


def test_without_an_accelerator_every_rank_is_on_the_cpu(monkeypatch):
    made_up_accelerator(monkeypatch, None)
    assert pick_device(None, 3) == "cpu" and devices.accelerator() is None


def test_an_unknown_device_is_one_line():
    with pytest.raises(TrlRealError, match="device='gpu' is no device of torch. Type cpu, cuda:0"):
        pick_device("gpu", None)


@pytest.mark.parametrize(("kind", "device"), [("meta", "meta"), (None, "cpu")])
def test_models_are_loaded_to_the_accelerator(kind, device, monkeypatch, tmp_path):
    folder = str(save_tiny(tmp_path))
    made_up_accelerator(monkeypatch, kind)
    assert load_base(folder, None, cpu=False)[0].device.type == device
    assert load_base(folder, None, cpu=True)[0].device.type == "cpu"
    assert LazyModel(folder).load()[0].device.type == device
    assert LazyModel(folder, device="cpu").load()[0].device.type == "cpu"


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_processes_and_trainers_use_the_cpu_only_without_an_accelerator(kind, monkeypatch, tmp_path):
    made_up_accelerator(monkeypatch, kind)
    found = []
    monkeypatch.setattr(accelerate, "PartialState", lambda cpu, timeout: found.append(cpu))
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.init_distributed()
    monkeypatch.setattr("trl.TrlParser.parse_args_and_config", lambda self, argv: found.append("--use_cpu" in argv))
    parsed((REALDPOConfig,), ["--output_dir", str(tmp_path)])
    assert found == [kind is None] * 2


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", None])
def test_bfloat16_on_a_cpu_needs_instructions_for_it(name, monkeypatch):
    made_up_accelerator(monkeypatch, None)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert devices.bfloat16_is_fast() == (name is not None)


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_on_an_accelerator_is_what_transformers_finds(able, monkeypatch):
    made_up_accelerator(monkeypatch, "xpu")
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: able)
    assert devices.bfloat16_is_fast() == able


def test_no_module_asks_for_an_accelerator_by_its_name():
    asks = re.compile(r"torch\.(cuda|xpu|mps|npu|backends\.mps)\b|[\"'](cuda|xpu|mps|npu)(:|[\"'])")
    folder = Path(trl_real.__file__).parent
    code = {path.relative_to(folder): path.read_text("utf-8").splitlines() for path in folder.rglob("*.py")}
    found = [f"{path}: {line}" for path, lines in code.items() for line in lines if asks.search(line.split("#")[0])]
    assert [line for line in found if "runtime/devices.py" not in line] == []
