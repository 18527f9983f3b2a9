"""Each embedding equals the float32 mean of the response's last hidden states, for every batching of sequences."""

import gc
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model

from support.families import CONFIGS, PADDED, family
from support.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.packing import Tree, make_packs


TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token
RESPONSES = [
    "Boil the water.",
    "a",
    " The capital of France is Paris; Lyon is larger than Nice." * 2,
    f"a text that ends in the end token itself{EOS}",
    f"{EOS}{EOS}",
    "zażółć gęślą jaźń \U0001f600",
    "Boil the water.",
    "def add(a, b): return a + b",
    "Boil the kettle",
    "x" * 40,
]
PROMPTS = [f"Question {i // 3}: how is tea made?" for i in range(len(RESPONSES))]


def naive(model, responses=RESPONSES, prompts=None, layer=-1, before=(), after=(), max_length=512) -> torch.Tensor:
    """One response at a time, from the definition: no mask, no padding, no batch."""
    rows = []
    for i, response in enumerate(responses):
        prompt = TOKENIZER(prompts[i], add_special_tokens=False)["input_ids"] if prompts else []
        body = [*before, *TOKENIZER(response, add_special_tokens=False)["input_ids"], *after][:max_length]
        with torch.no_grad():
            output = model(torch.tensor([[*prompt, *body]]), output_hidden_states=True, use_cache=False)
        rows.append(output.hidden_states[layer][0, len(prompt) :].float().mean(0))
    return torch.stack(rows)


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    """Each row points the same way (cosine within `tolerance`) and is as long."""
    cosine = torch.cosine_similarity(found.double(), expected.double(), dim=1)
    assert (1 - cosine).abs().max() < tolerance
    torch.testing.assert_close(found, expected, rtol=max(1e-4, tolerance), atol=max(1e-4, 20 * tolerance))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=CONFIGS)
def named(request):
    return request.param, family(request.param)


class TestFamilies:
    def test_equal_one_at_a_time(self, named):
        name, model = named
        embedder = Embedder(model, TOKENIZER)
        assert_same(embedder([None] * len(RESPONSES), RESPONSES).vectors, naive(model))
        assert embedder.packs_well == (name not in PADDED)

    def test_in_context_equal_one_at_a_time(self, named):
        """The shared prompt is read once where sequences are packed, and never averaged."""
        name, model = named
        options = EmbedderOptions(context="prompt+response", max_length=200)
        embedder = Embedder(model, TOKENIZER, options)
        assert_same(embedder(PROMPTS, RESPONSES).vectors, naive(model, prompts=PROMPTS))

    @pytest.mark.parametrize("layer", [0, 1, -2])
    def test_of_another_layer(self, named, layer):
        _, model = named
        found = Embedder(model, TOKENIZER, EmbedderOptions(layer=layer))([None] * len(RESPONSES), RESPONSES).vectors
        assert_same(found, naive(model, layer=layer))

    @pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
    def test_of_any_batch_size(self, named, batch_tokens):
        _, model = named
        options = EmbedderOptions(batch_tokens=batch_tokens)
        assert_same(Embedder(model, TOKENIZER, options)([None] * len(RESPONSES), RESPONSES).vectors, naive(model))

    def test_model_state_is_restored(self, named):
        _, model = named
        before = model.config._attn_implementation
        Embedder(model, TOKENIZER)([None], ["text"])
        assert not model.training and model.config._attn_implementation == before
        tokens = torch.tensor([[5, 6, 7]])
        assert torch.equal(model(tokens).logits, family(named[0])(tokens).logits)


