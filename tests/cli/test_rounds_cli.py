"""Flags of the verbs that run in rounds: unused flags are refused before anything runs, the others take effect."""

import pytest

from trl_real.cli.main import main


ACTIVE = ["active", "--dataset", "pool.jsonl", "--model", "m", "--output_dir", "out"]
SPA = "self-annotate --seed_labels s.jsonl --prompts p.jsonl --n_prompts 2 --model m --output_dir out".split()


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"], "scores": [0, 1]}\n')
    (tmp_path / "s.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "panel.yaml").write_text("- judge: score\n- judge: score\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "d"}\n')


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*ACTIVE, "--seed", "7"], "Use --seeds for the seeds of the runs."),
        ([*ACTIVE, "--eval_prompts", "p.jsonl"], "--eval_prompts needs a judge that reads new texts, not 'score'"),
        ([*ACTIVE, "--human", "--eval_prompts", "p.jsonl"], "--eval_prompts needs a judge that reads new texts"),
        ([*ACTIVE, "--generate", "2"], "--generate needs a judge that reads new texts, not 'score'"),
        ([*SPA, "--relabel", "0.1"], "--relabel needs a judge that reads new texts"),
        ([*SPA, "--human"], "--human has nothing to judge here"),
        ([*SPA, "--judge", "chat"], "--judge has nothing to judge here"),
        ([*SPA, "--min_gap", "3"], "--min_gap has nothing to judge here"),
        ([*SPA, "--port", "3"], "--port needs --human"),
        ([*ACTIVE, "--human", "--min_gap", "3"], "With --human people judge"),
        ([*ACTIVE, "--generate", "2", "--judge", "panel", "--panel", "panel.yaml"], "new texts, not 'score'"),
        (["study", "--dataset", "s.jsonl", "--output_dir", "out", "--engine", "dpo", "--seed=5"], "type --seeds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unused_flag_is_refused_before_anything_runs(argv, message, tmp_path, capsys):
    assert main(argv) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--length_normalize"]])
def test_self_annotation_rewards_are_normalized_on_request(flags, monkeypatch):
    from trl_real.rounds import self_annotation as self_annotation_rounds

    class Made(BaseException):
        pass

    def stop(**settings):
        raise Made(settings["length_normalize"])

    monkeypatch.setattr(self_annotation_rounds, "SelfAnnotationRounds", stop)
    with pytest.raises(Made) as made:
        main([*SPA, *flags])
    assert made.value.args == (bool(flags),)
