"""Rounds on a base in 4 bits (QLoRA): every step reads it in 4 bits, and only adapters are trained and kept."""

import json

import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig, get_peft_model, load_peft_weights

from support.quantized import needs_bitsandbytes, quantization
from support.rounds import active, pool, prompts
from support.tiny import save_tiny
from support.training import config, pairs
from trl_real import TrlRealError
from trl_real.cli.main import main
from trl_real.models.embed import Embedder
from trl_real.models.load import weights_digest
from trl_real.rounds import base
from trl_real.rounds.selectors import ROUND_SELECTORS, Chooser
from trl_real.rounds.self_annotation import SelfAnnotationRounds
from trl_real.training.adapters import load_base


pytestmark = pytest.mark.usefixtures("one_thread")


ACTIVE = (
    "active --dataset {folder}/pool.parquet --model {model} --output_dir {folder}/out --selectors easy --budget 2 "
    "--rounds 1 --max_steps 1 --use_peft --bf16 False"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def loaded(monkeypatch) -> list:
    """The digests of the bases that the steps of a run loaded, all of which must be in 4 bits."""
    found, own = [], base.load_base

    def load(*args):
        model, tokenizer = own(*args)
        assert model.is_loaded_in_4bit
        found.append(weights_digest(model))
        return model, tokenizer

    monkeypatch.setattr(base, "load_base", load)
    return found


def args(folder):
    init = {"dtype": "float32", "quantization_config": quantization()}
    return config(folder / "unused", max_steps=2, model_init_kwargs=init)


def adapter(folder, number):
    return load_peft_weights(str(folder / "run" / f"round-{number:02d}" / "adapter"))


def similarities(base_and_tokenizer, rows) -> torch.Tensor:
    embedder = Embedder(*base_and_tokenizer)
    sides = (embedder([None] * len(rows), rows[name][:]).vectors for name in ("response_a", "response_b"))
    return torch.cosine_similarity(*sides)


def changed(first, second) -> bool:
    return first.keys() == second.keys() and any(not torch.equal(first[name], second[name]) for name in first)


@needs_bitsandbytes
@pytest.mark.parametrize("selector", ["gradient", "certainty", "infomax", "easy", "auto"])
def test_rounds_of_every_kind_of_selector(selector, model, loaded, tmp_path):
    settings = {"selector": selector, "args": args(tmp_path)}
    found = active(model, tmp_path, **settings)
    assert [row["n_asked"] for row in found.rounds] == [0, 4, 8]
    assert all(0 < row["loss"] < 10 for row in found.rounds)
    assert len(set(loaded)) == 1 and len(loaded) > 4
    assert changed(adapter(tmp_path, 0), adapter(tmp_path, 1)) and changed(adapter(tmp_path, 1), adapter(tmp_path, 2))
    assert active(model, tmp_path, **settings).rounds == found.rounds
    with pytest.raises(TrlRealError, match="trainer="):
        active(model, tmp_path, selector=selector)  # with the whole weights


@needs_bitsandbytes
def test_what_embeds_is_the_base_in_4_bits_without_the_adapter(model, tmp_path):
    """Neither the whole weights behind the name nor the policy, which has learned by the second round."""
    settings = args(tmp_path)
    active(model, tmp_path, args=settings)
    rows = load_from_disk(str(tmp_path / "run" / "round-02" / "selected"))
    expected = similarities(load_base(model, settings.model_init_kwargs, cpu=True), rows)
    assert torch.allclose(torch.tensor(rows["similarity"][:]), expected, atol=1e-5)


@pytest.mark.parametrize("selector", ["easy", "infomax"])
def test_a_selector_reads_a_quantized_base_without_its_adapter(selector, model):
    """The same with whole weights that say they are quantized, where bitsandbytes is missing."""
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    base, tokenizer = load_base(model, None, cpu=True)
    policy = get_peft_model(base, lora)
    policy.get_base_model().is_quantized = True
    chooser = Chooser("no/such-model", policy, tokenizer, "responses", 1, {"context": "response"}, None)
    found = ROUND_SELECTORS[selector](selector, chooser).select(pool(), 4)
    expected = similarities(load_base(model, None, cpu=True), found)
    assert torch.allclose(torch.tensor(found["similarity"][:]), expected, atol=1e-5)


@needs_bitsandbytes
def test_self_annotation_on_a_base_in_4_bits(model, loaded, tmp_path):
    """The judge's reference is the base, the trainer's the last round's policy, which `_train` checks."""
    made = SelfAnnotationRounds(
        seed_labels=Dataset.from_list(pairs(6)), prompts=prompts(), n_prompts=6, model=model, args=args(tmp_path),
        output_dir=tmp_path / "run", seed=1, generation={"max_new_tokens": 6, "temperature": 1.0},
        eval_dataset=Dataset.from_list(pairs(5)),
    )  # fmt: skip
    found = made.run(2)
    assert [row["stage"] for row in found.rounds] == ["initial", "seed", "round 1", "round 2"]
    assert len(set(loaded)) == 1
    for number in (1, 2):
        state = json.loads((tmp_path / "run" / f"round-{number:02d}" / "state.json").read_text())
        assert state["label"]["reference"] == loaded[0]
        assert changed(adapter(tmp_path, number - 1), adapter(tmp_path, number))


@needs_bitsandbytes
def test_the_flag_loads_4_bits_in_rounds(model, loaded, tmp_path):
    pool(6).to_parquet(tmp_path / "pool.parquet")
    argv = [*ACTIVE.format(folder=tmp_path, model=model).split(), "--load_in_4bit"]
    assert main(argv) == 0 and loaded


def test_8_bits_are_refused_with_what_to_type(model, tmp_path, capsys):
    pool(6).to_parquet(tmp_path / "pool.parquet")
    assert main([*ACTIVE.format(folder=tmp_path, model=model).split(), "--load_in_8bit"]) == 2
    assert "In 8 bits a response's values depend on its batch. Type --load_in_4bit" in capsys.readouterr().err
