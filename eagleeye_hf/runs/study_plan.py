"""What a study is going to do, and how long it may take."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from eagleeye_hf.data.splits import Splits
from eagleeye_hf.runs.config import StudyRunConfig
from eagleeye_hf.runs.plan import (
    OVERHEAD,
    Counts,
    Phase,
    Plan,
    Rates,
    count_and_time,
    counted,
    images_per_candidate,
    kept_part,
    make_plan,
)
from eagleeye_hf.runs.study import ANALYSING, CHOOSING, TUNING
from eagleeye_hf.training.match import match_length

SCORED, EXAMINED = 7, 16
"""Passes over the holdout images for all scores of a sub-net with two draws, and to look at it afterwards."""


def plan_study(model: nn.Module, data: Splits, config: StudyRunConfig, accelerator: Accelerator | None = None) -> Plan:
    """Count what a study will do, and time a few steps of the full network."""
    counts, rates = count_and_time(model, data, accelerator)
    phases = predict_study(config, counts, rates, accelerator.num_processes if accelerator else 1)
    title = f"study of {config.network.model} on {data.name}, into {config.output}"
    return make_plan(title, model, data, counts, phases, accelerator=accelerator)


def predict_study(config: StudyRunConfig, counts: Counts, rates: Rates, processes: int = 1) -> tuple[Phase, ...]:
    """The parts of a study and how long each may take; nothing is loaded or run."""
    search, study, tuning = config.search, config.study, config.finetune
    keep = kept_part(search)
    budgets, held_out = len(search.budgets), counts.calibration + counts.holdout
    pass_seconds = (1.0 if rates.whole else keep) * rates.forward * OVERHEAD
    searches = len(set(study.comparators) - {"global"})
    looked = study.subnets + searches * (search.candidates or 0) * images_per_candidate(search)
    steps = -(-counts.train // tuning.batch_size)
    steps = min(steps, study.max_steps or steps)
    step_seconds = rates.train * keep + (rates.forward if tuning.distillation else 0.0)
    num = budgets * (study.subnets + len(study.comparators))
    trained = tuning.epochs * steps * tuning.batch_size * max(step_seconds, rates.decode)
    match_size, match_epochs, match_steps = match_length(config.match, counts.train)
    matched = match_size * match_epochs * match_steps * (rates.train * keep + rates.forward)
    scored = (SCORED * held_out + counts.test) * pass_seconds
    each = study.subnets if study.examined is None else min(study.examined, study.subnets)
    examined = budgets * each * EXAMINED * held_out * pass_seconds
    return (
        Phase(
            name=CHOOSING,
            what=f"{counted(budgets, 'budget')}, {study.subnets} random sub-nets each, {searches} searches beside",
            seconds=budgets * looked * held_out * pass_seconds / processes,
        ),
        Phase(
            name=TUNING,
            what=f"{num} sub-nets, {counted(tuning.epochs, 'epoch')} of {steps:,} steps each",
            seconds=num * (trained + matched + scored) / processes,
        ),
        Phase(name=ANALYSING, what="statistics, weights, numbers of images", seconds=examined / processes),
    )
