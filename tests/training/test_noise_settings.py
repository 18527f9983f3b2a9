"""Settings of label noise: what is out of range or without effect gets a one-line error."""

import pytest
from trl import TrlParser

from support.training import config
from trl_real import REALDPOConfig, TrlRealError


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("noise_smoothing", [0.5, -0.1, float("nan"), "a", True]),
        ("noise_share", [0, 100, -5, float("nan")]),
        ("noise_extrapolation", [-0.5, float("inf"), float("nan")]),
        ("noise_warmup", [1, -0.1]),
        ("noise_window", [0, 10.5, -1]),
    ],
)
def test_number_out_of_range_gets_a_one_line_error(name, values, tmp_path):
    for value in values:
        with pytest.raises(TrlRealError, match=f"^{name}=.* is not ") as raised:
            config(tmp_path, **{"noise_smoothing": 0.1, name: value})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"label_smoothing": 0.1}, r"loss_type=\['sigmoid'\] does not read it.*loss_type='robust'.*label_confidence"),
        ({"label_smoothing": 0.1, "loss_type": ["ipo", "sft"]}, "does not read it"),
        ({"discopop_tau": 0.1}, "Type loss_type='discopop'"),
        ({"f_alpha_divergence_coef": 0.2}, "Type f_divergence_type='alpha_divergence'"),
        ({"noise_extrapolation": 0.5}, "Type noise_smoothing=0.1"),
        ({"noise_share": 20.0}, "Type noise_smoothing=0.1"),
        ({"noise_warmup": 0.0}, "Type noise_smoothing=0.1"),
        ({"noise_window": 100}, "Type noise_smoothing=0.1"),
        ({"noise_smoothing": 0.1, "loss_type": "ipo"}, "Type loss_type='sigmoid'"),
        ({"noise_smoothing": 0.1, "loss_type": ["sigmoid", "sft"]}, "Type loss_type='sigmoid'"),
        ({"noise_smoothing": 0.1, "f_divergence_type": "forward_kl"}, "Type loss_type='sigmoid'"),
        ({"noise_smoothing": 0.1, "use_weighting": True}, "Type loss_type='sigmoid'"),
    ],
)
def test_unused_setting_gets_a_one_line_error(settings, fix, tmp_path):
    with pytest.raises(TrlRealError, match=f"would be ignored: .*{fix}") as raised:
        config(tmp_path, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"label_smoothing": 0.1, "loss_type": loss}
            for loss in ("robust", "exo_pair", "aot", ["sft", "aot_unpaired"])
        ),
        {"loss_type": "discopop", "discopop_tau": 0.1},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.2},
        {"noise_smoothing": 0, "noise_share": 10, "noise_window": 512},
        {
            "noise_smoothing": 0.1,
            "noise_share": 20,
            "noise_extrapolation": 1,
            "noise_warmup": 0,
            "loss_type": "sigmoid",
        },
    ],
)
def test_used_setting_is_accepted(settings, tmp_path):
    config(tmp_path, **settings)


def test_window_too_short_for_its_share_gets_a_one_line_error(tmp_path):
    with pytest.raises(TrlRealError, match="noise_window=512 is too short .* Type noise_window=1000 or more"):
        config(tmp_path, noise_smoothing=0.1, noise_share=0.1)
    with pytest.raises(TrlRealError, match="Type noise_window=20 or more"):
        config(tmp_path, noise_smoothing=0.1, noise_share=95, noise_window=19)


def test_flags_and_yaml_give_the_same_settings(tmp_path):
    written = {
        "noise_smoothing": 0.1,
        "noise_share": 20,
        "noise_extrapolation": 0.5,
        "noise_warmup": 0,
        "noise_window": 99,
    }
    lines = ["output_dir: out", "use_cpu: true", "loss_type: sigmoid", *(f"{k}: {v}" for k, v in written.items())]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    flags = [part for name, value in written.items() for part in (f"--{name}", str(value))]
    for arguments in (["--config", str(tmp_path / "run.yaml")], ["--output_dir", "out", "--use_cpu", *flags]):
        (args,) = TrlParser(REALDPOConfig).parse_args_and_config(arguments)
        assert {name: getattr(args, name) for name in written} == written
    for arguments in (["--label_smoothing", "0.1"], ["--noise_share", "20"]):
        with pytest.raises(TrlRealError, match="would be ignored"):
            TrlParser(REALDPOConfig).parse_args_and_config(["--output_dir", "out", "--use_cpu", *arguments])
