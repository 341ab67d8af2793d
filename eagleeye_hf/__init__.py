"""EagleEye channel pruning for timm CNNs on the Hugging Face stack."""

import eagleeye_hf.networks  # noqa: F401  registers the CIFAR networks with timm
from eagleeye_hf.channels.cost import Cost, count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.data.splits import Splits, open_splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.batchnorm import recalibrate_bn
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.pruning.importance import choose_channels
from eagleeye_hf.publishing.card import CardFacts, write_card
from eagleeye_hf.publishing.checkpoint import from_pretrained, save_pretrained
from eagleeye_hf.publishing.hub import push_to_hub
from eagleeye_hf.runs.compress import compress_model
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.runs.recipe import run_recipe
from eagleeye_hf.runtimes.export import export_onnx, export_program
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.result import SearchResult
from eagleeye_hf.search.run import run_search
from eagleeye_hf.strategies.budget import Budget
from eagleeye_hf.strategies.sampling import sample_strategies
from eagleeye_hf.strategies.strategy import Strategy, widths_from_ratios
from eagleeye_hf.tracing.trace import trace_model
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import finetune_model

__version__ = "0.1.0"
__all__ = [
    "AdaptiveBNScore",
    "Budget",
    "CardFacts",
    "ChannelGraph",
    "Cost",
    "EagleEyeError",
    "FinetuneConfig",
    "Metrics",
    "RunConfig",
    "SearchConfig",
    "SearchResult",
    "Splits",
    "Strategy",
    "choose_channels",
    "compress_model",
    "count_cost",
    "evaluate_model",
    "export_onnx",
    "export_program",
    "finetune_model",
    "from_pretrained",
    "load_model",
    "open_splits",
    "push_to_hub",
    "recalibrate_bn",
    "run_recipe",
    "run_search",
    "sample_strategies",
    "save_pretrained",
    "slice_model",
    "trace_model",
    "widths_from_ratios",
    "write_card",
]
