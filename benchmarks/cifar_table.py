"""ResNet-56 on CIFAR-10 as the literature reports it: trained from scratch, pruned to half its MACs, trained again.

    python -m benchmarks.cifar_table --data path/to/cifar10     # some 25 minutes of one H100; goes on where it was
    python -m benchmarks.cifar_table table
    python -m benchmarks.cifar_table run --minutes 10 ...       # with as many epochs as that allows

Three seeds of every arm, the last epoch's weights, no choice by the test images. All networks of a step train together,
each on a stream of its own: a step of one is a graph of small kernels that leaves some of a GPU idle (an epoch of the
full network takes 1.35 s of an H100, of three together 2.8 s). The time of the whole is an estimate from such epochs,
on a machine that does nothing else (tests beside it made a step a third longer); `distilled` among the `--arms` takes
five minutes more. Images and crops stay on the device; convolutions are in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import eagleeye_hf  # noqa: F401  # timm knows the CIFAR ResNets from then on
from benchmarks.cifar_tensors import MEAN, STD, load_tensors, normalize
from eagleeye_hf import AdaptiveBNScore, SearchConfig, count_cost, recalibrate_bn, run_search, trace_model
from eagleeye_hf.pruning.builder import Builder

NUM_CALIBRATION, NUM_HOLDOUT = 1024, 2048
"""Of the 50,000 training images, the last; all others train."""
BATCH, LR, WEIGHT_DECAY, WARM_UP = 256, 0.2, 5e-4, 3
DIVISOR = 4
"""Of widths."""
TIMED = 40
"""Steps by which the speed is known."""
FULL_PART, SEARCH_PART = 0.38, 0.12
"""Of the minutes, where they are bounded: for the full networks, and for the searches at most."""
DEFAULT_ARMS = ("uniform", "eagleeye", "scratch")
ARMS = {
    "full": "full network, from scratch",
    "uniform": "uniform, L1",
    "eagleeye": "eagleeye_hf",
    "distilled": "eagleeye_hf, the full network teaches",
    "scratch": "eagleeye_hf's widths, new weights",
}


@dataclass
class Images:
    """Training images on the device: bytes, padded by four pixels on each side, channels last."""

    padded: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def put(images: Tensor, labels: Tensor, device: torch.device) -> Images:
        padded = F.pad(images.to(device), (4, 4, 4, 4)).permute(0, 2, 3, 1).contiguous()
        return Images(padded, labels.to(device), MEAN.to(device).flatten(), STD.to(device).flatten())

    def crop(self, chosen: Tensor, shifts: Tensor) -> Tensor:
        """Crops (`shifts`: down, right, mirrored or not) of the chosen images, normalised, channels last."""
        side = torch.arange(32, device=self.padded.device)
        rows = shifts[:, 0, None] + side
        columns = shifts[:, 1, None] + torch.where(shifts[:, 2, None] > 0, 31 - side, side)
        pixels = self.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return (pixels.float() / 255 - self.mean) / self.std


class Learner:
    """One network in training; on a GPU a step is one graph. Call `begin` before it trains.

    Few kernels: `worker` shares the network's BatchNorm layers and has its other weights in bfloat16, written and read
    all at once; the crops of an epoch are made together; the teacher's BatchNorm layers are in its convolutions.
    """

    def __init__(
        self, network: nn.Module, images: Images, most_epochs: int, seed: int, teacher: nn.Module | None
    ) -> None:
        device = images.padded.device
        self.network = copy.deepcopy(network).to(device, memory_format=torch.channels_last).train()
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.num_batches_tracked = None  # it would be counted by a kernel of its own
        self.worker = copy.deepcopy(self.network, {id(norm): norm for norm in norms})
        own = {id(parameter) for norm in norms for parameter in norm.parameters()}
        self.exact = [parameter for parameter in self.network.parameters() if id(parameter) not in own]
        self.rounded = [parameter for parameter in self.worker.parameters() if id(parameter) not in own]
        for exact, rounded in zip(self.exact, self.rounded, strict=True):
            exact.grad, rounded.data = torch.zeros_like(exact), rounded.data.bfloat16()
        self.teacher: nn.Module | None = None
        if teacher is not None:
            folded = fuse(copy.deepcopy(teacher)).to(device, torch.bfloat16)
            self.teacher = folded.to(memory_format=torch.channels_last)
        self.images, self.generator = images, torch.Generator(device).manual_seed(seed)
        self.steps = len(images.labels) // BATCH
        self.crops = torch.zeros(self.steps, BATCH, 32, 32, 3, dtype=torch.bfloat16, device=device)
        self.labels = torch.zeros(self.steps, BATCH, dtype=torch.long, device=device)
        self.done = torch.zeros(1, dtype=torch.long, device=device)
        self.rates, self.rate = torch.zeros(most_epochs * self.steps, device=device), torch.zeros((), device=device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=self.rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._before = copy.deepcopy(self.network.state_dict())
        self.replay: Callable[[], None] = self._capture() if self.stream else self._step

    @torch.no_grad()
    def begin(self, epochs: int) -> None:
        """As it was made, with the learning rates of so many epochs."""
        steps = epochs * self.steps
        self.rates[:steps] = torch.tensor([_rate(step / steps) for step in range(steps)])
        self.network.load_state_dict(self._before)
        torch._foreach_copy_(self.rounded, self.exact)
        for state in self.optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()
        self.done.zero_()

    def end(self) -> nn.Module:
        """The network, in evaluation mode."""
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = self.done[0].clone()
        return self.network.eval()

    def _capture(self) -> Callable[[], None]:
        """Warm up and record one step."""
        self.plan()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._step()
        return graph.replay

    def plan(self) -> None:
        """Crops of the next epoch, and their labels."""
        device, num = self.crops.device, self.labels.numel()
        order = torch.randperm(len(self.images.labels), generator=self.generator, device=device)[:num]
        shifts = [torch.randint(0, end, (num,), generator=self.generator, device=device) for end in (9, 9, 2)]
        self.crops.copy_(self.images.crop(order, torch.stack(shifts, 1)).view(self.crops.shape))
        self.labels.copy_(self.images.labels[order].view(self.labels.shape))

    def _step(self) -> None:
        place = self.done % self.steps
        self.rate.copy_(self.rates[self.done][0])
        images, labels = self.crops[place][0].permute(0, 3, 1, 2), self.labels[place][0]
        logits = self.worker(images).float()
        loss = F.cross_entropy(logits, labels)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(images).float()
            softened = F.kl_div((logits / 4).log_softmax(1), (wanted / 4).softmax(1), reduction="batchmean")
            loss = 0.1 * loss + 0.9 * 16 * softened
        self.worker.zero_grad()
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_([weight.grad for weight in self.exact], [weight.grad for weight in self.rounded])
            self.optimizer.step()
            torch._foreach_copy_(self.rounded, self.exact)
        self.done += 1


def _rate(progress: float) -> float:
    return LR * min(1.0, (progress + 1e-3) / 0.02) * 0.5 * (1 + math.cos(math.pi * progress))


def train_together(learners: Sequence[Learner], epochs: int, title: str) -> list[nn.Module]:
    """All epochs of all networks; in evaluation mode afterwards."""
    started = time.perf_counter()
    for learner in learners:
        learner.begin(epochs)
    for epoch in range(epochs):
        for learner in learners:
            learner.plan()
        _take_steps(learners, learners[0].steps)
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"{title}: {epoch + 1} of {epochs} epochs, {time.perf_counter() - started:.0f} s", flush=True)
    return [learner.end() for learner in learners]


def time_epoch(learners: Sequence[Learner]) -> float:
    """Seconds of an epoch of all of them."""
    for learner in learners:
        learner.begin(1)
        learner.plan()
    steps = min(TIMED, learners[0].steps)
    started = time.perf_counter()
    _take_steps(learners, steps)
    return (time.perf_counter() - started) / steps * learners[0].steps


def _take_steps(learners: Sequence[Learner], num: int) -> None:
    _synchronize(learners)
    for _ in range(num):
        for learner in learners:
            with torch.cuda.stream(learner.stream) if learner.stream else nullcontext():
                learner.replay()
    _synchronize(learners)


def _synchronize(learners: Sequence[Learner]) -> None:
    if learners[0].stream:
        torch.cuda.synchronize()


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    device = next(network.parameters()).device
    parts = zip(images.split(1000), labels.split(1000), strict=True)
    right = sum(int((network(normalize(x).to(device)).argmax(1).cpu() == y).sum()) for x, y in parts)
    return right / len(labels)


class Table:
    """The arms of every seed, kept in a folder as they are done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.output
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train = load_tensors(options.data, "train", options.output)
        self.test = load_tensors(options.data, "test", options.output)
        num = options.images or len(self.train[1]) - NUM_CALIBRATION - NUM_HOLDOUT
        self.images = Images.put(self.train[0][:num], self.train[1][:num], self.device)
        self.started = time.perf_counter()

    def left(self, part: float) -> float:
        """Seconds until a part of the minutes is over."""
        if self.options.minutes is None:
            return math.inf
        return 60 * self.options.minutes * part - (time.perf_counter() - self.started)

    def run(self) -> None:
        seeds = self.options.seeds
        full = {seed: self.made("full", seed) for seed in seeds}
        missing = [seed for seed in seeds if full[seed] is None]
        if missing:
            self.train_arm([("full", seed, _new(seed), None) for seed in missing], self.options.epochs_full, FULL_PART)
            full = {seed: self.made("full", seed) for seed in seeds}
        tasks: list[tuple[str, int, nn.Module, nn.Module | None]] = []
        for seed in seeds:
            network = full[seed]
            assert network is not None
            thin = self.prune(network, seed)
            fresh = _renew(thin["eagleeye"], seed)
            tasks += [("uniform", seed, thin["uniform"], None), ("eagleeye", seed, thin["eagleeye"], None)]
            tasks += [("distilled", seed, thin["eagleeye"], network), ("scratch", seed, fresh, None)]
        wanted = [task for task in tasks if task[0] in self.options.arms and not self.path(*task[:2]).exists()]
        self.train_arm(wanted, self.options.epochs)

    def train_arm(
        self, tasks: Sequence[tuple[str, int, nn.Module, nn.Module | None]], most: int, part: float = 1.0
    ) -> None:
        """Train them with so many epochs, or with those that end when a part of the minutes is over."""
        for start in range(0, len(tasks), self.options.together):
            group = tasks[start : start + self.options.together]
            learners = [Learner(network, self.images, most, seed, teacher) for _, seed, network, teacher in group]
            seconds = time_epoch(learners)
            groups = math.ceil((len(tasks) - start) / self.options.together)
            epochs = max(1, int(min(self.left(part) / groups / seconds, most)))
            print(f"{len(group)} networks together: {seconds:.2f} s an epoch, {epochs} epochs", flush=True)
            title = ", ".join(f"{arm} {seed}" for arm, seed, *_ in group)
            for (arm, seed, *_), network in zip(group, train_together(learners, epochs, title), strict=True):
                self.keep(arm, seed, network, epochs)

    def prune(self, model: nn.Module, seed: int) -> dict[str, nn.Module]:
        """By the search's choice, and uniformly; readers repaired, statistics recomputed."""
        graph = trace_model(copy.deepcopy(model).cpu(), (3, 32, 32))
        pixels, labels = (part[-NUM_CALIBRATION - NUM_HOLDOUT :] for part in self.train)
        batches = list(zip(normalize(pixels).split(128), labels.split(128), strict=True))
        parts = batches[: NUM_CALIBRATION // 128], batches[NUM_CALIBRATION // 128 :]
        score = AdaptiveBNScore(model.to(self.device), graph, *parts)
        minutes = None if self.options.minutes is None else self.options.minutes * SEARCH_PART / len(self.options.seeds)
        num = self.options.candidates
        config = SearchConfig(macs=0.5, divisor=DIVISOR, candidates=num, minutes=minutes, matched=False)
        result = run_search(score, graph, config, seed=seed, output=self.folder / f"search_{seed}")
        uniform = next(candidate for candidate in result.candidates if candidate.origin == "uniform")
        found = {"eagleeye": result.best.strategy, "uniform": uniform.strategy}
        builders = {"eagleeye": score.builder, "uniform": Builder(score.model, graph, parts[0], "l1")}
        costs = {arm: count_cost(graph, strategy) for arm, strategy in found.items()}
        full = count_cost(graph, graph.widths)
        told = {arm: [int(c.macs) / int(full.macs), int(c.params) / int(full.params)] for arm, c in costs.items()}
        (self.folder / f"cost_{seed}.json").write_text(json.dumps(told))
        images = [batch.to(self.device) for batch, _ in parts[0]]
        thin = {arm: builders[arm].build(strategy, True).to(self.device) for arm, strategy in found.items()}
        return {arm: recalibrate_bn(network, images) for arm, network in thin.items()}

    def path(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm}_{seed}.json"

    def made(self, arm: str, seed: int) -> nn.Module | None:
        file = self.path(arm, seed).with_suffix(".pt")
        if not file.exists():
            return None
        network = timm.create_model("resnet56_cifar")
        network.load_state_dict(torch.load(file))
        return network.to(self.device).eval()

    def keep(self, arm: str, seed: int, network: nn.Module, epochs: int) -> None:
        if arm == "full":
            torch.save(network.state_dict(), self.path(arm, seed).with_suffix(".pt"))
        found = {"arm": arm, "seed": seed, "epochs": epochs, "top1": accuracy(network.float(), *self.test)}
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        print(found, flush=True)
        self.path(arm, seed).write_text(json.dumps(found | {"device": device, "torch": torch.__version__}))


def _new(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet56_cifar")


def _renew(thin: nn.Module, seed: int) -> nn.Module:
    """The same network with new weights."""
    torch.manual_seed(seed + 1000)
    network = copy.deepcopy(thin)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()
    return network


def write_page(folder: Path) -> str:
    found = [json.loads(file.read_text()) for arm in ARMS for file in sorted(folder.glob(f"{arm}_*.json"))]
    costs = [json.loads(file.read_text()) for file in sorted(folder.glob("cost_*.json"))]
    full = {row["seed"]: row["top1"] for row in found if row["arm"] == "full"}
    device = found[0]["device"] if found else "no device"
    lines = [
        "# ResNet-56 on CIFAR-10, trained from scratch, at half the MACs",
        "",
        f"Made by `cifar_table.py` on {device}, PyTorch {found[0]['torch'] if found else ''}: SGD, {LR} falling by "
        f"cosine, {BATCH} images a step, weight decay {WEIGHT_DECAY:g}, crops and mirrored images, the last epoch's "
        f"weights. Widths are multiples of {DIVISOR}, and a search's leaders are not matched. "
        "Mean and standard deviation over seeds, 10,000 test images. The images are JPEG copies, a little harder than "
        "the original. The literature trains the full network for 200 epochs or more, pruned ones for 120 to 400, and "
        "reports 93.5 to 93.9% for both; with fewer epochs, only the rows here can be compared with each other.",
        "",
        "| network | seeds | epochs | MACs | parameters | top-1 | to the full network |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, title in ARMS.items():
        rows = [row for row in found if row["arm"] == arm]
        if not rows:
            continue
        kind = "uniform" if arm == "uniform" else "eagleeye"
        macs, params = (statistics.mean(c[kind][i] for c in costs) if arm != "full" else 1.0 for i in (0, 1))
        top1, less = [row["top1"] for row in rows], [row["top1"] - full[row["seed"]] for row in rows]
        lines.append(
            f"| {title} | {len(rows)} | {rows[0]['epochs']} | {macs:.1%} | {params:.1%} | {_spread(top1)}% "
            f"| {'' if arm == 'full' else _spread(less)} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    plus_minus = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{plus_minus}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", default="run", choices=("run", "table"))
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs-full", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--arms", nargs="*", default=list(DEFAULT_ARMS), choices=list(ARMS)[1:])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--together", type=int, default=12, help="networks that train at a time")
    parser.add_argument("--minutes", type=float, help="bound of all; fewer epochs, shorter searches")
    parser.add_argument("--images", type=int, help="training images, instead of all")
    parser.add_argument("--output", type=Path, default=Path("outputs/cifar_table"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    if options.step == "run":
        Table(options).run()
    text = write_page(options.output)
    print(text)
    if options.step == "table":
        Path(__file__).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
