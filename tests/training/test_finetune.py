import copy
from dataclasses import replace

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, set_seed

from eagleeye_hf import EagleEyeError, FinetuneConfig, evaluate_model, finetune_model, open_splits, recalibrate_bn
from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.training import loop, selection
from eagleeye_hf.training.loss import distillation_loss, mix, training_loss
from tests.helpers import digits_dataset


@pytest.fixture(scope="module")
def data():
    model = timm.create_model("resnet20_cifar")
    return open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20, hflip=False)


CONFIG = FinetuneConfig(epochs=3, batch_size=20, lr=0.05)


def new_model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", **kwargs)


def equal(first, second) -> bool:
    return all(torch.equal(tensor, second.state_dict()[key]) for key, tensor in first.state_dict().items())


def test_training_learns(data):
    before = evaluate_model(new_model(), data.test.batches()).top1
    model = new_model()
    trained = finetune_model(model, data.train, replace(CONFIG, epochs=10, warmup=0))
    assert evaluate_model(trained, data.test.batches()).top1 > before + 0.3
    assert not trained.training
    assert equal(model, new_model())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "accumulation": 2, "optimizer": "adamw", "lr": 1e-3},
        {"schedule": "step", "decay_epochs": 1, "label_smoothing": 0.1, "channels_last": False, "optimizer": "lamb"},
    ],
    ids=["plain", "everything", "steps"],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(data, tmp_path, monkeypatch, options):
    """Killed inside an epoch, between two checkpoints, with dropout and mixing in the play."""
    config = replace(CONFIG, save_steps=3, **options)

    def run(name: str) -> tuple[torch.nn.Module, list]:
        curve: list = []
        set_seed(1)
        model = finetune_model(
            new_model(drop_rate=0.2),
            data.train,
            config,
            teacher=new_model(),
            holdout=data.holdout,
            calibration=data.calibration,
            checkpoint=tmp_path / name,
            on_epoch=curve.append,
        )
        return model, [replace(record, images_per_second=0) for record in curve]

    whole, curve = run("a")
    train_on = loop.Training._train_on

    def dies(self, *args):
        if (self.epoch, self.step) == (1, 5):
            raise KeyboardInterrupt
        train_on(self, *args)

    monkeypatch.setattr(loop.Training, "_train_on", dies)
    with pytest.raises(KeyboardInterrupt):
        run("b")
    monkeypatch.undo()
    set_seed(99)
    resumed, again = run("b")
    assert equal(resumed, whole)
    assert again == curve
    assert [record.epoch for record in curve] == [1, 2, 3]
    assert {record.images for record in curve} == {160}
    assert len(list((tmp_path / "b").glob("step-*"))) == 2


def test_other_settings_do_not_go_on(data, tmp_path):
    finetune_model(new_model(), data.train, replace(CONFIG, epochs=1), checkpoint=tmp_path / "a")
    with pytest.raises(EagleEyeError, match=r"holds training with other settings \(lr 0.05\)"):
        finetune_model(new_model(), data.train, replace(CONFIG, epochs=1, lr=0.1), checkpoint=tmp_path / "a")


def test_another_network_or_other_images_do_not_go_on(data, tmp_path):
    config = replace(CONFIG, epochs=1)
    finetune_model(new_model(), data.train, config, checkpoint=tmp_path, identity={"model": "first", "seed": 0})
    with pytest.raises(EagleEyeError, match=r"other settings \(model first\)"):
        finetune_model(new_model(), data.train, config, checkpoint=tmp_path, identity={"model": "second", "seed": 0})


