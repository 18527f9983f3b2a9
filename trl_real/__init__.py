"""
trl_real: choose the response pairs worth a label, get them labelled, train on them with TRL, measure what that saved.

Public names load on first use, so that `import trl_real` stays instant.
"""

from importlib import import_module
from importlib.metadata import version as _version


__version__ = _version("trl-real")

_HOME = {
    "ACQUISITIONS": "trl_real.functional.bayesian_head",
    "ALGORITHM_VERSION": "trl_real.selection.scorer",
    "ActiveRounds": "trl_real.rounds.active",
    "ChatJudge": "trl_real.labeling.chat.judge",
    "Comparison": "trl_real.evaluation.comparison",
    "EmbeddingPairSelector": "trl_real.selection.selector",
    "Generations": "trl_real.models.generate",
    "GradientPairSelector": "trl_real.selection.active.gradient",
    "HeadPairSelector": "trl_real.selection.active.head",
    "JUDGES": "trl_real.labeling.judges",
    "ImplicitRewardJudge": "trl_real.labeling.implicit_reward",
    "JudgePanel": "trl_real.labeling.panel",
    "JudgeTemplate": "trl_real.labeling.chat.templates",
    "LabelReport": "trl_real.labeling.annotate",
    "MarginPairSelector": "trl_real.selection.active.margin",
    "MissingColumnError": "trl_real.errors",
    "PageJudge": "trl_real.labeling.people.page_judge",
    "REALDPOConfig": "trl_real.training.config",
    "REALDPOTrainer": "trl_real.training.trainer",
    "ROUND_SELECTORS": "trl_real.rounds.selectors",
    "RewardModelJudge": "trl_real.labeling.reward_model",
    "STRATEGIES": "trl_real.selection.strategies",
    "ScoreJudge": "trl_real.labeling.judges",
    "SelectionRecord": "trl_real.selection.record",
    "SelfAnnotationRounds": "trl_real.rounds.self_annotation",
    "TrlRealError": "trl_real.errors",
    "VotesJudge": "trl_real.labeling.people.votes",
    "WinRateCallback": "trl_real.evaluation.callback",
    "annotate": "trl_real.labeling.annotate",
    "check_judge": "trl_real.labeling.check",
    "active_rounds": "trl_real.rounds.active",
    "compare": "trl_real.evaluation.compare",
    "compare_columns": "trl_real.evaluation.compare",
    "from_alpaca_eval": "trl_real.data.sources",
    "from_hh_rlhf": "trl_real.data.sources",
    "from_shp": "trl_real.data.sources",
    "from_ultrafeedback": "trl_real.data.sources",
    "from_ultrafeedback_binarized": "trl_real.data.sources",
    "generate": "trl_real.models.generate",
    "generate_from_server": "trl_real.models.generate_from_server",
    "load_study": "trl_real.study.run",
    "push_subset": "trl_real.hub.push",
    "relabel": "trl_real.labeling.relabel",
    "run_study": "trl_real.study.run",
    "select_on_ray": "trl_real.selection.ray_engine",
    "self_annotate": "trl_real.labeling.self_annotate",
    "self_annotation_rounds": "trl_real.rounds.self_annotation",
    "warm_start": "trl_real.training.warm_start",
    "write_rounds_report": "trl_real.rounds.report",
    "write_study_report": "trl_real.study.report",
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
