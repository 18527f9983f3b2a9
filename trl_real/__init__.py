"""
trl_real: choose the response pairs worth a label, get them labelled, train on them with TRL, measure what that saved.

Public names load on first use, so that `import trl_real` stays instant.
"""

from importlib import import_module
from importlib.metadata import version as _version


__version__ = _version("trl-real")

_HOME = {
    "ACQUISITIONS": "trl_real.functional.bayesian_head",
    "ALGORITHM_VERSION": "trl_real.selection.selector",
    "ActiveRounds": "trl_real.training.active_rounds",
    "ChatJudge": "trl_real.labeling.chat",
    "Comparison": "trl_real.evaluation.comparison",
    "EmbeddingPairSelector": "trl_real.selection.selector",
    "Generations": "trl_real.models.generate",
    "GradientPairSelector": "trl_real.selection.gradient_selector",
    "HeadPairSelector": "trl_real.selection.head_selector",
    "JUDGES": "trl_real.labeling.judges",
    "ImplicitRewardJudge": "trl_real.labeling.implicit_reward",
    "JudgePanel": "trl_real.labeling.panel",
    "JudgeTemplate": "trl_real.labeling.templates",
    "LabelReport": "trl_real.labeling.annotate",
    "MarginPairSelector": "trl_real.selection.margin_selector",
    "MissingColumnError": "trl_real.errors",
    "PageJudge": "trl_real.labeling.page_judge",
    "REALDPOConfig": "trl_real.training.config",
    "REALDPOTrainer": "trl_real.training.trainer",
    "ROUND_SELECTORS": "trl_real.training.round_selectors",
    "RewardModelJudge": "trl_real.labeling.reward_model",
    "STRATEGIES": "trl_real.selection.strategies",
    "ScoreJudge": "trl_real.labeling.judges",
    "SelectionRecord": "trl_real.selection.record",
    "SelfAnnotationRounds": "trl_real.training.self_annotation_rounds",
    "TrlRealError": "trl_real.errors",
    "VotesJudge": "trl_real.labeling.votes",
    "WinRateCallback": "trl_real.evaluation.callback",
    "annotate": "trl_real.labeling.annotate",
    "check_judge": "trl_real.labeling.check",
    "active_rounds": "trl_real.training.active_rounds",
    "compare": "trl_real.evaluation.compare",
    "compare_columns": "trl_real.evaluation.compare",
    "from_alpaca_eval": "trl_real.data.sources",
    "from_hh_rlhf": "trl_real.data.sources",
    "from_shp": "trl_real.data.sources",
    "from_ultrafeedback": "trl_real.data.sources",
    "from_ultrafeedback_binarized": "trl_real.data.sources",
    "generate": "trl_real.models.generate",
    "generate_from_server": "trl_real.labeling.served_responses",
    "load_study": "trl_real.evaluation.run_study",
    "push_subset": "trl_real.hub.push",
    "relabel": "trl_real.labeling.relabel",
    "run_study": "trl_real.evaluation.run_study",
    "select_on_ray": "trl_real.selection.on_ray",
    "self_annotate": "trl_real.labeling.self_annotate",
    "self_annotation_rounds": "trl_real.training.self_annotation_rounds",
    "warm_start": "trl_real.training.warm_start",
    "write_rounds_report": "trl_real.evaluation.rounds_report",
    "write_study_report": "trl_real.evaluation.study_report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'trl_real' has no attribute {name!r}; it has {__all__}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
