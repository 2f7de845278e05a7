"""Columns of a table of one's own: under other names, in other units, and with amounts as schedulers write them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unfold_placement.core.types import MILLI
from unfoldkit.api import CsvRow, csv_rows

AMOUNTS = ("cpu", "gpu", "memory")
NODE_COLUMNS = ("name", *AMOUNTS, "data")
TASK_COLUMNS = (
    "task", "arrival", "run", "start", "end", *AMOUNTS, "count", "parts", "job", "user", "role", "priority", "deadline",
    "follows", "avoids", "after", "data", "types",
)  # fmt: skip
OFF = 0.05
"""The part by which an amount may be off, as amounts are kept in thousandths."""
UNKNOWN = frozenset({"", "Unknown", "None", "NULL", "N/A"})
SIZES = {mark: 1000 ** (at + 1) for at, mark in enumerate("kMGT")} | {
    f"{mark}i": 1024 ** (at + 1) for at, mark in enumerate("KMGT")
}
"""Bytes of a unit of memory, as Kubernetes writes them."""
_QUANTITY = re.compile(r"(.*[\d.])\s*(m|k|[KMGT]i|[MGT])")
_ELAPSED = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Columns:
    """What a file calls a column of ours (several are put together), and what a column's numbers are multiplied by.

    ``head`` are the columns of a file that does not name them, ``resources`` those with amounts of further resources.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    header: Sequence[str] = ()
    resources: Mapping[str, str] = field(default_factory=dict)

    def read_rows(self, path: Path, wanted: Sequence[str]) -> Iterator[CsvRow]:
        """Yield the rows of a file by our columns, beside what other columns it has.

        Raises:
            UnfoldError: a column is missing, or the file is no table.
        """
        names = {**self.names, **{ours: (theirs,) for ours, theirs in self.resources.items()}}
        needed = dict.fromkeys(theirs for name in (*wanted, *names) for theirs in names.get(name, (name,)))
        for row in csv_rows(path, tuple(needed), head=self.header):
            mine = {ours: "-".join(row[name] for name in theirs) for ours, theirs in names.items()}
            yield replace(row, cells={**row.cells, **mine}) if mine else row

    def read_amounts(self, line: CsvRow, parts: int = 1) -> dict[str, int]:
        """Return what a row has or asks for, in thousandths; of tasks the part of one of ``parts``."""
        kinds = (*AMOUNTS, *self.resources)
        found = {kind: self._amount(line, kind, parts) for kind in kinds if line.get(kind)}
        return {kind: amount for kind, amount in found.items() if amount}

    def read_seconds(self, line: CsvRow, column: str, *, least: float = 0.0) -> float:
        """Return a time in s, or one such as ``1-02:03:04``: days, hours, minutes, seconds."""
        if found := _ELAPSED.fullmatch(line[column]):
            days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
            return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        return line.number(column, least=least) * self.scales.get(column, 1.0)

    def _amount(self, line: CsvRow, kind: str, parts: int) -> int:
        exact = _quantity(line, kind) * self.scales.get(kind, 1.0) / parts * MILLI
        if abs(round(exact) - exact) > OFF * exact:
            hint = f"of tasks and nodes alike take a multiple: scale: {{{kind}: 1000}}"
            raise line.wrong(f"{exact / MILLI:g} is too little: amounts are kept in thousandths", kind, hint)
        return round(exact)


def _quantity(line: CsvRow, kind: str) -> float:
    """Return an amount in our unit (memory in MiB): a plain number, or one with a suffix of Kubernetes."""
    found = _QUANTITY.fullmatch(line[kind])
    if found is None or (found[2] == "m") == (kind == "memory"):
        return line.number(kind, least=0)
    number = replace(line, cells={kind: found[1]}).number(kind, least=0)
    return number / MILLI if found[2] == "m" else number * SIZES[found[2]] / SIZES["Mi"]
