"""Every flag of every verb reaches the call that it is for."""

import argparse
import json
from importlib import import_module
from pathlib import Path

import pytest
from datasets import Dataset

from support.spies import Calls, Reached, another
from trl_real.cli.judges import PREFIXED, add_judge_flags, settings_of
from trl_real.cli.main import VERBS, main
from trl_real.cli.parser import Parser
from trl_real.data.files import save
from trl_real.labeling.judges import JUDGES


# Flags without a call of their own: where they are tested.
ELSEWHERE = {
    "config": "test_settings_cli.py: a setting in YAML equals the flag",
    "json": "test_cli.py: strict JSON",
    "verbose": "test_verbosity.py",
    "allow_pickle": "test_remote_code.py: pickle files are loaded only on request",
    "plan": "test_cli.py: no verb computes with it",
}
# Values that `another` cannot make: names in a table, and files.
NAMED = {
    "strategy": "hard", "context": "prompt+response", "dtype": "bfloat16", "geometry": "centered", "source": "shp",
    "hardware": "h100", "judge": "score", "method": "bootstrap", "pick": "best_random", "arms": "expansion",
    "study arms": "hard",
    "split": "train[:1]", "device": "meta", "dataset": "other.jsonl", "eval_dataset": "other.jsonl",
    "pilot": "other.jsonl",
    "eval_prompts": "other.jsonl", "seed_labels": "other.jsonl", "prompts": "other.jsonl", "check": "other.jsonl",
    "difficulty": "other.jsonl", "guidelines": "g.md", "votes": "other-votes.jsonl", "panel": "panel.yaml",
    "template": "pairrm", "preferences": "v2", "clusters": "c", "lengths": "l", "baseline_lengths": "l",
    "model_score": "score2", "baseline_score": "score2", "models": "a", "baseline": "a", "prompt": "c",
    "second_opinion": "v", "responses": "other", "repo_id": "user/other", "options": "effort=low",
    "people_by": "uniform", "people_verdicts": "v2", "inclusion_probabilities": "v2", "strata": "c",
}  # fmt: skip
# Flags of columns whose values, not names, reach the call, and the first value of each column.
COLUMNS = ("preferences", "clusters", "lengths", "baseline_lengths", "model_score", "baseline_score")
COLUMNS += ("people_verdicts", "inclusion_probabilities")
CELLS = {"v2": 0.125, "c": "k", "l": 77, "score2": 5.25}
# Flags whose effect is not an argument of one call.
KNOWN = {
    ("label", "judge"): "test_flag_of_a_judge_reaches_the_judge",
    ("win-rate", "judge"): "test_flag_of_a_judge_reaches_the_judge",
    ("active", "judge"): "test_flag_of_a_judge_reaches_the_judge",
    ("self-annotate", "judge"): "test_flag_of_a_judge_reaches_the_judge",
    ("label", "then"): "test_label_cli.py: labels by each kind of second judge",
    ("train", "trainer"): "test_trainers_cli.py: each trainer trains; flags of others are refused",
    ("study", "engine"): "with dpo the flags of that engine reach DPOCells",
}
LOAD = ("trl_real.data.files:load", True)
JUDGE = ("trl_real.labeling.judges:JudgeSpec.__call__", False)
SELECTOR = ("trl_real.selection.selector:EmbeddingPairSelector.__init__", True)
SELECT = ("trl_real.selection.selector:EmbeddingPairSelector.select", False)
COMPARE = ("trl_real.evaluation.compare:compare_columns", False)
COMPLETE = ("trl_real.evaluation.completions:add_completions", False)
CHAT = ("trl_real.data.chat:as_chat", False)
TOKENIZER = ("transformers:AutoTokenizer.from_pretrained", lambda *_, **__: None)
NO_WEIGHTS = ("trl_real.rounds.base:weights_of", lambda *_: None)
NO_ADAPTER = ("trl_real.training.adapters:adapter_base", lambda *_: None)  # else the Hub is asked for each name
NO_CHECKPOINT = ("trl_real.training.resume:checkpoint_of_run", lambda *_: None)

