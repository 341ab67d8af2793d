"""Importance that knows of repair: what is lost without a channel once its readers are repaired by least squares.

A reader that loses input channels, its other weights repaired, errs by `sum_o w_o S w_o^T` over its outputs, where `S`
is what is left of the removed channels' moments without what the kept ones tell of them (`compensate`). Channels go one
by one, each time the one whose loss costs the group's readers least; the repair is redone in closed form after each
(optimal brain surgery, Hassibi & Stork 1992, with one input moment for all outputs as in Frantar & Alistarh 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.pruning.compensate import Moments, central_moments, find_ridge

WIDEST = 8192
"""Inputs of a layer that is looked at; of more, a matrix takes gigabytes and its inverse minutes."""
TOGETHER = 64
"""Of this many units that are left, one goes at a time; of more, a part of as many."""
CROWDED = 0.75
"""Matrices of which less is left than this part are copied without what is gone."""


class Reader:
    """A layer that reads a group, in the course of removal.

    Args:
        weights: `W^T W` over outputs and taps, `W` repaired for what is gone, over the energy of the full output.
            Columns: the group's channels, `num_columns` a unit.
        inverse: of the moments of the same channels.
    """

    def __init__(self, weights: Tensor, inverse: Tensor, num_columns: int) -> None:
        self.weights, self.inverse, self.num_columns = weights, inverse, num_columns
        self.places = torch.arange(len(weights) // num_columns)
        """Of the units that are left, in the matrices: rows that are gone stay a while, for copies take longest."""

    def costs(self) -> Tensor:
        """What the loss of each unit alone would add to the relative squared error; shape `(units left,)`."""
        if self.num_columns == 1:
            return (self.weights.diagonal() / self.inverse.diagonal())[self.places]
        weights, inverse = self._blocks(self.weights), self._blocks(self.inverse)
        return torch.linalg.solve(inverse, weights).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, units: Tensor) -> None:
        """Repair for the loss of some of the units that are left, and forget them."""
        gone = self._columns(self.places[units])
        inverse, weights = self.inverse[gone], self.weights[gone]
        told = torch.linalg.solve(inverse[:, gone], inverse)
        half = weights - weights[:, gone] @ told / 2
        self.weights.addmm_(told.T, half, alpha=-1).addmm_(half.T, told, alpha=-1)
        self.inverse.addmm_(inverse.T, told, alpha=-1)
        stays = torch.ones(len(self.places), dtype=torch.bool)
        stays[units] = False
        self.places = self.places[stays]
        if len(self.places) * self.num_columns < CROWDED * len(self.weights):
            left = self._columns(self.places)
            self.weights, self.inverse = submatrix(self.weights, left), submatrix(self.inverse, left)
            self.places = torch.arange(len(self.places))

    def _columns(self, places: Tensor) -> Tensor:
        return (places[:, None] * self.num_columns + torch.arange(self.num_columns)).flatten()

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Those of units along the diagonal, shape `(units left, num_columns, num_columns)`."""
        num = len(matrix) // self.num_columns
        return matrix.view(num, self.num_columns, num, self.num_columns)[self.places, :, self.places, :]


def submatrix(matrix: Tensor, places: Tensor) -> Tensor:
    return matrix.index_select(0, places).index_select(1, places)


def removal_costs(readers: Sequence[Reader], num_units: int) -> np.ndarray:
    """What each unit's loss costs in the order in which they go, never less than one before; shape `(num_units,)`."""
    costs, left, highest = np.zeros(num_units), np.arange(num_units), 0.0
    with one_thread():
        while len(left):
            now = torch.stack([reader.costs() for reader in readers]).sum(0).numpy()
            cheapest = np.sort(np.argsort(now, kind="stable")[: max(1, len(left) // TOGETHER)])
            for place in cheapest[np.argsort(now[cheapest], kind="stable")]:
                highest = np.nextafter(max(highest, now[place]), np.inf)  # the order stays where costs fall
                costs[left[place]] = highest
            for reader in readers:
                reader.remove(torch.from_numpy(cheapest))
            left = np.delete(left, cheapest)
    return costs


class Inverses:
    """Of the moments of layers' inputs, as channels are ranked by them; those that several groups need are kept.

    Layers of more than `WIDEST` inputs are left out, and those of whose inputs moments are not finite.
    """

    def __init__(self, graph: ChannelGraph, moments: Mapping[str, Moments]) -> None:
        known = {name: found for name, found in moments.items() if found.mean.shape[1] <= WIDEST}
        self.moments = {name: found for name, found in known.items() if found.covariance.isfinite().all()}
        self.broken = [name for name in known if name not in self.moments]
        reads = Counter(member.tensor for group in graph.prunable for member in group.members if member.dim == 1)
        self._wanted = {tensor.removesuffix(".weight") for tensor, times in reads.items() if times > 1}
        self._kept: dict[str, Tensor] = {}

    def find(self, name: str) -> tuple[Tensor, Tensor]:
        """The moments of a layer, and their inverse."""
        products = central_moments(self.moments[name])[0].cpu().double()
        inverse = self._kept[name] if name in self._kept else invert(products)
        if name in self._wanted:
            self._kept[name] = inverse
        return products, inverse


def invert(products: Tensor) -> Tensor:
    """The inverses of moments, with the ridge of the repair; with more where rounding has made them indefinite.

    Args:
        products: shape `(groups, inputs, inputs)`, finite.
    """
    ridge = find_ridge(products)
    while True:
        moments = products.clone()
        moments.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(moments)
        if not failed.any():
            return torch.cholesky_inverse(factor)
        ridge = torch.where(failed[:, None] > 0, 10 * ridge, ridge)


def find_group_readers(
    tensors: Mapping[str, Tensor], graph: ChannelGraph, number: int, known: Inverses
) -> list[Reader]:
    """Of the layers that read a group and of whose inputs there are moments."""
    group, found = graph.groups[number], []
    for member in group.members:
        name = member.tensor.removesuffix(".weight")
        if member.dim == 1 and name in known.moments:
            columns = torch.from_numpy(np.stack([np.unique(member.index[unit]) for unit in group.units]))
            with one_thread():
                found += make_readers(tensors[member.tensor].detach(), *known.find(name), columns)
    return found


def make_readers(weight: Tensor, products: Tensor, inverse: Tensor, columns: Tensor) -> list[Reader]:
    """Of a linear layer or a convolution one, of a convolution in groups one each.

    Args:
        products: moments of all inputs; shape `(groups, inputs, inputs)`.
        inverse: `invert`ed.
        columns: inputs of each unit; shape `(num_units, num_columns)`. Other inputs stay, and tell of these.
    """
    num, width = products.shape[:2]
    rows = weight.cpu().double().reshape(num, len(weight) // num, width, -1).movedim(2, 3).flatten(1, 2)
    gram, order = rows.mT @ rows, columns.flatten()
    energy = (gram * products).sum().clamp_min(1e-30)
    pairs = zip(gram, inverse, strict=True)
    return [Reader(submatrix(own, order) / energy, submatrix(back, order), columns.shape[1]) for own, back in pairs]
