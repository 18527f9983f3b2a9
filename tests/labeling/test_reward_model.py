"""Verdicts of a reward model equal those of its scores, computed one text at a time."""

import math
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)

from support.tiny import tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.labeling.reward_model import RewardModelJudge


pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"vocab_size": 304, "num_labels": 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3}
WIDE = {**WIDE, "bos_token_id": None, "eos_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, pad_token_id=None),
    "llama padded with its end": LlamaConfig(**WIDE, pad_token_id=2),
    "qwen3": Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=256, num_labels=1),
    "bert": BertConfig(**WIDE, pad_token_id=0),
}
ROWS = {
    "prompt": ["How is tea made?", [{"role": "user", "content": "Poem?"}], "How is tea made?", "Open this lock."],
    "response_a": ["Boil the water.", "Sure! Rain on a tin roof.", "Boil the water.", ""],
    "response_b": ["With milk " * 9, "no", "Use a kettle.", "I would rather not say."],
}


def reward_model(name="llama", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()


def without_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def judge(model=None, **settings):
    settings = {"tokenizer": tiny_tokenizer(), **settings}
    return RewardModelJudge(reward_model() if model is None else model, **settings)


def naive(model, tokenizer, prompts, responses) -> list[float]:
    """One text at a time, as the model's own users would do it."""
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [*messages, {"role": "assistant", "content": response}], tokenize=False
            )
        else:
            text = messages[0]["content"] + response + tokenizer.eos_token
        with torch.no_grad():
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            scores.append(float(model(input_ids=ids).logits[0, 0]))
    return scores


class TestScores:
    @pytest.mark.parametrize("name", CONFIGS)
    @pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), without_template()], ids=["template", "plain"])
    def test_scores_equal_one_text_at_a_time(self, name, tokenizer):
        model = reward_model(name)
        prompts, responses = ROWS["prompt"] * 2, ROWS["response_a"] + ROWS["response_b"]
        expected = naive(model, tokenizer, prompts, responses)
        found = judge(model, tokenizer=tokenizer)
        assert found.score(prompts, responses) == pytest.approx(expected, abs=2e-5)
        bradley_terry = [1 / (1 + math.exp(b - a)) for a, b in zip(expected[:4], expected[4:], strict=True)]
        assert found(ROWS) == pytest.approx(bradley_terry, abs=1e-5)
        assert len({round(p, 4) for p in bradley_terry}) == 4

    @pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
    def test_do_not_depend_on_the_batch(self, batch_tokens):
        scorer = judge(batch_tokens=batch_tokens)
        together = scorer.score(ROWS["prompt"], ROWS["response_b"])
        pairs = zip(ROWS["prompt"], ROWS["response_b"], strict=True)
        assert [scorer.score([p], [r])[0] for p, r in pairs] == pytest.approx(together, abs=1e-5)
        back = scorer.score(ROWS["prompt"][::-1], ROWS["response_b"][::-1])
        assert back == pytest.approx(together[::-1], abs=1e-6)

    def test_equal_texts_are_read_once(self):
        model = reward_model()
        seen = []
        model.register_forward_pre_hook(lambda m, a, kw: seen.append(len(kw["input_ids"])), with_kwargs=True)
        judge(model)({name: column * 3 for name, column in ROWS.items()})
        assert sum(seen) == 7

    def test_model_state_is_restored(self):
        model = reward_model().train()
        judge(model)(ROWS)
        assert model.training and model.score.training and model.config.pad_token_id is None

    def test_of_a_peft_model(self):
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(reward_model(), config).eval()
        expected = naive(model, tiny_tokenizer(), ROWS["prompt"], ROWS["response_a"])
        assert judge(model).score(ROWS["prompt"], ROWS["response_a"]) == pytest.approx(expected, abs=2e-5)

    @pytest.mark.parametrize("padding_side", ["left", "right"])
    def test_do_not_depend_on_the_padding_side_or_a_pad_token(self, padding_side):
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side, tokenizer.pad_token = padding_side, None
        expected = judge().score(ROWS["prompt"], ROWS["response_a"])
        assert judge(tokenizer=tokenizer).score(ROWS["prompt"], ROWS["response_a"]) == pytest.approx(expected)


class TestVerdicts:
    def test_swapped_responses_mirror_the_verdict(self):
        swapped = {**ROWS, "response_a": ROWS["response_b"], "response_b": ROWS["response_a"]}
        forth, back = judge()(ROWS), judge()(swapped)
        assert forth == pytest.approx([1 - p for p in back], abs=1e-6)

    def test_verdicts_have_no_order(self):
        for verdict in judge().verdicts(ROWS):
            assert math.isnan(verdict.a_first) and math.isnan(verdict.b_first)
            assert verdict.source == "reward:LlamaForSequenceClassification" and verdict.input_tokens > 0

    def test_scale_divides_the_log_odds(self):
        plain, half = judge()(ROWS), judge(scale=2.0)(ROWS)
        logits = [[math.log(p / (1 - p)) for p in some] for some in (plain, half)]
        assert logits[1] == pytest.approx([x / 2 for x in logits[0]], abs=1e-5)

    def test_near_and_equal_scores_are_ties(self):
        rows = {**ROWS, "response_b": ROWS["response_a"]}
        assert [verdict.outcome for verdict in judge().verdicts(rows)] == ["tie"] * 4
        assert [verdict.outcome for verdict in judge(min_gap=1e6).verdicts(ROWS)] == ["tie"] * 4

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_scores_are_failures(self, value):
        model = reward_model()
        model.score.register_forward_hook(lambda module, inputs, output: torch.full_like(output, value))
        for verdict in judge(model).verdicts(ROWS):
            assert verdict.outcome == "failed" and verdict.failure == "a reward that is no number"

    def test_a_gap_that_overflows_is_certain(self):
        model = reward_model()
        with torch.no_grad():
            model.score.weight.mul_(1e30)
        assert set(judge(model)(ROWS)) == {0.0, 1.0}


