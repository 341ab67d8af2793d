"""Training for something else than the label of an image."""

import random

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from eagleeye_hf import (
    AdaptiveBNScore,
    CustomObjective,
    EagleEyeError,
    FinetuneConfig,
    PairSet,
    SearchConfig,
    evaluate_model,
    finetune_model,
    run_search,
    trace_model,
)
from eagleeye_hf.data.batches import Portion
from eagleeye_hf.evaluation.objective import Classification
from eagleeye_hf.training.loss import objective_loss

SIZE = (3, 32, 32)
CONFIG = FinetuneConfig(epochs=3, batch_size=16, lr=0.05)


def exact_match(outputs, targets):
    return ((outputs > 0) == (targets > 0)).all(1).float().mean()


def l1(outputs, targets):
    return -F.l1_loss(outputs, targets)


LABELS = CustomObjective(loss=F.binary_cross_entropy_with_logits, report=exact_match, reports="exact match")
NUMBERS = CustomObjective(loss=F.mse_loss, report=l1, ranks="squared error", reports="minus L1")


def draw(num: int, several: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Brightness of the two halves: as two labels, or as two numbers."""
    pairs = []
    for _ in range(num):
        levels = torch.rand(2)
        image = 0.3 * torch.randn(SIZE)
        image[:, :16] += 4 * levels[0] - 2
        image[:, 16:] += 4 * levels[1] - 2
        pairs.append((image, (levels > 0.5).float() if several else levels))
    return pairs


@pytest.mark.parametrize(("objective", "several"), [(LABELS, True), (NUMBERS, False)], ids=["labels", "regression"])
def test_from_training_to_a_thin_network(objective, several, capsys):
    torch.manual_seed(0)
    train, calibration, holdout = (PairSet(draw(num, several)) for num in (96, 32, 32))
    model = timm.create_model("resnet20_cifar", num_classes=2)
    before = objective.measure(model, holdout.cached_batches())
    model = finetune_model(model, train, CONFIG, holdout=holdout, objective=objective)
    full = objective.measure(model, holdout.cached_batches())
    assert full.reported > before.reported
    assert f"holdout {objective.reports} " in capsys.readouterr().err
    graph = trace_model(model, SIZE)
    score = AdaptiveBNScore(model, graph, calibration.cached_batches(), holdout.cached_batches(), objective=objective)
    result = run_search(score, graph, SearchConfig(macs=0.6, candidates=4, divisor=1))
    assert result.reports == objective.reports
    thin = score.build(result.best.strategy)
    tuned = finetune_model(
        thin, train, CONFIG, teacher=model, holdout=holdout, calibration=calibration, objective=objective
    )
    chance = objective.chance(model, holdout.cached_batches()[0])
    assert objective.measure(tuned, holdout.cached_batches()).loss < chance.loss


def test_measuring_is_the_mean_over_images_however_they_are_divided():
    model, pairs = timm.create_model("resnet20_cifar", num_classes=2), PairSet(draw(10, True))
    images, targets = pairs.cached_batches(10)[0]
    with torch.inference_mode():
        outputs = model.eval()(images)
    for size in (10, 4, 3):
        found = LABELS.measure(model, pairs.cached_batches(size))
        assert found.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(outputs, targets)), rel=1e-5)
        assert found.reported == pytest.approx(float(exact_match(outputs, targets)))
        assert found.num_images == 10
    assert LABELS.chance(model, (images, targets)).loss == pytest.approx(0.6931, abs=1e-3)


def test_the_same_objective_as_a_custom_one_gives_the_same():
    model = timm.create_model("resnet20_cifar").eval()
    batches = [(torch.randn(8, *SIZE), torch.randint(0, 10, (8,)))]
    custom = CustomObjective(loss=F.cross_entropy, report=lambda y, t: (y.argmax(1) == t).float().mean())
    found, expected = custom.measure(model, batches), Classification().measure(model, batches)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.reported == expected.reported == evaluate_model(model, batches).top1


def test_distillation_is_squared_error_over_the_teachers_energy():
    outputs, targets, taught = torch.randn(4, 2), torch.rand(4, 2), torch.randn(4, 2)
    config = FinetuneConfig(distillation=0.25)
    expected = 0.75 * ((outputs - targets) ** 2).mean() + 0.25 * ((outputs - taught) ** 2).sum() / (taught**2).sum()
    torch.testing.assert_close(objective_loss(outputs, targets, taught, config, NUMBERS), expected)
    torch.testing.assert_close(objective_loss(outputs, targets, None, config, NUMBERS), F.mse_loss(outputs, targets))


def test_pairs_are_each_seen_once_by_any_number_of_processes_and_augmented_alike():
    def shift(image, target):
        return image + random.random(), target + torch.rand(1)

    pairs = PairSet(draw(21, False), augment=shift, seed=3)

    def seen(processes: int) -> set[tuple[float, ...]]:
        portions = (Portion(batch_size=8, process=i, num_processes=processes) for i in range(processes))
        batches = [batch for portion in portions for batch in pairs.epoch_batches(1, portion)]
        assert sum(len(images) for images, _ in batches) == 21
        return {
            (float(i.mean()), *t.tolist()) for images, targets in batches for i, t in zip(images, targets, strict=True)
        }

    state = torch.get_rng_state()
    assert len(seen(1)) == 21
    assert seen(1) == seen(3)
    assert torch.equal(state, torch.get_rng_state())
    plain = pairs.seen_as(PairSet([], seed=3))
    assert plain.augment is None
    assert torch.equal(pairs.cached_batches(21)[0][0], torch.stack([image for image, _ in pairs.pairs]))


def test_what_is_of_labels_alone_is_refused():
    model, pairs = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), PairSet(draw(16, True))
    for settings in ({"mixup": 0.1}, {"cutmix": 1.0}, {"label_smoothing": 0.1}):
        with pytest.raises(EagleEyeError, match="`objective`: mixup, cutmix and label smoothing are of class labels"):
            finetune_model(model, pairs, FinetuneConfig(batch_size=8, **settings), objective=LABELS)
