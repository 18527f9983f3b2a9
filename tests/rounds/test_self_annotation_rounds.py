"""Tests of SPA's rounds: the judge, the reference, the training data, and resuming after a kill."""

import json
import os

import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig, load_peft_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from support.crashes import KILLED, in_child
from support.rounds import killed_while_generating, prompts
from support.tiny import save_tiny
from support.training import config, pairs
from trl_real import ScoreJudge, TrlRealError
from trl_real.labeling.self_annotation_report import SelfAnnotationReport
from trl_real.models.load import weights_digest
from trl_real.rounds.ablations import ABLATIONS
from trl_real.rounds.self_annotation import SelfAnnotationRounds
from trl_real.rounds.training import adapter_digest, round_config, train_adapter
from trl_real.training.adapters import load_base


pytestmark = pytest.mark.usefixtures("one_thread")

PEFT = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def made(model, folder, **changes) -> SelfAnnotationRounds:
    settings = {
        "seed_labels": Dataset.from_list(pairs(6)), "prompts": prompts(), "n_prompts": 6, "model": model,
        "args": config(folder / "unused", max_steps=2), "output_dir": folder / "run", "seed": 1,
        "peft_config": LoraConfig(**PEFT), "generation": {"max_new_tokens": 6, "batch_size": 8, "temperature": 1.0},
    }  # fmt: skip
    return SelfAnnotationRounds(**{**settings, **changes})


def rounds(model, folder, number: int = 2, **changes):
    return made(model, folder, **changes).run(number)


def test_capped_logits_are_refused_before_anything_is_generated(model, tmp_path):
    sizes = {"vocab_size": 304, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    capped = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None)
    AutoModelForCausalLM.from_config(capped).save_pretrained(tmp_path / "capped")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "capped")
    with pytest.raises(TrlRealError, match="caps them .* Type ablation='refinement'"):
        rounds(str(tmp_path / "capped"), tmp_path)
    assert not list(tmp_path.glob("run/**/responses.jsonl"))


def state(folder, number):
    return json.loads((folder / "run" / f"round-{number:02d}" / "state.json").read_text())


def adapter(folder, number, name="adapter"):
    return load_peft_weights(str(folder / "run" / f"round-{number:02d}" / name))


def labels(folder, number, name="self_labels") -> Dataset:
    return load_from_disk(str(folder / "run" / f"round-{number:02d}" / name))


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("done")
    return folder, rounds(model, folder, eval_dataset=Dataset.from_list(pairs(5)))


def test_each_round_has_its_own_prompts_and_none_of_the_seed(model, tmp_path):
    seed_labels = Dataset.from_list([{**row, "prompt": prompts()[i]["prompt"]} for i, row in enumerate(pairs(6))])
    twice = Dataset.from_dict({"prompt": prompts()["prompt"][:] * 2})
    rounds(model, tmp_path, seed_labels=seed_labels, prompts=twice, n_prompts=[6, 5])
    taken = [prompt for number in (1, 2) for prompt in labels(tmp_path, number, "pool")["prompt"]]
    assert len(taken) == len(set(taken)) == 11 and not set(taken) & set(seed_labels["prompt"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"n_prompts": [5, 6]}, "n_prompts=6, not 5"), ({"noise_extrapolation": [0.4, 0.25]}, "=0.5, not 0.4")],
)
def test_finished_round_is_not_reused_for_another_schedule(changed, message, model, tmp_path):
    rounds(model, tmp_path, 1)
    with pytest.raises(TrlRealError, match=message):
        rounds(model, tmp_path, 2, **changed)
    later = {"n_prompts": [6, 7], "noise_extrapolation": [0.5, 0.3]}
    assert len(rounds(model, tmp_path, 2, **later).rounds) == 4


def test_another_second_opinion_is_another_run(model, tmp_path):
    made(model, tmp_path, relabel_judge=ScoreJudge())
    with pytest.raises(TrlRealError, match="relabel="):
        made(model, tmp_path, relabel_judge=ScoreJudge(min_gap=2.0))


