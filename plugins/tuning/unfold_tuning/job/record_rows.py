"""Rows of an earlier run's record, from tables, and from the forms of JSON and of charts that tools write."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfoldkit.api import CsvRow, csv_rows, user_error
from unfoldkit.io.tables import UNREADABLE, open_text

CHART_SUFFIXES = ("__MIN", "__MAX")
"""Suffixes of the range of a line in the CSV that a chart of Weights & Biases exports."""
CHART_LINE = " - "
"""What separates the run from the metric in the name of such a line."""
JOURNAL_KEYS = ("op_code", "worker_id")
"""Keys of each line of a journal of Optuna."""
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz")
JSON_FORM = "one object per line, one array of objects, or an object with lists of equal length for each trial"


def read_record_rows(path: Path) -> Sequence[CsvRow]:
    """Read the rows of a table, of JSON, or of a chart that Weights & Biases exports.

    Raises:
        UnfoldError: The file cannot be read, or is a journal of Optuna.
    """
    rows = list(_read_rows(path))
    if rows and set(JOURNAL_KEYS) <= set(rows[0].cells):
        hint = "load the study, and save study.trials_dataframe().to_csv()"
        raise user_error("a journal of Optuna is not a table of trials", file=str(path), hint=hint)
    return _split_chart_lines(rows)


def _split_chart_lines(rows: Sequence[CsvRow]) -> Sequence[CsvRow]:
    """Split each row of a chart of Weights & Biases, which has a column for each run and metric, into one for each run.

    Other tables are returned as they are.
    """
    columns = list(rows[0].cells) if rows else []
    lines = [name for name in columns if all(name + suffix in columns for suffix in CHART_SUFFIXES)]
    if not lines or not all(CHART_LINE in name for name in lines):
        return rows
    runs: dict[str, dict[str, str]] = {}
    for line in lines:
        run, metric = line.rsplit(CHART_LINE, 1)
        runs.setdefault(run, {})[metric] = line
    return [
        CsvRow({columns[0]: row[columns[0]], "trial": run} | cells, row.path, row.line)
        for row in rows
        for run, metrics in runs.items()
        if any((cells := {metric: row[line] for metric, line in metrics.items()}).values())
    ]


def _read_rows(path: Path) -> Iterator[CsvRow]:
    """Yield the rows of a table; the rows of JSON that is not one object per line are numbered by its items."""
    if not path.name.endswith(JSON_SUFFIXES) and not _begins_with_json(path):
        yield from csv_rows(path)
        return
    with open_text(path) as stream:
        is_array = stream.read(1) == "["
        stream.seek(0)
        nested = {} if is_array else _parse_nested(stream.read())
        tables = list(_list_tables(nested, ()))
        if nested and not tables:
            raise user_error("no lists of values in this JSON object", file=str(path), hint=JSON_FORM)
        stream.seek(0)
        if is_array:
            objects: Iterable[tuple[int, object]] = enumerate(_parse_json(stream.read(), path, 1), 1)
        elif tables:
            objects = enumerate(itertools.chain.from_iterable(tables), 1)
        else:
            objects = ((n, _parse_json(line, path, n)) for n, line in enumerate(stream, 1) if line.strip())
        yield from (CsvRow(_read_cells(value, path, n), path, n) for n, value in objects)


def _begins_with_json(path: Path) -> bool:
    """Return whether a file begins like JSON with objects, whatever its name."""
    with contextlib.suppress(*UNREADABLE), open_text(path) as stream:
        return stream.read(2) in ('{"', "[{")
    return False


def _parse_nested(text: str) -> Mapping[str, object]:
    """Parse a file that is one JSON object of objects or lists; empty if it is not."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, Mapping):
        return {}
    is_nested = all(isinstance(item, (Mapping, list)) for item in value.values())
    return value if is_nested or _list_row_tables(value) else {}


def _list_tables(value: object, names: tuple[str, ...]) -> Iterator[list[dict[str, object]]]:
    """List the tables of nested objects, row by row: lists of equal length are the columns of a trial.

    A trial is named by the keys that lead to its lists, as LCBench has them.
    """
    if not isinstance(value, Mapping):
        return
    if tables := _list_row_tables(value):
        yield max(tables, key=len)
        return
    if names == () and (rows := _list_pandas_rows(value)):
        yield rows
        return
    columns = {str(name): item for name, item in value.items() if isinstance(item, list)}
    length = max((len(item) for item in columns.values()), default=0)
    columns = {name: item for name, item in columns.items() if len(item) == length}
    if length:
        trial = {} if "trial" in columns or not names else {"trial": "/".join(names)}
        yield [trial | {name: item[row] for name, item in columns.items()} for row in range(length)]
        return
    for name, item in value.items():
        yield from _list_tables(item, (*names, str(name)))


def _list_row_tables(value: Mapping[str, object]) -> list[list[dict[str, object]]]:
    """List the lists of objects in an object: MLflow's REST API and pandas wrap rows, each with its trial."""
    lists = [item for item in value.values() if isinstance(item, list) and item]
    return [item for item in lists if all(isinstance(row, Mapping) for row in item)]


def _list_pandas_rows(value: Mapping[str, object]) -> list[dict[str, object]]:
    """List the rows of what ``DataFrame.to_json`` writes by default: by column, the cells by row; else none."""
    columns = {name: cells for name, cells in value.items() if isinstance(cells, Mapping)}
    indices = {tuple(cells) for cells in columns.values()}
    if len(columns) < len(value) or len(indices) != 1:
        return []
    if any(isinstance(cell, (Mapping, list)) for cells in columns.values() for cell in cells.values()):
        return []
    return [{name: cells[row] for name, cells in columns.items()} for row in indices.pop()]


def _parse_json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise user_error(f"not JSON: {error}", file=f"{path}:{line}:1", hint=JSON_FORM) from error


def _read_cells(value: object, path: Path, line: int) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise user_error("not a JSON object", file=f"{path}:{line}:1", hint=JSON_FORM)
    return {str(name): str(cell) for name, cell in value.items() if isinstance(cell, (str, int, float))}