# Verb -> ways to run it: flags, what is spied on, and the flags that the way is for (the first way: all others).
WAYS = {
    "select": [
        ("--dataset d.jsonl --output_dir out --model user/m", (LOAD, SELECTOR, SELECT), ""),
        ("--dataset d.jsonl --output_dir out --num_actors 2",
         (("trl_real.selection.ray_engine:select_on_ray", False),), "num_actors num_cpus num_gpus ray_address"),
        ("--dataset d.jsonl --plan", (("trl_real.selection.planning.plan:plan_selection", False),),
         "hardware n_devices price price_per_label"),
        ("--dataset d.jsonl --output_dir out --streaming", (("trl_real.data.files:load_stream", True), SELECT),
         "streaming sample"),
        ("--dataset d.jsonl --output_dir out", (("trl_real.data.sources:converter", False),), "source"),
        ("--dataset d.jsonl --output_dir out --chat", (CHAT,), "chat"),
        ("--dataset d.jsonl --output_dir out --model user/m --load_in_4bit",
         (("trl_real.training.adapters:load_base", False),), "load_in_4bit"),
    ],
    "label": [
        ("--dataset d.jsonl --output_dir out", (LOAD, ("trl_real.labeling.annotate:annotate", False)), ""),
        ("--dataset d.jsonl --human --votes votes.jsonl", (("trl_real.labeling.people.page:serve_page", False),),
         "annotator guidelines port human"),
        ("--dataset d.jsonl --label_studio http://127.0.0.1:9 --api_key k --push",
         (("trl_real.labeling.people.label_studio:LabelStudio", True),
          ("trl_real.labeling.people.label_studio:push_pairs", False)), "label_studio push project"),
        ("--label_studio http://127.0.0.1:9 --api_key k --pull --project 3 --votes votes.jsonl",
         (("trl_real.labeling.people.label_studio:pull_votes", False),), "pull"),
        ("--check d.jsonl --votes votes.jsonl", (LOAD, ("trl_real.labeling.check:check_judge", False)),
         "check epsilon"),
        ("--dataset d.jsonl --output_dir out --then votes --votes votes.jsonl --budget 3",
         (("trl_real.labeling.routed:RoutedJudge", False),), "budget random_share"),
        ("--dataset d.jsonl --output_dir out", (("trl_real.labeling.people.label_page:write_label_page", False),),
         "price_per_vote currency"),
        ("--dataset d.jsonl --output_dir out --chat", (CHAT,), "chat"),
    ],
    "sft": [("--dataset d.jsonl --output_dir out --model user/m --use_cpu True --bf16 False",
             (LOAD, TOKENIZER, ("trl_real.training.warm_start:warm_start", False)), "")],
    "train": [("--dataset d.jsonl --output_dir out --model user/m --bf16 False",
               (LOAD, TOKENIZER, NO_CHECKPOINT, ("trl_real.training.trainer:REALDPOTrainer.__init__", False)), ""),
              ("--dataset d.jsonl --output_dir out --model user/m --bf16 False --plan",
               (("trl_real.training.plan:plan_training", False),), "hardware n_devices")],
    "win-rate": [
        ("--dataset d.jsonl --model a --baseline b", (LOAD, COMPARE), ""),
        ("--dataset d.jsonl --preferences v", (LOAD, ("trl_real.functional.statistics.win_rate:win_rate", False)),
         "preferences clusters lengths baseline_lengths difficulty"),
        ("--dataset d.jsonl --models a b --judge reward --judge_model user/m",
         (("trl_real.evaluation.tournament:tournament", False),), "models reference"),
        ("--dataset d.jsonl --model user/m --baseline b", (COMPLETE,), "max_new_tokens temperature"),
        ("--dataset d.jsonl --model a --baseline b --output_dir out --people 5 --no_page",
         (("trl_real.evaluation.people:People", False),), "people people_by strata no_page"),
        ("--dataset d.jsonl --model a --baseline b --output_dir out --people 5",
         (("trl_real.labeling.people.page_judge:PageJudge", False),), "annotator guidelines port"),
        ("--dataset d.jsonl --preferences v --people_verdicts v",
         (("trl_real.functional.statistics.people:people_win_rate", False),),
         "people_verdicts inclusion_probabilities"),
        ("--dataset d.jsonl --model a --baseline b --output_dir out",
         (("trl_real.evaluation.report:write_comparison_report", False),), "output_dir"),
        ("--dataset d.jsonl --model a --baseline b --chat", (CHAT,), "chat"),
    ],
    "active": [
        ("--dataset d.jsonl --model user/m --output_dir out --bf16 False",
         (LOAD, ("trl_real.rounds.active:ActiveRounds", False)), ""),
        ("--dataset d.jsonl --model user/m --output_dir out --bf16 False --generate 3 --judge reward "
         "--judge_model user/m",
         (("trl_real.rounds.active:ActiveRounds", False),), "generate max_new_tokens"),
        ("--dataset d.jsonl --model user/m --output_dir out --bf16 False --human",
         (("trl_real.labeling.people.page_judge:PageJudge", False),), "human guidelines port"),
        ("--dataset d.jsonl --model user/m --output_dir out --bf16 False --eval_prompts d.jsonl --judge reward "
         "--judge_model user/m", (LOAD, ("trl_real.rounds.win_rate:WinRateAgainstStart", False)),
         "eval_prompts eval_tokens"),
        ("--dataset d.jsonl --model user/m --output_dir out --bf16 False",
         (NO_WEIGHTS, ("trl_real.rounds.base:Rounds.run", False)), "rounds"),
        ("--dataset d.jsonl --output_dir out --model user/m",
         (("trl_real.data.sources:converter", False),), "source"),
    ],
    "self-annotate": [
        ("--seed_labels d.jsonl --prompts d.jsonl --n_prompts 2 --model user/m --output_dir out --bf16 False",
         (LOAD, ("trl_real.rounds.self_annotation:SelfAnnotationRounds", False)), ""),
        ("--seed_labels d.jsonl --prompts d.jsonl --n_prompts 2 --model user/m --output_dir out --bf16 False",
         (NO_WEIGHTS, ("trl_real.rounds.self_annotation:SelfAnnotationRounds.run", False)), "rounds"),
        ("--seed_labels d.jsonl --prompts d.jsonl --n_prompts 2 --model user/m --output_dir out --bf16 False --human "
         "--relabel 0.5", (("trl_real.labeling.people.page_judge:PageJudge", False),), "human guidelines port"),
        ("--seed_labels d.jsonl --prompts d.jsonl --n_prompts 2 --model user/m --output_dir out --bf16 False "
         "--eval_prompts d.jsonl --judge reward --judge_model user/m",
         (LOAD, ("trl_real.rounds.win_rate:WinRateAgainstStart", False)), "eval_prompts eval_tokens"),
        ("--seed_labels d.jsonl --prompts d.jsonl --n_prompts 2 --model user/m --output_dir out --bf16 False "
         "--judge reward --judge_model user/m --relabel 0.5",
         (("trl_real.rounds.self_annotation:SelfAnnotationRounds", False),), "relabel"),
    ],
    "study": [
        ("--dataset d.jsonl --output_dir out --model user/m", (LOAD, ("trl_real.study.run:run_study", False)), ""),
        ("--dataset d.jsonl --output_dir out --model user/m --engine dpo --bf16 False",
         (("trl_real.study.dpo:DPOCells", False),), "learning_rates n_evaluations engine"),
        ("--dataset d.jsonl --output_dir out", (("trl_real.data.sources:converter", False),), "source"),
        ("--dataset d.jsonl --output_dir out --chat", (CHAT,), "chat"),
    ],
    "advise": [
        ("--dataset d.jsonl --model user/m", (LOAD, ("trl_real.study.advice.advise:advise", False)), ""),
        ("--dataset d.jsonl", (("trl_real.data.sources:converter", False),), "source"),
    ],
    "report": [("--dataset out", (("trl_real.study.run:load_study", lambda folder: None),
                                   ("trl_real.study.report:write_study_report", False)), ""),
               ("--dataset saved", (("trl_real.labeling.people.label_page:write_label_page", False),),
                "votes price_per_vote currency")],
    "push": [("--dataset saved --repo_id user/r", (LOAD, ("trl_real.hub.push:push_subset", False)), "")],
}  # fmt: skip

