"""From ties and pins to channel groups; whole arrays at a time."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

from eagleeye_hf.channels.graph import ChannelGroup, Member
from eagleeye_hf.tracing.ids import Dim, Label, Recorder

SINGLE_UNIT = "all its channels go together"


@dataclass(frozen=True)
class LabelSet:
    """Labels whose ids have the same roots, as the four vectors of a BatchNorm: what is found for one holds for all."""

    roots: np.ndarray
    labels: list[Label]

    def positions(self, places: np.ndarray) -> np.ndarray:
        """Where the ids at these places lie along the dimension; shape `(num_places, k)`."""
        positions = self.labels[0].positions
        return places[:, None] if positions.shape[1] == 1 else positions[places]


@dataclass(frozen=True)
class Grouping:
    """The ids of a run, grouped."""

    roots: np.ndarray
    """Per id, the smallest id of its tied set."""
    pinned: np.ndarray
    """Per id, whether it can't be removed."""
    label_sets: list[LabelSet]
    sets_along: dict[tuple[str, int], list[int]]
    """Per tensor and dimension, the numbers of the label sets along it; missing where its size is 1 or it is unused."""
    groups: tuple[ChannelGroup, ...]
    group_of: np.ndarray
    """Per root, the number of its group, or -1."""
    unit_roots: list[np.ndarray]
    """Per group, the root of each unit."""
    channel_of: np.ndarray
    """Per root that is in a group, the first channel of its unit."""

    def dims_along(self, tensor: str, dim: int, size: int) -> list[tuple[int, Dim]]:
        """Sizes and roots of the factors of a dimension."""
        found = [self.label_sets[number].roots for number in self.sets_along.get((tensor, dim), [])]
        return [(len(roots), roots) for roots in found] or [(size, None)]

    def channels_in(self, ids: np.ndarray) -> tuple[tuple[int, np.ndarray], ...]:
        """(group number, pairs of a channel and its place) for every prunable group in an array of ids."""
        roots = self.roots[ids]
        group_at = self.group_of[roots]
        found = []
        for number in np.unique(group_at[group_at >= 0]).tolist():
            if self.groups[number].prunable:
                places = np.flatnonzero(group_at == number)
                found.append((number, np.stack([self.channel_of[roots[places]], places], axis=1)))
        return tuple(found)


def group_ids(store: Recorder) -> Grouping:
    """Group the ids of a finished run.

    Roots that lie along the same labels, pinned for the same reason, are the units of one group; only those that a
    layer produces are in any.
    """
    roots = store.roots()
    reasons, reason_of = _find_pinned(store, roots)
    label_sets = _collect_labels(store, roots)
    numbered = [(label, number) for number, label_set in enumerate(label_sets) for label in label_set.labels]
    numbered.sort(key=lambda pair: pair[0].start)
    classes = _divide_roots(label_sets, reason_of)
    leads = _find_leads(store, label_sets, numbered, classes)
    group_of = _number_groups(store, roots, classes, list(leads))
    unit_roots = _find_units(label_sets, [lead for _, lead in leads.values()], group_of)
    places = _sort_places(label_sets, group_of, unit_roots)
    reason_at = [reasons[reason_of[units[0]]] if reason_of[units[0]] >= 0 else "" for units in unit_roots]
    groups = _build_groups(label_sets, list(leads.values()), places, reason_at, [len(units) for units in unit_roots])
    channel_of = np.full(store.num_ids, -1)
    for group, units in zip(groups, unit_roots, strict=True):
        channel_of[units] = group.units[:, 0]
    sets_along: dict[tuple[str, int], list[int]] = {}
    for label, number in numbered:
        sets_along.setdefault((label.tensor, label.dim), []).append(number)
    pinned = reason_of[roots] >= 0
    return Grouping(roots, pinned, label_sets, sets_along, groups, group_of, unit_roots, channel_of)