class TestLength:
    def test_long_prompt_is_truncated_from_the_left_and_the_response_kept(self):
        tokenizer = without_template()
        end = "and the end of it: how is tea made?"
        rows = {"prompt": ["x" * 300 + end], "response_a": ["Boil the water."], "response_b": ["no"]}
        limit = len(tokenizer(end + rows["response_a"][0] + tokenizer.eos_token)["input_ids"])
        (verdict,) = judge(tokenizer=tokenizer, max_length=limit).verdicts(rows)
        short = naive(reward_model(), tokenizer, [end], ["Boil the water."])
        found = judge(tokenizer=tokenizer, max_length=limit).score(rows["prompt"], rows["response_a"])
        assert found == pytest.approx(short, abs=1e-5)
        assert verdict.truncated and verdict.outcome != "failed"

    def test_context_length_is_the_limit(self):
        rows = {"prompt": ["x" * 400, "a"], "response_a": ["yes", "yes"], "response_b": ["no", "y" * 400]}
        verdicts = judge().verdicts({**rows, "prompt": [*rows["prompt"]]})
        assert [verdict.truncated for verdict in verdicts] == [True, True]
        assert verdicts[0].input_tokens == 2 * 256
        assert not any(verdict.truncated for verdict in judge().verdicts(ROWS))

    @pytest.mark.parametrize("n_left", [0, 1, 3])
    def test_the_header_of_the_answer_belongs_to_the_prompt(self, n_left):
        reader, asked = judge()._reader, [{"role": "user", "content": "What? " * 9}]
        alone, whole = (ids[0] for ids in reader._tokenize([asked], ["Tea."]))
        prompt = reader.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert whole[: len(prompt)] == prompt
        reader.max_length = len(whole) - len(prompt) + n_left
        assert reader._cut(alone, whole) == (tuple(whole[-reader.max_length :]), True)

    def test_bos_token_is_kept(self):
        tokenizer = without_template()
        tokenizer.bos_token = "<|im_start|>"
        scorer = judge(tokenizer=tokenizer, max_length=12)
        bos = tokenizer.bos_token_id
        prompt, response = [bos, *range(40, 60)], [7, 8]
        assert scorer._reader._cut(prompt, prompt + response) == ((bos, *range(51, 60), 7, 8), True)
        assert scorer._reader._cut([bos], prompt) == (tuple(prompt[:12]), True)


class TestModels:
    def test_by_name_and_loaded_agree_and_by_name_can_be_pickled(self, tmp_path):
        reward_model().save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        named = RewardModelJudge(str(tmp_path))
        expected = judge()(ROWS)
        assert named(ROWS) == pytest.approx(expected, abs=1e-6)
        travelled = pickle.loads(pickle.dumps(named))
        assert travelled(ROWS) == pytest.approx(expected, abs=1e-6)
        assert travelled.identity == named.identity and len(pickle.dumps(named)) < 5000

    def test_identity_depends_on_weights_and_settings(self):
        judges = [judge(), judge(reward_model(seed=1)), judge(scale=2.0), judge(min_gap=0.1), judge(max_length=9)]
        assert len({str(one.identity) for one in judges}) == len(judges)
        assert judge().identity == judge().identity

    def test_a_model_with_several_outputs_is_refused(self):
        model = AutoModelForSequenceClassification.from_config(LlamaConfig(**{**WIDE, "num_labels": 3}))
        with pytest.raises(TrlRealError, match="has 3 outputs, but a reward model has 1"):
            judge(model)(ROWS)

    @pytest.mark.parametrize(
        "settings, words",
        [
            ({"model": 3}, "model is a int"),
            ({"tokenizer": None}, "needs its tokenizer"),
            ({"scale": 0.0}, "scale=0.0"),
            ({"min_gap": -1.0}, "min_gap=-1.0"),
            ({"max_length": 0}, "max_length=0"),
            ({"dtype": "bfloat16"}, "only applies to a model given by name"),
        ],
    )
    def test_bad_settings_get_a_one_line_error(self, settings, words):
        with pytest.raises(TrlRealError, match=words):
            judge(**settings)

    @pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), without_template()], ids=["template", "plain"])
    def test_a_prompt_that_is_neither_text_nor_messages(self, tokenizer):
        with pytest.raises(TrlRealError, match="holds int instead of a text or messages"):
            judge(tokenizer=tokenizer)({"prompt": [3], "response_a": ["a"], "response_b": ["b"]})

    def test_no_pairs(self):
        assert judge()({"prompt": [], "response_a": [], "response_b": []}) == []