PASSED = "--bf16 False"
JUDGED = {
    "label": "--dataset d.jsonl --output_dir out",
    "win-rate": "--dataset d.jsonl --model a --baseline b",
    "active": f"--dataset d.jsonl --model user/m --output_dir out {PASSED}",
    "self-annotate": f"--seed_labels d.jsonl --prompts d.jsonl --n_prompts 2 --model user/m --output_dir out {PASSED} "
    "--relabel 0.5",
}


def actions(verb: str) -> list:
    parser = Parser(verb)
    import_module(f"trl_real.cli.{verb.replace('-', '_')}").register(parser)
    return [action for action in parser._actions if action.dest not in ("help", *ELSEWHERE)]


def of_judges(verb: str) -> list[str]:
    """Flags that `add_judge_flags` adds, by their destination, except the name of the judge."""
    parser = Parser()
    if verb in JUDGED:
        add_judge_flags(parser, "model" if verb == "label" else "judge_model")
    return [action.dest for action in parser._actions if action.dest not in ("help", "judge")]


def told(action, verb: str) -> tuple[list[str], list]:
    if action.dest not in NAMED or action.nargs == 0:
        return another(action)
    text = NAMED.get(f"{verb} {action.dest}", NAMED[action.dest])
    value = CELLS.get(text, text) if action.dest in COLUMNS else action.type(text) if action.type else text
    return [action.option_strings[0], text], [value]


