from dataclasses import replace

import pytest
import timm
import torch

from eagleeye_hf import EagleEyeError, FinetuneConfig, evaluate_model, finetune_model, open_splits
from eagleeye_hf.training import finetune as module
from tests.helpers import digits_dataset


@pytest.fixture(scope="module")
def data():
    model = timm.create_model("resnet20_cifar")
    return open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20, hflip=False)


CONFIG = FinetuneConfig(epochs=3, batch_size=20, lr=0.05)


def new_model():
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar")


def test_training_learns(data):
    before = evaluate_model(new_model(), data.test.batches()).top1
    trained = finetune_model(new_model(), _still(data.train), replace(CONFIG, epochs=6))
    assert evaluate_model(trained, data.test.batches()).top1 > before + 0.3
    assert not trained.training


def test_a_killed_run_ends_like_an_uninterrupted_one(data, tmp_path, monkeypatch):
    whole = finetune_model(new_model(), _still(data.train), CONFIG, checkpoint=tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    run_epoch = module._run_epoch

    def dies(*args):
        if args[6] == 2:
            raise KeyboardInterrupt
        return run_epoch(*args)

    monkeypatch.setattr(module, "_run_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        finetune_model(new_model(), _still(data.train), CONFIG, checkpoint=tmp_path / "b")
    monkeypatch.undo()
    resumed = finetune_model(new_model(), _still(data.train), CONFIG, checkpoint=tmp_path / "b")
    for key, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[key], rtol=0, atol=0)


def _still(images):
    """The same images without random crops, so that two runs see the same."""
    still = type(images)(images._rows, images.transform, images.count())
    transforms = images.transform.transforms
    still.transform = type(images.transform)([t for t in transforms if "Random" not in type(t).__name__])
    return still


def test_distillation_is_cross_entropy_with_soft_labels():
    logits, target = torch.randn(4, 7), torch.randn(4, 7)
    q, log_p = (target / 3).softmax(1), (logits / 3).log_softmax(1)
    expected = 9 * ((q * q.log()).sum(1) - (q * log_p).sum(1)).mean()
    torch.testing.assert_close(module.distillation_loss(logits, target, 3.0), expected)


def test_bad_input(data):
    with pytest.raises(EagleEyeError, match="exceeds the 160 training images"):
        finetune_model(new_model(), data.train, FinetuneConfig(epochs=1, batch_size=512))
    with pytest.raises(EagleEyeError, match="`lr` is above 0; got -1"):
        FinetuneConfig(lr=-1)
    with pytest.raises(EagleEyeError, match=r"the training loss became nan .*; lower `lr="):
        finetune_model(new_model(), data.train, FinetuneConfig(epochs=2, batch_size=20, lr=1e30, max_grad_norm=1e30))
