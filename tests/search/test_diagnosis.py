import math

import numpy as np
import pytest
import timm

from eagleeye_hf import Cost, SearchConfig, Strategy, count_cost, run_search, trace_model
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.evaluation.preparation import FullScores, Preparation
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.diagnosis import diagnose_full_model, diagnose_scores
from eagleeye_hf.search.scorer import FunctionScorer


def full(classes: int, unchanged: float, adaptive: float) -> FullScores:
    chance = Score(loss=math.log(classes), reported=1 / classes, num_images=0)
    scores = [Score(loss=1.0, reported=top1, num_images=8) for top1 in (unchanged, adaptive)]
    return FullScores(unchanged=scores[0], adaptive=scores[1], chance=chance)


GOOD = full(1000, 0.7, 0.69)


def candidate(top1: float, loss: float = 5.0, status: str = "ok", num_images: int = 8) -> Candidate:
    score = Score(loss=loss, reported=top1, num_images=num_images) if status == "ok" else None
    return Candidate(index=0, strategy=Strategy(()), origin="random", cost=Cost(1, 1), score=score, status=status)


@pytest.mark.parametrize(
    ("unchanged", "adaptive", "words"),
    [
        (0.7, 0.69, None),
        (0.001, 0.0012, "labels have the order"),
        (0.001, 0.5, "statistics do not fit these images"),
        (0.7, 0.001, "more calibration images"),
    ],
)
def test_the_full_model_tells_what_is_wrong_with_the_data(unchanged, adaptive, words):
    note = diagnose_full_model(full(1000, unchanged, adaptive))
    assert note is None if words is None else words in note


@pytest.mark.parametrize(
    ("unchanged", "adaptive", "num_images", "told"),
    [
        (0.744, 0.443, 512, True),  # EfficientNet-Lite0, a thousand classes, photographs of ten
        (0.973, 0.871, 256, True),
        (0.90, 0.87, 2048, False),
        (0.70, 0.60, 64, False),  # luck
    ],
)
def test_calibration_images_that_mislead_are_noticed(unchanged, adaptive, num_images, told):
    scores = [Score(loss=1.0, reported=top1, num_images=num_images) for top1 in (unchanged, adaptive)]
    found = FullScores(unchanged=scores[0], adaptive=scores[1], chance=GOOD.chance)
    note = diagnose_full_model(found)
    assert bool(note) == told
    if note:
        assert f"costs the full model {100 * (unchanged - adaptive):.1f} points" in note
        assert "`--adapt-epochs`" in note
    assert diagnose_scores([candidate(0.001, 6.9, num_images=num_images)], found), "which is another matter"


def test_scores_near_chance_are_called_so():
    note = diagnose_scores([candidate(0.001, 6.9), candidate(0.0015, 6.8)], GOOD)
    assert "near the chance level of 0.1%" in note
    for remedy in ("milder budget", "compensated scores", "more calibration images"):
        assert remedy in note
    assert diagnose_scores([candidate(0.2, 4.0)], GOOD) is None
    assert diagnose_scores([candidate(0.2, math.log(1000) + 1)], GOOD)  # worse than saying nothing
    wrong = full(1000, 0.001, 0.001)
    assert diagnose_scores([candidate(0.001, 6.9)], wrong) is None  # the cause was named already


def test_luck_on_few_images_does_not_hide_that_the_leader_guesses():
    """ImageNet: 200 guessers on 8 images each, some of them right once; the leader is at 0.15% of 2,048."""
    random = np.random.default_rng(0)
    guesses = [candidate(hits / 8, 6.8) for hits in random.binomial(8, 0.001, 200)]
    assert max(guess.score.reported for guess in guesses) == 1 / 8
    leader = candidate(0.0015, 6.85, num_images=2048)
    note = diagnose_scores([*guesses, leader], GOOD)
    assert note.startswith("the best candidate scores 0.15% on 2,048 images (loss 6.85), near the chance level of 0.1%")
    assert diagnose_scores([*guesses, candidate(0.01, 6.5, num_images=2048)], GOOD) is None
    assert diagnose_scores([candidate(0.0021, 6.8, num_images=2048)], GOOD)  # twice chance is luck on these, 1.3 errors
    assert diagnose_scores([candidate(0.0021, 6.8, num_images=50_000)], GOOD) is None


@pytest.mark.parametrize(("classes", "num_images"), [(1000, 8), (1000, 2048), (10, 64), (10, 1000), (2, 512)])
def test_guesses_are_hardly_ever_taken_for_knowledge(classes, num_images):
    random = np.random.default_rng(0)
    tops = random.binomial(num_images, 1 / classes, 1000) / num_images
    silent = [
        diagnose_scores([candidate(top1, 0.1, num_images=num_images)], full(classes, 0.99, 0.99)) for top1 in tops
    ]
    assert silent.count(None) <= 10


def test_failures_are_counted():
    failed = candidate(0.0, status="RuntimeError: no memory")
    assert "2 of 3 candidates could not be scored; the first: RuntimeError" in diagnose_scores(
        [failed, failed, candidate(0.5, 1.0)], GOOD
    )
    assert diagnose_scores([failed, candidate(0.5, 1.0), candidate(0.5, 1.0)], GOOD) is None


def test_two_classes_have_a_limit_below_one():
    assert diagnose_full_model(full(2, 0.95, 0.94)) is None
    assert diagnose_full_model(full(2, 0.5, 0.5))


def test_each_budget_is_judged_by_its_own_leader():
    class Steep(FunctionScorer):
        def prepare(self, examples, latency=False):
            return Preparation(full=full(10, 0.9, 0.9))

    graph = trace_model(timm.create_model("resnet20_cifar"))
    full_macs = count_cost(graph, graph.widths).macs

    def score(strategy, fraction):
        knows = count_cost(graph, strategy).macs > 0.5 * full_macs
        return Score(loss=1.0 if knows else 2.3, reported=0.8 if knows else 0.1, num_images=1000)

    config = SearchConfig(macs=[0.7, 0.3], candidates=4, method="random", stages=(1.0,))
    (note,) = run_search(Steep(score), graph, config).notes
    assert note.startswith("macs=0.3: the best candidate scores 10.00% on 1,000 images")
