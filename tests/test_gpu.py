"""A GPU computes what the CPU does; `make test` skips these where there is none."""

import copy
import json

import numpy as np
import pytest
import timm
import torch

from eagleeye_hf import (
    AdaptiveBNScore,
    Budget,
    SearchConfig,
    from_pretrained,
    recalibrate_bn,
    run_search,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.evaluation.format import Format, rank_correlation
from eagleeye_hf.evaluation.objective import Agreement
from eagleeye_hf.evaluation.prepare import record_passes
from tests.helpers import digits_dataset, make_model, random_keep, run_command

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(scope="module")
def example():
    model = make_model("resnet20_cifar")
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(64, 3, 32, 32, generator=generator), torch.randint(0, 10, (64,), generator=generator))
        for _ in range(8)
    ]
    return model, trace_model(model), batches[:4], batches[4:]


@pytest.fixture(autouse=True)
def exact_products():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def test_sliced_networks_compute_the_same(example):
    model, graph, batches, _ = example
    keep, images = random_keep(graph, 0), batches[0][0]
    expected = slice_model(model, graph, keep)(images)
    on_gpu = copy.deepcopy(model).cuda()
    torch.testing.assert_close(slice_model(on_gpu, graph, keep)(images.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_statistics_are_the_same(example):
    model, _, batches, _ = example
    here = recalibrate_bn(copy.deepcopy(model), batches)
    there = recalibrate_bn(copy.deepcopy(model).cuda(), batches).cpu()
    for (name, expected), found in zip(here.named_buffers(), there.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("compensate", "tolerance"),
    [(False, 2e-3), (True, 2e-2)],  # least squares on sums of float32 that are added in another order
)
def test_scores_are_the_same(example, compensate, tolerance):
    model, graph, calibration, holdout = example
    strategies = sample_strategies(graph, Budget(macs=0.5), 6)
    losses = {}
    for device in ("cpu", "cuda"):
        placed = copy.deepcopy(model).to(device)
        score = AdaptiveBNScore(placed, graph, calibration, holdout, format=Format(), compensate=compensate)
        losses[device] = [score(strategy).loss for strategy in strategies]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)
    assert rank_correlation(losses["cuda"], losses["cpu"]) > 0.9


@pytest.mark.parametrize(
    "options", [{}, {"compensate": True}, {"momentum": 0.9}], ids=["exact", "compensated", "paper"]
)
@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "mobilenetv3_small_050", "regnety_002", "levit_128s", "densenet121"]
)
def test_recorded_passes_score_as_thin_networks_do(name, options):
    torch.manual_seed(0)  # fresh weights: with random scales and biases losses grow, and rounding with them
    model = timm.create_model(name, num_classes=10).eval().cuda()
    size = model.pretrained_cfg["input_size"][-1] if "cifar" in name or "levit" in name else 64
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 3, size, size, generator=generator), torch.randint(0, 10, (8,), generator=generator))
        for _ in range(5)
    ]
    batches[-1] = tuple(part[:5] for part in batches[-1])  # another shape, in the middle of a candidate
    graph = trace_model(copy.deepcopy(model).cpu(), (3, size, size))
    score = AdaptiveBNScore(model, graph, [*batches[3:], batches[0]], batches[1:3], format=Format(), **options)
    strategies = sample_strategies(graph, Budget(macs=0.6), 4, divisor=1)
    expected = [score(strategy).loss for strategy in strategies]
    assert record_passes(score, strategies)
    assert score.network is not None
    assert all(played.recorded is not None for played in score.network.passes.values())
    for _ in range(2):
        assert [score(strategy).loss for strategy in strategies] == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenetv3_small_050"])
def test_matching_in_the_full_networks_shapes_scores_as_thin_networks_do(name):
    model = make_model(name, num_classes=10).cuda()
    size = 32 if "cifar" in name else 64
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = [torch.randn(32, 3, size, size, generator=generator) for _ in range(4)]
        batches = [(part, model(part.cuda()).cpu()) for part in images]
    graph = trace_model(copy.deepcopy(model).cpu(), (3, size, size))
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format(), objective=Agreement())
    strategies = sample_strategies(graph, Budget(macs=0.6), 3, divisor=1)
    plain, expected = ([score(strategy, matched=steps).loss for strategy in strategies] for steps in (0, 8))
    assert sum(expected) < sum(plain)
    assert record_passes(score, strategies)
    for _ in range(2):
        assert [score(strategy, matched=8).loss for strategy in strategies] == pytest.approx(expected, rel=2e-2)
        assert [score(strategy).loss for strategy in strategies] == pytest.approx(plain, rel=5e-3)


def test_a_search_ranks_in_bfloat16_as_in_float32(example, tmp_path):
    model, graph, calibration, holdout = example
    score = AdaptiveBNScore(copy.deepcopy(model).cuda(), graph, calibration, holdout)
    result = run_search(score, graph, SearchConfig(macs=0.5, candidates=24, stages=(1.0,)), output=tmp_path / "search")
    exact = AdaptiveBNScore(model, graph, calibration, holdout, format=Format())
    whole = [c for c in result.candidates if c.score is not None and c.score.num_images == 256]
    assert len(whole) == 24
    found = np.array([c.score.loss for c in whole])
    expected = np.array([exact(c.strategy).loss for c in whole])
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_the_whole_job(tmp_path, capsys):
    for split, rows in digits_dataset(400).items():
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    model = make_model("resnet20_cifar")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    command = ["compress", "resnet20_cifar", "--weights", str(tmp_path / "weights.pt"), "--num-workers", "2"]
    command += ["--dataset", str(tmp_path / "data"), "--macs", "0.5", "--candidates", "8", "--runtime", "torch"]
    command += ["--epochs", "1", "--match-steps", "3", "--license", "mit", "--output", str(tmp_path / "run"), "--json"]
    code, out, err = run_command(capsys, *command)
    assert code == 0, err
    assert list(json.loads(out)["metrics"]) == ["full", "fine-tuned"]
    assert torch.cuda.get_device_name() in (tmp_path / "run" / "README.md").read_text()
    images = torch.randn(4, 3, 32, 32)
    thin = from_pretrained(tmp_path / "run")
    torch.testing.assert_close(thin.cuda()(images.cuda()).cpu(), thin.cpu()(images), rtol=1e-3, atol=1e-3)