def test_judge_uses_the_initial_model_and_trainer_the_last_round_as_reference(done, model):
    folder, _ = done
    initial = weights_digest(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    for number in (1, 2):
        assert state(folder, number)["label"]["reference"] == initial
        assert state(folder, number)["train"]["reference"] == adapter_digest(adapter(folder, number - 1))
    assert state(folder, 0)["train"]["reference"] == ""
    assert not equal(adapter(folder, 0), adapter(folder, 1)) and not equal(adapter(folder, 1), adapter(folder, 2))


@pytest.mark.parametrize("number", [1, 2])
def test_first_step_of_a_round_has_zero_margins_and_the_judge_does_not(number, done, model, tmp_path):
    folder, _ = done
    own = labels(folder, number)
    assert all(abs(row["score_chosen"] - row["score_rejected"]) > 1e-4 for row in own)
    base, tokenizer = load_base(model, None, cpu=True)
    settings = round_config(config(tmp_path, max_steps=1), tmp_path / "x", 1)
    start = folder / "run" / f"round-{number - 1:02d}" / "adapter"
    trained = train_adapter(base, tokenizer, own.select_columns(["prompt", "chosen", "rejected"]), start, settings)
    assert trained.logged("rewards/margins") == [0.0] and trained.logged("loss")[0] == pytest.approx(0.6931, abs=1e-4)


def test_seed_training_equals_dpo_of_trl(done, model, tmp_path):
    from peft import PeftModel, set_peft_model_state_dict
    from trl import DPOConfig, DPOTrainer

    folder, _ = done
    base, tokenizer = load_base(model, None, cpu=True)
    args = config(tmp_path, kind=DPOConfig, max_steps=2, seed=1, data_seed=1)
    trainer = DPOTrainer(
        base,
        args=args,
        train_dataset=Dataset.from_list(pairs(6)),
        processing_class=tokenizer,
        peft_config=LoraConfig(**PEFT),
    )
    set_peft_model_state_dict(trainer.model, adapter(folder, 0, "start"))
    trainer.train()
    trainer.model.save_pretrained(str(tmp_path / "trl"))
    found, expected = adapter(folder, 0), load_peft_weights(str(tmp_path / "trl"))
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert isinstance(trainer.model, PeftModel)


def test_rounds_report_their_pairs_agreement_and_drift(done):
    _, found = done
    assert [row["stage"] for row in found.rounds] == ["initial", "seed", "round 1", "round 2"]
    assert [row["n_labels"] for row in found.rounds] == [0, 6, 6, 6]
    for before, row in zip(found.rounds[1:], found.rounds[2:], strict=False):
        told = row["annotation"]
        assert row["n_pairs"] - before["n_pairs"] == told["n_labeled"] == sum(told["confidence_histogram"])
        assert told["n_labeled"] + sum(told["dropped"].values()) == 6
        assert {"chosen_tokens", "rejected_tokens", "unfinished_share", "flagged"} <= told.keys()
        assert 0 <= row["accuracy"] <= 1 and row["phases"]["generate"]["n_tokens"] > 0


def test_tokens_of_a_step_count_those_generated_before_a_kill(done, model, tmp_path):
    def run() -> None:
        rounds(model, tmp_path, 1, eval_dataset=Dataset.from_list(pairs(5)))

    def killed_when_read() -> None:
        SelfAnnotationReport.add_scored = lambda *args: os._exit(KILLED)  # all sums are on disk
        run()

    for n_responses in (5, 7):  # in the middle, and after the last of 6 prompts' two
        killed_while_generating(run, tmp_path, n_responses)
    assert in_child(killed_when_read, tmp_path)[0] == KILLED
    run()
    resumed, whole = state(tmp_path, 1), state(done[0], 1)
    assert resumed["generate"]["n_tokens"] == whole["generate"]["n_tokens"] > 0
    for name in ("n_tokens", "n_policy", "n_reference"):
        assert resumed["label"]["report"][name] == whole["label"]["report"][name] > 0
    assert resumed["label"]["n_tokens"] == whole["label"]["n_tokens"]


def test_ablations_generate_and_label_the_same_in_the_first_round(done, model, tmp_path):
    folder, _ = done
    assert ABLATIONS.keys() == {"expansion", "refinement", "detection"}
    expansion = rounds(model, tmp_path, 1, ablation="expansion", eval_dataset=Dataset.from_list(pairs(5)))
    assert labels(tmp_path, 1).to_list() == labels(folder, 1).to_list()
    assert expansion.rounds[2]["annotation"]["flagged"] is None
    assert state(folder, 1)["train"]["flagged"] == 0
    # Too few steps for a threshold: nothing is doubtful yet, and the two learn the same.
    assert equal(adapter(tmp_path, 1), adapter(folder, 1))


def test_ablation_can_reuse_the_first_round_of_another_with_the_same_result(done, model, tmp_path):
    folder, _ = done
    whole = rounds(model, tmp_path / "alone", ablation="expansion", eval_dataset=Dataset.from_list(pairs(5)))
    like = made(model, tmp_path / "like", ablation="expansion", eval_dataset=Dataset.from_list(pairs(5)))
    like.begin_like(folder / "run")
    assert (
        state(tmp_path / "like", 1).keys() == {"generate", "label"} and not (like.runs.round(1) / "adapter").exists()
    )
    again = like.run(2)
    drop = {"phases", "annotation"}  # these have seconds
    for a, b in zip(whole.rounds, again.rounds, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    for number in (0, 1, 2):
        assert equal(adapter(tmp_path / "like", number), adapter(tmp_path / "alone", number))
    other = made(model, tmp_path / "other", seed=2)
    with pytest.raises(TrlRealError, match="seed=1, not 2"):
        other.begin_like(folder / "run")


def test_uncertain_labels_are_smoothed_only_in_the_rounds(model, tmp_path):
    noisy = {"noise_smoothing": 0.4, "noise_warmup": 0.0, "noise_window": 2, "noise_share": 50.0, "max_steps": 3}
    for name in ("expansion", "refinement"):
        rounds(model, tmp_path / name, 1, ablation=name, args=config(tmp_path / "unused", **noisy))
    assert equal(adapter(tmp_path / "expansion", 0), adapter(tmp_path / "refinement", 0))
    assert not equal(adapter(tmp_path / "expansion", 1), adapter(tmp_path / "refinement", 1))
    assert state(tmp_path / "refinement", 1)["train"]["flagged"] > 0


class Longer:
    name = "longer"

    def __call__(self, batch):
        return [float(len(a) > len(b)) for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]


def test_another_judge_labels_the_least_confident(model, tmp_path):
    found = rounds(model, tmp_path, 1, relabel_judge=Longer(), relabel_budget=2)
    own, mixed = labels(tmp_path, 1), labels(tmp_path, 1, "labels")
    asked = [i for i, source in enumerate(mixed["label_source"]) if source == "longer"]
    sure = own["label_confidence"][:]
    assert len(asked) <= 2 and set(asked) <= set(sorted(range(len(own)), key=sure.__getitem__)[:2])
    assert all(len(mixed[i]["chosen"]) > len(mixed[i]["rejected"]) for i in asked)
    assert found.rounds[-1]["n_labels"] == 6 + len(asked)


def test_invalid_settings_are_reported_before_anything_runs(model, tmp_path):
    asked, said = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": "words"}]
    messages = Dataset.from_list([{"prompt": asked, "chosen": said, "rejected": "no"}] * 2)
    texts = Dataset.from_list([{"prompt": asked, "chosen": "yes", "rejected": "no"}] * 2)
    for changes, words in (
        ({"ablation": "all"}, "Unknown ablation 'all'. Choose one of expansion, refinement, detection"),
        ({"n_prompts": 20}, r"2 rounds need 40 prompts, but prompts has 30 .* Type n_prompts=15"),
        ({"noise_extrapolation": [0.5]}, r"noise_extrapolation=\[0.5\] is too short for 2 rounds"),
        ({"generation": {"n": 1}}, "n=1 response per prompt does not make a pair"),
        ({"prompts": Dataset.from_dict({"question": ["?"]})}, "Rename the column"),
        ({"seed_labels": Dataset.from_dict({"prompt": ["?"]})}, "chosen"),
        ({"seed_labels": messages}, "2 of 2 rows .*'prompt' holds messages, and another column a text"),
        ({"seed_labels": texts}, "2 of 2 rows .*'prompt' holds messages, and another column a text"),
    ):
        with pytest.raises(TrlRealError, match=words) as told:
            rounds(model, tmp_path, **changes)
        assert "\n" not in str(told.value) and not list(tmp_path.glob("run/round-*"))


def test_run_killed_at_any_moment_resumes_to_the_same_data_and_adapters(model, tmp_path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()

    def run(name: str) -> int:
        rounds(model, tmp_path / name)
        return 0

    status, changes = in_child(lambda: run("whole"), tmp_path / "whole")
    assert status == 0 and len(changes) > 40
    for _ in range(3):
        assert in_child(lambda: run("broken"), tmp_path / "broken", len(changes) // 4)[0] == KILLED
    assert in_child(lambda: run("broken"), tmp_path / "broken")[0] == 0
    kept = [sorted((tmp_path / name / "run/sums.jsonl").read_text().splitlines()) for name in ("broken", "whole")]
    assert kept[0] == kept[1] and len(kept[0]) == len(set(kept[0])) > 0, "a sum was computed twice, or not kept"
    for number in (1, 2):
        assert labels(tmp_path / "broken", number).to_list() == labels(tmp_path / "whole", number).to_list()
        assert equal(adapter(tmp_path / "broken", number), adapter(tmp_path / "whole", number))
