"""A base in 4 bits gives what its dequantized weights give; on a CPU, where bitsandbytes is installed."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers import quantizer_bnb_4bit

from support.quantized import needs_bitsandbytes, quantization
from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, TrlRealError
from trl_real.cli.main import main
from trl_real.data.files import load
from trl_real.models.choice import ChoiceReader
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.generate import generate
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.implicit import ImplicitRewardReader
from trl_real.models.load import weights_digest
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.quantization import keep_unpacked, product_dtype
from trl_real.selection.record import SelectionRecord
from trl_real.training.adapters import as_full_model, load_base


pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny_tokenizer()
PROMPTS, RESPONSES = [f"{i % 4}: why?" for i in range(10)], SENTENCES * 2
CHATS = [tuple(ids) for ids in TOKENIZER(RESPONSES)["input_ids"]]
LORA = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}
JOBS = {
    "embedding": lambda m: Embedder(m, TOKENIZER, EmbedderOptions())(PROMPTS, RESPONSES).vectors,
    "scoring": lambda m: ResponseLogProbs(m, TOKENIZER)(PROMPTS, RESPONSES).sums,
    "judging": lambda m: ChoiceReader(m, TOKENIZER)(CHATS, ("A", "B")),
    "gradients": lambda m: (
        GradientFeatures(m, TOKENIZER, GradientOptions(projection_dim=64))(PROMPTS, RESPONSES).vectors
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_model(hidden_size=64).save_pretrained(path)  # bitsandbytes packs no smaller layers
    TOKENIZER.save_pretrained(path)
    return str(path)


def quantized(folder, dtype="float32"):
    init = {"dtype": dtype, "quantization_config": quantization(dtype)}
    return AutoModelForCausalLM.from_pretrained(folder, **init).eval()


def adapted(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**LORA)).eval()


def relative(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@needs_bitsandbytes
@pytest.mark.parametrize("job", JOBS)
def test_values_are_those_of_the_dequantized_weights(job, folder):
    """Also gradients after a pass without them, on a CPU whose bfloat16 products have no backward pass."""
    model, plain = adapted(quantized(folder)), adapted(quantized(folder).dequantize())
    JOBS["scoring"](model)
    assert relative(JOBS[job](model), JOBS[job](plain)) < 1e-4


@needs_bitsandbytes
def test_texts_are_those_of_the_dequantized_weights(folder):
    settings = {"n": 2, "max_new_tokens": 6}
    found, expected = (
        generate(model, TOKENIZER, PROMPTS[:4], **settings).texts
        for model in (quantized(folder), quantized(folder).dequantize())
    )
    assert found == expected


@needs_bitsandbytes
def test_layers_that_were_packed_for_a_cpu_are_written_back(folder):
    model = adapted(quantized(folder))
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers
    with torch.no_grad():
        for layer in layers[:1]:
            layer.support_avx512bf16_for_cpu = True
            layer(torch.zeros(1, 3, layer.in_features))  # packs
    assert layers[0].weight.quant_state.packing_format_for_cpu
    keep_unpacked(model)
    assert not getattr(layers[0].weight.quant_state, "packing_format_for_cpu", False)


@needs_bitsandbytes
def test_the_policy_without_its_adapter_is_the_base(folder):
    base, adapter = weights_digest(quantized(folder)), adapted(quantized(folder))
    reader = ImplicitRewardReader(adapter, tokenizer=TOKENIZER)
    found = reader(PROMPTS, RESPONSES)
    assert reader.reference_digest == base
    assert torch.allclose(found.reference, JOBS["scoring"](quantized(folder)), atol=1e-3)
    assert found.values.abs().min() > 1e-3


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packing_is_checked_in_the_precision_of_the_products(dtype, folder):
    """Weights that are not quantized stay in float32, and a check as strict as theirs would refuse to pack."""
    init = {"dtype": "float32", "quantization_config": quantization(dtype)}
    model = AutoModelForCausalLM.from_pretrained(folder, **init).eval()
    reader = ResponseLogProbs(model, TOKENIZER)
    assert product_dtype(model) == getattr(torch, dtype) and reader.exact == (dtype == "float32")
    reader(PROMPTS, RESPONSES)
    assert reader.packs_well


@needs_bitsandbytes
@pytest.mark.parametrize("strategy", ["auto", "i_optimal", "easy"])
def test_what_needs_float32_is_refused_where_products_are_in_bfloat16(strategy, folder):
    pool = Dataset.from_dict({"prompt": PROMPTS, "responses": [[text, text[:9]] for text in RESPONSES]})
    selector = EmbeddingPairSelector(quantized(folder, "bfloat16"), tokenizer=TOKENIZER, strategy=strategy)
    if strategy == "easy":
        assert len(selector.select(pool, 4)) == 4 and selector.record.n_rescored == 0
        return
    with pytest.raises(TrlRealError, match=r"quantized and computes in bfloat16.*--dtype float32"):
        selector.select(pool, 4)


@needs_bitsandbytes
def test_select_loads_the_model_in_4_bits(folder, tmp_path):
    rows = {"prompt": PROMPTS, "responses": [[text, text[:9], text[9:]] for text in RESPONSES]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "pool.parquet"))
    argv = ["select", "--dataset", str(tmp_path / "pool.parquet"), "--model", folder, "--budget", "4"]
    assert main([*argv, "--load_in_4bit", "--output_dir", str(tmp_path / "four")]) == 0
    selector = EmbeddingPairSelector(quantized(folder).dequantize(), tokenizer=TOKENIZER)
    expected = selector.select(Dataset.from_dict(rows), 4)
    kept = load(str(tmp_path / "four"))
    assert SelectionRecord.load(tmp_path / "four").settings["load_in_4bit"]
    assert kept["pair"][:] == expected["pair"][:] and kept["prompt"][:] == expected["prompt"][:]
    assert torch.allclose(torch.tensor(kept["similarity"][:]), torch.tensor(expected["similarity"][:]), atol=1e-5)
    assert main([*argv, "--output_dir", str(tmp_path / "four")]) == 2  # other settings


def test_an_adapter_is_merged_before_its_base_is_quantized(folder, tmp_path):
    adapter = adapted(AutoModelForCausalLM.from_pretrained(folder))
    adapter.save_pretrained(tmp_path / "adapter")
    init = {"dtype": "float32", "quantization_config": quantization()}
    merged = AutoModelForCausalLM.from_pretrained(as_full_model(str(tmp_path / "adapter"), tmp_path / "out", init))
    assert not getattr(merged, "is_quantized", False)
    assert relative(JOBS["scoring"](merged), JOBS["scoring"](adapter)) < 1e-5
    with pytest.raises(TrlRealError, match="cannot be merged into 4-bit weights without loss"):
        load_base(str(tmp_path / "adapter"), init, cpu=True)


def test_a_missing_library_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(TrlRealError, match=r"requires bitsandbytes: `pip install"):
        load_base(folder, {"quantization_config": quantization()}, cpu=True)


class Layer(nn.Linear):
    """What bitsandbytes' layer is on a CPU with bfloat16 instructions, after a pass that packed it."""

    support_avx512bf16_for_cpu = True

    def __init__(self, packed: bool):
        super().__init__(2, 2)
        self.weight.quant_state = SimpleNamespace(packing_format_for_cpu=packed)

    def _save_to_state_dict(self, *args):
        self.weight.quant_state.packing_format_for_cpu = False
        super()._save_to_state_dict(*args)


def test_packed_layers_are_found_in_the_whole_model():
    model = nn.Sequential(Layer(True), nn.Sequential(nn.Linear(2, 2), Layer(False)))
    keep_unpacked(model)
    for layer in (model[0], model[1][1]):
        assert not layer.support_avx512bf16_for_cpu and not layer.weight.quant_state.packing_format_for_cpu


@pytest.mark.parametrize(
    ("how", "expected"), [({"load_in_4bit": True}, torch.float16), ({"load_in_8bit": True}, None)]
)
def test_only_4_bits_have_a_precision_of_their_own(how, expected):
    config = BitsAndBytesConfig(**how, bnb_4bit_compute_dtype="float16")
    assert product_dtype(SimpleNamespace(config=SimpleNamespace(quantization_config=config))) == expected
    assert product_dtype(nn.Linear(2, 2)) is None
