"""Settings of a selection in the trainer, and the parts of TRL that it relies on."""

from inspect import signature

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOTrainer, TrlParser

from support.selecting_trainer import selecting
from support.training import config, pairs
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError


pytestmark = pytest.mark.usefixtures("one_thread")


# What a user can get wrong.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"selection_strategy": "esay", "selection_budget": 0.5},
            "No selection_strategy 'esay'; there are easy, hard",
        ),
        ({"selection_strategy": "easy"}, "without selection_budget would keep every pair. Give a share"),
        ({"selection_budget": 0.5}, "without selection_strategy would be ignored. Give selection_strategy='easy'"),
        *(
            ({"selection_strategy": "easy", "selection_budget": budget}, "is neither a share in (0, 1] nor a whole")
            for budget in (0, -1, 1.5, float("nan"), float("inf"), True, "a quarter")
        ),
    ],
)
def test_invalid_setting_gets_a_one_line_error(settings, message, tmp_path):
    with pytest.raises(TrlRealError) as raised:
        config(tmp_path, **settings)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "kept", "kind"),
    [
        (0.25, 0.25, float),
        (1.0, 1.0, float),
        (2, 2, int),
        (100.0, 100, int),
        (None, None, type(None)),
    ],
)
def test_budget_up_to_one_is_a_share_and_above_it_a_number_of_rows(given, kept, kind, tmp_path):
    args = config(tmp_path, selection_strategy="easy" if given else None, selection_budget=given)
    assert args.selection_budget == kept and type(args.selection_budget) is kind


@pytest.mark.parametrize(("written", "kept"), [("0.25", 0.25), ("100", 100), ("1.0", 1.0), ("1e3", 1000)])
def test_flags_and_yaml_mean_the_same(written, kept, tmp_path):
    parser = TrlParser(REALDPOConfig)
    (tmp_path / "run.yaml").write_text(
        f"output_dir: out\nuse_cpu: true\nselection_strategy: hard\nselection_budget: {written}\nbeta: 0.2\n"
    )
    flags = ["--output_dir", "out", "--use_cpu", "--selection_strategy", "hard", "--selection_budget", written]
    for arguments in (["--config", str(tmp_path / "run.yaml")], [*flags, "--beta", "0.2"]):
        (args,) = parser.parse_args_and_config(arguments)
        assert (args.selection_strategy, args.selection_budget, args.beta) == ("hard", kept, 0.2)
        assert type(args.selection_budget) is type(kept)


def useless(n: int = 4) -> Dataset:
    return Dataset.from_list([{**row, "rejected": row["chosen"]} for row in pairs(n)])


@pytest.mark.parametrize(
    ("dataset", "budget", "message"),
    [
        (lambda: Dataset.from_list(pairs()).to_iterable_dataset(), 0.5, "but this one is a stream"),
        (lambda: Dataset.from_list(pairs()).rename_column("chosen", "better"), 0.5, "No column 'chosen'"),
        (lambda: Dataset.from_list(pairs(4)), 5, "selection_budget=5, but the training set has 4 rows"),
        (lambda: Dataset.from_list([*pairs(4), *useless()]), 6, "selection_budget=6, but only 4 rows have a pair"),
        (lambda: useless(), 0.5, "4 rows in: 0 kept, 0 not chosen, 4 skipped (4 identical responses)"),
    ],
)
def test_unusable_dataset_gets_a_one_line_error(dataset, budget, message, model, tmp_path):
    with pytest.raises(TrlRealError) as raised:
        selecting(tmp_path, model, dataset(), selection_budget=budget, max_steps=1)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_sharded_model_is_refused(model, tmp_path):
    sharded = AutoModelForCausalLM.from_pretrained(model)
    sharded.model.norm.weight.ds_id = 0
    with pytest.raises(TrlRealError, match="Weight 'model.norm.weight' is sharded over processes.*Select beforehand"):
        selecting(tmp_path, sharded, Dataset.from_list(pairs()))


# What we lean on.


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_send_telemetry", ["self"]),
        ("create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
        ("train", ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_set_signature_columns_if_needed", ["self"]),
        ("compute_ref_log_probs", ["self", "model", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs", "return_outputs"]),
        (
            "evaluation_loop",
            ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
        ),
    ],
)
def test_overridden_trl_methods_have_the_expected_signature(method, parameters):
    theirs = getattr(DPOTrainer, method, None)
    assert theirs is not None, f"DPOTrainer.{method} is gone: look at trl_real/training"
    assert list(signature(theirs).parameters) == parameters
    assert list(signature(getattr(REALDPOTrainer, method)).parameters) == parameters


def test_trl_attributes_used_by_the_card_exist():
    assert DPOTrainer._name == "DPO" and set(DPOTrainer._paper) == {"title", "id", "citation"}
    assert REALDPOTrainer._tag_names == ["trl", "dpo", "trl-real"]