class TestTokens:
    MODEL = tiny_model()

    def embed(self, responses=RESPONSES, tokenizer=TOKENIZER, **options):
        return Embedder(self.MODEL, tokenizer, EmbedderOptions(**options))([None] * len(responses), responses)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("packs", [True, False])
    def test_padding_side_and_pad_token_do_not_matter(self, side, packs):
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
        embedder = Embedder(self.MODEL, tokenizer)
        embedder.packs_well = packs
        assert_same(embedder([None] * len(RESPONSES), RESPONSES).vectors, naive(self.MODEL))
        assert tokenizer.padding_side == side

    def test_tokenizer_without_padding_token_works(self):
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = None
        assert_same(self.embed(tokenizer=tokenizer).vectors, naive(self.MODEL))

    def test_bos_and_eos_count_only_when_asked_for(self):
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = "<|im_start|>"
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert_same(self.embed(tokenizer=tokenizer).vectors, naive(self.MODEL))
        found = self.embed(tokenizer=tokenizer, include_bos=True, include_eos=True).vectors
        assert_same(found, naive(self.MODEL, before=[bos], after=[eos]))
        assert (found - naive(self.MODEL)).abs().max() > 1e-2

    def test_missing_special_tokens_are_not_added(self):
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = tokenizer.eos_token = None
        found = self.embed(tokenizer=tokenizer, include_bos=True, include_eos=True).vectors
        assert_same(found, self.embed(tokenizer=tokenizer).vectors)

    def test_truncation_keeps_the_start_and_is_counted(self):
        found = self.embed(max_length=10)
        assert_same(found.vectors, naive(self.MODEL, max_length=10))
        lengths = [len(TOKENIZER(r, add_special_tokens=False)["input_ids"]) for r in RESPONSES]
        assert found.truncated.tolist() == [length > 10 for length in lengths]

    def test_prompt_truncation_keeps_the_end(self):
        options = EmbedderOptions(context="prompt+response", max_length=5)
        long = "Something that nobody reads. And the question"
        tail = TOKENIZER(long, add_special_tokens=False)["input_ids"][-5:]
        found = Embedder(self.MODEL, TOKENIZER, options)([long], ["yes"]).vectors
        body = TOKENIZER("yes", add_special_tokens=False)["input_ids"][:5]
        states = self.MODEL.model(torch.tensor([tail + body])).last_hidden_state
        assert_same(found, states[:, 5:].mean(1).detach())

    def test_equal_responses_run_once(self):
        once, thrice = self.embed(["tea", "water"]), self.embed(["tea", "water", "tea", "tea"])
        assert once.n_tokens == thrice.n_tokens
        assert torch.equal(thrice.vectors[[0, 0]], thrice.vectors[[2, 3]])

    def test_equal_responses_to_other_prompts_run_apart(self):
        options = EmbedderOptions(context="prompt+response")
        found = Embedder(self.MODEL, TOKENIZER, options)(["one", "two", "one"], ["tea"] * 3).vectors
        assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=1e-3)

    def test_messages_as_prompt_go_through_the_chat_template(self):
        messages = [{"role": "user", "content": "Tea?"}]
        text = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert TOKENIZER.chat_template == CHAT_TEMPLATE and "assistant" in text
        embedder = Embedder(self.MODEL, TOKENIZER, EmbedderOptions(context="prompt+response"))
        assert_same(embedder([messages], ["yes"]).vectors, embedder([text], ["yes"]).vectors)

    def test_blank_prompt_equals_no_prompt(self):
        embedder = Embedder(self.MODEL, TOKENIZER, EmbedderOptions(context="prompt+response"))
        found = embedder(["", "a question", ""], ["tea", "tea", "milk"]).vectors
        assert_same(found[[0, 2]], naive(self.MODEL, ["tea", "milk"]))

    def test_empty_list_of_responses(self):
        assert self.embed([]).vectors.shape[0] == 0

    def test_a_response_without_tokens_is_nan_and_the_others_are_not(self):
        found = self.embed(["", "tea"]).vectors
        assert found[0].isnan().all() and found[1].isfinite().all()


class TestErrors:
    @pytest.mark.parametrize("layer", [3, 9, -5])
    def test_a_layer_that_the_model_does_not_have(self, layer):
        with pytest.raises(TrlRealError, match=f"layer={layer}, but the model has hidden states 0 to 2"):
            Embedder(tiny_model(), TOKENIZER, EmbedderOptions(layer=layer))([None], ["a"])

    @pytest.mark.parametrize("prompt", [None, 5])
    def test_context_needs_a_prompt(self, prompt):
        with pytest.raises(TrlRealError, match="prompt"):
            Embedder(tiny_model(), TOKENIZER, EmbedderOptions(context="prompt+response"))([prompt], ["a"])

    @pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
    @pytest.mark.parametrize(("context", "fits"), [("response", 256), ("prompt+response", 128)])
    def test_texts_longer_than_the_context(self, name, context, fits):
        embedder = Embedder(family(name), TOKENIZER, EmbedderOptions(context=context))
        with pytest.raises(TrlRealError, match=f"tokens, but the model reads 256. Type max_length={fits}"):
            embedder(["q"], ["x1" * 300])
        embedder = Embedder(family(name), TOKENIZER, EmbedderOptions(context=context, max_length=fits))
        assert embedder(["q"], ["x1" * 300]).vectors.isfinite().all()

    @pytest.mark.parametrize("option", [{"context": "chat"}, {"max_length": 0}, {"batch_tokens": 0}])
    def test_options_out_of_range(self, option):
        with pytest.raises(TrlRealError, match=next(iter(option))):
            EmbedderOptions(**option)


