"""From ties and pins to channel groups, sizes and costs; whole arrays at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eagleeye_hf.channels.dispatch import Shadow
from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup, CostModel, Member, SizeAttribute
from eagleeye_hf.channels.shadow import Dim, Dims, Label, Product, Recorder, factors_of
from eagleeye_hf.channels.thin import named_tensors

SINGLE_UNIT = "all its channels go together"


@dataclass(frozen=True)
class Solution:
    graph: ChannelGraph
    roots: np.ndarray
    """Per id, the smallest id of its tied set."""
    unit_roots: list[np.ndarray]
    """Per group, the root of each unit."""
    pinned: np.ndarray
    """Per id, whether it can't be removed."""
    labels: dict[str, list[list[Label]]]
    """Per tensor and dimension, the labels that lie along it."""

    def kept(self, removed: np.ndarray) -> tuple[dict[str, Dims], np.ndarray]:
        """What a checker needs once the roots marked in `removed` are gone."""
        kept: dict[str, Dims] = {}
        for name, dims in self.labels.items():
            described: list[Dim] = []
            for labels in dims:
                ids = [roots[~removed[roots]] for roots in (self.roots[label.ids] for label in labels)]
                if len(ids) > 1:
                    described.append(Product(tuple((len(factor), factor) for factor in ids)))
                else:
                    described.append(ids[0] if len(labels[0].positions) > 1 else None)
            kept[name] = tuple(described)
        return kept, self.pinned


def solve(shadow: Shadow, input_size: tuple[int, int, int]) -> Solution:
    """Group the ids of a finished run."""
    store = shadow.store
    assert isinstance(store, Recorder)
    roots = store.roots()
    reasons, reason_of = _pinned(store, roots)
    groups, group_of, unit_roots = _group(store, roots, reasons, reason_of)
    places = _Places(roots, group_of, unit_roots, groups)
    attributes = tuple(
        SizeAttribute(module=module, path=path, length=len(ids), parts=parts)
        for (module, path), ids in shadow.sizes.finish().items()
        if (parts := places.of(ids))
    )
    labels: dict[str, list[list[Label]]] = {}
    tensors = dict(named_tensors(shadow.model))
    for label in sorted(store.labels.values(), key=lambda label: label.start):
        dims = labels.setdefault(label.tensor, [[] for _ in tensors[label.tensor].shape])
        dims[label.dim].append(label)
    forms = _Forms(places, len(groups))
    macs = [(factor, forms.of(dims)) for factor, dims in shadow.costs]
    params = [
        (
            1,
            forms.of(
                [(len(label.positions), label.ids) for dim in labels[name] for label in dim]
                if name in labels
                else [(size, None) for size in tensor.shape]
            ),
        )
        for name, tensor in shadow.model.named_parameters()
    ]
    graph = ChannelGraph(groups=groups, attributes=attributes, cost=forms.model(macs, params), input_size=input_size)
    return Solution(graph, roots, unit_roots, reason_of[roots] >= 0, labels)


