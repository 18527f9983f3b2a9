"""The card of a trained model names where a model in a local folder comes from, and every selection of its rows."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from support.tiny import save_tiny, tiny_tokenizer
from support.training import LORA, pairs
from trl_real import SelectionRecord
from trl_real.cli.main import main
from trl_real.data.files import save
from trl_real.reports.model_card import CARD, origin_of


QUICK = "--max_steps 1 --bf16 False --use_cpu True --gradient_checkpointing False --report_to none --save_strategy no"
ORIGIN = "fine-tuned version of `{}`, which goes back to [user/real](https://huggingface.co/user/real)"


def base(folder: Path, origin: str | None = "user/real") -> str:
    model = save_tiny(folder)
    if origin:
        (folder / CARD).write_text(f"---\nbase_model: {origin}\n---\n# Mine\n")
    return model


def adapter(folder: Path, model: str) -> str:
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), LORA).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def labels(tmp_path):
    save(Dataset.from_list(pairs(8)), tmp_path / "labels")
    return str(tmp_path / "labels")


def run(verb: str, labels: str, model: str, out: Path, *flags: str) -> str:
    argv = [verb, "--dataset", labels, "--model", model, "--output_dir", str(out), *QUICK.split(), *flags]
    assert main(argv) == 0
    return (out / CARD).read_text()


@pytest.mark.parametrize("flags", [(), ("--use_peft", "--lora_r", "4")], ids=["full", "adapter"])
@pytest.mark.parametrize("verb", ["train", "sft"])
def test_a_local_base_is_named_with_its_origin(verb, flags, labels, tmp_path):
    text = run(verb, labels, base(tmp_path / "mine"), tmp_path / "out", *flags)
    assert ORIGIN.format("mine") in text and "base_model: user/real" in text
    assert 'model="out"' in text and "None" not in text and str(tmp_path) not in text


def test_an_adapter_and_a_warm_start_go_back_to_the_same_model(labels, tmp_path):
    given = adapter(tmp_path / "adapter", base(tmp_path / "mine"))
    text = run("train", labels, given, tmp_path / "out")
    assert ORIGIN.format("out.base") in text and origin_of(str(tmp_path / "out.base")) == "user/real"
    assert "The adapter `adapter`, merged into its base" in (tmp_path / "out.base" / CARD).read_text()
    run("sft", labels, str(tmp_path / "mine"), tmp_path / "warm", "--use_peft", "--lora_r", "4")
    text = run("train", labels, str(tmp_path / "warm"), tmp_path / "aligned", "--use_peft", "--lora_r", "4")
    assert ORIGIN.format("warm") in text and origin_of(str(tmp_path / "aligned")) == "user/real"


def test_a_base_of_unknown_origin_is_said_to_be_one(labels, tmp_path):
    text = run("train", labels, base(tmp_path / "mine", None), tmp_path / "out")
    assert "fine-tuned version of `mine` (not on the Hub)" in text and "base_model" not in text
    assert "None" not in text


@pytest.mark.parametrize("card", ["---\n[\n---\n", "no metadata", "---\nbase_model: []\n---\n"])
def test_cards_that_say_nothing_give_no_origin(card, tmp_path):
    (tmp_path / CARD).write_text(card)
    assert origin_of(str(tmp_path)) is None


@pytest.mark.parametrize("named", ["user/real", "[user/real]", "[user/real, user/other]"])
def test_the_origin_is_the_first_base_that_a_card_names(named, tmp_path):
    (tmp_path / CARD).write_text(f"---\nbase_model: {named}\n---\n# Mine\n")
    assert origin_of(str(tmp_path)) == "user/real"


def test_a_circle_of_folders_ends(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert origin_of(str(tmp_path)) is None
    assert origin_of("user/real") == "user/real" and origin_of("/gone/folder") is None


def test_the_selection_before_the_labels_reaches_the_card(labels, tmp_path):
    counts = {"n_rows": 9, "n_kept": 8, "n_not_chosen": 1}
    SelectionRecord(strategy="easy", budget=0.25, seed=7, model="/home/me/m", **counts).save(labels)
    text = run("train", labels, base(tmp_path / "mine"), tmp_path / "out")
    assert text.count("## Selection before labelling") == 1 and "## Selection\n" not in text
    assert "strategy `easy`, budget 0.25 of the pairs, seed 7" in text and "| pool | rows |" in text
    assert "the model `m` reads them" in text and "/home/me" not in text
    assert SelectionRecord.load(tmp_path / "out").seed == 7
    both = ["--selection_strategy", "random", "--selection_budget", "0.5"]
    text = run("train", labels, str(tmp_path / "mine"), tmp_path / "again", *both)
    assert text.count("## Selection before labelling") == text.count("## Selection\n") == 1
    assert SelectionRecord.load(tmp_path / "again").strategy == "random"
