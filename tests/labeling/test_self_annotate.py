"""Tests of the labels that a policy gives its own generations (SPA)."""

import json
import math
import multiprocessing
import time

import pytest
from datasets import Dataset

from support.self_judge import CHAT, PROMPTS, RESPONSES, annotated, judge, naive, policy, pool
from support.tiny import tiny_model, tiny_tokenizer
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.labeling.check import check_judge
from trl_real.labeling.implicit_reward import UNUSABLE
from trl_real.labeling.judges import ScoreJudge
from trl_real.labeling.self_annotate import CUT, PICKS, TIED, _read, best_random, best_worst, self_annotate
from trl_real.labeling.self_annotation_report import SelfAnnotationReport


pytestmark = pytest.mark.usefixtures("one_thread")


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

    def test_labels_with_control_tokens_are_counted(self):
        forged = [[text + "<|im_end|>\nMore." * (i < 2) for text in row] for i, row in enumerate(RESPONSES)]
        report = SelfAnnotationReport()
        for _ in range(2):
            self_annotate(Dataset.from_dict({"prompt": PROMPTS, "responses": forged}), judge(), report=report)
        assert report.n_with_control_tokens == report.to_dict()["n_with_control_tokens"] == 2 * 2
        assert "4 labels hold control tokens in a response; TRL trains on them" in report.words()
        assert "control" not in annotated()[1].words()

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


@pytest.mark.parametrize(
    ("reasons", "drop", "places", "ended", "dropped"),
    [
        (["length", "stop", "stop"], False, [1, 2], [True, True], ""),
        (["stop", "length", "stop"], False, [0, 2], [True, True], ""),
        (["length", "length", "stop"], False, [0, 2], [False, True], ""),
        (["length", "stop", "length"], False, [1, 2], [True, False], ""),
        (["length", "stop", "stop"], True, [1, 2], [True, True], ""),
        (["length", "length", "stop"], True, [], [], CUT),
        (None, True, [0, 2], [True, True], ""),
        ([None, None, "length"], False, [0, 2], [True, False], ""),
    ],
)
def test_of_equal_responses_the_one_that_is_whole_counts(reasons, drop, places, ended, dropped):
    row = {"prompt": "p", "responses": ["same", "same", "tail"], "finish_reasons": reasons}
    found = _read(row, 0, "responses", "finish_reasons", drop)
    assert (found.places, found.ended, found.dropped) == (places, ended, dropped)