class TestModels:
    def test_peft_adapters_count(self):
        model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
        embedder = Embedder(model.eval(), TOKENIZER)
        found = embedder([None] * len(RESPONSES), RESPONSES).vectors
        assert embedder.packs_well
        assert_same(found, naive(model))
        with model.disable_adapter():
            assert (found - naive(model)).abs().max() > 1e-2

    @pytest.mark.parametrize("name", ["llama", "opt"])
    def test_dropout_is_off_and_the_mode_of_each_module_is_restored(self, name):
        model = family(name)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        expected = naive(model)
        model.train()
        frozen = model.get_input_embeddings().eval()
        assert_same(Embedder(model, TOKENIZER)([None] * len(RESPONSES), RESPONSES).vectors, expected)
        assert model.training and model.base_model.training and not frozen.training

    @pytest.mark.parametrize("packs", [True, False])
    def test_mode_and_attention_are_restored_after_an_exception(self, packs):
        model = family("llama").train()
        before = model.config._attn_implementation
        embedder = Embedder(model, TOKENIZER)
        embedder.packs_well = packs

        def out_of_memory(*args):
            raise RuntimeError("out of memory")

        handle = model.model.layers[1].register_forward_hook(out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            embedder([None], ["tea"])
        handle.remove()
        assert model.training and model.config._attn_implementation == before
        assert_same(embedder([None], ["tea"]).vectors, naive(model.eval(), ["tea"]))

    def test_attention_is_restored_when_the_loop_is_interrupted(self):
        model = family("llama")
        before = model.config._attn_implementation
        with patch("trl_real.models.reader.tqdm") as bar:
            bar.return_value.update.side_effect = KeyboardInterrupt
            bar.return_value.__exit__.return_value = False
            with pytest.raises(KeyboardInterrupt):
                Embedder(model, TOKENIZER, EmbedderOptions(batch_tokens=1))([None] * 2, ["tea", "water"])
        assert model.config._attn_implementation == before

    @pytest.mark.parametrize("dtype", [None, torch.float32])
    def test_new_weights_give_new_embeddings(self, dtype):
        model = tiny_model()
        embedder = Embedder(model if dtype is None else model.bfloat16(), TOKENIZER, dtype=dtype)
        before = embedder([None], ["tea"]).vectors
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        after = embedder([None], ["tea"]).vectors
        assert (before - after).abs().max() > 1e-2
        expected = naive(model.float(), ["tea"])
        assert_same(after, expected, 1e-6)

    def test_caches_texts_only_on_request(self):
        model = tiny_model()
        embedder = Embedder(model, TOKENIZER, memoize=True)
        first = embedder([None] * 2, ["tea", "water"])
        again = embedder([None] * 2, ["milk", "tea"])
        assert torch.equal(first.vectors[0], again.vectors[1])
        assert again.n_tokens == len(TOKENIZER("milk", add_special_tokens=False)["input_ids"])

    @pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi", "qwen3", "gemma3", "opt"])
    @pytest.mark.parametrize("how", ["weights", "autocast"])
    def test_bfloat16_is_close(self, name, how):
        model = family(name)
        expected = naive(model)
        embedder = (
            Embedder(model.bfloat16(), TOKENIZER)
            if how == "weights"
            else Embedder(model, TOKENIZER, dtype=torch.bfloat16)
        )
        found = embedder([None] * len(RESPONSES), RESPONSES).vectors
        assert found.dtype == torch.float32
        assert (1 - torch.cosine_similarity(found, expected, dim=1)).max() < 5e-3

    def test_float32_of_half_precision_weights_without_dropout_in_train_mode(self):
        model = family("gpt2").bfloat16()
        expected = naive(family("gpt2").bfloat16().float())
        found = Embedder(model.train(), TOKENIZER, dtype=torch.float32)([None] * len(RESPONSES), RESPONSES).vectors
        assert_same(found, expected)
        assert model.training and next(model.parameters()).dtype == torch.bfloat16

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_attention_implementation_does_not_matter(self, implementation):
        model = family("llama", attn_implementation=implementation)
        assert_same(Embedder(model, TOKENIZER)([None] * len(RESPONSES), RESPONSES).vectors, naive(model))
        assert model.config._attn_implementation == implementation

    def test_backbone_without_head_works(self):
        model = family("llama")
        assert_same(Embedder(model.model, TOKENIZER)([None] * len(RESPONSES), RESPONSES).vectors, naive(model))

    def test_no_autograd_graph_and_no_gradient_is_left(self):
        model = tiny_model()
        assert not Embedder(model, TOKENIZER)([None], ["tea"]).vectors.requires_grad
        model(torch.tensor([[4, 5]])).logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        gc.collect()


class TestPacking:
    def test_packs_contain_every_tree_once_within_the_limit(self):
        trees = [Tree((), [tuple(range(n))], [n]) for n in (3, 9, 1, 4, 4, 30)]
        trees.append(Tree((1, 2, 3), [(4,), (5, 6)], [100, 101]))
        packs = make_packs(trees, 12)
        assert sorted(i for pack in packs for i in pack.ids) == [1, 3, 4, 4, 9, 30, 100, 101]
        assert [len(pack.tokens) for pack in packs if len(pack.tokens) > 12] == [30]

    def test_the_order_of_trees_does_not_matter(self):
        trees = [Tree((), [(i, n)] if n else [(i,)], [2 * i + n]) for i in range(9) for n in (0, 1)]
        first, second = make_packs(trees, 5), make_packs(trees[::-1], 5)
        assert [(p.tokens, p.positions, p.ids) for p in first] == [(p.tokens, p.positions, p.ids) for p in second]
