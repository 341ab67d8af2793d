"""A study from its settings to its report: can recomputed BatchNorm statistics tell which sub-net fine-tunes best?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.configs import flat_dict
from eagleeye_hf.data.columns import find_classes
from eagleeye_hf.data.source import open_source
from eagleeye_hf.data.splits import Splits, open_splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.processes import main_process_works, make_in_main
from eagleeye_hf.reports.study_page import write_study
from eagleeye_hf.runs.adapt import NEW, adapt_head
from eagleeye_hf.runs.arguments import RUN_FILE, settings_text
from eagleeye_hf.runs.config import StudyRunConfig, check_held_out, image_identity, split_arguments
from eagleeye_hf.runs.folder import RunFolder, open_run
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.runs.scoring import make_score
from eagleeye_hf.runtimes.runtime import find_runtime
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.study.config import EXTENSIBLE
from eagleeye_hf.study.details import Details, examine
from eagleeye_hf.study.dividing import divide_work
from eagleeye_hf.study.facts import make_facts
from eagleeye_hf.study.journal import Finished, StudyJournal, check_candidates
from eagleeye_hf.study.material import Material, divide_draws, make_material
from eagleeye_hf.study.pool import POOL, Chosen, choose_subnets
from eagleeye_hf.study.tuning import Tuner, Tuning, weights_path
from eagleeye_hf.telling import say
from eagleeye_hf.tracing.trace import trace_model

JOURNAL, DETAILS, REPORT = "study.jsonl", "details.jsonl", "report"
CHOOSING, TUNING, ANALYSING = "choosing", "fine-tuning", "analysing"
"""The phases of a study."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    folder: Path
    """Of the report, tables and figures."""
    findings: tuple[str, ...]
    """In sentences; in the main process."""


def open_study(config: StudyRunConfig) -> tuple[nn.Module, Splits]:
    """Load the network and open the dataset; where its classes are among the network's, those outputs are kept.

    Raises:
        EagleEyeError: something is missing or does not fit.
    """
    network, told = config.network, config.data
    model = load_model(network.model, network.weights, network.inputs)
    source = open_source(told.dataset, told.dataset_config, told.dataset_revision, told.streaming)
    columns = {"image_column": told.image_column, "label_column": told.label_column}
    model, head = adapt_head(model, find_classes(source, **columns, label_names=told.label_names))
    if head == NEW:
        raise EagleEyeError(
            f"`model={network.model}` has other classes than `dataset={source.name}`, so its head has to be trained "
            "first: `eagleeye compress` does that, and keeps the network in its folder as `full`; give that as MODEL"
        )
    arguments = split_arguments(told, config.held_out, config.augmentation, config.seed)
    return model, open_splits(like=model, **arguments | {"dataset": source})


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
    if "size" in config.search.dimensions:
        raise EagleEyeError("`dimensions`: a study changes widths and blocks; leave `size` out")
    if not data.labelled:
        raise EagleEyeError(f"`dataset={data.name}` has no labels; a study needs them to fine-tune and to measure")
    accelerator = Accelerator()
    run = open_run(config.output, "study", finished=True)
    if accelerator.is_main_process:
        run.write(RUN_FILE, settings_text(config))
        run.claim(JOURNAL, DETAILS, POOL, *config.study.comparators, "training", "weights")
    model = model.to(accelerator.device).eval()
    graph = trace_model(model)
    draws = divide_draws(data.calibration.cached_batches(), config.study.draws)
    score = make_score(model, graph, data, config, accelerator, calibration=draws[0])
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
    tuner = Tuner(material, data, _tuning(config, run.path))
    settings = _settings(config, score, data)

    def look(candidate: Candidate) -> Details:
        return examine(material, candidate, weights_path(run.path, candidate.index))

    main = accelerator.is_main_process
    journal = StudyJournal(run.path / JOURNAL, settings, Finished.from_dict) if main else None
    make_in_main(accelerator, lambda: check_candidates(journal.lines if journal else {}, chosen.subnets))
    lines = divide_work(chosen.subnets, tuner, journal, accelerator, "sub-nets scored and fine-tuned")
    on_phase(ANALYSING)
    notebook = StudyJournal(run.path / DETAILS, settings, Details.from_dict) if main else None
    each = config.study.subnets if config.study.examined is None else config.study.examined
    examined = chosen.pool.candidates[: len(config.search.budgets) * each]
    details = divide_work(examined, look, notebook, accelerator, "sub-nets examined")
    findings: list[str] = []
    with main_process_works():
        if main:
            findings = _report(run, material, data, settings, chosen, lines, details, tuner)
    return StudyResult(folder=run.path / REPORT, findings=tuple(findings))


def _tuning(config: StudyRunConfig, folder: Path) -> Tuning:
    network = {"model": config.network.model, "weights": config.network.weights}
    images = image_identity(config.data, config.held_out, config.augmentation, config.seed)
    return Tuning(
        finetune=config.finetune,
        match=config.match,
        max_steps=config.study.max_steps,
        seed=config.seed,
        num_workers=config.data.num_workers,
        folder=folder,
        identity=images | network | {"max_steps": config.study.max_steps},
    )


def _settings(config: StudyRunConfig, score: AdaptiveBNScore, data: Splits) -> dict[str, Any]:
    """What a reader of the journal needs to know, and what must be the same where a study goes on."""
    graph = score.graph
    steps = -(-data.train.count() // config.finetune.batch_size)
    told: dict[str, Any] = {
        "model": config.network.model,
        "dataset": data.name,
        "budgets": list(map(str, config.search.budgets)),
        "full": count_cost(graph, graph.widths)._asdict(),
        "train_images": data.train.count(),
        "test_images": data.test.count(),
        "steps": min(steps, config.study.max_steps or steps),
        "seed": config.seed,
        "compensated": score.compensate,
    }
    study = {name: value for name, value in flat_dict(config.study).items() if name not in EXTENSIBLE}
    return told | flat_dict(config.finetune) | flat_dict(config.match) | study | score.fingerprint()


def _report(
    run: RunFolder,
    material: Material,
    data: Splits,
    settings: Mapping[str, Any],
    chosen: Chosen,
    lines: Mapping[int, Finished],
    details: Mapping[int, Details],
    tuner: Tuner,
) -> list[str]:
    """Write tables, figures, report and page; what was found, in sentences."""
    told: dict[str, Any] = {"scored_in": str(material.format), "holdout_images": data.holdout.count()}
    told |= {"calibration_each": sum(map(len, material.draws[0]))}
    facts = make_facts(dict(settings) | told, chosen, lines, details, tuner.measure_test(material.build_full()))
    folder = run.path / REPORT
    run.claim(REPORT)
    folder.mkdir(exist_ok=True)
    pictures: dict[str, Path] = {}
    try:
        from eagleeye_hf.reports.study_plots import draw_study

        pictures = draw_study(facts, folder)
    except ImportError:
        say("there are no figures, for they need matplotlib: pip install eagleeye-hf[plots]")
    write_study(facts, pictures, folder)
    run.note(finished=True)
    return [f"{budget}: {line}" for budget, found in facts["findings"].items() for line in found]
