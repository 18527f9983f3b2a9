"""On an accelerator, tokens are made in a thread and results brought back together: the same results as on a CPU."""

import pytest
import torch

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.models import embed, reader
from trl_real.models.choice import ChoiceReader
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.reader import brought
from trl_real.runtime import devices


pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny_tokenizer()
PROMPTS = [f"{i % 4}: why?" for i in range(23)]
RESPONSES = [SENTENCES[i % 5][: 9 + 7 * (i % 6)] for i in range(23)]
JOBS = {
    "embedding": lambda m: Embedder(m, TOKENIZER, EmbedderOptions(batch_tokens=60))(PROMPTS, RESPONSES).vectors,
    "in context": lambda m: (
        (
            Embedder(m, TOKENIZER, EmbedderOptions("prompt+response", batch_tokens=60), memoize=True)(
                PROMPTS, RESPONSES
            )
        ).vectors
    ),
    "scoring": lambda m: ResponseLogProbs(m, TOKENIZER, batch_tokens=60)(PROMPTS, RESPONSES).sums,
    "labels": lambda m: ChoiceReader(m, TOKENIZER, 60)([tuple(x) for x in TOKENIZER(RESPONSES)["input_ids"]], "AB"),
}


@pytest.fixture
def busy_device(monkeypatch):
    """Let the readers take a CPU for a device that works while the caller continues."""
    for module in (embed, reader):
        monkeypatch.setattr(module, "computes_ahead", lambda device: True)
    monkeypatch.setattr(embed, "PART", 5)


@pytest.mark.parametrize("held", [0, 2**26])
@pytest.mark.parametrize("job", JOBS)
def test_results_are_the_same(job, held, busy_device, monkeypatch):
    with pytest.MonkeyPatch.context() as plain:
        for module in (embed, reader):
            plain.setattr(module, "computes_ahead", devices.computes_ahead)
        expected = JOBS[job](tiny_model())
    monkeypatch.setattr(reader, "MAX_HELD", held)
    assert torch.allclose(JOBS[job](tiny_model()), expected, atol=1e-5)


def test_equal_responses_of_different_parts_run_once(busy_device):
    made = Embedder(tiny_model(), TOKENIZER)
    once = made([None] * 2, ["say roof", "tea"]).n_tokens
    assert made([None] * 40, ["say roof", "tea"] * 20).n_tokens == once


def test_errors_of_the_thread_are_the_callers(busy_device):
    embedder = Embedder(tiny_model(), TOKENIZER, EmbedderOptions("prompt+response"))
    with pytest.raises(TrlRealError, match="needs a prompt in every row"):
        embedder([*PROMPTS[:8], None], RESPONSES[:9])
    assert torch.isfinite(embedder(PROMPTS, RESPONSES).vectors).all()


def test_values_leave_a_busy_device_together(busy_device, monkeypatch):
    passes = [([i], torch.full((1, 3), float(i)), 2) for i in range(5)]
    ((ids, values, n_tokens),) = brought(iter(passes))
    assert ids == list(range(5)) and values[:, 0].tolist() == ids and n_tokens == 10
    monkeypatch.setattr(reader, "MAX_HELD", 5)
    assert [ids for ids, *_ in brought(iter(passes))] == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr(reader, "computes_ahead", devices.computes_ahead)
    assert [ids for ids, *_ in brought(iter(passes))] == [[i] for i in range(5)]
