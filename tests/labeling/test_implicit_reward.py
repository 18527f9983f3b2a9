"""Tests of the policy as its own judge (SPA)."""

import json
import math
import pickle

import pytest
import torch
from datasets import Dataset

from support.self_judge import CHAT, PROMPTS, RESPONSES, judge, naive, policy
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real.cli.main import main
from trl_real.errors import TrlRealError
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.labeling.implicit_reward import UNUSABLE, ImplicitRewardJudge, KeptSums
from trl_real.labeling.judges import JUDGES
from trl_real.labeling.panel import JudgePanel
from trl_real.models.load import weights_digest
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.sequences import tokenize_pairs


pytestmark = pytest.mark.usefixtures("one_thread")


def batch(n=2):
    a, b = ([row[(i + k) % 2] for k, row in enumerate(RESPONSES)] for i in (0, 1))
    return {"prompt": PROMPTS[:n], "response_a": a[:n], "response_b": b[:n]}


def gap(prompt, a, b, model=None, **end):
    """`delta log pi - delta log pi_init`, from two separate models."""
    model, base = policy() if model is None else model, tiny_model()
    rewards = [naive(model, prompt, y, **end) - naive(base, prompt, y, **end) for y in (a, b)]
    return rewards[0] - rewards[1]


def tokens_read(model):
    """Counts the tokens that go through a model."""
    seen = []
    model.get_base_model().register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return seen


class TestVerdicts:
    def test_verdicts_equal_two_separate_models_and_the_sigmoid_of_the_paper(self):
        found = judge(beta=0.3)(batch(5))
        expected = [gap(*row) for row in zip(*batch(5).values(), strict=True)]
        assert found == pytest.approx([1 / (1 + math.exp(-0.3 * g)) for g in expected], abs=1e-5)
        assert {p > 0.5 for p in found} == {True, False}

    def test_do_not_change_with_beta_or_a_constant_on_the_logits(self):
        expected = [v.outcome for v in judge().verdicts(batch(5))]
        assert [v.outcome for v in judge(beta=7.0).verdicts(batch(5))] == expected
        shifted, shifted_base = policy(), tiny_model()
        for model in (shifted.get_base_model(), shifted_base):
            model.lm_head.register_forward_hook(lambda module, inputs, output: output + 3.25)
        for told in (judge(shifted), judge(policy(), reference=shifted_base), judge(shifted, reference=tiny_model())):
            assert told(batch(5)) == pytest.approx(judge()(batch(5)), abs=1e-5)

    def test_swapped_responses_mirror_the_verdict(self):
        swapped = {**batch(5), "response_a": batch(5)["response_b"], "response_b": batch(5)["response_a"]}
        assert judge()(batch(5)) == pytest.approx([1 - p for p in judge()(swapped)], abs=1e-12)

    def test_a_mean_score_divides_by_the_tokens(self):
        rewards = judge().rewards(PROMPTS, batch(5)["response_a"])
        told = judge(length_normalize=True).score(PROMPTS, batch(5)["response_a"])
        assert told == pytest.approx((rewards.values / rewards.n_scored).tolist())

    def test_verdicts_of_an_unchanged_policy_are_ties(self):
        fresh = policy(init_lora_weights=True)
        assert [v.outcome for v in judge(fresh).verdicts(batch(5))] == ["tie"] * 5
        cached = {}
        judge(policy(1), cache=cached).score(PROMPTS[:2], batch()["response_a"])
        assert [v.outcome for v in judge(fresh, cache=cached).verdicts(batch(5))] == ["tie"] * 5

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_scores_are_failures_and_are_not_cached(self, value):
        model, kept = policy(), {}
        handle = model.get_base_model().lm_head.register_forward_hook(
            lambda module, inputs, output: torch.full_like(output, value)
        )
        broken = judge(model, cache=kept)
        assert [v.failure for v in broken.verdicts(batch())] == [UNUSABLE] * 2 and not kept
        handle.remove()
        assert [v.failure for v in broken.verdicts(batch())] == ["", ""]

    def test_a_blank_response_is_a_failure_and_an_equal_one_a_tie(self):
        rows = {"prompt": ["Why?", "Why?"], "response_a": [" So.", " "], "response_b": [" So.", " No."]}
        assert [v.outcome for v in judge().verdicts(rows)] == ["tie", "failed"]

    def test_truncated_text_is_reported(self):
        assert [v.truncated for v in judge(max_length=8).verdicts(batch())] == [True, True]
        assert not any(v.truncated for v in judge().verdicts(batch()))