def _pinned(store: Recorder, roots: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct reasons, and per root the number of the first that pins it, or -1."""
    reasons: dict[str, int] = {}
    reason_of = np.full(store.num_ids, -1)
    for ids, reason in reversed(store.pins):
        reason_of[roots[ids]] = reasons.setdefault(reason, len(reasons))
    return list(reasons), reason_of


def _group(
    store: Recorder, roots: np.ndarray, reasons: list[str], reason_of: np.ndarray
) -> tuple[tuple[ChannelGroup, ...], np.ndarray, list[np.ndarray]]:
    """Units with the same members, pinned for the same reason, form a group; only those that a layer produces do."""
    produced = np.concatenate([*store.producers, np.empty(0, dtype=np.int64)])
    is_produced = np.zeros(store.num_ids, dtype=bool)
    is_produced[roots[produced]] = True
    labels = list(store.labels.values())
    lengths = [len(label.positions) for label in labels]
    starts = np.array([label.start for label in labels], dtype=np.int64)
    label_of = np.repeat(np.arange(len(labels)), lengths)
    id_of = np.arange(len(label_of)) + np.repeat(starts - np.cumsum([0, *lengths])[:-1], lengths)
    place_of = np.concatenate([*(label.positions[:, 0] for label in labels), np.empty(0, dtype=np.int64)])
    root_of = roots[id_of]
    label_of, id_of, place_of, root_of = (a[is_produced[root_of]] for a in (label_of, id_of, place_of, root_of))

    random = np.random.default_rng(0)
    keys = random.integers(1, 2**63, len(labels), dtype=np.uint64)
    signature = random.integers(1, 2**63, len(reasons) + 1, dtype=np.uint64)[reason_of]
    np.add.at(signature, root_of, keys[label_of])
    produced_roots = np.flatnonzero(is_produced)
    _, number = np.unique(signature[produced_roots], return_inverse=True)
    group_of = np.full(store.num_ids, -1)
    group_of[produced_roots] = number

    # a group is named after, and ordered by, the first layer that produces it
    label_at = {label.start: i for i, label in enumerate(labels)}
    firsts: dict[int, int] = {}
    for ids in store.producers:
        if (i := label_at.get(int(ids[0]))) is not None:
            for group in np.unique(group_of[roots[labels[i].ids]]):
                firsts.setdefault(int(group), i)
    firsts.pop(-1, None)
    rank = np.full(int(number.max(initial=-1)) + 2, -1)
    rank[list(firsts)] = np.arange(len(firsts))
    group_of = rank[group_of]

    inside = group_of[root_of] >= 0
    label_of, id_of, place_of, root_of = (a[inside] for a in (label_of, id_of, place_of, root_of))
    group_at, first_label = group_of[root_of], np.array(list(firsts.values()), dtype=np.int64)
    # units are numbered by their first place in the group's first producer
    leads = label_of == first_label[group_at]
    lead_id = np.full(store.num_ids, store.num_ids)
    np.minimum.at(lead_id, root_of[leads], id_of[leads])
    # by group, label and lead; ids ascend already
    sorting = np.argsort((group_at * len(labels) + label_of) * (store.num_ids + 1) + lead_id[root_of], kind="stable")
    label_of, id_of, place_of, root_of, group_at = (a[sorting] for a in (label_of, id_of, place_of, root_of, group_at))
    cuts = np.flatnonzero(np.diff(label_of) | np.diff(group_at)) + 1
    edges = [0, *cuts.tolist(), len(label_of)] if len(label_of) else []
    runs: list[list[tuple[int, int, int]]] = [[] for _ in firsts]
    for group, label, start, stop in zip(
        group_at[edges[:-1]].tolist(), label_of[edges[:-1]].tolist(), edges[:-1], edges[1:], strict=True
    ):
        runs[group].append((label, start, stop))

    def places(label: int, start: int, stop: int) -> np.ndarray:
        if labels[label].positions.shape[1] == 1:
            return place_of[start:stop, None]
        return labels[label].positions[id_of[start:stop] - labels[label].start]

    groups, unit_roots = [], []
    names: dict[str, int] = {}
    for first, pieces in zip(first_label.tolist(), runs, strict=True):
        lead = next(piece for piece in pieces if piece[0] == first)
        lead_roots = root_of[lead[1] : lead[2]]
        units_here = lead_roots[np.concatenate([[True], np.diff(lead_roots) != 0])]
        num_units = len(units_here)
        channels = np.argsort(np.argsort(places(*lead)[:, 0]))
        units = channels.reshape(num_units, -1)
        in_order = bool((np.diff(channels) == 1).all())
        members = tuple(
            Member(
                tensor=labels[label].tensor,
                dim=labels[label].dim,
                index=_per_channel(places(label, start, stop), units, in_order),
            )
            for label, start, stop in pieces
        )
        reason = reasons[reason_of[units_here[0]]] if reason_of[units_here[0]] >= 0 else ""
        name = labels[first].tensor.rsplit(".", 1)[0].removesuffix(".parametrizations.weight")
        names[name] = names.get(name, 0) + 1
        groups.append(
            ChannelGroup(
                name=name if names[name] == 1 else f"{name}:{names[name]}",
                units=units,
                members=members,
                reason=reason or (SINGLE_UNIT if num_units == 1 else ""),
            )
        )
        unit_roots.append(units_here)
    return tuple(groups), group_of, unit_roots


def _per_channel(places: np.ndarray, units: np.ndarray, in_order: bool) -> np.ndarray:
    """Hand the places of each unit out to its channels; all of them to each where they don't divide."""
    if in_order and places.size == units.size:
        return places.reshape(-1, 1)
    num_units, step = units.shape
    by_unit = places.reshape(num_units, -1)
    if by_unit.shape[1] % step:
        by_unit = np.tile(by_unit, (1, step))
    index = np.empty((units.size, by_unit.shape[1] // step), dtype=np.int64)
    index[units.ravel()] = by_unit.reshape(units.size, -1)
    return index


class _Places:
    """Where the groups' channels lie in any array of ids."""

    def __init__(
        self, roots: np.ndarray, group_of: np.ndarray, unit_roots: list[np.ndarray], groups: tuple[ChannelGroup, ...]
    ) -> None:
        self.roots, self.group_of, self.groups = roots, group_of, groups
        self.varies = np.array([group.prunable for group in groups] + [False])  # the last: in no group, number -1
        self.first_channel = np.full(len(roots), -1)
        for group, units in zip(groups, unit_roots, strict=True):
            self.first_channel[units] = group.units[:, 0]

    def of(self, ids: np.ndarray) -> tuple[tuple[int, np.ndarray], ...]:
        """(group number, pairs of a channel and its place) for every prunable group in `ids`."""
        roots = self.roots[ids]
        group_at = self.group_of[roots]
        here = np.flatnonzero(self.varies[group_at])
        here = here[np.argsort(group_at[here], kind="stable")]
        channels = self.first_channel[roots[here]]
        pairs = np.stack([channels, here], axis=1)
        cuts = np.flatnonzero(np.diff(group_at[here])) + 1
        return tuple((int(group_at[part[0, 1]]), part) for part in np.split(pairs, cuts) if len(part))

    def count(self, ids: np.ndarray) -> np.ndarray:
        """How many of the ids lie in each group, and last how many can't be removed."""
        group_at = self.group_of[self.roots[ids]]
        return np.bincount(np.where(self.varies[group_at], group_at, len(self.groups)), minlength=len(self.groups) + 1)


class _Forms:
    """Distinct linear forms of unit counts."""

    def __init__(self, places: _Places, num_groups: int) -> None:
        self.places, self.num_groups = places, num_groups
        self.forms: dict[tuple[tuple[int, int], ...], int] = {}

    def of(self, dims: list[tuple[int, Dim]]) -> tuple[int, tuple[int, ...]]:
        """A constant factor and the forms of the dimensions that vary."""
        factor, forms = 1, []
        for size, dim in dims:
            for length, ids in factors_of(size, dim):
                form = self._form(length, ids)
                if len(form) == 1:
                    factor *= form[0][1]
                else:
                    forms.append(self.forms.setdefault(form, len(self.forms)))
        return factor, tuple(sorted(forms))

    def _form(self, length: int, ids: np.ndarray | None) -> tuple[tuple[int, int], ...]:
        """((-1, constant), (group, channels per unit), ...)"""
        if ids is None:
            return ((-1, length),)
        counts = self.places.count(ids)
        terms = []
        for number in np.flatnonzero(counts[:-1]).tolist():
            num_units = len(self.places.groups[number].units)
            assert counts[number] % num_units == 0, "the units of a group lie equally often along a dimension"
            terms.append((number, int(counts[number]) // num_units))
        return ((-1, int(counts[-1])), *terms)

    def model(
        self, macs: list[tuple[int, tuple[int, tuple[int, ...]]]], params: list[tuple[int, tuple[int, tuple[int, ...]]]]
    ) -> CostModel:
        constants = np.zeros(len(self.forms), dtype=np.int64)
        coefficients = np.zeros((self.num_groups, len(self.forms)), dtype=np.int64)
        for form, i in self.forms.items():
            for number, count in form:
                if number < 0:
                    constants[i] = count
                else:
                    coefficients[number, i] = count
        return CostModel(constants=constants, coefficients=coefficients, macs=_gather(macs), params=_gather(params))


def _gather(terms: list[tuple[int, tuple[int, tuple[int, ...]]]]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Add up terms over the same forms."""
    total: dict[tuple[int, ...], int] = {}
    for factor, (constant, forms) in terms:
        total[forms] = total.get(forms, 0) + factor * constant
    return tuple((factor, forms) for forms, factor in total.items())
