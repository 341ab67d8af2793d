"""Classes matched by their names: those of a dataset with those of a model's outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from eagleeye_hf.data.labels import Labels, listed, plain, whole_number
from eagleeye_hf.data.rows import retry_rows
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import describe_model, unwrap_model

GAPS = 5
"""Times as many numbers as there are different labels, from which on they are no numbers of outputs."""
PEEKED = 100
"""Rows of a stream among which to look for a label."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the outputs of a model are called."""

    num: int | None
    """None where the model doesn't tell."""
    names: tuple[str, ...] | None
    """None where nobody tells."""
    owner: str
    """Who tells the names, for messages."""
    descriptions: tuple[str, ...] | None = None
    """The same in other words, as `tench, Tinca tinca` for `n01440764`."""

    @property
    def words(self) -> tuple[str, ...] | None:
        """The names, unless they only count the outputs."""
        return None if self.names is None or is_counting(self.names) else self.names


def find_outputs(like: nn.Module, label_names: Sequence[str] | None) -> Outputs:
    """The names of a model's outputs: the given ones, else those that the model brings.

    Raises:
        EagleEyeError: `label_names` are not as many names as the model has outputs, all different.
    """
    num = describe_model(like).num_classes
    if label_names is not None:
        return Outputs(num=num, names=check_names(label_names, num), owner="`label_names`")
    model = unwrap_model(like)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("label_names") or _names_of_transformers(model)
    if not isinstance(names, (list, tuple)) or num not in (None, len(names)):
        return Outputs(num=num, names=None, owner="the model")
    described = config.get("label_descriptions")
    descriptions = tuple(str(described.get(name)) for name in names) if isinstance(described, dict) else None
    return Outputs(num=len(names), names=tuple(map(str, names)), owner="the model", descriptions=descriptions)


def find_outputs_of(model: nn.Module, names: Sequence[str]) -> tuple[int, ...] | None:
    """Which outputs of a network trained on ImageNet stand for these classes; None where that is not clear.

    Args:
        names: WordNet ids (n01440764), descriptions ("tench, Tinca tinca"), or one of their words ("tench").
    """
    classifier: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    subset = infer_imagenet_subset(model) if hasattr(model, "pretrained_cfg") else None
    if subset is None or not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        return None
    info = ImageNetInfo(subset)
    if len(classifier.weight) != info.num_classes():
        return None
    known: dict[str, set[int]] = defaultdict(set)
    for number in range(info.num_classes()):
        text = info.index_to_description(number)
        for word in (info.index_to_label_name(number), text, *text.split(",")):
            known[plain(word)].add(number)
    found = [known.get(plain(name), set()) for name in names]
    numbers = tuple(next(iter(places)) for places in found if len(places) == 1)
    return numbers if len(set(numbers)) == len(names) else None


def _names_of_transformers(model: nn.Module) -> list[str] | None:
    """`id2label` of a model of transformers, unless it only counts."""
    found = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = [str(name) for _, name in sorted(found.items())]
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names


def check_names(label_names: Sequence[str], num_outputs: int | None) -> tuple[str, ...]:
    """
    Raises:
        EagleEyeError: they are not one name per output, all different.
    """
    if isinstance(label_names, str) or not all(isinstance(name, str) for name in label_names):
        raise EagleEyeError(f"`label_names` is a list of texts, one per output of the model; got {label_names!r}")
    if num_outputs is not None and len(label_names) != num_outputs:
        raise EagleEyeError(
            f"`label_names` has {len(label_names)} names, but the model has {num_outputs} outputs; "
            "give one name per output, in their order"
        )
    repeated = sorted({name for name in label_names if list(label_names).count(name) > 1})
    if repeated:
        raise EagleEyeError(f"`label_names` has {listed(repeated)} more than once; give every output a name of its own")
    return tuple(label_names)