class TestReference:
    def test_reference_has_the_checksum_of_the_initial_model_in_every_round(self, tmp_path):
        initial = weights_digest(tiny_model())
        model = policy()
        for seed in range(3):  # rounds: the adapter changes, the reference does not
            with torch.no_grad():
                for name, weights in model.named_parameters():
                    if "lora_B" in name:
                        weights.add_(torch.randn_like(weights) * (seed + 1))
            told = judge(model)
            scores = told.score(PROMPTS, batch(5)["response_a"])
            assert told.reference_digest == initial and min(map(abs, scores)) > 1e-3
        assert judge(policy(), reference=tiny_model()).reference_digest == initial
        assert judge(policy(), reference=tiny_model(1)).reference_digest != initial
        save_tiny(tmp_path)
        assert judge(policy(), reference=str(tmp_path)).reference_digest == initial

    def test_reference_of_an_adapter_with_modules_to_save_is_the_base_model(self):
        told = judge(policy(target_modules=["q_proj"], modules_to_save=["lm_head"]))
        assert told.reference_digest == weights_digest(tiny_model())

    def test_reference_shares_the_base_weights_and_policy_state_is_restored(self):
        model = policy(lora_dropout=0.5).train()
        needed = {name: p.requires_grad for name, p in model.named_parameters()}
        separate = judge(policy(), reference=tiny_model())(batch(5))
        assert judge(model)(batch(5)) == pytest.approx(separate, abs=1e-6)
        assert model.training and needed == {name: p.requires_grad for name, p in model.named_parameters()}
        assert not any(getattr(module, "disable_adapters", False) is True for module in model.modules())

    def test_reference_is_required_without_an_adapter(self, tmp_path):
        for model in (tiny_model(), save_tiny(tmp_path)):
            with pytest.raises(TrlRealError, match="Give reference=…"):
                judge(model)(batch())
        model = policy()
        for same in (model, model.get_base_model()):
            with pytest.raises(TrlRealError, match="Leave reference out"):
                judge(model, reference=same)
        with pytest.raises(TrlRealError, match="trains biases of the base"):
            judge(policy(bias="all", target_modules=["q_proj"]))


class TestPasses:
    def test_each_response_is_read_once_by_each_model_and_never_again(self):
        model = policy()
        seen, told = tokens_read(model), judge(model)
        told.verdicts(batch(1))
        seen.clear()
        a, b = [[y] * 4 for y in (RESPONSES[1][0], RESPONSES[1][1])]
        rewards = told.rewards([PROMPTS[1]] * 8, a + b)
        prompt, lengths = len(tiny_tokenizer()(PROMPTS[1])["input_ids"]), rewards.n_scored[[0, 4]].sum()
        assert (rewards.n_policy, rewards.n_reference) == (2, 2)
        assert sum(seen) == rewards.n_tokens == 2 * (prompt + int(lengths))
        again = told.rewards([PROMPTS[1]] * 8, a + b)
        assert sum(seen) == rewards.n_tokens and (again.n_policy, again.n_reference, again.n_tokens) == (0, 0, 0)
        assert torch.equal(again.values, rewards.values) and torch.equal(again.n_scored, rewards.n_scored)

    @pytest.mark.parametrize("kind", ["dict", "file"])
    def test_next_round_reuses_reference_sums_of_the_last_round(self, kind, tmp_path):
        cache = {} if kind == "dict" else tmp_path / "sums.jsonl"
        first = judge(policy(0), cache=cache).rewards(PROMPTS, batch(5)["response_a"])
        told = judge(policy(1), reference=tiny_model(), cache=cache)
        second = told.rewards(PROMPTS, batch(5)["response_a"])
        assert (first.n_reference, second.n_policy, second.n_reference) == (5, 5, 0)
        assert torch.equal(first.reference, second.reference)
        alone = judge(policy(1)).score(PROMPTS, batch(5)["response_a"])
        assert second.values.tolist() == pytest.approx(alone, abs=1e-5)

    def test_policy_trained_in_between_is_scored_again(self):
        model = policy()
        told = judge(model)
        told.score(PROMPTS, batch(5)["response_a"])
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "lora_B" in name).mul_(-3)
        again = told.rewards(PROMPTS, batch(5)["response_a"])
        assert (again.n_policy, again.n_reference) == (5, 0)
        assert again.values.tolist() == pytest.approx(judge(model).score(PROMPTS, batch(5)["response_a"]), abs=1e-5)

    def test_cache_separates_references_precisions_and_lengths(self):
        cache = {}
        judge(policy(), cache=cache).score(PROMPTS, batch(5)["response_a"])
        for other in (
            judge(policy(), reference=tiny_model(1), cache=cache),
            judge(policy(), dtype="bfloat16", cache=cache),
            judge(policy(), max_length=3, cache=cache),
        ):
            assert other.rewards(PROMPTS, batch(5)["response_a"]).n_reference == 5

    def test_torn_line_is_skipped_and_other_files_are_refused(self, tmp_path):
        path = tmp_path / "sums.jsonl"
        KeptSums(path).update({"a": -1.5})
        path.write_bytes(path.read_bytes() + b'{"sums": {"b"')
        kept = KeptSums(path)
        assert kept == {"a": -1.5}
        kept.update({"c": 0.1 + 0.2})
        assert KeptSums(path) == {"a": -1.5, "c": 0.1 + 0.2}
        path.write_text('{"key": 1}\n')
        with pytest.raises(TrlRealError, match="Line 1 of .* has no sums"):
            KeptSums(path)


