"""Render a report as one self-contained page with figures and tables, for small screens and dark mode too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from unfoldkit.figure_data import AnyFigure
from unfoldkit.format import attach_unit
from unfoldkit.render import formatting
from unfoldkit.render.figures.description import tabulate_figure
from unfoldkit.render.formatting import strip_controls
from unfoldkit.render.plot import svg
from unfoldkit.report import Metric, Report, Table

SHA256_LETTERS = 64
FEW_CARDS = 12
LONG_TEXT = 40
RELOAD_EVERY_MS = 3000
RELOAD = f"setInterval(()=>document.querySelector('details[open]')||location.reload(),{RELOAD_EVERY_MS})"
"""A page of a verb that still runs shows its next state, unless someone reads the values of a figure."""
PERCENT = re.compile("(?<=[0-9]) %")
BOUND = re.compile(r"([≤≥<>=]?\s*)([\d.,]+)")
"""A target that is a number: comparison and number."""
HINT = re.compile(r"[;\s]*plot: --out \S+$")
UNIT_WORDS = {
    "ms": {"ms"}, "µs": {"us"}, "s": {"s", "seconds"}, "h": {"hours"}, "$": {"usd"}, "%": {"percent"},
    "points": {"points"},
}  # fmt: skip
"""Words for units in names of metrics, which a card omits since it shows the unit."""
ACRONYMS = {
    "auprc": "AUPRC", "auroc": "AUROC", "cpu": "CPU", "ece": "ECE", "flops": "FLOPs", "gpu": "GPU", "gpus": "GPUs",
    "kv": "KV", "macs": "MACs", "slo": "SLO", "tpot": "TPOT", "ttft": "TTFT",
}  # fmt: skip
"""Words in names of metrics that are written otherwise in text."""


def render(report: Report) -> str:
    """Render the report as one HTML file that loads nothing from other sites."""
    report = strip_controls(report)
    title = escape(f"{report.name} · {report.kind} {report.verb}")
    body = [_head(report), _cards(report.metrics), *map(_figure, report.figures), *map(_table, report.tables)]
    body += [_lines(report), _footer(report)]
    if report.status == "running":
        body.append(f"<script>{RELOAD}</script>")
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title>'
    page = f"{head}<style>{_style()}</style></head><body><main>{''.join(body)}</main></body></html>"
    return f'<!doctype html>\n<html lang="en"><head>{page}\n'


def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def _head(report: Report) -> str:
    facts = " · ".join(map(escape, report.subtitle))
    title = f"<h1>{escape(report.name)} <small>{escape(report.kind)} {escape(report.verb)}</small></h1>"
    question = f'<p class="question">{_sentence(report.question)}</p>' if report.question else ""
    answer = f'<div class="answer {report.verdict}"><b>{report.answer}</b> · {_sentence(report.headline)}</div>'
    return f'{title}<p class="dim">{facts}</p>{question}{answer}'


def _cards(metrics: Mapping[str, Metric]) -> str:
    """Render metrics as cards; of many, those with a target and the first ones, and all in a collapsed section."""
    ordered = sorted(metrics, key=lambda name: metrics[name].target is None)
    few = ordered[:FEW_CARDS] if len(ordered) > FEW_CARDS else list(metrics)
    cards = [_card(name, metrics[name]) for name in few]
    if len(few) == len(metrics):
        return _grid(cards)
    # paper shows the collapsed section, which repeats these cards
    visible = _grid(cards, style="cards few")
    complete = _grid([_card(name, item) for name, item in metrics.items()])
    return f"{visible}<details><summary>all {len(metrics)} numbers</summary>{complete}</details>"


def _grid(cards: Sequence[str], style: str = "cards") -> str:
    return f'<section class="{style}" aria-label="figures">{"".join(cards)}</section>' if cards else ""


def _card(name: str, item: Metric) -> str:
    return f'<div class="card"><span>{escape(item.label or _words(name, item.unit))}</span><b>{_value(item)}</b></div>'


def _value(item: Metric) -> str:
    mark = {True: " ✓", False: " ✗", None: ""}[item.ok]
    target = f"<span>target {escape(_format_target(item))}{mark}</span>" if item.target else ""
    return escape(formatting.format_metric(item)) + target


def _format_target(item: Metric) -> str:
    """Format a target with the unit of its metric, unless it has words or a unit already."""
    bound = BOUND.fullmatch(item.target or "")
    return f"{bound[1]}{attach_unit(bound[2], item.unit)}" if bound else item.target or ""


def _words(name: str, unit: str) -> str:
    words = name.split("_")
    shown = [word for word in words if word not in UNIT_WORDS.get(unit, ())] or words
    return " ".join(ACRONYMS.get(word, word) for word in shown)


def _figure(figure: AnyFigure) -> str:
    """Render a figure: its drawing, in a frame that scrolls on a small screen, and its values in a table."""
    label = escape(figure.title, quote=True)
    drawn = f'<figure class="wide" tabindex="0" role="group" aria-label="{label}">{svg(figure)}</figure>'
    values = _grid_of(tabulate_figure(figure), label=f"values of {figure.title}")
    table = f'<details class="values"><summary>values of this figure</summary>{values}</details>'
    return f"<h2>{label}</h2>{drawn}{table}"


def _table(table: Table) -> str:
    return f"<h2>{escape(table.name)}</h2>{_grid_of(table, label=table.name)}"


def _grid_of(table: Table, *, label: str) -> str:
    numeric = formatting.numeric_columns(table)
    marks = [' class="n"' if flag else "" for flag in numeric]
    texts = [escape(formatting.format_head(column)) for column in table.columns]
    heads = "".join(f'<th scope="col"{mark}>{text}</th>' for text, mark in zip(texts, marks, strict=True))
    rows = []
    for index, row in enumerate(table.rows):
        texts = [formatting.format_cell(value, column) for value, column in zip(row, table.columns, strict=True)]
        accent = ' class="chosen"' if index == table.accent else ""
        rows.append(f"<tr{accent}>" + "".join(map(_cell, texts, marks)) + "</tr>")
    grid = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    name = escape(label, quote=True)
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table>{grid}</table></div>'


def _cell(text: str, mark: str) -> str:
    long = ' class="t"' if len(text) > LONG_TEXT and not mark else mark
    return f"<td{long}>{escape(text)}</td>"


def _lines(report: Report) -> str:
    pairs = [*report.lines, *(("note", note) for note in report.notes)]
    # the plot is on this page
    texts = [(label, HINT.sub("", text)) for label, text in pairs]
    entries = "".join(f"<dt>{escape(label)}</dt><dd>{_sentence(text)}</dd>" for label, text in texts)
    command = f"<p>next: <code>{escape(report.next)}</code></p>" if report.next else ""
    return (f"<h2>Notes</h2><dl>{entries}</dl>" if entries else "") + command


def _sentence(text: str) -> str:
    """Escape a sentence; a line does not break before a percent sign."""
    return PERCENT.sub("\u00a0%", escape(text))


def _footer(report: Report) -> str:
    facts = {
        key: value for key, value in report.provenance.items() if key not in ("timed", "spec") and value not in ({}, [])
    }
    return f"<footer>{escape(' · '.join(f'{key} {_fact(value)}' for key, value in facts.items()))}</footer>"


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    text = str(value)
    return f"{text[:12]}…" if len(text) == SHA256_LETTERS else text
