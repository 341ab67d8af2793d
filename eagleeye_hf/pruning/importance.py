"""Which channels of a group to keep."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from eagleeye_hf.channels.cut import named_tensors
from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup, Member, check_widths
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import unwrap_model
from eagleeye_hf.networks.running import (
    AnyBatch,
    device_of,
    evaluation_mode,
    images_of,
    labels_of,
    run_model,
    to_float64,
)
from eagleeye_hf.processes import make_in_main
from eagleeye_hf.pruning.compensate import ReaderMoments
from eagleeye_hf.pruning.config import Criterion
from eagleeye_hf.pruning.reconstruction import Inverses, find_group_readers, removal_costs
from eagleeye_hf.telling import progress_bar, warn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Importance:
    """Scores of a network's channels, computed once per group and kept.

    A channel's importance is summed over the filters that produce it (all layers tied by a residual add); depthwise
    filters count only where nothing else produces the channel. Each layer's scores are divided by their mean, so that
    layers of different scale count alike; those of `"taylor"` have a common scale already.

    Args:
        criterion: `"l1"` (sum of absolute weights; paper, section 3.2), `"l2"`, `"bn_scale"` (absolute BatchNorm
            weight), `"geometric_median"` (summed distance to the layer's other filters, He et al. 2019), `"taylor"`
            (expected squared change of the loss without the filter, to first order: Molchanov et al. 2019, eq. 8),
            `"reconstruction"` (the error of the layers that read the channel once they are repaired by least squares,
            channels removed one by one: see `reconstruction`; by `"l1"` where only layers read it that can't be
            repaired) or `"random"`.
        batches: images and labels, for `"taylor"`; images for `"reconstruction"`.
        seed: for `"random"` only.
        moments: of the same images, where they are at hand.
    Raises:
        EagleEyeError: the criterion is unknown, or has no batches to go by.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        criterion: Criterion = "l1",
        batches: Iterable[AnyBatch] | None = None,
        seed: int = 0,
        moments: ReaderMoments | None = None,
    ) -> None:
        if criterion not in CRITERIA:
            raise EagleEyeError(f"`criterion={criterion!r}` is unknown; choose one of {', '.join(CRITERIA)}")
        if criterion in NEED_IMAGES and batches is None:
            raise EagleEyeError(f"`criterion={criterion!r}` needs `batches`: {NEED_IMAGES[criterion]}")
        self.graph, self.criterion, self.seed = graph, criterion, seed
        model = unwrap_model(model)
        self._tensors = dict(named_tensors(model)) | computed_weights(model)
        self._outputs = output_dims(model)
        self._moments = moments or ReaderMoments(model, graph, batches or ())
        self._inverses: Inverses | None = None
        self._lock = threading.Lock()
        self._effects: dict[tuple[str, int], np.ndarray] = {}
        if criterion == "taylor" and batches is not None:
            self._effects = filter_effects(model, batches, {(m.tensor, m.dim) for g in graph.groups for m in g.members})
        self._units: dict[int, np.ndarray] = {}

    def prepare(self, accelerator: Accelerator | None = None) -> None:
        """Score all groups now, where that takes time. In several processes all go by the main one's scores: sums over
        images may differ in the last digit from one device to another, and all have to keep the same channels."""
        prunable = [number for number, group in enumerate(self.graph.groups) if group.prunable]
        if self.criterion not in NEED_IMAGES:
            return

        def score_groups() -> dict[int, np.ndarray]:
            if len(self._units) == len(prunable):
                return self._units
            known = self._invert_moments()
            bar = {"total": len(prunable), "desc": "ranking channels", "unit": " groups", "delay": 2, "leave": False}
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                scores = pool.map(partial(self._score_units, known=known), prunable)
                return dict(zip(prunable, progress_bar(scores, **bar), strict=True))

        self._units = make_in_main(accelerator, score_groups)
        self._inverses = None  # they are large

    def _invert_moments(self) -> Inverses:
        """Of what readers are given, where the criterion goes by that."""
        with self._lock:
            if self._inverses is None:
                moments = self._moments.get() if self.criterion == "reconstruction" else {}
                self._inverses = Inverses(self.graph, moments)
                if broken := self._inverses.broken:
                    warn(
                        f"what {broken[0]} and {len(broken) - 1} other layers read is not finite in the full network, "
                        "so channels there stay by `criterion=l1`; check its weights and statistics, and the images"
                    )
            return self._inverses

    def unit_scores(self, number: int) -> np.ndarray:
        """The importance of each unit of a group (channels that go together), per channel; shape `(num_units,)`."""
        if number not in self._units:
            self._units[number] = self._score_units(number, self._invert_moments())
        return self._units[number]

    def _score_units(self, number: int, known: Inverses) -> np.ndarray:
        group = self.graph.groups[number]
        readers = find_group_readers(self._tensors, self.graph, number, known)
        if readers:
            return removal_costs(readers, len(group.units)) / group.step
        return self._channel_scores(group)[group.units].mean(1)

    def choose(self, widths: Sequence[int]) -> dict[str, np.ndarray]:
        """The most important channels, ascending, per name of a group that shrinks."""
        keep = {}
        for number, width in enumerate(check_widths(self.graph, widths)):
            group = self.graph.groups[number]
            if width < group.channels:
                best = np.argsort(-self.unit_scores(number), kind="stable")[: width // group.step]
                keep[group.name] = np.sort(group.units[best].ravel())
        return keep

    def _channel_scores(self, group: ChannelGroup) -> np.ndarray:
        if self.criterion == "random":
            return np.random.default_rng((self.seed, zlib.crc32(group.name.encode()))).random(group.channels)
        total = np.zeros(group.channels)
        for member in self._producers(group):
            if self.criterion == "taylor":
                total += self._effects[member.tensor, member.dim][member.index].sum(1)
                continue
            weight = self._tensors[member.tensor].detach().float().movedim(member.dim, 0)
            scores = CRITERIA[self.criterion](weight.flatten(1) if weight.ndim > 1 else weight)
            by_channel = scores.cpu().double().numpy()[member.index].sum(1)
            total += by_channel / max(by_channel.mean(), 1e-12)
        return total

    def _producers(self, group: ChannelGroup) -> list[Member]:
        tensors = self._tensors
        if self.criterion == "bn_scale":
            rows = [m for m in group.members if tensors[m.tensor].ndim == 1 and _is_scale(m, tensors)]
        else:
            rows = [m for m in group.members if m.dim == self._outputs.get(m.tensor, 0) and tensors[m.tensor].ndim >= 2]
            rows = [m for m in rows if tensors[m.tensor][0].numel() > tensors[m.tensor][0, 0].numel()] or rows
            if not rows:  # banks of kernels (CondConv) hold their outputs along another dimension
                weights = [m for m in group.members if tensors[m.tensor].ndim >= 2]
                rows = [m for m in weights if m.tensor.rpartition(".")[0] == group.name.partition(":")[0]] or weights
        if self.criterion == "taylor":
            rows = [m for m in rows if (m.tensor, m.dim) in self._effects]
        if not rows:
            raise EagleEyeError(
                f"`criterion={self.criterion!r}` has nothing to go by in group {group.name}; use another one"
            )
        return rows


def output_dims(model: nn.Module) -> dict[str, int]:
    """The dimension along which a weight holds its outputs, where that is not the first."""
    return {
        f"{name}.weight": 1
        for name, module in model.named_modules()
        if isinstance(module, _ConvTransposeNd) and module.groups == 1
    }


def computed_weights(model: nn.Module) -> dict[str, Tensor]:
    """What parametrised layers compute with, as weight_norm, by the name of the tensor of that shape that it is
    made of."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if is_parametrized(module):
            parts = dict(named_tensors(module))
            for key in module.parametrizations:
                weight = getattr(module, key).detach()
                own = [part for part in parts if part.startswith(f"parametrizations.{key}.")]
                found |= {f"{name}.{part}": weight for part in own if parts[part].shape == weight.shape}
    return found


def choose_channels(
    model: nn.Module,
    graph: ChannelGraph,
    widths: Sequence[int],
    criterion: Criterion = "l1",
    *,
    batches: Iterable[AnyBatch] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Pick the most important channels of every group that shrinks.

    Args:
        widths: channels kept, one integer per group, in the graph's order.
        criterion, batches, seed: as in `Importance`.
    Returns:
        Kept channels, ascending, per name of a pruned group.
    Raises:
        EagleEyeError: the criterion is unknown, or the widths don't fit the graph.
    """
    importance = Importance(model, graph, criterion, batches, seed)
    return {name: torch.from_numpy(kept) for name, kept in importance.choose(widths).items()}


def filter_effects(
    model: nn.Module, batches: Iterable[AnyBatch], wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], np.ndarray]:
    """Squared change of the loss when a filter is set to zero, to first order, averaged over the batches.

    Args:
        wanted: names of tensors, and the dimensions along which they hold filters.
    Returns:
        Per weight of two dimensions or more, and dimension, `(sum of weight * gradient over the filter)^2`, shape
        `(filters,)`.
    Raises:
        EagleEyeError: there are no batches.
    """
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}
    device = device_of(model)
    totals = {
        (name, dim): to_float64(torch.zeros(weights[name].shape[dim], device=device))
        for name, dim in wanted
        if name in weights
    }
    num_batches = 0
    with evaluation_mode(model), _trainable(weights.values()):
        for batch in batches:
            with torch.enable_grad():
                loss = F.cross_entropy(run_model(model, images_of(batch)).float(), labels_of(batch).to(device))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            found = dict(zip(weights, gradients, strict=True))
            for (name, dim), total in totals.items():
                gradient = found[name]
                if gradient is not None:
                    effects = (weights[name].detach() * gradient).movedim(dim, 0)
                    total += to_float64(effects.flatten(1).sum(1)).square()
            num_batches += 1
    if not num_batches:
        raise EagleEyeError("`batches` is empty; `criterion='taylor'` needs images and labels")
    return {place: (total / num_batches).cpu().numpy() for place, total in totals.items()}


@contextmanager
def _trainable(weights: Iterable[Tensor]) -> Iterator[None]:
    before = [(weight, weight.requires_grad) for weight in weights]
    for weight, _ in before:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, requires_grad in before:
            weight.requires_grad_(requires_grad)


def _is_scale(member: Member, tensors: dict[str, Tensor]) -> bool:
    return member.tensor.endswith("weight") and member.tensor.removesuffix("weight") + "running_var" in tensors


CRITERIA: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "l1": lambda weight: weight.abs().sum(1),
    "l2": lambda weight: weight.square().sum(1).sqrt(),
    "bn_scale": lambda weight: weight.abs(),
    "geometric_median": lambda weight: torch.cdist(weight[None], weight[None])[0].sum(1),
    "taylor": lambda effect: effect,
    "reconstruction": lambda weight: weight.abs().sum(1),
    "random": lambda weight: weight,
}
"""How a layer's filters, one per row, are scored, as far as that is seen from its weights alone."""
NEED_IMAGES = {"taylor": "images and labels, for gradients", "reconstruction": "images, for what layers read"}