class TestUnfinished:
    @pytest.mark.parametrize("prompt", ["How is tea made?", CHAT, None], ids=["text", "chat", "no prompt"])
    def test_ids_of_unfinished_responses_differ_only_by_eos(self, prompt):
        tokenizer, response = tiny_tokenizer(), " Boil the water, then"
        whole, cut = tokenize_pairs(tokenizer, [prompt] * 2, [response] * 2, 512, [True, False])
        end = tokenizer("<|im_end|>\n" if isinstance(prompt, list) else "<|im_end|>")["input_ids"]
        assert whole.prompt == cut.prompt and whole.response == (*cut.response, *end)
        assert tokenizer.decode(cut.response) == response
        assert tokenize_pairs(tokenizer, [prompt], [response], 512) == [whole]

    def test_unfinished_responses_are_scored_without_eos(self):
        rows = {**batch(), "pair": [[0, 1]] * 2, "finish_reasons": [["length", "length"], None]}
        found = judge().verdicts(rows)
        expected = [gap(*row, end=end) for *row, end in zip(*batch().values(), ("", "<|im_end|>"), strict=True)]
        assert [v.probability for v in found] == pytest.approx(
            [1 / (1 + math.exp(-0.1 * g)) for g in expected], abs=1e-5
        )
        cut = ResponseLogProbs(tiny_model(), tiny_tokenizer())
        sequences = tokenize_pairs(tiny_tokenizer(), PROMPTS[:1], RESPONSES[0][:1], 512, [False])
        assert float(cut.score(sequences).sums) == pytest.approx(
            naive(tiny_model(), PROMPTS[0], RESPONSES[0][0], ""), 1e-5
        )

    def test_journal_separates_unfinished_responses(self):
        rows = {**batch(), "pair": [[0, 1]] * 2, "finish_reasons": [["stop", "length"], ["stop", None]]}
        assert judge().evidence(rows) == [[True, False], None]
        assert judge().evidence(batch()) == [None, None]


class TestAmongTheJudges:
    def test_works_with_annotate_panels_and_journals(self, tmp_path):
        pairs = {
            "responses": [row[:2] for row in RESPONSES],
            "pair": [[k % 2, 1 - k % 2] for k in range(5)],
            **batch(5),
        }
        report = LabelReport()
        labeled = annotate(Dataset.from_dict(pairs), judge(), journal=tmp_path / "v.jsonl", report=report)
        assert report.n_labeled == 5 and set(labeled["label_source"]) == {"implicit_reward:PeftModelForCausalLM"}
        annotate(Dataset.from_dict(pairs), judge(), journal=tmp_path / "v.jsonl", report=report)
        assert report.n_resumed == 5
        panel = JudgePanel([judge(), judge(policy(1))])
        assert all(len(verdict.members) == 2 for verdict in panel.verdicts(batch()))
        assert isinstance(JUDGES["implicit_reward"](policy(), tokenizer=tiny_tokenizer()), ImplicitRewardJudge)

    def test_identity_depends_on_models_and_settings(self):
        judges = [judge(), judge(policy(1)), judge(policy(), reference=tiny_model(1)), judge(beta=0.5)]
        judges += [judge(length_normalize=True), judge(max_length=9), judge(min_gap=1.0)]
        assert len({str(one.identity) for one in judges}) == len(judges)

    def test_judge_by_name_can_be_pickled_and_used_on_the_command_line(self, tmp_path, capsys):
        base, path = save_tiny(tmp_path / "base"), tmp_path / "pool.jsonl"
        policy(base=type(tiny_model()).from_pretrained(base)).save_pretrained(tmp_path / "adapter")
        told = ImplicitRewardJudge(str(tmp_path / "adapter"))
        assert pickle.loads(pickle.dumps(told))(batch(5)) == pytest.approx(judge()(batch(5)), abs=1e-6)
        rows = {
            "responses": [row[:2] for row in RESPONSES],
            "pair": [[k % 2, 1 - k % 2] for k in range(5)],
            **batch(5),
        }
        Dataset.from_dict({**rows, "similarity": [0.5] * 5, "skipped": [""] * 5}).to_json(path)
        flags = ["--dataset", path, "--judge", "implicit_reward", "--model", tmp_path / "adapter", "--reference", base]
        flags += ["--beta", "0.3", "--length_normalize", "--output_dir", tmp_path / "labels", "--json"]
        assert main(["label", *map(str, flags)]) == 0
        assert json.loads(capsys.readouterr().out)["labeled"] == 5
        assert main(["label", *map(str, flags[:4]), "--output_dir", str(tmp_path / "x")]) == 2
        assert "needs --model" in capsys.readouterr().err

    @pytest.mark.parametrize("settings", [{"beta": 0.0}, {"min_gap": -1.0}, {"max_length": 0}, {"tokenizer": None}])
    def test_bad_settings_get_a_one_line_error(self, settings):
        with pytest.raises(TrlRealError) as error:
            ImplicitRewardJudge(policy(), **{"tokenizer": tiny_tokenizer(), **settings})
        assert "\n" not in str(error.value)
