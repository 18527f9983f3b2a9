"""Attention within segments: each way to compute it gives the same values and gradients, in every job that packs."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import create_block_mask

from support.families import CONFIGS, PADDED, family
from support.tiny import SENTENCES, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.models.attention import segments as table
from trl_real.models.attention.block_mask import BLOCK, block_mask, seen_by
from trl_real.models.attention.segments import ATTENTIONS, VARIABLE, attentions_for
from trl_real.models.choice import ChoiceReader
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.packing import Line, Segment


pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny_tokenizer()
PROMPTS = [SENTENCES[i % 3][: 14 + 5 * (i % 3)] for i in range(9)]
RESPONSES = [" " + SENTENCES[(i + 1) % 5][: 5 + 6 * i] for i in range(9)]
PACKING = sorted(CONFIGS.keys() - PADDED)


def gradients(model, **settings):
    model = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    return GradientFeatures(model, TOKENIZER, GradientOptions(projection_dim=None, **settings))


def chats(prompts):
    return [tuple(ids) for ids in TOKENIZER([prompt + end for prompt in prompts for end in ("", " yes")])["input_ids"]]


# Name: the reader, and what it returns.
JOBS = {
    "embeddings": (lambda m: Embedder(m, TOKENIZER), lambda r: r(PROMPTS, RESPONSES).vectors),
    "embeddings in context": (
        lambda m: Embedder(m, TOKENIZER, EmbedderOptions("prompt+response", max_length=100)),
        lambda r: r(PROMPTS, RESPONSES).vectors,
    ),
    "log-probabilities": (lambda m: ResponseLogProbs(m, TOKENIZER), lambda r: r(PROMPTS, RESPONSES).sums),
    "labels": (lambda m: ChoiceReader(m, TOKENIZER), lambda r: r(chats(PROMPTS), ("A", "B"))),
    "gradients": (lambda m: gradients(m, max_length=100), lambda r: r(PROMPTS, RESPONSES).vectors),
    "gradients of pairs": (
        lambda m: gradients(m, max_length=100),
        lambda r: r.differences(PROMPTS, RESPONSES, RESPONSES[1:] + RESPONSES[:1]).vectors,
    ),
}


def packs(reader) -> bool:
    return reader.packs_well if reader.packs_well is not None else reader.method == "packed"


def run(name, job, attention, monkeypatch):
    monkeypatch.setenv(VARIABLE, attention)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = JOBS[job][0](family(name))
    return reader, JOBS[job][1](reader)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", PACKING)
def test_attentions_agree_in_every_family_and_job(name, job, monkeypatch):
    found = {attention: run(name, job, attention, monkeypatch) for attention in ATTENTIONS}
    assert {attention: reader.attention for attention, (reader, _) in found.items()} == {name: name for name in found}
    packed = not (name == "opt" and "gradients" in job)  # its layers flatten their tokens
    assert all(packs(reader) == packed for reader, _ in found.values())
    expected = found["loop"][1]
    assert expected.norm() > 0
    for _, values in found.values():
        assert ((values - expected).norm(dim=-1) / expected.norm(dim=-1)).max() <= 1e-5


@pytest.mark.parametrize(("attention", "packed"), [("loop", False), ("flex", True)])
def test_capped_logits_are_packed_where_the_attention_caps_them(attention, packed, monkeypatch):
    for job in ("embeddings", "gradients"):
        reader, values = run("gemma2", job, attention, monkeypatch)
        assert packs(reader) == packed
        reader.packs_well, reader._method = False, "one by one"
        torch.testing.assert_close(values, JOBS[job][1](reader), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["mistral", "falcon"])
def test_windows_and_attention_of_the_models_own_are_padded(name, attention, monkeypatch):
    reader, values = run(name, "log-probabilities", attention, monkeypatch)
    lone = [reader(PROMPTS[i : i + 1], RESPONSES[i : i + 1]).sums for i in range(len(PROMPTS))]
    torch.testing.assert_close(values, torch.cat(lone), rtol=1e-5, atol=1e-5)
    longest = max(len(ids) for ids in TOKENIZER([p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)])["input_ids"])
    assert not reader.packs_well or longest > 8


def test_one_that_differs_on_the_model_is_left_for_the_next(monkeypatch):
    monkeypatch.setattr(table, "has_kernel_compiler", lambda device: True)
    model = family("llama")
    assert attentions_for(model.device) == ("flex", "loop")
    made = ResponseLogProbs(model, TOKENIZER)
    assert made(PROMPTS, RESPONSES).n_tokens and made.packs_well and made.attention == "flex"
    monkeypatch.setattr(table, "block_mask", lambda segments, *rest: block_mask([Segment(0, 1, 23)], *rest))
    made = ResponseLogProbs(model, TOKENIZER)
    assert made(PROMPTS, RESPONSES).n_tokens and made.packs_well and made.attention == "loop"


@pytest.mark.parametrize(("device", "names"), [("cpu", ("loop",)), ("mps", ("loop",)), ("xpu", ("flex", "loop"))])
def test_attention_follows_the_device_and_the_environment(device, names, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert attentions_for(torch.device(device)) == names
    for name in ATTENTIONS:
        monkeypatch.setenv(VARIABLE, name)
        assert attentions_for(torch.device(device)) == (name,)
    monkeypatch.setenv(VARIABLE, "flash")
    with pytest.raises(TrlRealError, match=f"{VARIABLE}='flash' is not one of loop, flex. Unset it"):
        attentions_for(torch.device(device))


def tree(scale: int = 1) -> Line:
    """Two prompts, of which one has branches with branches, and sequences of equal length."""
    line = Line()
    root = line.append((1,) * 70 * scale)
    first = line.append((2,) * 40 * scale, 0, (root,))
    for n in (30, 9):
        line.append((3,) * n * scale, 0, (root, first))
    line.append((4,) * 50 * scale, 0, (root,))
    for n in (20, 20, 11):
        line.append((5,) * n * scale, merge=True)
    root = line.append((6,) * 100 * scale)
    line.append((7,) * 33 * scale, 0, (root,))
    return line


def brute_force(line: Line, n_before: int = 0) -> torch.Tensor:
    """Whether each token attends to each, by the definition of a segment."""
    mask = torch.zeros(len(line.tokens), n_before + len(line.tokens), dtype=torch.bool)
    for segment in line.segments:
        for query in range(segment.start, segment.stop):
            start = query - (query - segment.start) % segment.length
            mask[query, n_before + start : n_before + query + 1] = True
            for part in segment.prefix:
                mask[query, part] = True
    return mask


def continued(line: Line) -> tuple[Line, int]:
    """A second pass, whose segments continue some of those of the line."""
    parts = [slice(segment.start, segment.stop) for segment in line.segments if not segment.prefix]
    other = Line()
    other.append((1,) * 150, 0, (parts[0],))
    other.append((1,) * 7, 0, (parts[0],))
    other.append((1,) * 5)
    other.append((1,) * 300, 0, (parts[-1],))
    return other, len(line.tokens)


@pytest.mark.parametrize("case", [lambda: (tree(), 0), lambda: (tree(6), 0), lambda: continued(tree(3))])
def test_block_mask_is_the_definition(case):
    line, n_before = case()
    expected = brute_force(line, n_before)
    first, end = seen_by(line.segments, n_before)
    queries = torch.arange(len(line.tokens))[:, None]
    assert torch.equal((first <= queries) & (queries < end), expected)
    found = block_mask(line.segments, n_before, torch.device("cpu"))
    theirs = create_block_mask(found.mask_mod, None, None, *expected.shape, device="cpu", BLOCK_SIZE=BLOCK)
    assert found.shape == theirs.shape and torch.equal(found.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(theirs, name)), name


def test_segments_that_do_not_follow_their_prefix_are_refused():
    line = Line()
    root = line.append((1, 2, 3))
    line.append((4, 5), 3, (root,))
    line.append((6, 7, 8))
    line.append((9,), 3, (root,))
    with pytest.raises(ValueError, match="segment at 8 does not follow"):
        seen_by(line.segments, 0)


@pytest.mark.slow
def test_compiled_kernel_equals_the_materialized_one_at_any_length():
    for scale, capped in ((1, None), (4, None), (2, None), (2, 5.0)):
        line = tree(scale)
        mask = block_mask(line.segments, 0, torch.device("cpu"))
        q, k, v = (torch.randn(1, heads, len(line.tokens), 16) for heads in (4, 2, 2))
        options = {"block_mask": mask, "scale": 0.3, "enable_gqa": True}
        found = table.compiled_flex()(q, k, v, score_mod=table.capped_by(capped, q.device), **options)
        torch.testing.assert_close(found, table._materialized(q, k, v, mask, 0.3, capped), rtol=1e-4, atol=1e-5)
