"""EagleEye channel pruning for timm CNNs on the Hugging Face stack.

Importing this package is quick: PyTorch, timm and transformers are imported when a name that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eagleeye_hf.networks.registration import register_with_timm

if TYPE_CHECKING:
    from eagleeye_hf.channels.cost import Cost as Cost
    from eagleeye_hf.channels.cost import count_cost as count_cost
    from eagleeye_hf.channels.graph import ChannelGraph as ChannelGraph
    from eagleeye_hf.channels.slicing import slice_model as slice_model
    from eagleeye_hf.data.config import AugmentationConfig as AugmentationConfig
    from eagleeye_hf.data.config import DatasetConfig as DatasetConfig
    from eagleeye_hf.data.config import HeldOutConfig as HeldOutConfig
    from eagleeye_hf.data.pairs import PairSet as PairSet
    from eagleeye_hf.data.splits import Splits as Splits
    from eagleeye_hf.data.splits import open_splits as open_splits
    from eagleeye_hf.errors import EagleEyeError as EagleEyeError
    from eagleeye_hf.evaluation.batchnorm import recalibrate_bn as recalibrate_bn
    from eagleeye_hf.evaluation.config import ScoringConfig as ScoringConfig
    from eagleeye_hf.evaluation.metrics import Metrics as Metrics
    from eagleeye_hf.evaluation.metrics import evaluate_model as evaluate_model
    from eagleeye_hf.evaluation.objective import CustomObjective as CustomObjective
    from eagleeye_hf.evaluation.score import AdaptiveBNScore as AdaptiveBNScore
    from eagleeye_hf.pruning.compensate import compensate_readers as compensate_readers
    from eagleeye_hf.pruning.config import ImportanceConfig as ImportanceConfig
    from eagleeye_hf.pruning.config import MatchConfig as MatchConfig
    from eagleeye_hf.pruning.config import RepairConfig as RepairConfig
    from eagleeye_hf.pruning.importance import choose_channels as choose_channels
    from eagleeye_hf.publishing.checkpoint import from_pretrained as from_pretrained
    from eagleeye_hf.publishing.checkpoint import save_pretrained as save_pretrained
    from eagleeye_hf.publishing.hub import push_to_hub as push_to_hub
    from eagleeye_hf.runs.adapt import adapt_model as adapt_model
    from eagleeye_hf.runs.compress import compress_model as compress_model
    from eagleeye_hf.runs.config import AdaptConfig as AdaptConfig
    from eagleeye_hf.runs.config import FinetuneRunConfig as FinetuneRunConfig
    from eagleeye_hf.runs.config import HubConfig as HubConfig
    from eagleeye_hf.runs.config import NetworkConfig as NetworkConfig
    from eagleeye_hf.runs.config import PublishConfig as PublishConfig
    from eagleeye_hf.runs.config import RunConfig as RunConfig
    from eagleeye_hf.runs.config import StudyRunConfig as StudyRunConfig
    from eagleeye_hf.runs.models import load_model as load_model
    from eagleeye_hf.runs.quickstart import QuickstartConfig as QuickstartConfig
    from eagleeye_hf.runs.quickstart import run_quickstart as run_quickstart
    from eagleeye_hf.runs.recipe import run_recipe as run_recipe
    from eagleeye_hf.runs.study import StudyResult as StudyResult
    from eagleeye_hf.runs.study import run_study as run_study
    from eagleeye_hf.runtimes.config import LatencyConfig as LatencyConfig
    from eagleeye_hf.runtimes.export import export_onnx as export_onnx
    from eagleeye_hf.runtimes.latency import measure_latency as measure_latency
    from eagleeye_hf.runtimes.quantize import quantize_onnx as quantize_onnx
    from eagleeye_hf.search.config import SearchConfig as SearchConfig
    from eagleeye_hf.search.result import SearchResult as SearchResult
    from eagleeye_hf.search.run import run_search as run_search
    from eagleeye_hf.strategies.budget import Budget as Budget
    from eagleeye_hf.strategies.sampling import sample_strategies as sample_strategies
    from eagleeye_hf.strategies.strategy import Strategy as Strategy
    from eagleeye_hf.study.config import StudyConfig as StudyConfig
    from eagleeye_hf.tracing.trace import trace_model as trace_model
    from eagleeye_hf.training.config import FinetuneConfig as FinetuneConfig
    from eagleeye_hf.training.finetune import finetune_model as finetune_model
    from eagleeye_hf.training.match import match_teacher as match_teacher

__version__ = "0.1.0"

_PLACES = {
    "channels.cost": ("Cost", "count_cost"),
    "channels.graph": ("ChannelGraph",),
    "channels.slicing": ("slice_model",),
    "data.config": ("AugmentationConfig", "DatasetConfig", "HeldOutConfig"),
    "data.pairs": ("PairSet",),
    "data.splits": ("Splits", "open_splits"),
    "errors": ("EagleEyeError",),
    "evaluation.batchnorm": ("recalibrate_bn",),
    "evaluation.config": ("ScoringConfig",),
    "evaluation.metrics": ("Metrics", "evaluate_model"),
    "evaluation.objective": ("CustomObjective",),
    "evaluation.score": ("AdaptiveBNScore",),
    "pruning.compensate": ("compensate_readers",),
    "pruning.config": ("ImportanceConfig", "MatchConfig", "RepairConfig"),
    "pruning.importance": ("choose_channels",),
    "publishing.checkpoint": ("from_pretrained", "save_pretrained"),
    "publishing.hub": ("push_to_hub",),
    "runs.adapt": ("adapt_model",),
    "runs.compress": ("compress_model",),
    "runs.config": (
        "AdaptConfig",
        "FinetuneRunConfig",
        "HubConfig",
        "NetworkConfig",
        "PublishConfig",
        "RunConfig",
        "StudyRunConfig",
    ),
    "runs.models": ("load_model",),
    "runs.quickstart": ("QuickstartConfig", "run_quickstart"),
    "runs.recipe": ("run_recipe",),
    "runs.study": ("StudyResult", "run_study"),
    "runtimes.config": ("LatencyConfig",),
    "runtimes.export": ("export_onnx",),
    "runtimes.latency": ("measure_latency",),
    "runtimes.quantize": ("quantize_onnx",),
    "search.config": ("SearchConfig",),
    "search.result": ("SearchResult",),
    "search.run": ("run_search",),
    "strategies.budget": ("Budget",),
    "strategies.sampling": ("sample_strategies",),
    "strategies.strategy": ("Strategy",),
    "study.config": ("StudyConfig",),
    "tracing.trace": ("trace_model",),
    "training.config": ("FinetuneConfig",),
    "training.finetune": ("finetune_model",),
    "training.match": ("match_teacher",),
}
"""The public names, by the module that has them."""

_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


register_with_timm()
