"""One self-contained page: the answer, the figures, the tables; readable on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from unfoldkit.render import cells
from unfoldkit.render.picture import svg
from unfoldkit.report import Figure, Metric, Report, Table

SHA256_LETTERS = 64


def render(report: Report) -> str:
    """Return the report as one HTML file with nothing loaded from elsewhere."""
    title = escape(f"{report.name} · {report.kind} {report.verb}")
    body = [_head(report), _cards(report.metrics), *map(_figure, report.figures), *map(_table, report.tables)]
    body += [_lines(report), _footer(report)]
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title>'
    page = f"{head}<style>{_style()}</style></head><body><main>{''.join(body)}</main></body></html>"
    return f'<!doctype html>\n<html lang="en"><head>{page}\n'


def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def _head(report: Report) -> str:
    facts = " · ".join(map(escape, report.subtitle))
    title = f"<h1>{escape(report.name)} <small>{escape(report.kind)} {escape(report.verb)}</small></h1>"
    answer = f'<div class="answer {report.verdict}"><b>{report.verdict}</b> · {escape(report.headline)}</div>'
    return f'{title}<p class="dim">{facts}</p>{answer}'


def _cards(metrics: Mapping[str, Metric]) -> str:

    cards = [
        f'<div class="card"><span>{escape(_words(name))}</span><b>{_value(item)}</b></div>'
        for name, item in metrics.items()
    ]
    return f'<section class="cards" aria-label="figures">{"".join(cards)}</section>' if cards else ""


def _value(item: Metric) -> str:
    mark = {True: " ✓", False: " ✗", None: ""}[item.ok]
    target = f"<span>target {escape(item.target)}{mark}</span>" if item.target else ""
    return escape(cells.metric(item)) + target


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(figure: Figure) -> str:
    label = escape(figure.title, quote=True)
    return f'<h2>{escape(figure.title)}</h2><figure role="img" aria-label="{label}">{svg(figure)}</figure>'


def _table(table: Table) -> str:
    numeric = [cells.is_numeric(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]
    marks = [' class="n"' if flag else "" for flag in numeric]
    heads = "".join(
        f'<th scope="col"{m}>{escape(cells.head(c))}</th>' for c, m in zip(table.columns, marks, strict=True)
    )
    rows = []
    for index, row in enumerate(table.rows):
        texts = [escape(cells.cell(value, column)) for value, column in zip(row, table.columns, strict=True)]
        chosen = ' class="chosen"' if index == table.accent else ""
        rows.append(f"<tr{chosen}>" + "".join(f"<td{m}>{t}</td>" for t, m in zip(texts, marks, strict=True)) + "</tr>")
    grid = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<h2>{escape(table.name)}</h2><div class="wide"><table>{grid}</table></div>'


def _lines(report: Report) -> str:
    pairs = [*report.lines, *(("note", note) for note in report.notes)]
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in pairs)
    after = f"<p>next: <code>{escape(report.next)}</code></p>" if report.next else ""
    return (f"<h2>Notes</h2><dl>{listed}</dl>" if listed else "") + after


def _footer(report: Report) -> str:
    facts = {key: value for key, value in report.provenance.items() if key not in ("timed", "spec")}
    return f"<footer>{escape(' · '.join(f'{key} {_fact(value)}' for key, value in facts.items()))}</footer>"


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    text = str(value)
    return f"{text[:12]}…" if len(text) == SHA256_LETTERS else text
