"""The model card: facts in, Markdown with metadata out. What was not measured is left out."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eagleeye_hf import __version__
from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.publishing.paths import hide_command, hide_paths
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.strategies.strategy import Strategy

TEMPLATE = Path(__file__).with_name("card_template.md")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
TIMM_NAME = re.compile(r"\w+\.\w+")
"""An architecture with the tag of its weights, which timm keeps on the Hub."""
TIMM_PAGE = "https://github.com/huggingface/pytorch-image-models"
PACKAGES = ("torch", "timm", "transformers", "datasets", "accelerate", "safetensors")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells; every optional fact may be missing. Local paths are left out of what is written."""

    base: str
    """timm architecture, with its tag where it has one, or `hf-hub:USER/REPO`."""
    graph: ChannelGraph
    strategy: Strategy
    local_weights: bool = False
    """The base's weights came from a file, not from timm: nothing that timm tells about its own applies to them."""
    dataset: str = ""
    dataset_revision: str = ""
    split: str = "test"
    """Of the dataset, in which the test images are."""
    parted: bool = False
    """Whether it has no such split, and they were set apart of its training images."""
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    """On the test images, in order: of `full`, and of the network that is published under the name of its last step
    (`adaptive`, `compensated`, `fine-tuned`). Steps between them belong in `steps`."""
    steps: Mapping[str, Metrics] = field(default_factory=dict)
    """On the holdout images, in order: what the steps from the full network to the published one gave."""
    holdout_images: int = 0
    training_curve: Sequence[Mapping[str, float]] = ()
    """One entry per epoch of fine-tuning: `epoch`, `loss`, and `top1` on the holdout images where it was measured."""
    file_bytes: tuple[int, int] | None = None
    """Full, pruned."""
    latency: Sequence[Latency] = ()
    """Of the pruned network beside the full one, one measurement per runtime."""
    int8: Mapping[str, Metrics] = field(default_factory=dict)
    """On the test images, quantised to 8-bit integers: of `full` and of `pruned`."""
    int8_bytes: tuple[int, ...] | None = None
    """Full, pruned: their ONNX files."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Search, calibration and training settings, and the seed."""
    command: str = ""
    license: str = ""
    own: bool = False
    """The network is none of timm's, and loading needs what builds it."""
    labelled: bool = True
    """Whether the images have labels; where not, metrics are of the full network's decisions."""
    num_classes: int = 0
    """0 where it is not known; top-5 of five or fewer tells nothing, and is left out."""
    picture: str = ""
    """File beside the card, from `plots.draw_result`."""

    @property
    def has_top5(self) -> bool:
        return self.labelled and not 0 < self.num_classes <= 5

    @property
    def reports(self) -> str:
        """What metrics tell."""
        return "top-1" if self.labelled else "agreement"

    @property
    def final(self) -> Metrics | None:
        """Test metrics of the network that is published."""
        after = [metrics for step, metrics in self.metrics.items() if step not in ("full", "vanilla")]
        return after[-1] if after else None

    @property
    def hub_base(self) -> str | None:
        """The base network's repo on the Hub, which its weights are from."""
        if self.local_weights:
            return None
        if self.base.startswith("hf-hub:"):
            repo = self.base.removeprefix("hf-hub:").partition("@")[0]
            return repo if HUB_NAME.fullmatch(repo) else None
        return f"timm/{self.base}" if TIMM_NAME.fullmatch(self.base) else None


def write_card(facts: CardFacts, location: str, on_hub: bool = False) -> str:
    """Render the model card.

    Args:
        location: folder, or Hub repo with `on_hub`, that the loading examples name.
    """
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.strategy)
    base, dataset = _plain(facts.base), _plain(facts.dataset)
    title = f"{base.split('/')[-1].split('.')[0]}, pruned to {pruned.macs / full.macs:.0%} of the MACs"
    card = ModelCard.from_template(
        _metadata(facts, title),
        template_path=str(TEMPLATE),
        title=title,
        base=base,
        base_url=_base_page(facts),
        local_weights=facts.local_weights,
        macs_percent=f"{pruned.macs / full.macs:.1%}",
        time_percent=f"{facts.latency[0].milliseconds / facts.latency[0].full_ms:.0%}" if facts.latency else "",
        time_place=str(facts.latency[0].place) if facts.latency else "",
        params_percent=f"{pruned.params / full.params:.1%}",
        dataset=dataset,
        dataset_revision=_plain(facts.dataset_revision),
        split=_plain(facts.split),
        parted=facts.parted,
        table=cost_table(facts),
        tested=_metric_rows(facts.metrics),
        steps=_metric_rows(facts.steps),
        has_top5=facts.has_top5,
        labelled=facts.labelled,
        reports=facts.reports,
        own=facts.own,
        curve=[
            {
                "epoch": f"{point['epoch']:.0f}",
                "loss": f"{point['loss']:.4f}",
                "top1": f"{point['top1']:.2%}" if "top1" in point else "",
            }
            for point in facts.training_curve
        ],
        picture=facts.picture,
        test_images=facts.final.num_images if facts.final else 0,
        holdout_images=facts.holdout_images,
        location=location,
        timm_location=f"{'hf-hub' if on_hub else 'local-dir'}:{location}",
        settings=[(_plain(name), _plain(value)) for name, value in facts.settings.items()],
        command=hide_command(facts.command),
        widths=_width_rows(facts),
        image_size=" x ".join(map(str, facts.graph.input_size)),
        removed_blocks=[f"`{name}`" for name in facts.strategy.removed_blocks],
        versions=", ".join(f"{name} {version}" for name, version in _versions().items()),
        version=__version__,
    )
    return str(card)


