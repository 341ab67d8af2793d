"""What a job says before it starts, and while it goes on."""

from dataclasses import replace

import pytest

from eagleeye_hf import (
    DatasetConfig,
    FinetuneConfig,
    ImportanceConfig,
    MatchConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
)
from eagleeye_hf.runs import plan
from eagleeye_hf.runs.plan import Clock, Counts, Phase, Plan, Rates, predict_phases
from eagleeye_hf.search.stages import STEP, STEPS
from eagleeye_hf.telling import LOGGER

CONFIG = RunConfig(
    network=NetworkConfig(model="resnet50"),
    data=DatasetConfig(num_workers=4),
    match=MatchConfig(match_steps=10, match_batch_size=50),
    search=SearchConfig(macs=0.5, candidates=100, stages=(1.0,)),
    finetune=FinetuneConfig(epochs=10, batch_size=100, distillation=0.0),
)
COUNTS = Counts(train=1000, calibration=50, holdout=50, test=200)
RATES = Rates(forward=0.01, train=0.03, decode=0.02)


def seconds(config=CONFIG, rates=RATES, processes=1) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in predict_phases(config, COUNTS, rates, processes)}


def test_times_follow_from_what_is_done():
    """Half the MACs in training and scoring; the full network and the result on the test images."""
    few, more = STEPS
    ranking = plan.RANKED * 50 * 0.01
    expected = {
        "search": (100 + 24 * (1 + few * STEP) + 8 * (1 + more * STEP)) * 100 * 0.005 * plan.OVERHEAD + ranking,
        "matching": 10 * 50 * (0.015 + 0.01) + 50 * 0.01,
        "fine-tuning": 10 * (1000 * 0.015 + 50 * 0.01),
        "measuring": 2 * 200 * (0.01 + 0.02 / 4) + 5,
    }
    assert seconds() == pytest.approx(expected)
    by_size = replace(CONFIG, importance=ImportanceConfig(criterion="l1"))
    assert seconds(by_size)["search"] == pytest.approx(expected["search"] - ranking)
    assert seconds(processes=8)["fine-tuning"] == pytest.approx(expected["fine-tuning"] / 8)
    launched = plan.ONCE[True] + 100 * plan.EACH[True] + (24 * few + 8 * more) * plan.EACH_STEP[True]
    work = (100 + 24 * (1 + few * STEP) + 8 * (1 + more * STEP)) * 100 * 0.01 * plan.OVERHEAD
    assert seconds(rates=replace(RATES, whole=True))["search"] == pytest.approx(work + launched), "on a GPU"
    slow = seconds(rates=replace(RATES, decode=0.4))
    assert slow["fine-tuning"] == pytest.approx(10 * (1000 * 0.1 + 50 * 0.01)), "decoding bounds training, or overlaps"


@pytest.mark.parametrize(
    ("passed", "line"),
    [
        (10, "2 of 3: fine-tuning; about 30 s for all that is left"),
        (25, "2 of 3: fine-tuning; about 75 s for all that is left"),  # the search took 2.5 times as long as predicted
        (1, "2 of 3: fine-tuning; about 30 s for all that is left"),  # a search that was done before
    ],
)
def test_each_phase_tells_what_is_left(monkeypatch, passed, line):
    now, lines = [100.0], []
    monkeypatch.setattr(plan.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(LOGGER, "info", lambda form, text: lines.append(text))
    phases = [
        Phase(name=name, what="", seconds=s) for name, s in (("search", 10), ("fine-tuning", 25), ("measuring", 5))
    ]
    clock = Clock(Plan(title="", images="", phases=tuple(phases), notes=(), place="", gigabytes=0.0))
    clock("search")
    now[0] += passed
    clock("fine-tuning")
    assert lines == ["1 of 3: search; about 40 s for all that is left", line]
