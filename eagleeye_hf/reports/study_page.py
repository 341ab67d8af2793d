"""A study in words and tables: REPORT.md, one self-contained HTML page, and CSV and JSON for other programs."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = {"REPORT.md": "study_report.md.jinja", "study.html": "study_page.html.jinja"}
CAPTIONS = {
    "correlation": "How well each score ranks the accuracy after fine-tuning, and what its choice misses",
    "histograms": "Accuracy of random sub-nets: as pruned (vanilla) and with each repair on the holdout images, "
    "fine-tuned on the test images",
    "scatter": "Scores before fine-tuning, accuracy after it",
    "comparators": "What methods of search choose, fine-tuned alike, beside the random pool",
    "batchnorm": "BatchNorm statistics over depth: how far the full network's and recomputed ones are from those after "
    "fine-tuning (medians over sub-nets)",
    "weights": "Weights before and after fine-tuning, and how far each layer moves (medians over sub-nets)",
    "images": "How many images a score needs",
}
"""In the order of the report."""
HEADS = {
    "correlation": {
        "score": "score",
        "pearson": "Pearson",
        "spearman": "Spearman",
        "kendall": "Kendall",
        "top_half_spearman": "Spearman in the better half",
        "loss_spearman": "Spearman with the test loss",
        "regret": "regret, points",
    },
    "comparators": {
        "method": "method",
        "candidates": "candidates",
        "seconds": "seconds",
        "macs_kept": "MACs",
        "params_kept": "parameters",
        "test top-1": "test top-1",
        "above_uniform": "to uniform, points",
    },
}
PERCENT = ("macs_kept", "params_kept", "test top-1")


def write_study(facts: Mapping[str, Any], pictures: Mapping[str, Path], folder: Path) -> list[str]:
    """Write the tables as CSV and, all together, as JSON, the report and the page; the names of the files."""
    texts = {f"{name}.csv": _to_csv(rows) for name, rows in facts["tables"].items()}
    texts["study.json"] = json.dumps(facts, indent=1)
    for name, template in TEMPLATES.items():
        texts[name] = render_study(template, facts, pictures)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(texts)


def render_study(template: str, facts: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    page = template.endswith(".html.jinja")
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=page, undefined=StrictUndefined, trim_blocks=True)
    shown = [
        {
            "name": name,
            "caption": caption,
            "data": base64.b64encode(pictures[name].read_bytes()).decode() if page else "",
        }
        for name, caption in CAPTIONS.items()
        if name in pictures
    ]
    tables = [
        {"budget": budget, "name": name, "heads": list(heads.values()), "rows": _texts(facts, name, budget)}
        for budget in facts["budgets"]
        for name, heads in HEADS.items()
    ]
    told = {name: facts[name] for name in ("title", "summary", "findings", "budgets", "command")}
    return environment.get_template(template).render(pictures=shown, tables=tables, **told).strip() + "\n"


def _texts(facts: Mapping[str, Any], name: str, budget: str) -> list[list[str]]:
    rows = [row for row in facts["tables"][name] if row["budget"] == budget]
    return [[_text(row, key) for key in HEADS[name]] for row in rows]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if key in PERCENT:
        return f"{value:.2%}" if key == "test top-1" else f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:,}"
    if f"{key}_low" in row:
        return f"{value:.2f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})"
    return f"{value:.0f}" if key == "seconds" else f"{value:+.2f}" if key == "above_uniform" else f"{value:.2f}"


def _to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
