"""One self-contained HTML page about a search."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path

from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.diagnosis import diagnose_full_model, diagnose_scores
from eagleeye_hf.search.reading import SearchRecord

SHOWN = 25
CAPTIONS = {
    "scores": "Every candidate: holdout loss against what it costs",
    "widths": "Channels that the leaders keep, per group",
    "ratios": "What the ratios of each group did to the loss",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; margin: 0 auto; max-width: 1100px; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e8ee; }
th { cursor: pointer; background: #f4f6f8; } td:nth-child(2), th:nth-child(2) { text-align: left; }
img { max-width: 100%; } .note { background: #fff4e5; border-left: 4px solid #edae49; padding: .6rem 1rem; }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.up !== "1";
    heads.forEach(other => delete other.dataset.up);
    head.dataset.up = up ? "1" : "0";
    const key = row => {
      const text = row.cells[column].dataset.value;
      return text === "" ? Infinity : isNaN(text) ? text : Number(text);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => (key(a) > key(b) ? 1 : key(a) < key(b) ? -1 : 0));
    (up ? rows : rows.reverse()).forEach(row => table.tBodies[0].append(row));
  }));
}
document.documentElement.dataset.ready = "yes";
"""
HEADS = ("index", "origin", "loss", "{reports}", "images", "MACs", "parameters", "latency, ms")


def write_page(record: SearchRecord, pictures: Mapping[str, Path], path: Path) -> Path:
    """Write the page, pictures inside; it needs nothing from elsewhere."""
    full = record.prepared.full
    notes = [diagnose_full_model(full)] if full else []
    notes.append(diagnose_scores(record.candidates, full))
    parts = ["<h1>Search for thin networks</h1>", _summary(record)]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes if note]
    for number in range(record.num_budgets):
        parts.append(f"<h2>Leaders under {html.escape(record.budget_name(number))}</h2>")
        parts.append(_table(record, record.leaders(number)[:SHOWN]))
    for name, picture in pictures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        caption = CAPTIONS[name]
        parts.append(f'<h2>{caption}</h2><img alt="{caption}" src="data:image/png;base64,{data}">')
    body = "\n".join(parts)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Search for thin networks</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n<script>{SCRIPT}</script></body></html>\n",
        encoding="utf-8",
    )
    return path


def _summary(record: SearchRecord) -> str:
    failed = sum(not candidate.scored for candidate in record.candidates)
    lines = [
        f"{len(record.candidates)} candidates in {record.elapsed / 60:.1f} minutes, "
        f"{3600 * len(record.candidates) / max(record.elapsed, 1e-9):,.0f} per hour"
        + (f"; {failed} could not be scored" if failed else ""),
        f"method {record.settings['method']}, criterion {record.settings.get('criterion', '?')}, "
        f"seed {record.settings['seed']}",
    ]
    full = record.prepared.full
    if full:
        name = record.prepared.reports
        lines.append(
            f"full network on the same holdout images: {name} {full.unchanged.reported:.2%}, "
            f"loss {full.unchanged.loss:.4f}; with recomputed statistics {full.adaptive.reported:.2%}, "
            f"{full.adaptive.loss:.4f}"
        )
    return "<p>" + "<br>".join(html.escape(line) for line in lines) + "</p>"


def _table(record: SearchRecord, leaders: list[Candidate]) -> str:
    heads = "".join(f"<th>{head.format(reports=record.prepared.reports)}</th>" for head in HEADS)
    rows = "\n".join(_cells(record, candidate) for candidate in leaders)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _cells(record: SearchRecord, candidate: Candidate) -> str:
    full, score, latency = record.settings["full"], candidate.score, candidate.milliseconds
    assert score is not None, "leaders have scores"
    cells = [
        (candidate.index, str(candidate.index)),
        (candidate.origin, html.escape(candidate.origin)),
        (score.loss, f"{score.loss:.4f}"),
        (score.reported, f"{score.reported:.2%}"),
        (score.num_images, str(score.num_images)),
        (candidate.cost.macs, f"{candidate.cost.macs / full['macs']:.1%}"),
        (candidate.cost.params, f"{candidate.cost.params / full['params']:.1%}"),
        ("" if latency is None else latency, "" if latency is None else f"{latency:.2f}"),
    ]
    return (
        "<tr>" + "".join(f'<td data-value="{html.escape(str(value))}">{text}</td>' for value, text in cells) + "</tr>"
    )
