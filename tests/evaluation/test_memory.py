"""Memory of scoring is bounded, and told; what a candidate costs besides its images sizes the stages."""

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eagleeye_hf import AdaptiveBNScore, EagleEyeError, ScoringConfig, SearchConfig, Strategy, run_search, trace_model
from eagleeye_hf.evaluation import pace as module
from eagleeye_hf.evaluation.memory import activation_bytes, affordable_threads, scoring_batch
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.evaluation.preparation import Pace, Preparation
from eagleeye_hf.search.scorer import FunctionScorer
from eagleeye_hf.search.stages import count_finalists, list_stages, size_stages
from tests.helpers import make_model


class Sizes(TorchDispatchMode):
    """The largest map that any operator gives for one image."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 4 and len(tensor) == 1:
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize(("name", "size", "batch"), [("mobilenetv1_100", 224, 32), ("resnet20_cifar", 32, 128)])
def test_batches_are_small_where_activations_are_large(name, size, batch):
    model = make_model(name)
    with Sizes() as seen, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert activation_bytes(model, (3, size, size)) == 3 * 4 * seen.largest
    assert scoring_batch(model, (3, size, size)) == batch
    assert scoring_batch(model.to("meta"), (3, size, size)) == 128  # not on a CPU


def test_threads_are_limited_by_the_flag_and_by_memory(monkeypatch, capsys):
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))) for _ in range(4)]

    def score(threads):
        return AdaptiveBNScore(model, graph, batches[:2], batches[2:], threads=threads)

    assert [score(threads).workers for threads in (1, 3)] == [1, 3]
    each = score(3).thread_bytes
    assert each == 8 * 3 * 4 * 16 * 32 * 32 + 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    memory = psutil.virtual_memory()._replace(available=4 * each)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert score(3).workers == 2  # half of it
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert affordable_threads(each) == score(3).workers == 1
    score(3).prepare([Strategy(graph.widths)])
    assert "scoring 1 at a time, about 0.00 GB each beside 0.00 GB of images, per process" in capsys.readouterr().err
    with pytest.raises(EagleEyeError, match="scoring_threads"):
        ScoringConfig(scoring_threads=0)


def test_pace_is_what_a_candidate_and_its_images_take(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def score(strategy, fraction):
        images = max(16, round(160 * fraction))
        clock[0] += 3.0 + 0.01 * images
        return Score(loss=0, reported=0, num_images=images)

    found = module.measure_pace(score, Strategy((1,)))
    assert (found.candidate, found.images) == (pytest.approx(3.0), pytest.approx(1.6))


def test_a_fast_device_sees_more_images():
    stages = (0.0625, 0.25, 1.0)
    assert size_stages(stages, None) == stages
    assert size_stages(stages, Pace(candidate=0.06, images=1.0)) == stages
    assert size_stages(stages, Pace(candidate=0.2, images=1.0)) == pytest.approx((0.25, 0.5, 1.0))
    assert size_stages(stages, Pace(candidate=0.6, images=1.0)) == (1.0,)
    assert size_stages((1.0,), Pace(candidate=1.0, images=1.0)) == (1.0,)
    plain, one, matched = list_stages(stages, False), list_stages((1.0,), True), list_stages(stages, True)
    for found in (plain, one, matched):
        assert [count_finalists(num, 0.1, found) for num in (20, 800, 801, 1000)] == [8, 8, 16, 16]


def test_stages_are_kept_in_the_journal(tmp_path):
    graph, fractions = trace_model(make_model("resnet20_cifar")), []

    class Fast(FunctionScorer):
        each = 0.2

        def prepare(self, examples, draws=None):
            return Preparation(pace=Pace(candidate=self.each, images=1.0))

    def score(strategy, fraction):
        fractions.append(fraction)
        return Score(loss=float(sum(strategy.widths)), reported=0.5, num_images=1)

    scorer = Fast(score)
    run_search(scorer, graph, SearchConfig(candidates=20), output=tmp_path)
    assert set(fractions) == {0.25, 0.5, 1.0}
    num, scorer.each = len(fractions), 0.0  # measured otherwise by now
    run_search(scorer, graph, SearchConfig(candidates=20), output=tmp_path)
    assert len(fractions) == num
