"""On an accelerator, tokens are made in a thread and results brought back together: the same results as on a CPU."""

import threading
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.labeling.chat import local
from trl_real.labeling.chat.local import LocalChat
from trl_real.labeling.chat.question import Question
from trl_real.models import reader
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.implicit import ImplicitRewardReader
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.reader import ModelReader, brought
from trl_real.models.reward import RewardReader
from trl_real.runtime import ahead as parts
from trl_real.runtime import devices
from trl_real.runtime.ahead import ahead


pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny_tokenizer()
PROMPTS = [f"{i % 4}: why?" for i in range(23)]
RESPONSES = [SENTENCES[i % 5][: 9 + 7 * (i % 6)] for i in range(23)]
LORA = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}


def adapted():
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), LoraConfig(**LORA)).eval()


def classifier():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(tiny_model(num_labels=1).config)


def embedded(context, **settings):
    options = EmbedderOptions(context, batch_tokens=60)
    return lambda: Embedder(tiny_model(), TOKENIZER, options, **settings)(PROMPTS, RESPONSES)


def gradients(projection_dim=64):
    return GradientFeatures(adapted(), TOKENIZER, GradientOptions(projection_dim=projection_dim, batch_tokens=60))


def judged():
    chat = LocalChat(tiny_model(), tokenizer=TOKENIZER, batch_tokens=60)
    questions = [Question([{"role": "user", "content": text}], ("A", "B")) for text in RESPONSES]
    return SimpleNamespace(values=torch.tensor([[p for _, p in answer.top] for answer in chat.answers(questions)]))


JOBS = {
    "embedding": (embedded("response"), "vectors"),
    "in context": (embedded("prompt+response", memoize=True), "vectors"),
    "scoring": (lambda: ResponseLogProbs(tiny_model(), TOKENIZER, batch_tokens=60)(PROMPTS, RESPONSES), "sums"),
    "rewards": (lambda: RewardReader(classifier(), TOKENIZER, 60)(PROMPTS, RESPONSES), "scores"),
    "implicit rewards": (
        lambda: ImplicitRewardReader(adapted(), tokenizer=TOKENIZER, batch_tokens=60)(
            PROMPTS, RESPONSES, [i % 2 > 0 for i in range(23)]
        ),
        "values",
    ),
    "gradients": (lambda: gradients()(PROMPTS, RESPONSES), "vectors"),
    "gradients of pairs": (lambda: gradients().differences(PROMPTS, RESPONSES, RESPONSES[::-1]), "vectors"),
    "judging": (judged, "values"),
}


@pytest.fixture
def busy_device(monkeypatch):
    """Let the readers take a CPU for a device that works while the caller continues; return what threads made."""
    for module in (parts, reader):
        monkeypatch.setattr(module, "computes_ahead", lambda device: True)
    for module in (parts, local):
        monkeypatch.setattr(module, "PART", 5)
    made = []

    def counted(make, items):
        return ahead(lambda item: made.append((threading.current_thread().name, len(item))) or make(item), items)

    monkeypatch.setattr(parts, "ahead", counted)
    return made


def on_a_cpu(job):
    with pytest.MonkeyPatch.context() as plain:
        for module in (parts, reader):
            plain.setattr(module, "computes_ahead", devices.computes_ahead)
        return job()


@pytest.mark.parametrize("held", [0, 2**26])
@pytest.mark.parametrize(("job", "name"), JOBS.values(), ids=JOBS)
def test_results_are_the_same_and_tokens_are_made_by_a_thread(job, name, held, busy_device, monkeypatch):
    expected = on_a_cpu(job)
    assert not busy_device
    monkeypatch.setattr(reader, "MAX_HELD", held)
    found = job()
    assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
    assert len(busy_device) > 2 and all("ahead" in thread for thread, _ in busy_device)
    assert sum(n for _, n in busy_device) == len(RESPONSES)
    for count in ("n_scored", "truncated", "n_policy", "fingerprint"):
        first, second = getattr(found, count, 0), getattr(expected, count, 0)
        assert torch.equal(first, second) if torch.is_tensor(first) else first == second


def test_a_prompt_is_read_once_wherever_its_responses_stand(busy_device):
    """Every fourth row has the same prompt: parts in the order of the rows would read each prompt five times."""
    for job in ("in context", "scoring", "gradients of pairs"):
        assert JOBS[job][0]().n_tokens == on_a_cpu(JOBS[job][0]).n_tokens


@pytest.mark.parametrize(("job", "name"), [JOBS[name] for name in ("embedding", "scoring", "gradients", "judging")])
def test_an_interrupt_leaves_no_thread(job, name, busy_device, monkeypatch):
    read = ModelReader.passes

    def interrupted(*args):
        if len(busy_device) > 2:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(ModelReader, "passes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job()
    assert not [thread for thread in threading.enumerate() if "ahead" in thread.name]


def test_equal_responses_of_different_parts_run_once(busy_device):
    made = Embedder(tiny_model(), TOKENIZER)
    once = made([None] * 2, ["say roof", "tea"]).n_tokens
    assert made([None] * 40, ["say roof", "tea"] * 20).n_tokens == once


def test_errors_of_the_thread_are_the_callers(busy_device):
    embedder = Embedder(tiny_model(), TOKENIZER, EmbedderOptions("prompt+response"))
    with pytest.raises(TrlRealError, match="needs a prompt in every row"):
        embedder([*PROMPTS[:8], None], RESPONSES[:9])
    for read in (ResponseLogProbs(tiny_model(), TOKENIZER), gradients(), RewardReader(classifier(), TOKENIZER)):
        with pytest.raises(TrlRealError, match="Column 'prompt' holds int"):
            read([*PROMPTS[:8], 7], RESPONSES[:9])
    assert torch.isfinite(embedder(PROMPTS, RESPONSES).vectors).all()


def test_values_leave_a_busy_device_together(busy_device, monkeypatch):
    passes = [([i], torch.full((1, 3), float(i)), 2) for i in range(5)]
    ((ids, values, n_tokens),) = brought(iter(passes))
    assert ids == list(range(5)) and values[:, 0].tolist() == ids and n_tokens == 10
    monkeypatch.setattr(reader, "MAX_HELD", 5)
    assert [ids for ids, *_ in brought(iter(passes))] == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr(reader, "computes_ahead", devices.computes_ahead)
    assert [ids for ids, *_ in brought(iter(passes))] == [[i] for i in range(5)]
