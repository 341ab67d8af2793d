"""A study from its settings to its report: can recomputed BatchNorm statistics tell which sub-net fine-tunes best?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.configs import check_fields, flat_dict
from eagleeye_hf.data.config import AugmentationConfig, DatasetConfig, HeldOutConfig
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.config import ScoringConfig
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.processes import main_process_works
from eagleeye_hf.pruning.config import ImportanceConfig, MatchConfig
from eagleeye_hf.runs.arguments import RUN_FILE, settings_text
from eagleeye_hf.runs.config import NetworkConfig, Seed, check_held_out, image_identity
from eagleeye_hf.runs.folder import RunFolder, open_run
from eagleeye_hf.runs.scoring import make_score
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.runtime import find_runtime
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.study.config import StudyConfig
from eagleeye_hf.study.journal import StudyJournal
from eagleeye_hf.study.material import Material, divide_draws, make_material
from eagleeye_hf.study.pool import POOL, Chosen, choose_subnets
from eagleeye_hf.study.tuning import Tuner, Tuning, tune_subnets
from eagleeye_hf.tracing.trace import trace_model
from eagleeye_hf.training.config import FinetuneConfig, SizedFinetuneConfig

JOURNAL = "study.jsonl"
CHOOSING, TUNING, ANALYSING = "choosing", "fine-tuning", "analysing"
"""The phases of a study."""


@dataclass(frozen=True, kw_only=True)
class StudyRunConfig:
    """Everything a study is told."""

    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    study: StudyConfig = StudyConfig()
    search: SearchConfig = SearchConfig()
    scoring: ScoringConfig = ScoringConfig()
    importance: ImportanceConfig = ImportanceConfig()
    match: MatchConfig = MatchConfig(match_steps=20)
    measuring: LatencyConfig = LatencyConfig()
    finetune: SizedFinetuneConfig = SizedFinetuneConfig(epochs=3)
    seed: Seed = 0
    """Of everything random."""
    output: str = "outputs/study"
    """Folder for the journal, the fine-tuned weights, tables, figures and REPORT.md."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.finetune.epochs == 0:
            raise EagleEyeError("`epochs=0`: a study compares scores with accuracy after fine-tuning; give at least 1")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    folder: Path


def run_study(
    model: nn.Module, data: Splits, config: StudyRunConfig, *, on_phase: Callable[[str], None] | None = None
) -> StudyResult:
    """Score random sub-nets in every way, fine-tune them all, and report how well each score foretold the outcome.

    Sub-nets are divided among the processes of accelerate, each one trained by one of them. A study that was killed
    goes on when started again with the same config. Fine-tuned sub-nets are those of the last epoch; the test images
    choose nothing.

    Args:
        on_phase: told the name of each phase as it begins.
    Raises:
        EagleEyeError: the folder is taken, the images have no labels, a budget is out of reach, or a training fails.
    """
    on_phase = on_phase or (lambda _: None)
    check_held_out(config.held_out)
    find_runtime(config.measuring)
    if not data.labelled:
        raise EagleEyeError(f"`dataset={data.name}` has no labels; a study needs them to fine-tune and to measure")
    accelerator = Accelerator()
    run = open_run(config.output, "study", finished=True)
    if accelerator.is_main_process:
        run.write(RUN_FILE, settings_text(config))
        run.claim(JOURNAL, POOL, *config.study.comparators, "training", "weights")
    model = model.to(accelerator.device).eval()
    graph = trace_model(model)
    draws = divide_draws(data.calibration.cached_batches(), config.study.draws)
    score = make_score(model, graph, data, config, calibration=draws[0])
    on_phase(CHOOSING)
    chosen = choose_subnets(
        score,
        config.search,
        config.study.subnets,
        config.study.comparators,
        seed=config.seed,
        output=run.path,
        accelerator=accelerator,
    )
    material = make_material(score, draws)
    on_phase(TUNING)
    finetune = config.finetune.settle(data.train.count())
    tuner = Tuner(material, data, _tuning(config, finetune, run.path))
    journal = None
    if accelerator.is_main_process:
        journal = StudyJournal(run.path / JOURNAL, _settings(config, finetune, score, data, material))
    lines = tune_subnets(chosen.subnets, tuner, journal, accelerator)
    on_phase(ANALYSING)
    with main_process_works():
        if accelerator.is_main_process:
            _report(run, config, chosen, material, lines)
    return StudyResult(folder=run.path)


def _tuning(config: StudyRunConfig, finetune: FinetuneConfig, folder: Path) -> Tuning:
    network = {"model": config.network.model, "weights": config.network.weights}
    images = image_identity(config.data, config.held_out, config.augmentation, config.seed)
    return Tuning(
        finetune=finetune,
        match=config.match,
        max_steps=config.study.max_steps,
        seed=config.seed,
        num_workers=config.data.num_workers,
        folder=folder,
        identity=images | network | {"max_steps": config.study.max_steps},
    )


def _settings(
    config: StudyRunConfig, finetune: FinetuneConfig, score: AdaptiveBNScore, data: Splits, material: Material
) -> dict[str, object]:
    """What a reader of the journal needs to know, and what must be the same where a study goes on."""
    graph = score.graph
    steps = -(-data.train.count() // finetune.batch_size)
    told: dict[str, object] = {
        "model": config.network.model,
        "dataset": data.name,
        "budgets": list(map(str, config.search.budgets)),
        "full": count_cost(graph, graph.widths)._asdict(),
        "train_images": data.train.count(),
        "test_images": data.test.count(),
        "steps": min(steps, config.study.max_steps or steps),
        "seed": config.seed,
        "format": str(material.format),
        "compensated": score.compensate,
    }
    return told | flat_dict(finetune) | flat_dict(config.match) | flat_dict(config.study) | score.fingerprint()


def _report(run: RunFolder, config: StudyRunConfig, chosen: Chosen, material: Material, lines: list) -> None:
    print(json.dumps([line.to_dict()["tuned"] for line in lines]))
