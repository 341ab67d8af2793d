"""A card that is written: addressed to its repo, given a licence, and refused where a fact is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from huggingface_hub import ModelCard

from eagleeye_hf.errors import EagleEyeError

LICENSE = re.compile(r"[\w.+-]{1,64}")
REQUIRED = {
    "the licence (`license:` in the metadata)": r"^license: \S",
    "the test accuracy (`model-index:` in the metadata)": r"^model-index:\n|no accuracy was measured",
    "top-1 of both networks": r"^\| (top-1|agreement) \|",
    "MACs and parameters": r"^\| MACs.*\n\| parameters \|",
    "the file size": r"^\| file size \|",
    "the latency and its device": r"^\| latency, [^|]*\w[^|]* \|",
    "the dataset": r"^- dataset: \S",
    "the number of calibration images": r"^- calibration images: \d",
    "the seed": r"^- seed: \d",
    "the command": r"^```bash\n\S",
    "the widths": r"^\| group \| channels \| kept \|",
    "the versions of packages": r"^Versions: \S",
}
"""Facts without which no card is published, and how the template writes them."""


def address_card(text: str, repo: str) -> str:
    """The card with loading examples that name this Hub repo, wherever it was written for."""
    text = re.sub(r'from_pretrained\("[^"]+"', lambda _: f'from_pretrained("{repo}"', text)
    return re.sub(r'create_model\("(local-dir|hf-hub):[^"]+"', lambda _: f'create_model("hf-hub:{repo}"', text)


def license_card(text: str, license: str) -> str:
    """The card with this licence in its metadata.

    Raises:
        EagleEyeError: it is no name of a licence, or the card tells another.
    """
    if not LICENSE.fullmatch(license):
        raise EagleEyeError(f"`license={license}` is no name of a licence, such as mit or apache-2.0")
    head = re.match(r"---\s*\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    told = re.search(r"^license: *(\S.*)$", head[1], re.MULTILINE) if head else None
    if told and told[1].strip("\"' ") != license:
        raise EagleEyeError(f"`license={license}`, but the card tells the licence {told[1]}; change it there")
    if told or not head:
        return text
    return text[: head.start(1)] + f"license: {license}\n" + text[head.start(1) :]


def find_license(cfg: Mapping[str, object] | None, local_weights: bool) -> str:
    """The licence of a network's weights: the one that timm tells of its own, where they are those.

    Args:
        cfg: the network's `pretrained_cfg`.
    """
    return "" if local_weights else str((cfg or {}).get("license") or "")


def check_card(text: str, place: str) -> None:
    """Refuse a card that lacks a fact, so that nothing half-documented is published.

    Args:
        place: what to call the card in the message.
    Raises:
        EagleEyeError: the card's metadata can't be read, a metric in it is no number, or facts are missing.
    """
    try:
        results = ModelCard(text, ignore_metadata_errors=False).data.eval_results or []
    except Exception as error:  # yaml and huggingface_hub raise many kinds
        raise EagleEyeError(f"the metadata of {place} can't be read: {' '.join(str(error).split())[:300]}") from error
    for result in results:
        if type(result.metric_value) not in (int, float):
            raise EagleEyeError(f"{place}: `model-index` gives {result.metric_value!r} for {result.metric_name}")
    missing = [fact for fact, pattern in REQUIRED.items() if not re.search(pattern, text, re.MULTILINE)]
    if missing:
        raise EagleEyeError(
            f"{place} does not tell {', nor '.join(missing)}; a run of a recipe measures all of it, or add it by hand"
        )
