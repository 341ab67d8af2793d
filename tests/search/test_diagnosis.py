import math

import pytest

from eagleeye_hf.search.diagnosis import diagnose_full_model, diagnose_scores
from eagleeye_hf.search.result import Candidate
from eagleeye_hf.strategies.strategy import Strategy

STRATEGY = Strategy(ratios=(), widths=(), macs=1, params=1, origin="random")
GOOD = {"classes": 1000, "top1": 0.7, "adaptive_top1": 0.69}


def candidate(top1: float, loss: float = 5.0, status: str = "ok") -> Candidate:
    return Candidate(index=0, strategy=STRATEGY, top1=top1, loss=loss, num_images=8, status=status)


@pytest.mark.parametrize(
    ("own", "adaptive", "words"),
    [
        (0.7, 0.69, None),
        (0.001, 0.0012, "labels have the order"),
        (0.001, 0.5, "statistics do not fit these images"),
        (0.7, 0.001, "more calibration images"),
    ],
)
def test_the_full_model_tells_what_is_wrong_with_the_data(own, adaptive, words):
    note = diagnose_full_model({"classes": 1000, "top1": own, "adaptive_top1": adaptive})
    assert note is None if words is None else words in note


def test_scores_near_chance_are_called_so():
    note = diagnose_scores([candidate(0.001, 6.9), candidate(0.0015, 6.8)], GOOD)
    assert "near the chance level of 0.1%" in note
    for remedy in ("milder budget", "`compensate`", "more calibration images"):
        assert remedy in note
    assert diagnose_scores([candidate(0.2, 4.0)], GOOD) is None
    assert diagnose_scores([candidate(0.2, math.log(1000) + 1)], GOOD)  # worse than saying nothing
    wrong = {"classes": 1000, "top1": 0.001, "adaptive_top1": 0.001}
    assert diagnose_scores([candidate(0.001, 6.9)], wrong) is None  # the cause was named already


def test_failures_are_counted():
    failed = candidate(0.0, status="RuntimeError: no memory")
    assert "2 of 3 candidates could not be scored; the first: RuntimeError" in diagnose_scores(
        [failed, failed, candidate(0.5, 1.0)], GOOD
    )
    assert diagnose_scores([failed, candidate(0.5, 1.0), candidate(0.5, 1.0)], GOOD) is None


def test_two_classes_have_a_limit_below_one():
    assert diagnose_full_model({"classes": 2, "top1": 0.95, "adaptive_top1": 0.94}) is None
    assert diagnose_full_model({"classes": 2, "top1": 0.5, "adaptive_top1": 0.5})
