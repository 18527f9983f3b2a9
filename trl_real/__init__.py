"""
trl_real: choose the response pairs worth a label, get them labelled, train on them with TRL, measure what that saved.

Public names load on first use, so that `import trl_real` stays instant.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from trl_real.data.chat import as_chat as as_chat
    from trl_real.data.sources import from_alpaca_eval as from_alpaca_eval
    from trl_real.data.sources import from_hh_rlhf as from_hh_rlhf
    from trl_real.data.sources import from_shp as from_shp
    from trl_real.data.sources import from_ultrafeedback as from_ultrafeedback
    from trl_real.data.sources import from_ultrafeedback_binarized as from_ultrafeedback_binarized
    from trl_real.data.traces.pool import from_traces as from_traces
    from trl_real.data.turns import split_turns as split_turns
    from trl_real.errors import MissingColumnError as MissingColumnError
    from trl_real.errors import TrlRealError as TrlRealError
    from trl_real.evaluation.callback import WinRateCallback as WinRateCallback
    from trl_real.evaluation.compare import compare as compare
    from trl_real.evaluation.compare import compare_columns as compare_columns
    from trl_real.evaluation.comparison import Comparison as Comparison
    from trl_real.evaluation.people import People as People
    from trl_real.functional.bayesian_head import ACQUISITIONS as ACQUISITIONS
    from trl_real.hub.push import push_subset as push_subset
    from trl_real.labeling.annotate import LabelReport as LabelReport
    from trl_real.labeling.annotate import annotate as annotate
    from trl_real.labeling.chat.judge import ChatJudge as ChatJudge
    from trl_real.labeling.chat.templates import JudgeTemplate as JudgeTemplate
    from trl_real.labeling.check import check_judge as check_judge
    from trl_real.labeling.implicit_reward import ImplicitRewardJudge as ImplicitRewardJudge
    from trl_real.labeling.judges import JUDGES as JUDGES
    from trl_real.labeling.judges import ScoreJudge as ScoreJudge
    from trl_real.labeling.panel import JudgePanel as JudgePanel
    from trl_real.labeling.people.page_judge import PageJudge as PageJudge
    from trl_real.labeling.people.votes import VotesJudge as VotesJudge
    from trl_real.labeling.relabel import relabel as relabel
    from trl_real.labeling.reward_model import RewardModelJudge as RewardModelJudge
    from trl_real.labeling.routed import RoutedJudge as RoutedJudge
    from trl_real.labeling.self_annotate import self_annotate as self_annotate
    from trl_real.models.generate import Generations as Generations
    from trl_real.models.generate import generate as generate
    from trl_real.models.generation.from_server import generate_from_server as generate_from_server
    from trl_real.rounds.active import active_rounds as active_rounds
    from trl_real.rounds.report import write_rounds_report as write_rounds_report
    from trl_real.rounds.selectors import ROUND_SELECTORS as ROUND_SELECTORS
    from trl_real.rounds.self_annotation import self_annotation_rounds as self_annotation_rounds
    from trl_real.selection.active.gradient import GradientPairSelector as GradientPairSelector
    from trl_real.selection.active.head import HeadPairSelector as HeadPairSelector
    from trl_real.selection.active.margin import MarginPairSelector as MarginPairSelector
    from trl_real.selection.ray_engine import select_on_ray as select_on_ray
    from trl_real.selection.record import SelectionRecord as SelectionRecord
    from trl_real.selection.scorer import ALGORITHM_VERSION as ALGORITHM_VERSION
    from trl_real.selection.selector import EmbeddingPairSelector as EmbeddingPairSelector
    from trl_real.selection.strategies import STRATEGIES as STRATEGIES
    from trl_real.study.advise import advise as advise
    from trl_real.study.report import write_study_report as write_study_report
    from trl_real.study.run import load_study as load_study
    from trl_real.study.run import run_study as run_study
    from trl_real.training.config import REALDPOConfig as REALDPOConfig
    from trl_real.training.trainer import REALDPOTrainer as REALDPOTrainer
    from trl_real.training.trainers import rows_for as rows_for
    from trl_real.training.warm_start import warm_start as warm_start


__version__ = _version("trl-real")

_HOME = {
    "ACQUISITIONS": "trl_real.functional.bayesian_head",
    "ALGORITHM_VERSION": "trl_real.selection.scorer",
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
    "People": "trl_real.evaluation.people",
    "REALDPOConfig": "trl_real.training.config",
    "REALDPOTrainer": "trl_real.training.trainer",
    "ROUND_SELECTORS": "trl_real.rounds.selectors",
    "RewardModelJudge": "trl_real.labeling.reward_model",
    "RoutedJudge": "trl_real.labeling.routed",
    "STRATEGIES": "trl_real.selection.strategies",
    "ScoreJudge": "trl_real.labeling.judges",
    "SelectionRecord": "trl_real.selection.record",
    "TrlRealError": "trl_real.errors",
    "VotesJudge": "trl_real.labeling.people.votes",
    "WinRateCallback": "trl_real.evaluation.callback",
    "advise": "trl_real.study.advise",
    "as_chat": "trl_real.data.chat",
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
    "from_traces": "trl_real.data.traces.pool",
    "generate": "trl_real.models.generate",
    "generate_from_server": "trl_real.models.generation.from_server",
    "load_study": "trl_real.study.run",
    "push_subset": "trl_real.hub.push",
    "relabel": "trl_real.labeling.relabel",
    "rows_for": "trl_real.training.trainers",
    "run_study": "trl_real.study.run",
    "select_on_ray": "trl_real.selection.ray_engine",
    "self_annotate": "trl_real.labeling.self_annotate",
    "self_annotation_rounds": "trl_real.rounds.self_annotation",
    "split_turns": "trl_real.data.turns",
    "warm_start": "trl_real.training.warm_start",
    "write_rounds_report": "trl_real.rounds.report",
    "write_study_report": "trl_real.study.report",
}

__all__ = sorted(_HOME)


if not TYPE_CHECKING:  # with a `__getattr__`, a type checker accepts every name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'trl_real' has no attribute {name!r}; it has {__all__}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
