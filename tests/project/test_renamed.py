"""A name that transformers has renamed is an error in our own calls, and ours work under both names."""

import warnings
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from trl_real import REALDPOConfig
from trl_real.training.config import RENAMED


def warn_from(module: str, words: str = "renamed") -> None:
    exec(compile(f"import warnings\nwarnings.warn({words!r}, FutureWarning)", module, "exec"), {"__name__": module})


def test_a_future_warning_of_our_own_frames_is_an_error_and_that_of_others_is_not():
    warn_from("transformers.training_args")
    warn_from("trl_real_other")
    warn_from("trl_real.training.config", "The `'keep_end'` truncation mode is deprecated")  # a user's setting
    for module in ("trl_real", "trl_real.models.generation.decoding"):
        with pytest.raises(FutureWarning):
            warn_from(module)


@pytest.mark.parametrize("value", [True, False])
def test_the_old_name_of_checkpointing_reaches_the_trainer_without_a_warning(value, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = REALDPOConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=value)
    assert config.gradient_checkpointing is value
    known = {field.name for field in fields(TrainingArguments)}
    for old, new in RENAMED.items():
        if new in known:
            assert getattr(config, new) == getattr(config, old)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("new", [name for name in RENAMED.values() if not name.endswith("kwargs")])
def test_the_new_name_of_checkpointing_is_kept(new, value, tmp_path):
    """TRL's default under the old name is True."""
    if new not in {field.name for field in fields(TrainingArguments)}:
        pytest.skip(f"this transformers has no {new}")
    config = REALDPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{new: value})
    assert getattr(config, new) is config.gradient_checkpointing is value
