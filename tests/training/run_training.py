"""Small training runs as a program of their own: `run_training.py FOLDER KIND...` writes weights and facts of each."""

import json
import sys
from pathlib import Path

import datasets
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from eagleeye_hf import EagleEyeError, FinetuneConfig, finetune_model, open_splits
from eagleeye_hf.data import holdout
from eagleeye_hf.data.images import read_bytes
from eagleeye_hf.training import state
from tests.helpers import digits_dataset


def without_batchnorm(model: torch.nn.Module) -> torch.nn.Module:
    """BatchNorm makes an image's gradient depend on its batch, so it hides whether images are counted right."""
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, torch.nn.Identity())
    return model


def fill_disk(accelerator: Accelerator) -> None:
    """From the third checkpoint on the second process can't write, as on a machine of its own."""
    save_state, saves = Accelerator.save_state, []

    def full(self: Accelerator, folder: str) -> None:
        saves.append(save_state(self, folder))
        if len(saves) > 2 and accelerator.process_index == 1:
            raise OSError(28, "No space left on device")

    Accelerator.save_state = full


def main(folder: Path, kind: str) -> None:
    accelerator = Accelerator()
    folder.mkdir(exist_ok=True)
    if kind in ("full", "apart"):
        work = folder
        if kind == "full":
            fill_disk(accelerator)
        else:
            state.SHARED_SECONDS = 0.5
            work = folder / f"disk-{accelerator.process_index}"
        try:
            main(work, "killed")
        except EagleEyeError as error:
            (folder / f"{kind}-{accelerator.process_index}.txt").write_text(str(error))
        return
    set_seed(0)
    model = timm.create_model("resnet20_cifar", drop_rate=0.0 if kind != "killed" else 0.3)
    data = digits_dataset(217 if kind == "stream" else 211, 20)
    if kind == "stream":  # one shard less than processes want, and shards of different sizes
        data = datasets.IterableDatasetDict({key: part.to_iterable_dataset(9) for key, part in data.items()})
    read: list[int] = []
    holdout.read_bytes = lambda image: read.append(1) or read_bytes(image)
    splits = open_splits(data, model, calibration_images=20, holdout_images=20, accelerator=accelerator)
    if kind in ("start", "map", "stream"):
        model = without_batchnorm(model)
    config = FinetuneConfig(
        epochs={"killed": 3, "start": 0}.get(kind, 1),
        batch_size=16,
        lr=0.02 if kind == "killed" else 0.002,
        save_steps=2,
        accumulation=2 if kind == "map" else 1,
        mixup=0.2 if kind == "killed" else 0,
        ema=0.9 if kind in ("killed", "norms") else 0,
    )
    curve: list = []
    killed = kind == "killed"
    trained = finetune_model(
        model,
        splits.train,
        config,
        holdout=splits.holdout,
        calibration=splits.calibration if killed else None,
        teacher=model if killed else None,
        accelerator=accelerator,
        checkpoint=folder / "training" if killed else None,
        on_epoch=curve.append,
    )
    folder.mkdir(exist_ok=True)
    torch.save(trained.state_dict(), folder / f"{kind}-{accelerator.process_index}.pt")
    facts = [{"images": record.images, "top1": record.top1, "loss": record.loss} for record in curve]
    if kind == "norms":
        facts.append({"read": len(read), "identity": splits.holdout.identity()})
    (folder / f"{kind}-{accelerator.process_index}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    for kind in sys.argv[2:]:
        main(Path(sys.argv[1]), kind)
