"""The precision of `train` and `sft`: bfloat16 only where it is fast, and what the user names."""

import pytest

from trl_real import REALDPOConfig
from trl_real.cli.train import parsed
from trl_real.runtime import devices


@pytest.mark.parametrize(
    ("is_fast", "flags", "bf16"),
    [(False, [], False), (True, [], True), (False, ["--bf16", "True"], True), (True, ["--bf16", "False"], False)],
)
def test_bfloat16_is_the_default_where_it_is_fast_only(tmp_path, monkeypatch, is_fast, flags, bf16):
    monkeypatch.setattr(devices, "bfloat16_is_fast", lambda: is_fast)
    config, _ = parsed((REALDPOConfig,), ["--output_dir", str(tmp_path), *flags])
    assert config.bf16 is bf16


def test_a_precision_in_the_settings_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "bfloat16_is_fast", lambda: False)
    (tmp_path / "settings.yaml").write_text("bf16: true")
    config, _ = parsed((REALDPOConfig,), ["--output_dir", str(tmp_path), "--config", str(tmp_path / "settings.yaml")])
    assert config.bf16 is True
