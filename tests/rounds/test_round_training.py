"""What the training of a round reports."""

from trl_real.rounds.training import Trained


def test_the_summary_has_the_last_loss_and_the_mean_share_of_doubtful_pairs():
    log = [{"loss": 0.7, "noise/flagged": 0.0}, {"eval_loss": 9.0}, {"loss": 0.5, "noise/flagged": 0.5}, {"loss": 0.6}]
    found = Trained(None, 3, log, 70, "ref", 2).summary
    assert (found["loss"], found["flagged"]) == (0.6, 0.25)
    assert (found["n_steps"], found["n_tokens"], found["reference"], found["n_with_control_tokens"]) == (
        3,
        70,
        "ref",
        2,
    )


def test_without_smoothing_no_pair_was_looked_at():
    found = Trained(None, 1, [{"loss": 0.7}]).summary
    assert found["flagged"] is None and Trained(None, 0, []).summary["loss"] is None
