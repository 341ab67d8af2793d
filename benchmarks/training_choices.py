"""How a pruned network is best trained: learning rates, what the full network teaches, which weights are kept.

    python -m benchmarks.training_choices run --network resnet20_cifar        # about 40 minutes of one core, Lite0 130
    python -m benchmarks.training_choices table                               # writes training_choices.md

Needs ../shared. Each network loses half of its MACs by width (a search of 32 candidates), is matched without labels for
150 steps, and is then trained on a part of the training images for three epochs, 64 images a step, once per choice and
seed. The top-1 is of the last epoch's weights, statistics recomputed: on holdout images, by which defaults are chosen,
and on test images, by which nothing is. Results stay in --output; a run goes on where it was stopped, and a
network that was not run here stays on the page as it is.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import cifar_tensors as cifar
from benchmarks import imagenette_tensors as imagenette
from benchmarks.matching import TensorImages
from benchmarks.pages import sections_of
from eagleeye_hf import (
    AdaptiveBNScore,
    MatchConfig,
    SearchConfig,
    match_teacher,
    recalibrate_bn,
    run_search,
    trace_model,
)
from eagleeye_hf.evaluation.layers import LayerOutputs, matched_layers, matching_loss
from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.training.loss import distillation_loss

SHARED = Path(__file__).parents[1] / ".." / "shared"
PIXELS = 128
"""Of photographs."""
EPOCHS, BATCH, SEEDS, MATCH_STEPS = 3, 64, (0, 1), 150
RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
RATE = 0.02
DECAYS = (0.98, 0.99, 0.995)
"""Of averages of the weights, with a warm-up as timm's."""
CALIBRATION, HOLDOUT = 1024, 2048
TITLES = {
    "none": "labels alone",
    "logits": "outputs, half of the loss, temperature 2 (the default so far)",
    "logits4": "outputs, half of the loss, temperature 4",
    "logits9": "outputs, nine tenths of the loss, temperature 2",
    "dist": "DIST: relations between classes and between images",
    "layers": "outputs, and the layers' outputs",
    "dist+layers": "DIST, and the layers' outputs",
}


@dataclass
class Task:
    """A network and its images."""

    name: str
    full: nn.Module
    train: tuple[Tensor, Tensor]
    calibration: Tensor
    calibration_labels: Tensor
    holdout: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]
    normalize: Callable[[Tensor], Tensor]


