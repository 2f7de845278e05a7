"""Render a report as GitHub-flavoured Markdown, for a job summary or a pull request."""

from __future__ import annotations

import re
import textwrap

from unfoldkit.figure_data import AnyFigure
from unfoldkit.render import formatting
from unfoldkit.render.figures.compact import write_compact
from unfoldkit.render.figures.mermaid import write_mermaid
from unfoldkit.render.formatting import strip_controls
from unfoldkit.report import Report, Table

WIDTH = 110
_MARKUP = re.compile(r"[\\`*|]|\](?=[(\[:])")
"""Characters that would begin code, emphasis or another cell of a table, or end the text of a link or an image."""
_MENTION = re.compile(r"(?<![\w@])@(?=\w)")
"""The beginning of a name that GitHub would notify."""


def render(report: Report) -> str:
    """Render the report as Markdown."""
    report = strip_controls(report)
    parts = [
        f"## {_escape(report.name)} · {report.kind} {report.verb}",
        " · ".join(map(_escape, report.subtitle)),
    ]
    parts += [_escape(report.question), f"**{report.answer}** · {_escape(report.headline)}", _metrics(report)]
    parts += [_figure(figure) for figure in report.figures]
    parts += [_table(table) for table in report.tables]
    parts += ["\n".join(f"- **{_escape(label)}** {_escape(text)}" for label, text in report.lines)]
    parts += ["\n".join(f"- {_escape(note)}" for note in report.notes)]
    parts += [f"next: {_code(report.next)}" if report.next else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metrics(report: Report) -> str:
    rows = [
        [name, formatting.format_metric(item), item.target or "", {True: "✓", False: "✗", None: ""}[item.ok]]
        for name, item in report.metrics.items()
    ]
    return _grid(["metric", "value", "target", ""], rows, ["-", "-:", "-:", ":-:"]) if rows else ""


def _table(table: Table) -> str:
    rules = ["-:" if flag else "-" for flag in formatting.numeric_columns(table)]
    rows = formatting.format_rows(table)
    if table.accent is not None:
        rows[table.accent] = [f"**{text.strip()}**" if text else text for text in rows[table.accent]]
    return f"### {_escape(table.name)}\n\n" + _grid(
        [formatting.format_head(column) for column in table.columns], rows, rules
    )


def _figure(figure: AnyFigure) -> str:
    """Write a figure as text and, where Mermaid fits, as a diagram; nothing for a plot."""
    lines = write_compact(figure, WIDTH)
    if not lines:
        return ""
    diagram = write_mermaid(figure)
    blocks = [_fence(textwrap.dedent("\n".join(lines[1:]))), *([_fence(diagram, "mermaid")] if diagram else [])]
    return "\n\n".join([f"### {_escape(figure.title)}", *blocks])


def _fence(body: str, language: str = "text") -> str:
    runs = re.findall("`{3,}", body)
    marks = "`" * max([3, *(len(run) + 1 for run in runs)])
    return f"{marks}{language}\n{body}\n{marks}"


def _grid(heads: list[str], rows: list[list[str]], rules: list[str]) -> str:
    lines = [heads, rules, *rows]
    escaped = [[text if line is rules else _escape(text) for text in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _code(text: str) -> str:
    """Write a text of one line as code, between more backticks than it has in a row."""
    marks = "`" * max([1, *(len(run) + 1 for run in re.findall("`+", text))])
    space = " " if "`" in text else ""
    return f"{marks}{space}{text.replace(chr(10), ' ')}{space}{marks}"


def _escape(text: str) -> str:
    """Escape what Markdown or GitHub would read as more than text, such as an image that a page would load."""
    text = _MARKUP.sub(r"\\\g<0>", text.replace("&", "&amp;")).replace("<", "&lt;").replace("\n", " ")
    return _MENTION.sub("@<!-- -->", text)
