"""Importance that knows of repair: what is lost without a channel once its readers are repaired by least squares.

A reader that loses input channels, its other weights repaired, errs by `sum_o w_o S w_o^T` over its outputs, where `S`
is what is left of the removed channels' moments without what the kept ones tell of them (`compensate`). Channels go one
by one, each time the one whose loss costs the group's readers least; the repair is redone in closed form after each
(optimal brain surgery, Hassibi & Stork 1992, with one input moment for all outputs as in Frantar & Alistarh 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.pruning.compensate import RIDGE, Moments, central_moments

WIDEST = 8192
"""Inputs of a layer that is looked at; of more, a matrix takes gigabytes and its inverse minutes."""
TOGETHER = 64
"""Of this many units that are left, one goes at a time; of more, a part of as many."""


@dataclass
class Reader:
    """A layer that reads a group, in the course of removal. Columns: the channels that are left, `num_columns` a unit.

    Attributes:
        weights: `W^T W` over outputs and taps, `W` repaired for what is gone; over the energy of the full output.
        inverse: of the moments of the channels that are left.
    """

    weights: Tensor
    inverse: Tensor
    num_columns: int

    def costs(self) -> Tensor:
        """What the loss of each unit alone would add to the relative squared error; shape `(num_units,)`."""
        weights, inverse = self._blocks(self.weights), self._blocks(self.inverse)
        if self.num_columns == 1:
            return (weights / inverse).flatten()
        return torch.linalg.solve(inverse, weights).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, units: Tensor) -> None:
        """Repair for the loss of some units, and forget them."""
        gone = (units[:, None] * self.num_columns + torch.arange(self.num_columns)).flatten()
        stays = torch.ones(len(self.weights), dtype=torch.bool)
        stays[gone] = False
        left = stays.nonzero().flatten()
        told = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone][:, left])
        moved = self.weights[left][:, gone] @ told
        self.weights = self.weights[left][:, left] - moved - moved.T + told.T @ self.weights[gone][:, gone] @ told
        self.inverse = self.inverse[left][:, left] - self.inverse[left][:, gone] @ told

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Those of units along the diagonal, shape `(num_units, num_columns, num_columns)`."""
        num = len(matrix) // self.num_columns
        units = torch.arange(num)
        return matrix.reshape(num, self.num_columns, num, self.num_columns)[units, :, units, :]


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


def find_group_readers(
    tensors: Mapping[str, Tensor], graph: ChannelGraph, number: int, moments: Mapping[str, Moments]
) -> list[Reader]:
    """The layers that read a group and of whose inputs there are moments."""
    group, found = graph.groups[number], []
    for member in group.members:
        name = member.tensor.removesuffix(".weight")
        if member.dim != 1 or name not in moments or not member.tensor.endswith(".weight"):
            continue
        if len(moments[name].products) > WIDEST:
            continue
        columns = member.index[group.units].reshape(len(group.units), -1)
        if np.unique(columns).size == columns.size:  # no channel that is read twice
            products, _ = central_moments(moments[name])
            with one_thread():
                found.append(make_reader(tensors[member.tensor].detach(), products, torch.from_numpy(columns)))
    return found


def make_reader(weight: Tensor, products: Tensor, columns: Tensor) -> Reader:
    """
    Args:
        products: moments of all inputs.
        columns: inputs of each unit; shape `(num_units, num_columns)`. Other inputs stay, and tell of these.
    """
    weight, products = weight.cpu().double(), products.cpu().double()
    rows = weight.flatten(2).movedim(2, 1).flatten(0, 1) if weight.ndim > 2 else weight
    gram, order = rows.T @ rows, columns.flatten()
    energy = (gram * products).sum().clamp_min(1e-30)
    ridge = RIDGE * products.diagonal().mean().clamp_min(1e-12) * torch.eye(len(products), dtype=torch.float64)
    inverse = torch.linalg.inv(products + ridge)
    return Reader(gram[order][:, order] / energy, inverse[order][:, order], columns.shape[1])