def test_a_teacher_that_sees_or_says_something_else_is_refused(data):
    other = new_model(num_classes=7)
    with pytest.raises(EagleEyeError, match="`teacher` has `num_classes=7`, but `model` has 10"):
        finetune_model(new_model(), data.train, CONFIG, teacher=other)
    other = new_model(pretrained_cfg_overlay={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(EagleEyeError, match=r"`teacher` has `mean=\(0.5, 0.5, 0.5\)`, but `model` has \(0"):
        finetune_model(new_model(), data.train, CONFIG, teacher=other)


def test_the_schedule_is_the_papers(data, monkeypatch):
    """Linear warm-up, then a cosine to zero, at every step."""
    rates = []
    train_on = loop.Training._train_on
    monkeypatch.setattr(
        loop.Training,
        "_train_on",
        lambda self, *args: (train_on(self, *args), rates.append(self.optimizer.param_groups[0]["lr"])),
    )
    finetune_model(new_model(), data.train, replace(CONFIG, epochs=5, warmup=0.1))
    steps = torch.arange(40)
    expected = 0.05 * 0.5 * (1 + torch.cos(torch.pi * steps / 40))
    torch.testing.assert_close(torch.tensor(rates)[4:], expected[4:], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.tensor(rates)[:4], 5e-5 + (0.05 - 5e-5) * steps[:4] / 4, rtol=1e-4, atol=1e-7)


def test_a_step_is_the_gradient_of_all_its_images(data):
    """SGD without momentum: micro-batches of 5 change the weights as one batch does (BatchNorm in eval mode)."""
    config = FinetuneConfig(
        epochs=1, batch_size=160, lr=0.1, momentum=0, weight_decay=0, optimizer="momentum", warmup=0, max_grad_norm=1e9
    )
    model = _without_batchnorm(new_model())
    results = [finetune_model(model, data.train, replace(config, accumulation=n)) for n in (1, 8)]
    for key, tensor in results[0].state_dict().items():
        torch.testing.assert_close(tensor, results[1].state_dict()[key], rtol=1e-3, atol=1e-5)
    images, labels = next(data.train.epoch_batches(0, loop.Portion(batch_size=160)))
    torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
    expected = model.linear.weight - 0.1 * model.linear.weight.grad
    torch.testing.assert_close(results[0].linear.weight, expected, rtol=1e-4, atol=1e-6)


def test_few_images_in_each_part_of_a_step_are_warned_of(data, capsys):
    warning = "each part of a step has only 10 images, whose BatchNorm statistics are noisy: raise `batch_size` to 256"
    config = FinetuneConfig(epochs=1, batch_size=160)
    for model, parts, told in ((new_model(), 16, True), (new_model(), 10, False), (None, 16, False)):
        finetune_model(model or _without_batchnorm(new_model()), data.train, replace(config, accumulation=parts))
        assert (warning in capsys.readouterr().err) is told


@pytest.mark.parametrize("streaming", [False, True])
def test_a_step_without_one_usable_image_is_passed_over(streaming):
    dataset = digits_dataset(30)
    images = dataset["train"].cast_column("image", datasets.Image(decode=False))[:]
    images["image"][7] = {"bytes": b"broken", "path": "broken.png"}
    dataset["train"] = datasets.Dataset.from_dict(images, features=dataset["train"].features)
    if streaming:
        dataset = datasets.IterableDatasetDict({key: part.to_iterable_dataset() for key, part in dataset.items()})
    train = open_splits(dataset, new_model(), calibration_images=0, holdout_images=0).train
    curve: list = []
    with pytest.warns(UserWarning, match="1 of 30 images"):
        finetune_model(new_model(), train, replace(CONFIG, epochs=1, batch_size=1), on_epoch=curve.append)
    assert [record.images for record in curve] == [29]


def _without_batchnorm(model: torch.nn.Module) -> torch.nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            model.get_submodule(name.rpartition(".")[0]).__setattr__(name.rpartition(".")[2], torch.nn.Identity())
    return model


@pytest.mark.parametrize("statistics", [0, 180])
def test_the_holdout_chooses_the_epoch_and_statistics_are_recomputed(data, monkeypatch, statistics):
    """No record is better than that of what is returned, whose statistics come from so many images."""
    monkeypatch.setattr(selection, "STATISTICS", statistics)
    curve: list = []
    config = replace(CONFIG, epochs=6, lr=0.05, warmup=0.0, ema=0.5)
    trained = finetune_model(
        new_model(), data.train, config, holdout=data.holdout, calibration=data.calibration, on_epoch=curve.append
    )
    seen = ImageSet(data.calibration.rows, data.train.preprocessing, seed=data.train.seed)
    all_images = loop.Portion(batch_size=1000)
    shifted = [next(images.epoch_batches(0, all_images))[0] for images in (seen, data.train)]
    assert [len(part) for part in shifted] == [20, 160]
    mean, variance = _moments_of_bn1(trained, torch.cat(shifted) if statistics else shifted[0])
    torch.testing.assert_close(trained.bn1.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.bn1.running_var, variance, rtol=1e-4, atol=1e-5)
    recalibrate_bn(trained, shifted[:1])
    top1 = evaluate_model(trained, data.holdout.batches()).top1
    assert top1 == max(value for record in curve for value in (record.top1, record.ema_top1))
    assert len({record.top1 for record in curve}) > 1


def test_statistics_are_those_of_mixed_images_where_training_mixes(data):
    images: list = []
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for alpha in (0.0, 1.0):
        training = loop.Training(new_model(), None, data.train, replace(CONFIG, mixup=alpha), Accelerator())
        images.append(next(training.calibration_batches(data.calibration)))
        assert torch.equal(next(training.calibration_batches(data.calibration)), images[-1])
    assert np.array_equal(np.random.get_state()[1], state), "training's own random numbers stay as they were"  # noqa: NPY002
    plain, mixed = images
    paired = (plain - plain.flip(0)).flatten()  # timm mixes with the batch in reverse
    share = ((plain - mixed).flatten() @ paired) / (paired @ paired)
    assert 0 < share < 1
    torch.testing.assert_close(mixed, torch.lerp(plain, plain.flip(0), share), rtol=1e-4, atol=1e-4)


def test_statistics_come_from_enough_images_and_not_from_more(data):
    training = loop.Training(new_model(), None, data.train, CONFIG, Accelerator())
    for images, given in ((0, 20), (20, 20), (50, 20 + 80), (1000, 180)):  # two batches of 80 are an epoch
        assert sum(map(len, training.calibration_batches(data.calibration, images))) == given


@pytest.fixture(scope="module")
def trained(data):
    """A network that knows the digits, and its metrics on the holdout images."""
    model = finetune_model(new_model(), data.train, replace(CONFIG, epochs=12, warmup=0))
    return model, evaluate_model(model, data.holdout.cached_batches())


HARMFUL = replace(CONFIG, lr=5.0, max_grad_norm=1e9, epochs=2, warmup=0)


@pytest.mark.parametrize("calibrated", [False, True])
def test_what_training_spoils_is_returned_as_it_was(data, trained, tmp_path, capsys, calibrated):
    model, before = trained
    assert before.top1 > 0.8
    curve: list = []

    def run():
        return finetune_model(
            model,
            data.train,
            HARMFUL,
            holdout=data.holdout,
            calibration=data.calibration if calibrated else None,
            checkpoint=tmp_path,
            on_epoch=curve.append,
        )

    result = run()
    assert [record.epoch for record in curve] == [1, 2]
    assert max(record.top1 for record in curve) < before.top1
    after = evaluate_model(result, data.holdout.cached_batches())
    assert (after.top1, -after.loss) >= (before.top1, -before.loss)
    note = f"no epoch beat the network it started from ({after.top1:.2%} on the holdout images); it is returned "
    told = capsys.readouterr().err
    assert told.count(note) == 1
    if not calibrated:
        assert equal(result, model)
        assert f"{note}as it was\n" in told
    assert equal(run(), result)  # read back from its checkpoints
    assert note in capsys.readouterr().err


def test_the_start_has_its_own_statistics_or_recomputed_ones_whichever_are_better(data, trained, capsys):
    """Broken statistics are recomputed; good ones stay where calibration images break them."""
    broken = copy.deepcopy(trained[0])
    for module in broken.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 3
    images = {"holdout": data.holdout, "calibration": data.calibration}
    result = finetune_model(broken, data.train, HARMFUL, **images)
    assert evaluate_model(result, data.holdout.cached_batches()).top1 > 0.5
    assert "it is returned with recomputed statistics" in capsys.readouterr().err
    assert torch.equal(result.linear.weight, broken.linear.weight)
    assert evaluate_model(broken, data.holdout.cached_batches()).top1 < 0.3
    with pytest.MonkeyPatch.context() as patch:
        noise = [torch.randn(64, 3, 32, 32) * 5]
        patch.setattr(loop.Training, "calibration_batches", lambda self, calibration, images=0: noise)
        result = finetune_model(trained[0], data.train, HARMFUL, **images)
    assert equal(result, trained[0])


def test_an_epoch_that_beats_the_start_is_returned_without_a_word_about_it(data, capsys):
    config = replace(CONFIG, epochs=10, warmup=0)
    result = finetune_model(new_model(), data.train, config, holdout=data.holdout)
    assert evaluate_model(result, data.holdout.cached_batches()).top1 > 0.3
    assert "no epoch beat" not in capsys.readouterr().err


def test_what_accelerate_would_do_otherwise_is_refused(data, monkeypatch):
    with pytest.raises(EagleEyeError, match=r"`gradient_accumulation_steps=4` of accelerate .* use `--accumulation`"):
        finetune_model(new_model(), data.train, CONFIG, accelerator=Accelerator(gradient_accumulation_steps=4))
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        accelerator = Accelerator()
        with monkeypatch.context() as patch:
            patch.setattr(
                type(accelerator), "distributed_type", property(lambda self, kind=kind: DistributedType[kind])
            )
            with pytest.raises(EagleEyeError, match=rf"configured for {kind}, .* choose multi-GPU .*`--accumulation`"):
                finetune_model(new_model(), data.train, CONFIG, accelerator=accelerator)


def test_synchronised_batchnorm_trains_like_another_in_one_process(data, monkeypatch):
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(new_model())
    images = {"holdout": data.holdout, "calibration": data.calibration}
    result = finetune_model(synchronised, data.train, CONFIG, **images)
    assert equal(result, finetune_model(new_model(), data.train, CONFIG, **images))
    assert isinstance(result.bn1, torch.nn.SyncBatchNorm)
    accelerator = Accelerator()
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", property(lambda self: 2))
        with pytest.raises(EagleEyeError, match=r"`model` has SyncBatchNorm \(bn1\), which needs GPUs"):
            finetune_model(synchronised, data.train, CONFIG, accelerator=accelerator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32(data, capsys, dtype):
    model = new_model().to(dtype)
    images = {"holdout": data.holdout, "calibration": data.calibration}
    result = finetune_model(model, data.train, CONFIG, teacher=new_model().to(dtype), **images)
    name = str(dtype).removeprefix("torch.")
    assert f"`model` is in {name}: it is trained, and returned, in float32" in capsys.readouterr().err
    assert {tensor.dtype for tensor in result.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    same = finetune_model(model.float(), data.train, CONFIG, teacher=new_model().to(dtype).float(), **images)
    assert equal(result, same)


def _moments_of_bn1(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inputs: list = []
    model.bn1.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(images)
    return inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))


def test_the_average_of_the_weights_is_a_running_one(data, monkeypatch):
    snapshots: list = []
    train_on = loop.Training._train_on

    def watch(self, *args):
        snapshots.append(self.network.linear.weight.detach().clone())
        train_on(self, *args)
        snapshots[-1] = self.network.linear.weight.detach().clone()

    monkeypatch.setattr(loop.Training, "_train_on", watch)
    trained = finetune_model(new_model(), data.train, replace(CONFIG, epochs=2, ema=0.8))
    average = snapshots[0]
    for step, weight in enumerate(snapshots[1:], 1):
        decay = min(0.8, 1 - (1 + step) ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(trained.linear.weight.detach(), average, rtol=1e-4, atol=1e-6)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")


@pytest.mark.parametrize(
    "mode",
    [
        "bf16",
        pytest.param("fp16", marks=[pytest.mark.gpu, needs_gpu]),
        pytest.param("compile", marks=pytest.mark.slow),
        "checkpoint_activations",
    ],
)
def test_ways_to_compute_change_little(data, mode):
    config = replace(CONFIG, epochs=1)
    arguments: dict = {}
    is_precision = mode in ("bf16", "fp16")
    if is_precision:
        AcceleratorState._reset_state()
        arguments["accelerator"] = Accelerator(mixed_precision=mode)
    model = timm.create_model("resnet18", num_classes=10) if mode == "checkpoint_activations" else new_model()
    options = {} if is_precision else {mode: True}
    changed = finetune_model(model, data.train, replace(config, **options), **arguments)
    if is_precision:
        AcceleratorState._reset_state()
    plain = finetune_model(model, data.train, config)
    assert type(changed) is type(plain)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    assert {tensor.dtype for tensor in changed.parameters()} == {torch.float32}
    images = next(data.test.batches(8))[0]
    assert changed(images).isfinite().all()
    weight = next(iter(plain.parameters()))
    difference = (next(iter(changed.parameters())) - weight).norm() / weight.norm()
    assert 0 <= difference < 0.05


def test_distillation_is_cross_entropy_with_soft_labels():
    logits, target = torch.randn(4, 7), torch.randn(4, 7)
    q, log_p = (target / 3).softmax(1), (logits / 3).log_softmax(1)
    expected = 9 * ((q * q.log()).sum(1) - (q * log_p).sum(1)).mean()
    torch.testing.assert_close(distillation_loss(logits, target, 3.0), expected)
    labels = torch.tensor([0, 3, 1, 6])
    hard = -logits.log_softmax(1)[torch.arange(4), labels].mean()
    config = FinetuneConfig(distillation=0.3, temperature=3.0)
    torch.testing.assert_close(training_loss(logits, labels, target, config), 0.7 * hard + 0.3 * expected)
    torch.testing.assert_close(training_loss(logits, labels, None, config), hard)


def test_mixing_takes_odd_batches():
    from timm.data.mixup import Mixup

    images, labels = torch.rand(5, 3, 8, 8), torch.arange(5)
    mixed, target = mix(Mixup(1.0, 0.0, label_smoothing=0.0, num_classes=6), images.clone(), labels)
    assert mixed.shape == images.shape
    assert target.shape == (5, 6)
    padded = torch.cat([images, images[-1:]])
    share = target[0, 0]
    torch.testing.assert_close(mixed, (share * padded + (1 - share) * padded.flip(0))[:5])


def test_bad_input(data, tmp_path):
    with pytest.raises(EagleEyeError, match="exceeds the 160 training images"):
        finetune_model(new_model(), data.train, FinetuneConfig(epochs=1, batch_size=512))
    with pytest.raises(
        EagleEyeError, match=r"less than two images to each part .* give at least 16 \(processes: 1, `acc"
    ):
        finetune_model(new_model(), data.train, FinetuneConfig(epochs=1, batch_size=8, accumulation=8))
    for options, message in (
        ({"lr": -1}, "`lr` is a number, above 0; got -1"),
        ({"optimizer": "sdg"}, "`optimizer=sdg` is not known to timm; it has .*adamw.*sgd"),
        ({"schedule": "cosin"}, "`schedule` is one of cosine"),
        ({"ema": 1.0}, r"`ema` is a number, in \[0, 1\); got 1.0"),
    ):
        with pytest.raises(EagleEyeError, match=message):
            FinetuneConfig(**options)
    with pytest.raises(EagleEyeError, match=r"the training loss became nan in epoch .*; lower `lr="):
        finetune_model(new_model(), data.train, FinetuneConfig(epochs=2, batch_size=20, lr=1e30, max_grad_norm=1e30))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    with pytest.raises(EagleEyeError, match="`checkpoint_activations`: Sequential can't recompute"):
        finetune_model(model, data.train, replace(CONFIG, checkpoint_activations=True))
    with pytest.raises(EagleEyeError, match=r"`tracker=nope` is unknown; choose one of .*tensorboard"):
        finetune_model(new_model(), data.train, replace(CONFIG, tracker="nope"))