def calls(monkeypatch, argv: list[str], spies) -> list:
    spied = Calls(monkeypatch)
    for target, then in (NO_ADAPTER, *spies):
        spied.spy(target, through=then is True, gives=then if callable(then) else None)
    with pytest.raises(Reached):
        assert main(argv) == 0
    return spied.values()


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {
        "prompt": ["p", "q"], "responses": [["r", "s"]] * 2, "other": [["r", "s"]] * 2, "scores": [[0.0, 1.0]] * 2,
        "pair": [[0, 1]] * 2, "response_a": ["r"] * 2, "response_b": ["s"] * 2, "chosen": ["r"] * 2,
        "rejected": ["s"] * 2, "a": ["x", "y"], "b": ["z", "w"], "c": ["k", "m"], "v": [0.0, 1.0], "l": [77, 4],
        "v2": [0.125, 0.5],
        "score": [1.0, 2.0], "baseline_score": [2.0, 1.0], "score2": [5.25, 6.25], "difficulty": [0.0, 1.0],
        "skipped": ["", ""], "similarity": [0.5, 0.5],
    }  # fmt: skip
    rows = {name: column * 6 for name, column in rows.items()}
    for name in ("d.jsonl", "other.jsonl"):
        Dataset.from_dict(rows).to_json(name)
    save(Dataset.from_dict(rows), tmp_path / "saved")
    (tmp_path / "saved" / "selection_record.json").write_text("{}")
    (tmp_path / "saved" / "labels.json").write_text("{}")
    (tmp_path / "g.md").write_text("Be kind.")
    (tmp_path / "votes.jsonl").touch()
    (tmp_path / "other-votes.jsonl").touch()
    (tmp_path / "panel.yaml").write_text("- judge: score\n- judge: score\n")
    monkeypatch.setattr("trl_real.selection.record.SelectionRecord.load", lambda folder: None)


@pytest.mark.parametrize(
    ("verb", "dest"),
    [
        (verb, a.dest)
        for verb in WAYS
        for a in actions(verb)
        if a.dest not in of_judges(verb) and (verb, a.dest) not in KNOWN
    ],
)
def test_flag_reaches_its_call(verb, dest, monkeypatch):
    action = next(a for a in actions(verb) if a.dest == dest)
    base, spies, _ = next((way for way in WAYS[verb] if dest in way[2].split()), WAYS[verb][0])
    argument, expected = told(action, verb)
    argv = [verb, *base.split()]
    found = calls(monkeypatch, [*argv, *argument], spies)
    if action.nargs == 0 and argument[0] in argv:
        return  # a switch that leads to another call, which was reached
    for value in expected:
        assert any(value == other or (isinstance(value, str) and value in str(other)) for other in found), found
    if argument[0] not in argv:  # and only the flag brings it there
        before = calls(monkeypatch, argv, spies)
        assert sorted(map(str, found)) != sorted(map(str, before))


