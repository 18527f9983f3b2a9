"""Tests of the policy as its own judge, and of the labels that it gives its own generations (SPA)."""

import json
import math
import multiprocessing
import pickle
import time

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from support.tiny import SENTENCES, save_tiny, tiny_model, tiny_tokenizer
from trl_real.cli.main import main
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.labeling.check import check_judge
from trl_real.labeling.implicit_reward import UNUSABLE, ImplicitRewardJudge, KeptSums
from trl_real.labeling.judges import JUDGES, ScoreJudge
from trl_real.labeling.panel import JudgePanel
from trl_real.labeling.relabel import relabel
from trl_real.labeling.self_annotate import CUT, PICKS, TIED, best_random, best_worst, self_annotate
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.models.load import weights_digest
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.sequences import tokenize_pairs


pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["How is tea made?", "Say no.", SENTENCES[2], "A poem?", "Write code:"]
RESPONSES = [[f" {SENTENCES[(i + k) % 5][: 7 + 9 * k + i]}" for k in range(3)] for i in range(5)]
CHAT = [{"role": "user", "content": "How do I make tea?"}]


def policy(seed=0, base=None, **lora):
    """A tiny model with an adapter that is not zero."""
    settings = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM", **lora}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(tiny_model() if base is None else base, LoraConfig(**settings)).eval()


def judge(model=None, **settings):
    return ImplicitRewardJudge(policy() if model is None else model, tokenizer=tiny_tokenizer(), **settings)


def pool(**columns):
    return Dataset.from_dict({"prompt": PROMPTS, "responses": RESPONSES, **columns})


def batch(n=2):
    a, b = ([row[(i + k) % 2] for k, row in enumerate(RESPONSES)] for i in (0, 1))
    return {"prompt": PROMPTS[:n], "response_a": a[:n], "response_b": b[:n]}


def naive(model, prompt, response, end="<|im_end|>"):
    """`log pi(y | x)` in float64, one text at a time, by the definition."""
    tokenizer = tiny_tokenizer()
    ids, start = tokenizer(prompt + response + end)["input_ids"], len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        table = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(table[t - 1, ids[t]]) for t in range(start, len(ids)))


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


def annotated(dataset=None, model=None, **settings):
    report = SelfAnnotationReport()
    return self_annotate(pool() if dataset is None else dataset, judge(model), report=report, **settings), report


def annotate_slowly(path):
    told = judge(cache=path)
    read = told.rewards
    told.rewards = lambda *args: (time.sleep(0.3), read(*args))[1]
    self_annotate(pool(), told, batch_size=1)


