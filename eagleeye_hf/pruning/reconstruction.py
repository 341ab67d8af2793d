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
from torch import Tensor

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.pruning.compensate import RIDGE, Moments, central_moments, takes_constant

TOGETHER = 64
"""Of this many units that are left, one goes at a time; of more, a part of as many."""


@dataclass
class Reader:
    """A layer that reads a group, in the course of removal. Columns: the channels that are left, `num_columns` a unit.

    Attributes:
        weights: `W^T W` over outputs and taps, `W` repaired for what is gone; over the energy of the full output.
        inverse: of the moments of the channels that are left.
    """

    weights: np.ndarray
    inverse: np.ndarray
    num_columns: int

    def costs(self) -> np.ndarray:
        """What the loss of each unit alone would add to the relative squared error; shape `(num_units,)`."""
        weights, inverse = (self._blocks(matrix) for matrix in (self.weights, self.inverse))
        if self.num_columns == 1:
            return weights[:, 0, 0] / inverse[:, 0, 0]
        return np.trace(np.linalg.solve(inverse, weights), axis1=1, axis2=2)

    def remove(self, units: np.ndarray) -> None:
        """Repair for the loss of some units, and forget them."""
        gone = (units[:, None] * self.num_columns + np.arange(self.num_columns)).ravel()
        left = np.setdiff1d(np.arange(len(self.weights)), gone)
        told = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[np.ix_(gone, left)])
        moved = self.weights[np.ix_(left, gone)] @ told
        self.weights = (
            self.weights[np.ix_(left, left)] - moved - moved.T + told.T @ self.weights[np.ix_(gone, gone)] @ told
        )
        self.inverse = self.inverse[np.ix_(left, left)] - self.inverse[np.ix_(left, gone)] @ told

    def _blocks(self, matrix: np.ndarray) -> np.ndarray:
        """Those of units along the diagonal, shape `(num_units, num_columns, num_columns)`."""
        num = len(matrix) // self.num_columns
        units = np.arange(num)
        return matrix.reshape(num, self.num_columns, num, self.num_columns)[units, :, units, :]


def removal_costs(readers: Sequence[Reader], num_units: int) -> np.ndarray:
    """What each unit's loss costs in the order in which they go, never less than one before; shape `(num_units,)`."""
    costs, left, highest = np.zeros(num_units), np.arange(num_units), 0.0
    while len(left):
        now = np.sum([reader.costs() for reader in readers], axis=0)
        cheapest = np.argsort(now, kind="stable")[: max(1, len(left) // TOGETHER)]
        for place in cheapest:
            highest = np.nextafter(max(highest, now[place]), np.inf)  # the order stays where costs fall
            costs[left[place]] = highest
        for reader in readers:
            reader.remove(np.sort(cheapest))
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
        weight = tensors[member.tensor].detach()
        products = central_moments(moments[name], takes_constant(graph, tensors, name))[0].cpu().numpy()
        columns = member.index[group.units].reshape(len(group.units), -1)
        if np.unique(columns).size != columns.size:  # a channel that is read twice
            continue
        found.append(_reader(weight, products, columns))
    return found


def _reader(weight: Tensor, products: np.ndarray, columns: np.ndarray) -> Reader:
    rows = weight.double().flatten(2).movedim(2, 1).flatten(0, 1) if weight.ndim > 2 else weight.double()
    gram = (rows.T @ rows).cpu().numpy()
    energy = max(float(np.sum(gram * products)), 1e-30)
    order = columns.ravel()
    own = products[np.ix_(order, order)]
    others = np.setdiff1d(np.arange(len(products)), order)
    if len(others):  # other groups' channels stay, and tell of these
        cross = products[np.ix_(others, order)]
        ridge = _ridge(products[np.ix_(others, others)])
        own = own - cross.T @ np.linalg.solve(products[np.ix_(others, others)] + ridge, cross)
    inverse = np.linalg.inv(own + _ridge(own))
    return Reader(gram[np.ix_(order, order)] / energy, inverse, columns.shape[1])


def _ridge(products: np.ndarray) -> np.ndarray:
    return RIDGE * max(float(np.diag(products).mean()), 1e-12) * np.eye(len(products))
