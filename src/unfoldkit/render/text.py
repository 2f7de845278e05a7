"""Render a report for a terminal: the answer in the last line, the reasons above it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from unfoldkit.figure_data import AnyFigure
from unfoldkit.render import formatting
from unfoldkit.render.figures.compact import write_compact
from unfoldkit.render.formatting import strip_controls
from unfoldkit.report import Report, Table, Verdict

WIDTH = 120
ACCENT = "cyan"
GLUE = "\ue000"
"""Stands for the space before a percent sign, so that no line ends between the two."""


def render(report: Report, *, width: int = WIDTH, colour: bool = False) -> str:
    """Render the report as text; without colour, equal reports give equal bytes."""
    report = strip_controls(report)
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        emoji=False,
        markup=False,
    )
    _title(console, report)
    _metrics(console, report)
    for table in report.tables:
        _table(console, table)
    for figure in report.figures:
        _figure(console, figure)
    _lines(console, report)
    _verdict(console, report)
    lines = stream.getvalue().replace(GLUE, " ").split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def _title(console: Console, report: Report) -> None:
    left = f"{report.name} · {report.kind}" + (f" {report.verb}" if report.verb != "train" else "")
    right = " · ".join(report.subtitle)
    gap = console.width - len(left) - len(right)
    console.print(Text(left, style="bold") + (Text(" " * gap + right, style="dim") if gap > 1 else Text("")))
    if gap <= 1 and right:
        console.print(Text(right, style="dim"))


def _metrics(console: Console, report: Report) -> None:
    visible = {name: item for name, item in report.metrics.items() if item.target is not None or not report.tables}
    if not visible:
        return
    grid = _grid()
    for name, item in visible.items():
        mark = {True: "✓", False: "✗", None: ""}[item.ok]
        grid.add_row(name, formatting.format_metric(item), f"target {item.target}" if item.target else "", mark)
    console.print()
    console.print(grid)


def _table(console: Console, table: Table) -> None:
    heads = [formatting.format_head(column) for column in table.columns]
    rows = formatting.format_rows(table)
    numeric = formatting.numeric_columns(table)
    for part in layout_columns(heads, rows, numeric, console.width):
        grid = _grid()
        for index, width in part:
            side: Literal["right", "left"] = "right" if numeric[index] else "left"
            grid.add_column(Text(heads[index], style="dim"), justify=side, overflow="fold", width=width)
        for row_index, texts in enumerate(rows):
            grid.add_row(*(texts[i] for i, _ in part), style=ACCENT if row_index == table.accent else "")
        grid.show_header = True
        console.print()
        console.print(grid)


def _figure(console: Console, figure: AnyFigure) -> None:
    lines = write_compact(figure, console.width)
    if lines:
        console.print()
        console.print(Text(lines[0], style="dim"))
        console.print(Text("\n".join(lines[1:])), no_wrap=True, overflow="ignore", crop=False)


def _lines(console: Console, report: Report) -> None:
    if not (report.lines or report.notes):
        return
    grid = _grid()
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in (*report.lines, *(("note", note) for note in report.notes)):
        grid.add_row(label, _glue_percent(text))
    console.print()
    console.print(grid)


def _verdict(console: Console, report: Report) -> None:
    style = f"bold {ACCENT}" if report.verdict is Verdict.YES else "bold red"
    console.print()
    console.print(
        Text(report.answer, style=style) + Text(f" · {_glue_percent(report.headline)}", style="not bold default")
    )
    if report.next:
        # one line, however long, so that it can be copied
        console.print(Text(f"next: {report.next}", style="dim"), soft_wrap=True)


def _glue_percent(text: str) -> str:
    return text.replace(" %", f"{GLUE}%")


def _grid() -> RichTable:
    return RichTable(box=None, show_header=False, padding=(0, 1, 0, 2), pad_edge=True)


PAD = 3
LONGEST_WORD = 24


def layout_columns(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], room: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the parts of a table, as column indices with their widths.

    A table that is too wide even with a line break after every word is split into parts, one below the other. Each part
    begins with the first column.
    """
    columns = [[head, *(row[index] for row in rows)] for index, head in enumerate(heads)]
    full_widths = [max(map(cell_len, texts)) for texts in columns]
    min_widths = [_min_width(texts, is_numeric=flag) for texts, flag in zip(columns, numeric, strict=True)]
    for part in _split_parts(min_widths, room):
        widths = _share_room([min_widths[i] for i in part], [full_widths[i] for i in part], room)
        yield list(zip(part, widths, strict=True))


def _min_width(texts: Sequence[str], *, is_numeric: bool) -> int:
    words = [word for text in (texts[:1] if is_numeric else texts) for word in text.split()]
    longest = min(max(map(cell_len, words), default=1), LONGEST_WORD)
    return max([longest, *map(cell_len, texts[1:])]) if is_numeric else longest


def _split_parts(min_widths: Sequence[int], room: int) -> Iterator[list[int]]:
    part: list[int] = []
    for index in range(len(min_widths)):
        if len(part) > 1 and sum(min_widths[i] + PAD for i in (*part, index)) > room:
            yield part
            part = [0]
        part.append(index)
    yield part


def _share_room(min_widths: Sequence[int], full_widths: Sequence[int], room: int) -> list[int]:
    """Return widths between the minimum and the full ones; spare room is shared in proportion to what is missing."""
    spare = room - sum(min_widths) - PAD * len(min_widths)
    missing = [max(0, full - minimum) for minimum, full in zip(min_widths, full_widths, strict=True)]
    if max(0, spare) >= sum(missing):
        return [max(minimum, full) for minimum, full in zip(min_widths, full_widths, strict=True)]
    total = sum(missing)
    return [minimum + max(0, spare) * lack // total for minimum, lack in zip(min_widths, missing, strict=True)]