class TestSelfAnnotation:
    def test_best_and_worst_equal_those_of_two_separate_models(self):
        labels, report = annotated()
        for row, prompt, responses in zip(labels, PROMPTS, RESPONSES, strict=True):
            rewards = {y: naive(policy(), prompt, y) - naive(tiny_model(), prompt, y) for y in responses}
            best, worst = max(rewards, key=rewards.get), min(rewards, key=rewards.get)
            assert (row["prompt"], row["chosen"], row["rejected"]) == (prompt, best, worst)
            assert row["score_chosen"] == pytest.approx(rewards[best], abs=1e-4)
            spread = rewards[best] - rewards[worst]
            assert row["label_confidence"] == pytest.approx(1 / (1 + math.exp(-0.1 * spread)), abs=1e-5)
        assert labels.column_names == [
            "prompt", "chosen", "rejected", "label_confidence", "label_source", "score_chosen", "score_rejected",
        ]  # fmt: skip
        assert (report.n_prompts, report.n_labeled, report.n_policy, report.n_reference) == (5, 5, 15, 15)

    @pytest.mark.parametrize("pick", PICKS)
    def test_order_of_responses_rows_and_batches_does_not_matter(self, pick):
        expected = annotated(pick=pick)[0]
        mixed = Dataset.from_dict({"prompt": PROMPTS[::-1], "responses": [row[::-1] for row in RESPONSES[::-1]]})
        for size in (1, 2, 256):
            found = annotated(mixed, pick=pick, batch_size=size)[0]
            for name in ("prompt", "chosen", "rejected"):
                assert found[name][::-1] == expected[name][:]
            assert found["label_confidence"][::-1] == pytest.approx(expected["label_confidence"][:], abs=1e-6)

    def test_text_prompt_of_message_responses_becomes_one_message(self):
        said = lambda text, role="assistant": [{"role": role, "content": text}]  # noqa: E731
        expected = annotated()[0]
        for before in ([], said(PROMPTS[0], "user")):
            rows = [[before + said(text) for text in RESPONSES[0]]]
            (label,) = annotated(Dataset.from_dict({"prompt": PROMPTS[:1], "responses": rows}))[0]
            for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
                assert label[name] == said(expected[0][name], role)
            assert label["score_chosen"] == pytest.approx(expected[0]["score_chosen"], abs=1e-5)

    def test_labels_do_not_change_with_beta(self):
        plain, other = (self_annotate(pool(), judge(beta=beta)) for beta in (0.1, 5.0))
        assert plain["chosen"][:] == other["chosen"][:] and plain["rejected"][:] == other["rejected"][:]

    def test_blank_equal_missing_and_single_responses_are_skipped_and_counted(self):
        rows = [["a", "a "], ["", "a", "\n"], ["only"], None, ["x", None], ["", " tea", "water", "tea"]]
        dataset = Dataset.from_dict({"prompt": PROMPTS + ["?"], "responses": rows})
        labels, report = annotated(dataset)
        assert report.dropped == {
            "identical responses": 1, "empty response": 1, "fewer than two responses": 2, "missing response": 1,
        }  # fmt: skip
        assert sorted([labels[0]["chosen"], labels[0]["rejected"]]) == [" tea", "water"]
        assert report.n_labeled == 1 and report.n_prompts == 6 == 1 + sum(report.dropped.values())
        assert report.n_responses == 2

    def test_ties_are_dropped_and_counted(self):
        labels, report = annotated(model=policy(init_lora_weights=True))
        assert len(labels) == 0 and report.dropped == {TIED: 5} and "chosen" in labels.column_names
        assert "5 equal scores" in report.words()

    def test_non_finite_scores_are_skipped_and_counted(self):
        model, letter = policy(), tiny_tokenizer()("Q")["input_ids"][0]

        def spoil(module, args, kwargs, output):
            if (kwargs["input_ids"] == letter).any():
                output.logits.fill_(math.nan)

        model.get_base_model().register_forward_hook(spoil, with_kwargs=True)
        report = SelfAnnotationReport()
        dataset = Dataset.from_dict({"prompt": ["x", "y"], "responses": [["aQ", "b", "cc"], ["aQ", "b"]]})
        labels = self_annotate(dataset, judge(model, batch_tokens=1), report=report)
        assert labels["prompt"][:] == ["x"] and "aQ" not in (labels[0]["chosen"], labels[0]["rejected"])
        assert report.n_unusable == 2 and report.dropped == {UNUSABLE: 1}

    def test_unfinished_responses_are_kept_without_eos_or_skipped(self):
        reasons = [["length", "stop", None]] * 4 + [["length", "length", "stop"]]
        labels, report = annotated(pool(finish_reasons=reasons))
        assert report.n_unfinished == 6 and report.unfinished_share == pytest.approx(6 / 15)
        told = judge()
        for row, responses, why in zip(labels, RESPONSES, reasons, strict=True):
            ended = [reason != "length" for reason in why]
            scores = told.score([row["prompt"]] * 3, responses, ended)
            best = max(range(3), key=scores.__getitem__)
            assert (row["chosen"], row["chosen_finished"]) == (responses[best], ended[best])
        left, report = annotated(pool(finish_reasons=reasons), drop_unfinished=True)
        assert all(left["chosen_finished"]) and all(left["rejected_finished"])
        assert report.dropped == {CUT: 1} and report.n_unfinished == 0
        with pytest.raises(TrlRealError, match="Row 0 has 3 responses and 1 values in 'finish_reasons'"):
            annotated(pool(finish_reasons=[["stop"]] * 5))

    def test_messages_stay_messages_and_texts_next_to_them_become_messages(self):
        answers = [[{"role": "assistant", "content": text}] for text in (" Boil it.", " No milk.")]
        texts = [" Boil it.", " No milk."]
        found = [annotated(Dataset.from_dict({"prompt": [CHAT], "responses": [some]}))[0] for some in (answers, texts)]
        assert found[0][0]["chosen"] == found[1][0]["chosen"] and found[0][0]["chosen"] in answers

    def test_random_opponent_depends_on_seed_and_texts(self):
        texts, scores = [str(i) for i in range(9)], [float(i % 5) for i in range(9)]
        drawn = {best_random(texts, scores, seed) for seed in range(40)}
        assert {best for best, _ in drawn} == {4} and 4 not in {other for _, other in drawn} and len(drawn) > 4
        assert best_worst(texts, scores, 0) == (4, 0)

    def test_gold_agreement_is_over_pairs_with_gold_labels_only(self):
        labels, _ = annotated()
        scores = [[float(y == row["chosen"]) for y in ys] for row, ys in zip(labels, RESPONSES, strict=True)]
        scores[1], scores[2], scores[3] = [None] * 3, [1.0] * 3, [-s for s in scores[3]]
        found, report = annotated(pool(scores=scores), gold=ScoreJudge())
        assert (report.gold.n, report.gold.n_agree, report.gold.n_undecided) == (3, 2, 0)
        assert found["chosen"][:] == labels["chosen"][:]
        assert report.gold.ci_low < 2 / 3 < report.gold.ci_high and "agreement" in report.words()
        chosen = Dataset.from_dict({**{k: labels[k][:] for k in ("prompt", "chosen", "rejected")}})
        held_out = chosen.map(lambda row, i: {"rejected": None} if i == 0 else row, with_indices=True)
        check = check_judge(held_out, judge())
        assert (check.n, check.accuracy, check.n_skipped) == (4, 1.0, 1)

    def test_report_accumulates_over_calls(self):
        scored = pool(scores=[[3.0, 2.0, 1.0]] * 5)
        _, alone = annotated(scored, gold=ScoreJudge())
        report = SelfAnnotationReport(seconds=100.0)
        for settings in ({"gold": ScoreJudge()}, {"gold": ScoreJudge()}, {}):
            self_annotate(scored, judge(), report=report, **settings)
        assert (report.n_prompts, report.gold.n, report.gold.n_agree) == (15, 2 * alone.gold.n, 2 * alone.gold.n_agree)
        assert report.gold.rate == alone.gold.rate and report.gold.ci_low > alone.gold.ci_low
        assert report.seconds > 100

    def test_the_report_adds_up(self):
        labels, report = annotated()
        told = json.loads(json.dumps(report.to_dict()))
        assert sum(told["confidence_histogram"]) == told["n_labeled"] == 5
        chars = sum(map(len, labels["chosen"][:])) / 5
        assert told["chosen_chars"] == pytest.approx(chars) and told["chosen_tokens"] > 0
        assert 0.5 < told["confidence"]["p05"] <= told["confidence"]["median"] <= 1
        assert told["gold"] is None and told["n_tokens"] > 0
        assert json.dumps(SelfAnnotationReport().to_dict()) and SelfAnnotationReport().words()

    def test_mistakes_get_a_one_line_error(self):
        with pytest.raises(MissingColumnError, match="No column 'responses'"):
            annotated(pool().remove_columns("responses"))
        with pytest.raises(TrlRealError, match="Unknown pick 'worst_best': choose from best_worst, best_random"):
            annotated(pick="worst_best")
        with pytest.raises(TrlRealError, match="Group the rows by prompt first"):
            annotated(Dataset.from_dict({"prompt": ["a"], "responses": ["b"]}))

    def test_killed_run_resumes_to_the_same_labels(self, tmp_path):
        path = tmp_path / "sums.jsonl"
        process = multiprocessing.get_context("fork").Process(target=annotate_slowly, args=(path,))
        process.start()
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        assert path.exists()
        report = SelfAnnotationReport()
        labels = self_annotate(pool(), judge(cache=path), batch_size=1, report=report)
        assert labels.to_list() == self_annotate(pool(), judge(), batch_size=1).to_list()
        assert report.n_policy < 15 and report.n_reference < 15