def _find_pinned(store: Recorder, roots: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct reasons, and per root the number of the first that pins it, or -1."""
    reasons: dict[str, int] = {}
    reason_of = np.full(store.num_ids, -1)
    for ids, reason in reversed(store.pins):
        reason_of[roots[ids]] = reasons.setdefault(reason, len(reasons))
    return list(reasons), reason_of


def _collect_labels(store: Recorder, roots: np.ndarray) -> list[LabelSet]:
    """Sets of labels of whole dimensions; a label of a part of one (the kernels of a bank) is alone in its set."""
    found: dict[object, LabelSet] = {}
    for label in store.labels.values():
        along = roots[label.ids]
        key = along.tobytes() if label.positions.shape[1] == 1 else label.start
        found.setdefault(key, LabelSet(along, [])).labels.append(label)
    return list(found.values())


def _divide_roots(label_sets: list[LabelSet], reason_of: np.ndarray) -> np.ndarray:
    """Per root, a number that it has in common with those of its reason that lie as often along the same labels."""
    classes = reason_of + 1
    num_classes = int(classes.max(initial=0)) + 1
    for label_set in label_sets:
        roots, times = np.unique(label_set.roots, return_counts=True)
        parts, part = np.unique(classes[roots] * (len(label_set.roots) + 1) + times, return_inverse=True)
        classes[roots] = num_classes + part
        num_classes += len(parts)
    return classes


def _find_leads(
    store: Recorder, label_sets: list[LabelSet], numbered: list[tuple[Label, int]], classes: np.ndarray
) -> dict[int, tuple[Label, int]]:
    """Per class of roots, the first label that a layer produces it along, and the number of its set.

    A group is named after, and ordered by, that label and its first place there.
    """
    starts = {label.start: (label, number) for label, number in numbered}
    leads: dict[int, tuple[Label, int]] = {}
    for ids in store.producers:
        if (lead := starts.get(int(ids[0]))) is not None:
            for found in dict.fromkeys(classes[label_sets[lead[1]].roots].tolist()):
                leads.setdefault(found, lead)
    return leads


def _number_groups(store: Recorder, roots: np.ndarray, classes: np.ndarray, ordered: list[int]) -> np.ndarray:
    """Per root, the place of its class among the ordered ones; -1 where no layer produces it."""
    rank = np.full(int(classes.max(initial=0)) + 1, -1)
    rank[ordered] = np.arange(len(ordered))
    is_produced = np.zeros(store.num_ids, dtype=bool)
    for ids in store.producers:
        is_produced[roots[ids]] = True
    return np.where(is_produced, rank[classes], -1)


def _find_units(label_sets: list[LabelSet], leads: list[int], group_of: np.ndarray) -> list[np.ndarray]:
    """Per group, the roots of its units by their first place along the label that leads it."""
    unit_roots = []
    for number, lead in enumerate(leads):
        roots = label_sets[lead].roots
        units, first = np.unique(roots[group_of[roots] == number], return_index=True)
        unit_roots.append(units[np.argsort(first)])
    return unit_roots


def _sort_places(
    label_sets: list[LabelSet], group_of: np.ndarray, unit_roots: list[np.ndarray]
) -> list[dict[int, np.ndarray]]:
    """Per group, its places along each label set (by its number) that has any, in the order of its units."""
    unit_of = np.full(len(group_of), -1)
    for units in unit_roots:
        unit_of[units] = np.arange(len(units))
    places: list[dict[int, np.ndarray]] = [{} for _ in unit_roots]
    for number, label_set in enumerate(label_sets):
        group_at = group_of[label_set.roots]
        order = np.argsort(group_at * len(group_of) + unit_of[label_set.roots], kind="stable")
        for piece in np.split(order, np.flatnonzero(np.diff(group_at[order])) + 1):
            if group_at[piece[0]] >= 0:
                places[group_at[piece[0]]][number] = piece
    return places


def _build_groups(
    label_sets: list[LabelSet],
    leads: list[tuple[Label, int]],
    places: list[dict[int, np.ndarray]],
    reasons: list[str],
    num_units: list[int],
) -> tuple[ChannelGroup, ...]:
    groups = []
    names: dict[str, int] = {}
    for (label, lead), places_here, reason, num in zip(leads, places, reasons, num_units, strict=True):
        name = label.tensor.rsplit(".", 1)[0].removesuffix(".parametrizations.weight")
        names[name] = names.get(name, 0) + 1
        units = _number_channels(label_sets[lead].positions(places_here[lead])[:, 0]).reshape(num, -1)
        groups.append(
            ChannelGroup(
                name=name if names[name] == 1 else f"{name}:{names[name]}",
                units=units,
                members=_find_members(label_sets, places_here, units),
                reason=reason or (SINGLE_UNIT if num == 1 else ""),
            )
        )
    return tuple(groups)


def _number_channels(positions: np.ndarray) -> np.ndarray:
    """Channels are numbered by their place along the label that leads their group."""
    in_order = bool((positions[1:] > positions[:-1]).all())
    return np.arange(len(positions)) if in_order else np.argsort(np.argsort(positions))


def _find_members(label_sets: list[LabelSet], places: dict[int, np.ndarray], units: np.ndarray) -> tuple[Member, ...]:
    members: list[tuple[int, Member]] = []
    for number, places_here in places.items():
        index = _index_channels(label_sets[number].positions(places_here), units)
        members += [(label.start, Member(label.tensor, label.dim, index)) for label in label_sets[number].labels]
    members.sort(key=operator.itemgetter(0))
    return tuple(member for _, member in members)


def _index_channels(positions: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Hand the places of each unit out to its channels; all of them to each where they don't divide."""
    num_units, step = units.shape
    by_unit = positions.reshape(num_units, -1)
    if by_unit.shape[1] % step:
        by_unit = np.tile(by_unit, (1, step))
    index = np.empty((units.size, by_unit.shape[1] // step), dtype=np.int64)
    index[units.ravel()] = by_unit.reshape(units.size, -1)
    return index