def _versions() -> dict[str, str]:
    """Of this package, which may run from a clone that is not installed, and of those that it builds on."""
    return {"eagleeye-hf": __version__} | {package: importlib.metadata.version(package) for package in PACKAGES}


def _width_rows(facts: CardFacts) -> list[dict[str, object]]:
    """What each group keeps, and why that is all or nothing."""
    gone, rows = facts.graph.gone_groups(facts.strategy.removed_blocks), []
    for number, (group, width) in enumerate(zip(facts.graph.groups, facts.strategy.widths, strict=True)):
        removed = f"{1 - width / group.channels:.0%}" if group.prunable else f"pinned: {group.reason}"
        if number in gone:
            width, removed = 0, "with its block"
        rows.append({"name": f"`{group.name}`", "channels": group.channels, "width": width, "removed": removed})
    return rows


def _metric_rows(metrics: Mapping[str, Metrics]) -> list[dict[str, str]]:
    return [
        {"name": step, "top1": f"{m.top1:.2%}", "top5": f"{m.top5:.2%}", "loss": f"{m.loss:.3f}"}
        for step, m in metrics.items()
    ]


def _plain(value: object) -> str:
    """One line of text without local paths, which Markdown shows as it is."""
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", " ".join(str(hide_paths(str(value))).split()))


def _base_page(facts: CardFacts) -> str | None:
    """Where the base network can be read about: its weights, or else timm, where the architecture is one of timm's."""
    if facts.hub_base:
        return f"https://huggingface.co/{facts.hub_base}"
    name = facts.base.split(".")[0]
    of_timm = timm.is_model(name) and timm.models.model_entrypoint(name).__module__.startswith("timm.")
    return TIMM_PAGE if of_timm and not facts.local_weights else None


def _metadata(facts: CardFacts, title: str) -> ModelCardData:
    results = None
    dataset = str(hide_paths(facts.dataset))
    if facts.final and facts.labelled:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset or "unknown",
                dataset_name=dataset.rstrip("/").split("/")[-1] or "unknown",
                dataset_split="train" if facts.parted else facts.split or None,
                dataset_revision=facts.dataset_revision or None,
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(value, 6),
            )
            for name, value in (("Top-1 accuracy", facts.final.top1), ("Top-5 accuracy", facts.final.top5))
            if name != "Top-5 accuracy" or facts.has_top5
        ]
    return ModelCardData(
        model_name=title if results else None,
        base_model=facts.hub_base,
        base_model_relation="finetune" if facts.hub_base else None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "pruned", "eagleeye"],
        datasets=[dataset] if HUB_NAME.fullmatch(dataset) else None,
        license=facts.license or None,
        eval_results=results,
    )


def cost_table(facts: CardFacts) -> list[dict[str, str]]:
    """Full against pruned, one row per fact that was measured."""
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.strategy)
    rows: list[tuple[str, ...]] = [
        ("MACs (papers say FLOPs)", f"{full.macs / 1e6:,.1f} M", f"{pruned.macs / 1e6:,.1f} M")
    ]
    rows.append(("parameters", f"{full.params / 1e6:,.3f} M", f"{pruned.params / 1e6:,.3f} M"))
    removed, size = facts.strategy.removed_blocks, facts.strategy.image_size
    if removed:
        rows.append(("blocks", f"{len(facts.graph.blocks)}", f"{len(facts.graph.blocks) - len(removed)}"))
    if size is not None:
        rows.append(("image size", f"{facts.graph.image_size} px", f"{size} px"))
    if facts.file_bytes:
        rows.append(("file size", *(f"{size / 1e6:,.2f} MB" for size in facts.file_bytes)))
    for latency in facts.latency:
        pair = latency.full_ms, latency.milliseconds
        rows.append((f"latency, {latency.place.images}, {latency.place}", *(f"{ms:.{digits(ms)}f} ms" for ms in pair)))
    before, after = facts.metrics.get("full"), facts.final
    if before and after:
        rows.append((facts.reports, f"{before.top1:.2%}", f"{after.top1:.2%}"))
        if facts.has_top5:
            rows.append(("top-5", f"{before.top5:.2%}", f"{after.top5:.2%}"))
    if len(facts.int8) == 2:
        rows.append((f"{facts.reports}, int8", *(f"{found.top1:.2%}" for found in facts.int8.values())))
    if facts.int8_bytes:
        rows.append(("file size, int8", *(f"{size / 1e6:,.2f} MB" for size in facts.int8_bytes)))
    return [{"name": name, "full": a, "pruned": b} for name, a, b in rows]


def digits(milliseconds: float) -> int:
    """Decimals that leave three figures or more."""
    return 2 if milliseconds >= 1 else 3
