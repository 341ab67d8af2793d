"""From ties and pins to channel groups, sizes and costs; whole arrays at a time."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup, CostModel, Member, SizeAttribute
from eagleeye_hf.tracing.ids import Dim, Dims, Label, Product, Recorder, factors_of
from eagleeye_hf.tracing.run import Shadow

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
    labels: dict[str, list[list[int]]]
    """Per tensor and dimension, labels along it, by their number in `label_roots`; none where its size is 1
    or the tensor is unused."""
    label_roots: list[np.ndarray]
    """Distinct arrays of roots that labels have."""

    def kept(self, removed: np.ndarray) -> tuple[dict[str, Dims], np.ndarray]:
        """What a checker needs once the roots marked in `removed` are gone."""
        left = [roots[~removed[roots]] for roots in self.label_roots]
        kept: dict[str, Dims] = {}
        for name, dims in self.labels.items():
            described: list[Dim] = []
            for numbers in dims:
                if len(numbers) > 1:
                    described.append(Product(tuple((len(left[number]), left[number]) for number in numbers)))
                else:
                    described.append(left[numbers[0]] if numbers else None)
            kept[name] = tuple(described)
        return kept, self.pinned


@dataclass(frozen=True)
class _Alike:
    """Labels whose ids have the same roots, as the four vectors of a BatchNorm: what is found for one holds for all."""

    roots: np.ndarray
    labels: list[Label]

    def positions(self, places: np.ndarray) -> np.ndarray:
        """Where the ids at these places lie along the dimension; shape `(num_places, k)`."""
        positions = self.labels[0].positions
        return places[:, None] if positions.shape[1] == 1 else positions[places]


def _sort_alike(store: Recorder, roots: np.ndarray) -> list[_Alike]:
    found: dict[object, _Alike] = {}
    sharing: dict[int, _Alike] = {}
    for label in store.labels.values():
        is_whole = label.positions.shape[1] == 1
        same = sharing.get(id(label.ids)) if is_whole else None
        if same is None:
            own = roots[label.ids]
            same = found.setdefault(own.tobytes() if is_whole else label.start, _Alike(own, []))
            if is_whole:
                sharing[id(label.ids)] = same
        same.labels.append(label)
    return list(found.values())


def solve(shadow: Shadow, input_size: tuple[int, int, int]) -> Solution:
    """Group the ids of a finished run."""
    store = shadow.store
    assert isinstance(store, Recorder)
    roots = store.roots()
    reasons, reason_of = _pinned(store, roots)
    alike = _sort_alike(store, roots)
    groups, group_of, unit_roots = _group(store, roots, alike, reasons, reason_of)
    places = _Places(roots, group_of, unit_roots, groups)
    attributes = tuple(
        SizeAttribute(module=module, path=path, length=len(ids), parts=parts)
        for (module, path), ids in shadow.sizes.finish().items()
        if (parts := places.of(ids))
    )
    labels: dict[str, list[list[int]]] = {name: [[] for _ in t.shape] for name, t in shadow.tensors.items()}
    numbered = [(label, number) for number, same in enumerate(alike) for label in same.labels]
    for label, number in sorted(numbered, key=lambda pair: pair[0].start):
        labels[label.tensor][label.dim].append(number)
    forms = _Forms(places, len(groups))
    macs = [(factor, forms.of(dims)) for factor, dims in shadow.costs]
    params = []
    for name, tensor in shadow.tensors.items():
        if isinstance(tensor, nn.Parameter):
            dims: list[tuple[int, Dim]] = []
            for size, numbers in zip(tensor.shape, labels[name], strict=True):
                dims += [(len(alike[n].roots), alike[n].roots) for n in numbers] or [(size, None)]
            params.append((1, forms.of(dims)))
    graph = ChannelGraph(groups=groups, attributes=attributes, cost=forms.model(macs, params), input_size=input_size)
    return Solution(graph, roots, unit_roots, reason_of[roots] >= 0, labels, [same.roots for same in alike])


def _pinned(store: Recorder, roots: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct reasons, and per root the number of the first that pins it, or -1."""
    reasons: dict[str, int] = {}
    reason_of = np.full(store.num_ids, -1)
    for ids, reason in reversed(store.pins):
        reason_of[roots[ids]] = reasons.setdefault(reason, len(reasons))
    return list(reasons), reason_of


