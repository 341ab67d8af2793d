"""The model card: facts in, Markdown with metadata out. What was not measured is left out."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.evaluation.metrics import Metrics

TEMPLATE = Path(__file__).with_name("card_template.md")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PACKAGES = ("eagleeye-hf", "torch", "timm", "transformers", "datasets", "accelerate", "safetensors")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells; every optional fact may be missing."""

    base: str
    """timm architecture, with its tag where it has one."""
    graph: ChannelGraph
    widths: Sequence[int]
    dataset: str = ""
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    """Test metrics, in order, of `full`, `vanilla`, `adaptive` and `fine-tuned`."""
    holdout_images: int = 0
    file_bytes: tuple[int, int] | None = None
    """Full, pruned."""
    latency_ms: tuple[float, float] | None = None
    """Full, pruned, one image."""
    device: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Search, calibration and training settings, and the seed."""
    command: str = ""
    license: str = ""
    picture: str = ""
    """File beside the card, from `plots.draw_result`."""


def write_card(facts: CardFacts, location: str, on_hub: bool = False) -> str:
    """Render the model card.

    Args:
        location: folder, or Hub repo with `on_hub`, that the loading examples name.
    """
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.widths)
    final = facts.metrics.get("fine-tuned") or facts.metrics.get("adaptive")
    name = facts.base.split(".")[0]
    title = f"{name}, pruned to {pruned.macs / full.macs:.0%} of the MACs"
    hub_base = f"timm/{facts.base}" if "." in facts.base else None
    data = ModelCardData(
        model_name=title if final else None,
        base_model=hub_base,
        base_model_relation="finetune" if hub_base else None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "pruned", "eagleeye"],
        datasets=[facts.dataset] if HUB_NAME.fullmatch(facts.dataset) else None,
        license=facts.license or None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=facts.dataset or "unknown",
                dataset_name=facts.dataset.rstrip("/").split("/")[-1] or "unknown",
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Top-1 accuracy",
                metric_value=round(final.top1, 6),
            )
        ]
        if final
        else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        base=facts.base,
        base_url=f"https://huggingface.co/timm/{facts.base}"
        if hub_base
        else "https://github.com/huggingface/pytorch-image-models",
        macs_percent=f"{pruned.macs / full.macs:.1%}",
        params_percent=f"{pruned.params / full.params:.1%}",
        dataset=facts.dataset,
        table=cost_table(facts),
        stages=[
            {"name": stage, "top1": f"{m.top1:.2%}", "top5": f"{m.top5:.2%}", "loss": f"{m.loss:.3f}"}
            for stage, m in facts.metrics.items()
        ],
        picture=facts.picture,
        test_images=final.num_images if final else 0,
        holdout_images=facts.holdout_images,
        location=location,
        timm_location=f"{'hf-hub' if on_hub else 'local-dir'}:{location}",
        settings=list(facts.settings.items()),
        command=facts.command,
        widths=[
            {
                "name": f"`{group.name}`",
                "channels": group.channels,
                "width": width,
                "removed": f"{1 - width / group.channels:.0%}" if group.prunable else f"pinned: {group.reason}",
            }
            for group, width in zip(facts.graph.groups, facts.widths, strict=True)
        ],
        image_size=" x ".join(map(str, facts.graph.input_size)),
        versions=", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES),
    )
    return str(card)


def cost_table(facts: CardFacts) -> list[dict[str, str]]:
    """Full against pruned, one row per fact that was measured."""
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.widths)
    rows: list[tuple[str, ...]] = [
        ("MACs (papers say FLOPs)", f"{full.macs / 1e6:,.1f} M", f"{pruned.macs / 1e6:,.1f} M")
    ]
    rows.append(("parameters", f"{full.params / 1e6:,.3f} M", f"{pruned.params / 1e6:,.3f} M"))
    if facts.file_bytes:
        rows.append(("file size", *(f"{size / 1e6:,.2f} MB" for size in facts.file_bytes)))
    if facts.latency_ms:
        rows.append((f"latency, one image, {facts.device}", *(f"{ms:.2f} ms" for ms in facts.latency_ms)))
    before, after = facts.metrics.get("full"), facts.metrics.get("fine-tuned") or facts.metrics.get("adaptive")
    if before and after:
        rows.append(("top-1", f"{before.top1:.2%}", f"{after.top1:.2%}"))
        rows.append(("top-5", f"{before.top5:.2%}", f"{after.top5:.2%}"))
    return [{"name": name, "full": a, "pruned": b} for name, a, b in rows]
