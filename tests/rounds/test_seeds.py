"""Each round draws, generates, selects and labels with a seed of its own, and the settings of the run arrive."""

import pytest
import torch
from datasets import Dataset

from support.rounds import pool, prompts
from support.spies import Calls, Reached
from support.tiny import save_tiny
from support.training import config, pairs
from trl_real import ScoreJudge
from trl_real.labeling.implicit_reward import ImplicitRewardJudge
from trl_real.rounds.active import ActiveRounds
from trl_real.rounds.self_annotation import SelfAnnotationRounds


SEED = 40
POLICY = torch.nn.Identity()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def active(model, tmp_path):
    rounds = ActiveRounds(
        pool=pool(20), judge=ScoreJudge(), model=model, args=config(tmp_path), output_dir=tmp_path / "run", seed=SEED,
        selector="easy", budget=4, n_prompts=6, generation={"n": 5, "max_new_tokens": 7},
    )  # fmt: skip
    rounds.policy = lambda last: (POLICY, "its tokenizer")
    return rounds


@pytest.fixture
def annotation(model, tmp_path):
    rounds = SelfAnnotationRounds(
        seed_labels=Dataset.from_list(pairs(6)), prompts=prompts(), n_prompts=6, model=model, seed=SEED,
        args=config(tmp_path, beta=0.37, max_length=99), output_dir=tmp_path / "run", length_normalize=True,
        generation={"max_new_tokens": 7}, pick="best_random", drop_unfinished=True, epochs=2.0,
    )  # fmt: skip
    rounds.policy = lambda last: (POLICY, "its tokenizer")
    return rounds


def reached(monkeypatch, call, *targets: str, **answers) -> list[dict]:
    """Return the arguments of the spied calls that a step of a round makes."""
    calls = Calls(monkeypatch)
    for target, value in answers.items():
        calls.spy(f"trl_real.rounds.self_annotation:{target}", gives=lambda *args, value=value, **kwargs: value)
    for target in targets:
        calls.spy(target)
    with pytest.raises(Reached):
        call()
    return calls.found


def steps(rounds, number: int) -> tuple:
    return rounds.runs.round(number), rounds.runs.round(number - 1)


def flat(found: dict) -> dict:
    """Return arguments with those that were given by `**` among them."""
    return found | next((value for name, value in found.items() if name in ("settings", "options", "changes")), {})


@pytest.mark.parametrize("number", [1, 2, 5])
def test_active_rounds(number, active, monkeypatch):
    (found,) = reached(
        monkeypatch, lambda: active._generate(*steps(active, number)), "trl_real.models.generate:generate"
    )
    assert (found["seed"], found["n"], found["max_new_tokens"]) == (SEED + number, 5, 7)
    assert (found["model"], found["tokenizer"]) == (POLICY, "its tokenizer")
    active.generation = None
    (found,) = reached(monkeypatch, lambda: active._select(*steps(active, number)), "trl_real.rounds.active:Chooser")
    assert found["seed"] == SEED + number and found["responses"] == "responses"


def test_each_active_round_selects_from_prompts_of_its_own(active):
    drawn = [active._prompts(number)["prompt"][:] for number in range(1, 5)]
    assert all(len(rows) == 6 for rows in drawn) and drawn[0] == active._prompts(1)["prompt"][:]
    assert len({tuple(rows) for rows in drawn}) == 4


@pytest.mark.parametrize("number", [1, 2, 5])
def test_rounds_of_self_annotation(number, annotation, monkeypatch):
    room = "trl_real.rounds.self_annotation"
    annotation._prompts = lambda number: annotation.prompts
    (found,) = reached(monkeypatch, lambda: annotation._generate(*steps(annotation, number)), f"{room}:generate")
    assert (flat(found)["seed"], flat(found)["max_new_tokens"]) == (SEED + number, 7)
    judge, _, picks = reached(
        monkeypatch, lambda: annotation._label(*steps(annotation, number)), f"{room}:self_annotate",
        ImplicitRewardJudge=ImplicitRewardJudge.__new__(ImplicitRewardJudge), load=annotation.prompts,
    )  # fmt: skip
    assert (judge["policy"], judge["tokenizer"]) == (POLICY, "its tokenizer")
    assert (judge["beta"], judge["length_normalize"], judge["max_length"]) == (0.37, True, 99)
    assert flat(picks)["seed"] == SEED + number
    assert (flat(picks)["pick"], flat(picks)["drop_unfinished"]) == ("best_random", True)
    annotation._preferences = lambda labels, soft: [1]
    annotation.base = lambda: ("the base", "its tokenizer")
    noise = {"noise_smoothing": 0.2}
    *_, settings = reached(
        monkeypatch, lambda: annotation._train(*steps(annotation, number), noise), f"{room}:round_config", load=None
    )
    assert SEED + number in settings.values() and 2.0 in flat(settings).values() and 0.2 in flat(settings).values()