def match_labels(
    name: str, dataset: Any, column: str, outputs: Outputs, whole: bool = True
) -> tuple[Labels, tuple[str, ...]]:
    """How a split's labels become numbers of the outputs, and what the outputs are called.

    Where both sides have names, they are matched whatever their order; numbers are taken as those of the outputs.

    Args:
        whole: the split has to list all classes; otherwise a part of them will do.
    Raises:
        EagleEyeError: the classes are others than those of the model, or as many as it has no outputs for.
    """
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return _match_listed(name, tuple(feature.names), outputs, whole)
    if "string" in feature.dtype:
        return _match_texts(name, dataset, column, outputs, whole)
    return _take_numbers(name, outputs)


def _match_listed(name: str, found: tuple[str, ...], outputs: Outputs, whole: bool) -> tuple[Labels, tuple[str, ...]]:
    if whole:
        check_several(name, found)
    order = align(found, outputs, whole)
    if order is not None:
        assert outputs.names is not None, "what was matched has names"
        identity = order == tuple(range(len(order)))
        return Labels(num_classes=len(outputs.names), order=None if identity else order), outputs.names
    if whole:
        check_classes(name, found, outputs)
    if not outputs.words and not is_counting(found) and set(found) == set(map(str, range(len(found)))):
        check_classes(name, found, outputs)  # folders 0, 1, 10, 11, 2...: in the order of texts
        return Labels(num_classes=len(found), order=tuple(map(int, found))), tuple(map(str, range(len(found))))
    if outputs.words and not is_counting(found):
        raise EagleEyeError(question(name, found, outputs))
    check_classes(name, found, outputs)
    return Labels(num_classes=len(found)), outputs.words or found


def _match_texts(name: str, dataset: Any, column: str, outputs: Outputs, whole: bool) -> tuple[Labels, tuple[str, ...]]:
    found = texts_of(name, dataset, column)
    if whole and isinstance(dataset, datasets.Dataset):
        check_several(name, found)
    order = align(found, outputs, whole=False)
    if order is not None and (found or outputs.words):
        assert outputs.names is not None, "what was matched has names"
        numbers = {text: number for number, text in enumerate(outputs.names)}
        spellings = {plain(text): number for text, number in numbers.items()}
        spellings = spellings if len(spellings) == len(numbers) else {}
        own = dict(zip(found, order, strict=True))
        return Labels(num_classes=len(numbers), texts=spellings | numbers | own), outputs.names
    if all(whole_number(text) is not None for text in found) and not has_gaps(map(whole_number, found)):
        return _take_numbers(name, outputs)
    if outputs.words:
        raise EagleEyeError(question(name, found, outputs))
    if not isinstance(dataset, datasets.Dataset):
        raise EagleEyeError(
            f"`dataset={name}` names its classes in the column {column}, and a stream does not tell which there "
            "are; give them with `label_names`, in the order of the model's outputs"
        )
    check_classes(name, found, outputs)
    return Labels(num_classes=len(found), texts={text: number for number, text in enumerate(found)}), found


def texts_of(name: str, dataset: Any, column: str) -> tuple[str, ...]:
    """The different labels, sorted; of a stream, only the first."""
    if isinstance(dataset, datasets.Dataset):
        return tuple(sorted(text for text in dataset.unique(column) if text))
    selected = dataset.select_columns([column])
    rows = islice(retry_rows(lambda: selected, name), PEEKED)
    return tuple(text for text in islice((row[column] for row in rows if row[column]), 1))