class TestRelabeling:
    labels = property(lambda self: annotated()[0])

    def contrary(self, labels):
        """Says the opposite of the labels, and notes what it was asked."""
        winners, asked = set(labels["chosen"][:]), []

        def other(rows):
            asked.extend(rows["prompt"])
            return [0.1 if a in winners else 0.9 for a in rows["response_a"]]

        return other, asked

    def test_least_confident_labels_come_from_the_judge(self):
        labels = self.labels
        other, asked = self.contrary(labels)
        report = LabelReport()
        mixed = relabel(labels, other, 2, report=report)
        order = sorted(range(5), key=lambda i: labels[i]["label_confidence"])
        assert sorted(asked) == sorted(PROMPTS[i] for i in order[:2]) and report.n_labeled == 2
        for i, (before, after) in enumerate(zip(labels, mixed, strict=True)):
            if i not in order[:2]:
                assert before == after
                continue
            assert (after["chosen"], after["rejected"]) == (before["rejected"], before["chosen"])
            assert (after["score_chosen"], after["score_rejected"]) == (
                before["score_rejected"],
                before["score_chosen"],
            )
            assert after["label_confidence"] == pytest.approx(0.9) and after["label_source"] == "other"
        assert mixed.features == labels.features
        other, asked = self.contrary(labels)
        relabel(mixed, other, 1.0)
        assert len(asked) == 3  # what another judge has said stays

    @pytest.mark.parametrize("undecided", ["keep", "drop"])
    def test_ties_and_failures_keep_the_label_or_drop_the_row(self, undecided):
        labels = self.labels

        def unsure(rows):
            return [(0.5, math.nan, 1.0)[PROMPTS.index(p) % 3] for p in rows["prompt"]]

        report = LabelReport()
        mixed = relabel(labels, unsure, 1.0, undecided=undecided, report=report)
        assert report.counts == {"labeled": 1, "ties": 2, "failed": 2}
        assert len(mixed) == (5 if undecided == "keep" else 1)
        kept = [row for row in mixed if row["label_source"] != "unsure"]
        assert kept == ([row for i, row in enumerate(labels) if i != 2] if undecided == "keep" else [])

    def test_judge_does_not_see_the_label_and_resumes_from_its_journal(self, tmp_path):
        labels = self.labels
        other, asked = self.contrary(labels)
        first = relabel(labels, other, 0.4, journal=tmp_path / "v.jsonl")
        assert len(asked) == 2
        assert relabel(labels, other, 0.4, journal=tmp_path / "v.jsonl").to_list() == first.to_list()
        assert len(asked) == 2

        def always_first(rows):
            return [1.0] * len(rows["prompt"])

        for row in relabel(labels, always_first, 1.0):
            assert row["chosen"] < row["rejected"]

    def test_messages_are_relabelled(self):
        answers = [[{"role": "assistant", "content": text}] for text in (" Boil it.", " No milk.")]
        labels = annotated(Dataset.from_dict({"prompt": [CHAT], "responses": [answers]}))[0]
        other, _ = self.contrary(Dataset.from_dict({"chosen": [labels[0]["chosen"][0]["content"]]}))
        assert relabel(labels, other, 1)[0]["chosen"] == labels[0]["rejected"]
        mixture = Dataset.from_list([{**labels[0], "prompt": "Tea?"}])
        swapped = relabel(mixture, other, 1)[0]
        assert (swapped["prompt"], swapped["chosen"]) == ("Tea?", labels[0]["rejected"])

    @pytest.mark.parametrize("undecided", ["keep", "drop"])
    def test_labels_stay_without_a_judge(self, undecided):
        labels = self.labels
        for rows, settings in ((labels, {"budget": 0}), (labels, {"budget": 0.05}), (labels.select([]), {"budget": 1}),
                               (labels, {"budget": 1, "source": "nobody"})):  # fmt: skip
            report = LabelReport(n_rows=9)
            same = relabel(rows, judge(), undecided=undecided, report=report, **settings)
            assert same.to_list() == rows.to_list() and same.features == rows.features
            assert (report.judge, report.n_rows, report.n_labeled) == (judge().name, 0, 0)

    def test_mistakes_get_a_one_line_error(self):
        for budget in (0.0, 1.5, -1, True):
            with pytest.raises(TrlRealError, match="give a share in"):
                relabel(self.labels, judge(), budget)
        with pytest.raises(TrlRealError, match="undecided='lose'"):
            relabel(self.labels, judge(), 1, undecided="lose")
        with pytest.raises(MissingColumnError, match="output of self_annotate"):
            relabel(pool(), judge(), 1)