def open_task(name: str, cache: Path, whole: bool = False) -> Task:
    """A network and its images.

    Args:
        whole: with all images for training that are left, instead of a part.
    """
    random = torch.Generator().manual_seed(0)
    if name.endswith("_cifar"):
        full, folder, num = timm.create_model(name, num_classes=10), SHARED / "data" / "cifar10", 8_000
        full.load_state_dict(load_file(SHARED / "models" / f"{name}10.safetensors"))
        seen, tested = cifar.load_tensors(folder, "train", cache), cifar.load_tensors(folder, "test", cache)
        augment, normalize, inner = cifar.augment, cifar.normalize, slice(None)
    else:
        margin, folder, num = imagenette.MARGIN, SHARED / "data" / "imagenette", 2_400
        full = timm.create_model(imagenette.MODEL, num_classes=10)
        state = load_file(SHARED / "models" / "tf_efficientnet_lite0_in1k.safetensors")
        for key in ("classifier.weight", "classifier.bias"):
            state[key] = state[key][list(imagenette.CLASSES)]
        full.load_state_dict(state)
        seen = imagenette.load_photographs(folder, "train", cache, PIXELS + margin)
        tested = imagenette.load_photographs(folder, "validation", cache, PIXELS)
        inner = slice(margin // 2, margin // 2 + PIXELS)
        normalize = imagenette.normalize

        def augment(images: Tensor, generator: torch.Generator) -> Tensor:
            return imagenette.augment(images, generator, PIXELS)

    order, tests = torch.randperm(len(seen[0]), generator=random), torch.randperm(len(tested[0]), generator=random)
    held, test = order[: CALIBRATION + HOLDOUT], tests[:5_000]
    chosen = order[CALIBRATION + HOLDOUT :][: None if whole else num]
    images, labels = seen[0][held][:, :, inner, inner], seen[1][held]
    return Task(
        name=name,
        full=full.eval(),
        train=(seen[0][chosen], seen[1][chosen]),
        calibration=images[:CALIBRATION],
        calibration_labels=labels[:CALIBRATION],
        holdout=(images[CALIBRATION:], labels[CALIBRATION:]),
        test=(tested[0][test], tested[1][test]),
        augment=augment,
        normalize=normalize,
    )


class Pruned:
    """The network that all choices begin with: searched for and matched once, and kept in a folder."""

    def __init__(self, task: Task, folder: Path) -> None:
        size = tuple(task.normalize(task.calibration[:1]).shape[1:])
        self.graph, file = trace_model(task.full, size), folder / "matched.safetensors"
        calibration = [(task.normalize(part), torch.zeros(len(part))) for part in task.calibration.split(128)]
        holdout = [(task.normalize(x), y) for x, y in zip(*(part.split(128) for part in task.holdout), strict=True)]
        score = AdaptiveBNScore(task.full, self.graph, calibration, holdout)
        config = SearchConfig(macs=0.5, candidates=32, matched=False, dimensions=("width",), divisor=8)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        prints = score.fingerprint()
        found = run_search(score, self.graph, config, output=folder, fingerprint=prints, accelerator=accelerator)
        self.strategy: Strategy = found.best.strategy
        self.keep: dict[str, Tensor] = score.choose_channels(self.strategy)
        self.model = score.build(self.strategy)
        if not file.exists():
            images = TensorImages(task.augment, task.train[0], 0)
            how = MatchConfig(match_steps=MATCH_STEPS)
            recalibrate_bn(self.model, calibration)
            matched = match_teacher(self.model, task.full, self.graph, self.keep, images, how, accelerator=accelerator)
            save_file({key: tensor.contiguous() for key, tensor in matched.state_dict().items()}, file)
        self.model.load_state_dict(load_file(file))


def dist_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """DIST (Huang et al. 2022, eq. 8 and 9, weights of 2 as on ImageNet): one minus the correlation of the
    probabilities of each image over the classes, and of each class over the images."""
    p, q = ours.float().softmax(1), theirs.float().softmax(1)
    return 2 * (_apart(p, q) + _apart(p.T, q.T))


def _apart(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


class Run:
    """One training: a choice with a seed."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        lr: float,
        teaching: str,
        seed: int,
        epochs: int = EPOCHS,
        pruned: Pruned | None = None,
    ) -> None:
        self.task, self.lr, self.teaching, self.epochs = task, lr, teaching, epochs
        self.network = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        self.averages = {decay: copy.deepcopy(self.network) for decay in DECAYS}
        self.teacher = copy.deepcopy(task.full).eval().to(memory_format=torch.channels_last)
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: tuple[LayerOutputs, LayerOutputs] | None = None
        if "layers" in teaching and pruned is not None:
            self.kept = matched_layers(task.full, pruned.graph, pruned.keep)
            self.layers = LayerOutputs(self.network, self.kept), LayerOutputs(self.teacher, self.kept)

    def train(self) -> dict[str, Any]:
        """Scores of the weights at the end of each epoch, and of averages of them."""
        epochs, ends = [], []
        for _ in self.train_epochs():
            ends.append(copy.deepcopy(self.network.state_dict()))
            epochs.append(score_network(self.task, self._with(ends[-1])))
        found = {"epochs": epochs, "last": epochs[-1]}
        found |= {f"average {decay}": score_network(self.task, network) for decay, network in self.averages.items()}
        mean = {key: sum(end[key] for end in ends[-2:]) / 2 if v.ndim else v for key, v in ends[-1].items()}
        return found | {"mean of two": score_network(self.task, self._with(mean))}

    def _with(self, state: dict[str, Any]) -> nn.Module:
        """A network of these weights, to which nobody listens."""
        network = copy.deepcopy(self.averages[DECAYS[0]])
        network.load_state_dict(state)
        return network

    def train_epochs(self) -> Iterator[None]:
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        steps = self.epochs * (len(self.task.train[0]) // BATCH)
        for step, (images, labels) in enumerate(self._batches()):
            rate = self.lr * min(1.0, (step + 1) / (0.02 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            self._loss(images, labels).backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            optimizer.step()
            self._average(step + 1)
            if (step + 1) % (steps // self.epochs) == 0:
                yield

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.task.train
        for _ in range(self.epochs):
            order = torch.randperm(len(images), generator=self.generator)
            for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
                yield self.task.augment(images[chosen], self.generator), labels[chosen]

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                theirs = self.teacher(images) if self.teaching != "none" else None
            ours = self.network(images)
        loss = F.cross_entropy(ours.float(), labels)
        if theirs is None:
            return loss
        part = 0.9 if self.teaching == "logits9" else 0.5
        taught = distillation_loss(ours, theirs, 4.0 if self.teaching == "logits4" else 2.0)
        if self.teaching.startswith("dist"):
            taught = dist_loss(ours, theirs)
        loss = (1 - part) * loss + part * taught
        if self.layers is not None:
            loss = loss + matching_loss(self.layers[0].taken, self.layers[1].taken, self.kept, ours, theirs) / 2
        return loss

    def _average(self, step: int) -> None:
        for decay, network in self.averages.items():
            weight = 1 - min(decay, 1 - (1 + step) ** (-2 / 3))
            for mean, now in zip(network.parameters(), self.network.parameters(), strict=True):
                mean.data.lerp_(now.data, weight)


def train_network(task: Task, model: nn.Module, lr: float, teaching: str, seed: int, epochs: int) -> nn.Module:
    """Trained as all here are; the last weights."""
    run = Run(task, model, lr, teaching, seed, epochs)
    for _ in run.train_epochs():
        pass
    return run.network


@torch.no_grad()
def score_network(task: Task, network: nn.Module, recompute: bool = True) -> dict[str, float]:
    """
    Args:
        recompute: its statistics, from images that are cropped as in training.
    """
    network, found = copy.deepcopy(network).eval(), {}
    generator = torch.Generator().manual_seed(7)
    crops = (task.augment(part, generator) for part in task.train[0][:2048].split(128))
    with torch.autocast("cpu", torch.bfloat16):
        if recompute:
            recalibrate_bn(network, list(crops))
        for which, (images, labels) in (("holdout", task.holdout), ("test", task.test)):
            outputs = torch.cat([network(task.normalize(part)).float() for part in images.split(250)])
            found[which] = float((outputs.argmax(1) == labels).float().mean())
            found[f"{which}_loss"] = float(F.cross_entropy(outputs, labels))
    return found


def choices() -> dict[str, tuple[float, str]]:
    """Learning rate and teaching, by name."""
    rates = {f"rate {rate:g}": (rate, "logits") for rate in RATES}
    return rates | {teaching: (RATE, teaching) for teaching in TITLES if teaching != "logits"}


def run(name: str, output: Path) -> None:
    torch.set_num_threads(1)
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    task = open_task(name, output)
    pruned = Pruned(task, folder)
    for seed in SEEDS:
        for choice, (lr, teaching) in choices().items():
            file = folder / f"{choice}-{seed}.json"
            if not file.exists():
                started = time.perf_counter()
                found = Run(task, pruned.model, lr, teaching, seed, pruned=pruned).train()
                file.write_text(json.dumps(found | {"seconds": time.perf_counter() - started}, indent=1))
                print(name, choice, seed, found["last"], f"{time.perf_counter() - started:.0f} s", flush=True)


def table(output: Path) -> None:
    markdown = Path(__file__).with_suffix(".md")
    before = sections_of(markdown.read_text())
    lines = ["# How a pruned network is trained", "", (__doc__ or "").split("\n\n")[2].replace("\n", " ")]
    for name in ("resnet20_cifar", "tf_efficientnet_lite0"):
        rows: dict[str, list[dict[str, Any]]] = {}
        for choice in choices():
            files = [output / name / f"{choice}-{seed}.json" for seed in SEEDS]
            rows[choice] = [json.loads(file.read_text()) for file in files if file.exists()]
        if not all(rows.values()):  # not run here
            lines += ["", f"## {name}", "", before[name]] if name in before else []
            continue
        default = rows[f"rate {RATE:g}"]
        lines += ["", f"## {name}", "", *_head("learning rate (64 images a step)")]
        lines += [_row(f"{rate:g}", rows[f"rate {rate:g}"]) for rate in RATES]
        lines += ["", *_head(f"what teaches (learning rate {RATE:g})")]
        lines += [_row(title, default if t == "logits" else rows[t]) for t, title in TITLES.items()]
        every = [row for found in rows.values() for row in found]
        lines += ["", f"Which weights, over all {len(every)} trainings:", "", *_head("weights")]
        lines += [_row("of the last epoch", every)]
        lines += [_row(f"average, decay {decay:g}", every, f"average {decay:g}") for decay in DECAYS]
        lines += [_row("mean of the last two epochs", every, "mean of two")]
        for title, rule in RULES.items():
            lines.append(_cells(title, [max(row["epochs"], key=rule) for row in every]))
    page = "\n".join([*lines, ""])
    markdown.write_text(page)
    print(page)


RULES: dict[str, Callable[[dict[str, float]], float]] = {
    "the epoch of the best top-1 on holdout images": lambda epoch: epoch["holdout"],
    "the epoch of the lowest loss on holdout images": lambda epoch: -epoch["holdout_loss"],
}


def _head(what: str) -> list[str]:
    return [f"| {what} | holdout | holdout loss | test | test, by seed |", "|---|---:|---:|---:|---:|"]


def _row(title: str, rows: list[dict[str, Any]], which: str = "last") -> str:
    return _cells(title, [row[which] for row in rows])


def _cells(title: str, scores: list[dict[str, float]]) -> str:
    mean = {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
    each = ", ".join(f"{score['test']:.2%}" for score in scores) if len(scores) <= len(SEEDS) else ""
    return f"| {title} | {mean['holdout']:.2%} | {mean['holdout_loss']:.4f} | **{mean['test']:.2%}** | {each} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["run", "table"])
    parser.add_argument("--network", default="resnet20_cifar", choices=["resnet20_cifar", "tf_efficientnet_lite0"])
    parser.add_argument("--output", type=Path, default=Path("outputs/training_choices"))
    told = parser.parse_args()
    if told.step == "run":
        run(told.network, told.output)
    else:
        table(told.output)