def _group(
    store: Recorder, roots: np.ndarray, alike: list[_Alike], reasons: list[str], reason_of: np.ndarray
) -> tuple[tuple[ChannelGroup, ...], np.ndarray, list[np.ndarray]]:
    """Units with the same members, pinned for the same reason, form a group; only those that a layer produces do."""
    produced = np.concatenate([*store.producers, np.empty(0, dtype=np.int64)])
    is_produced = np.zeros(store.num_ids, dtype=bool)
    is_produced[roots[produced]] = True
    lengths = [len(same.roots) for same in alike]
    same_of = np.repeat(np.arange(len(alike)), lengths)
    place_of = np.arange(len(same_of)) - np.repeat(np.cumsum([0, *lengths])[:-1], lengths)
    root_of = np.concatenate([*(same.roots for same in alike), np.empty(0, dtype=np.int64)])
    same_of, place_of, root_of = (a[is_produced[root_of]] for a in (same_of, place_of, root_of))

    random = np.random.default_rng(0)
    keys = random.integers(1, 2**63, len(alike), dtype=np.uint64)
    signature = random.integers(1, 2**63, len(reasons) + 1, dtype=np.uint64)[reason_of]
    np.add.at(signature, root_of, keys[same_of])
    produced_roots = np.flatnonzero(is_produced)
    _, number = np.unique(signature[produced_roots], return_inverse=True)
    group_of = np.full(store.num_ids, -1)
    group_of[produced_roots] = number

    # a group is named after, and ordered by, the first layer that produces it and its first place there
    label_at = {label.start: (label, i) for i, same in enumerate(alike) for label in same.labels}
    firsts: dict[int, tuple[Label, int]] = {}
    for ids in store.producers:
        if (found := label_at.get(int(ids[0]))) is not None:
            for group in dict.fromkeys(group_of[alike[found[1]].roots].tolist()):
                firsts.setdefault(group, found)
    firsts.pop(-1, None)
    rank = np.full(int(number.max(initial=-1)) + 2, -1)
    rank[list(firsts)] = np.arange(len(firsts))
    group_of = rank[group_of]

    inside = group_of[root_of] >= 0
    same_of, place_of, root_of = (a[inside] for a in (same_of, place_of, root_of))
    group_at, first_same = group_of[root_of], np.array([i for _, i in firsts.values()], dtype=np.int64)
    # units are numbered by their first place in the group's first producer
    leads = same_of == first_same[group_at]
    lead_place = np.full(store.num_ids, len(root_of))
    np.minimum.at(lead_place, root_of[leads], place_of[leads])
    # by group, label and lead; places ascend already
    sorting = np.argsort((group_at * len(alike) + same_of) * (len(root_of) + 1) + lead_place[root_of], kind="stable")
    same_of, place_of, root_of, group_at = (a[sorting] for a in (same_of, place_of, root_of, group_at))
    cuts = np.flatnonzero(np.diff(same_of) | np.diff(group_at)) + 1
    edges = [0, *cuts.tolist(), len(same_of)] if len(same_of) else []
    runs: list[dict[int, slice]] = [{} for _ in firsts]
    for group, same, start, stop in zip(
        group_at[edges[:-1]].tolist(), same_of[edges[:-1]].tolist(), edges[:-1], edges[1:], strict=True
    ):
        runs[group][same] = slice(start, stop)

    groups, unit_roots = [], []
    names: dict[str, int] = {}
    for (first, lead), pieces in zip(firsts.values(), runs, strict=True):
        lead_roots = root_of[pieces[lead]]
        units_here = lead_roots[np.append(True, lead_roots[1:] != lead_roots[:-1])]
        num_units = len(units_here)
        lead_places = alike[lead].positions(place_of[pieces[lead]])[:, 0]
        in_order = bool((lead_places[1:] > lead_places[:-1]).all())
        channels = np.arange(len(lead_places)) if in_order else np.argsort(np.argsort(lead_places))
        units = channels.reshape(num_units, -1)
        members = []
        for same, piece in pieces.items():
            index = _per_channel(alike[same].positions(place_of[piece]), units, in_order)
            members += [(label.start, Member(label.tensor, label.dim, index)) for label in alike[same].labels]
        members.sort(key=operator.itemgetter(0))
        reason = reasons[reason_of[units_here[0]]] if reason_of[units_here[0]] >= 0 else ""
        name = first.tensor.rsplit(".", 1)[0].removesuffix(".parametrizations.weight")
        names[name] = names.get(name, 0) + 1
        groups.append(
            ChannelGroup(
                name=name if names[name] == 1 else f"{name}:{names[name]}",
                units=units,
                members=tuple(member for _, member in members),
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

    def count(self, roots: np.ndarray) -> np.ndarray:
        """How many of them lie in each group, and last how many can't be removed."""
        group_at = self.group_of[roots]
        return np.bincount(np.where(self.varies[group_at], group_at, len(self.groups)), minlength=len(self.groups) + 1)


class _Forms:
    """Distinct linear forms of unit counts."""

    def __init__(self, places: _Places, num_groups: int) -> None:
        self.places, self.num_groups = places, num_groups
        self.forms: dict[tuple[tuple[int, int], ...], int] = {}
        self._known: dict[bytes, tuple[tuple[int, int], ...]] = {}
        self._seen: dict[int, tuple[np.ndarray, tuple[tuple[int, int], ...]]] = {}

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
        if id(ids) not in self._seen:
            roots = self.places.roots[ids]
            key = roots.tobytes()
            if key not in self._known:
                self._known[key] = self._terms(roots)
            self._seen[id(ids)] = ids, self._known[key]
        return self._seen[id(ids)][1]

    def _terms(self, roots: np.ndarray) -> tuple[tuple[int, int], ...]:
        counts = self.places.count(roots)
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