def settings_with_judges() -> list[tuple[str, str, str, bool, bool]]:
    """Each flag of each judge, with a server and without, and with the value 0 where it is a number."""
    found = []
    for verb in JUDGED:
        for judge, spec in JUDGES.items():
            if judge in ("score", "votes", "panel") and verb in ("self-annotate",):
                continue  # they do not read new texts
            if (verb, judge) == ("win-rate", "votes"):
                continue  # votes belong to selected pairs; the verb refuses them
            for url in ((), ("base_url",))[: 1 + bool(spec.backends)]:
                for name, (parsing, _) in settings_of(spec, url).items():
                    zeros = (False, True) if parsing.get("type") in (int, float) else (False,)
                    found += [(verb, judge, name, bool(url), zero) for zero in zeros]
    return found


@pytest.mark.parametrize(("verb", "judge", "name", "url", "zero"), settings_with_judges())
def test_flag_of_a_judge_reaches_the_judge(verb, judge, name, url, zero, monkeypatch):
    spec, dest = JUDGES[judge], f"judge_{name}" if name in PREFIXED else name
    action = next(a for a in actions(verb) if a.dest == dest)
    argv = [verb, *JUDGED[verb].split(), "--judge", judge]
    first = {"model": "user/m", "votes": "votes.jsonl", "panel": "panel.yaml"}.get(spec.first)
    if first and name != spec.first:
        argv += [f"--{'judge_' if verb != 'label' and spec.first == 'model' else ''}{spec.first}", first]
    if url and name != "base_url":
        argv += ["--base_url", "http://127.0.0.1:9/v1"]
    argument, expected = told(action, verb)
    if name == "options":
        expected = [dict(expected)]
    if zero:
        argument, expected = [argument[0], *["0"] * len(expected)], [0] * len(expected)
    spied = Calls(monkeypatch)

    def make(made, *args, **settings):
        if made is spec and (judge != "panel" or args):
            raise Reached
        return lambda batch: []  # a member of the panel

    spied.spy("trl_real.labeling.judges:JudgeSpec.__call__", gives=make)
    with pytest.raises(Reached):
        assert main([*argv, *argument]) == 0
    call = spied.found[-1]
    if name == "panel":
        return  # made of the judges in its file, which were reached
    given = call["args"][0] if name == spec.first else call["settings"][name]
    assert given == (tuple(expected) if isinstance(given, tuple) else expected if len(expected) > 1 else expected[0])


@pytest.mark.parametrize(
    ("flags", "questions", "n"), [("--n_prompts 7", 7, 4), ("--n_responses 3", 64, 3), ("--n_samples 3", 64, 4)]
)
def test_sizes_of_the_demo_reach_the_sampling(flags, questions, n, monkeypatch):
    spied = Calls(monkeypatch)
    spied.spy("trl_real.cli.demo:Demo._load", gives=lambda *_: (None, None))
    spied.spy("trl_real.cli.demo:Demo._sample")
    argv = ["demo", "--output_dir", "out", "--model", "user/m", *flags.split()]
    with pytest.raises(Reached):
        main(argv)
    assert len(spied.found[-1]["questions"]) == questions and spied.found[-1]["n"] == n
    settings = json.loads(Path("out/settings.json").read_text())
    assert settings[flags.split()[0].removeprefix("--")] == int(flags.split()[1])


def test_flags_of_the_demo_reach_its_training(monkeypatch):
    from trl_real.cli.demo import train_lora

    spied = Calls(monkeypatch)
    spied.spy("trl_real.training.config:REALDPOConfig")
    args = argparse.Namespace(num_train_epochs=7.0, learning_rate=0.375, seed=11)
    with pytest.raises(Reached):
        train_lora("user/m", None, Path("out"), args)
    assert {7.0, 0.375, 11} <= {value for value in spied.values() if not isinstance(value, str)}


def test_every_verb_and_flag_is_here_or_has_a_reason():
    assert {*WAYS, "demo"} == set(VERBS)
    for verb in WAYS:
        dests = {action.dest for action in actions(verb)}
        for _, _, named in WAYS[verb]:
            assert set(named.split()) <= dests