def list_classes(name: str, dataset: Any, column: str, label_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The classes of a split; None where a stream does not tell them.

    Args:
        label_names: they are called so, whatever the split tells.
    Raises:
        EagleEyeError: there are more classes than `label_names`.
    """
    found = _told_classes(name, dataset, column)
    if label_names is None:
        return found
    if found is not None and len(found) > len(label_names):
        raise EagleEyeError(
            f"`label_names` has {len(label_names)} names, but `dataset={name}` has {len(found)} classes; give one name "
            "per class"
        )
    return tuple(label_names)


def _told_classes(name: str, dataset: Any, column: str) -> tuple[str, ...] | None:
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if not isinstance(dataset, datasets.Dataset):
        return None
    if "string" in feature.dtype:
        texts = texts_of(name, dataset, column)
        if not all(whole_number(text) is not None for text in texts) or has_gaps(map(whole_number, texts)):
            return texts
    numbers = {number for number in map(whole_number, dataset.unique(column)) if number is not None} - {-1}
    if has_gaps(numbers):
        raise EagleEyeError(
            f"`dataset={name}`: the labels in {column} are {len(numbers)} different numbers up to {max(numbers):,}, "
            "which leaves most outputs without an image. Make them texts, which are taken as names; or, where they are "
            "numbers of the model's own outputs, train without a new head (`--adapt-epochs 0`)"
        )
    return tuple(map(str, range(1 + max(numbers, default=-1))))


def has_gaps(numbers: Iterable[int | None]) -> bool:
    """Whether numbers are hardly those of outputs, for most between 0 and the largest are missing."""
    known = {number for number in numbers if number is not None and number >= 0}
    return max(known, default=0) >= GAPS * max(len(known), 2)


def _take_numbers(name: str, outputs: Outputs) -> tuple[Labels, tuple[str, ...]]:
    names = outputs.names or (None if outputs.num is None else tuple(map(str, range(outputs.num))))
    if names is None:
        raise EagleEyeError(
            f"`dataset={name}` has numbers as labels, and the model does not tell how many outputs it has; "
            "name them with `label_names`"
        )
    return Labels(num_classes=len(names)), names


def align(found: Sequence[str], outputs: Outputs, whole: bool) -> tuple[int, ...] | None:
    """The output of each class of a dataset, by its name; None where the names are not the same ones.

    Args:
        whole: all outputs have to be there.
    """
    for names in (outputs.names, outputs.descriptions):
        for spell in (str, plain):
            places = {spell(text): number for number, text in enumerate(names or ())}
            spelled = [spell(text) for text in found]
            distinct = len(places) == len(names or ()) and len(set(spelled)) == len(found)
            if names and distinct and set(spelled) <= set(places) and (not whole or len(found) == len(names)):
                return tuple(places[text] for text in spelled)
    return tuple(range(len(found))) if outputs.names and tuple(found) == outputs.names else None  # names that repeat


def is_counting(names: Sequence[str]) -> bool:
    """Whether names are only the numbers from 0 on."""
    return tuple(names) == tuple(map(str, range(len(names))))


def check_several(name: str, found: Sequence[str]) -> None:
    """Refuse a dataset of one class."""
    if len(found) == 1:
        raise EagleEyeError(
            f"`dataset={name}` has a single class, {found[0]}; a classifier needs two or more "
            "(an image folder has a folder for each)"
        )


def check_classes(name: str, found: Sequence[str], outputs: Outputs) -> None:
    """Refuse a dataset with another number of classes than the model has outputs."""
    if outputs.num is not None and outputs.num != len(found):
        raise EagleEyeError(
            f"`dataset={name}` has {len(found)} classes, but the model has {outputs.num} outputs; "
            f"train the model on this dataset first (`timm.create_model(..., num_classes={len(found)})`)"
        )


def question(name: str, found: Sequence[str], outputs: Outputs) -> str:
    """Which class is which output? For a user to answer."""
    names = outputs.words or ()
    known, others = {plain(text) for text in found}, {plain(text) for text in names}
    extra, absent = [n for n in found if plain(n) not in others], [n for n in names if plain(n) not in known]
    return (
        f"`dataset={name}` has other classes than {outputs.owner}: it has {listed(found)}, {outputs.owner} has "
        f"{listed(names)} (only in the dataset: {listed(extra) or 'none'}; only in {outputs.owner}: "
        f"{listed(absent) or 'none'}). Which class is which output? Give the dataset's names in the order of the "
        "model's outputs with `label_names`"
    )
