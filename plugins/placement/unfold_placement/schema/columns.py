"""Columns of CSV files: under other names, in other units, and with amounts as schedulers write them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unfold_placement.core.types import MILLI
from unfoldkit.api import CsvRow, UnfoldError, csv_rows, user_error
from unfoldkit.io.tables import is_number

AMOUNT_COLUMNS = ("cpu", "gpu", "memory")
NODE_COLUMNS = ("name", *AMOUNT_COLUMNS, "data")
TASK_COLUMNS = (
    "task", "arrival", "run", "start", "end", *AMOUNT_COLUMNS, "count", "parts", "job", "user", "role", "priority",
    "deadline", "follows", "avoids", "after", "data", "types",
)  # fmt: skip
ROUNDING_TOLERANCE = 0.05
"""Relative error that rounding an amount to thousandths may cause."""
UNKNOWN_CELLS = frozenset(
    {"", "-", "unknown", "undefined", "none", "null", "nil", "n/a", "na", "nan", "nat", "<na>", "\\n", "(null)"}
)
"""Cells of times and numbers without a value, in lower case."""
NEGATIVE = "negative"
"""Listed among the unknown cells of a column: numbers below zero have no meaning there."""
UNLISTED = "unlisted"
"""Listed among the unknown cells of a column of jobs: a job that no row has is none."""
TIME_COLUMNS = ("arrival", "run", "start", "end", "deadline")
MIN_UNIX_S = 1e9
"""Arrivals from here on (2001) are Unix times, and time counts from the earliest of them."""
COUNT_COLUMNS = ("count", "parts", "priority")
SKIP, FIRST, LAST, MEDIAN, LINE = "skip", "first", "last", "median", "line"
MISSING_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "task": (LINE, SKIP), "arrival": (FIRST, SKIP), "end": (LAST, SKIP), "run": (MEDIAN, SKIP),
}  # fmt: skip
"""What cells without a value may stand for, besides a quantity; the first is the default where the column exists."""
MAX_AMOUNT = 1e9
"""Largest amount of a resource in its unit (memory in MiB)."""
MAX_PLAIN_MEMORY, MAX_PLAIN_NODE_MEMORY = 1 << 20, 1 << 24
"""Largest memory (MiB) of a task and of a node that a number without a unit or scale may mean: 1 TiB and 16 TiB. A
larger one is rather in KiB, or in bytes."""
TIME_UNITS = {
    **dict.fromkeys(("days", "day"), 86400.0),
    **dict.fromkeys(("hours", "hour", "hrs", "hr", "h"), 3600.0),
    **dict.fromkeys(("minutes", "minute", "mins", "min"), 60.0),
    **dict.fromkeys(("milliseconds", "millis", "msec", "ms"), 1e-3),
    **dict.fromkeys(("microseconds", "micros", "usec", "us"), 1e-6),
    **dict.fromkeys(("nanoseconds", "nanos", "nsec", "ns"), 1e-9),
}
PARTS = {**dict.fromkeys(("millicores", "millicpu", "milli", "m"), 1e-3), **dict.fromkeys(("percent", "pct"), 0.01)}
COLUMN_UNITS: Mapping[str, Mapping[str, float]] = {
    **dict.fromkeys(TIME_COLUMNS, TIME_UNITS),
    **dict.fromkeys(("cpu", "gpu"), PARTS),
    "memory": {
        **dict.fromkeys(("bytes", "byte"), 2.0**-20),
        **dict.fromkeys(("kilobytes", "kib", "kb"), 2.0**-10),
        **dict.fromkeys(("gigabytes", "gib", "gb", "g"), 1024.0),
        **dict.fromkeys(("terabytes", "tib", "tb"), 2.0**20),
    },
}
"""Units of a standard column in its own unit, by the names that the name of a column may end in."""
EXPECTED_UNITS = {"memory": "memory is in MiB", "cpu": "cpu counts cores", "gpu": "gpu counts GPUs"}
"""What each amount is in; times are in seconds."""
SLURM_UNITS = {"TimelimitRaw": "minutes"}
"""Units of columns of ``sacct`` that their names do not state."""
MEMORY_UNITS = {prefix: 1000 ** (power + 1) for power, prefix in enumerate("kMGT")} | {
    f"{prefix}i": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")
}
"""Bytes of a memory unit, as Kubernetes writes them."""
MAX_CELL = 1000
"""Characters of a cell for which patterns that try every ending search."""
_GRES_COMMA = re.compile(rf",(?![^(]{{0,{MAX_CELL}}}\))")
"""A comma between generic resources, not one of the indices in parentheses behind a resource."""
_QUANTITY = re.compile(r"(.*[\d.])\s*(m|k|[KMGT]i|[MGT])")
_TRES = re.compile(r"(?:cpu|mem|node|energy|billing|vmem|pages|(?:bb|fs|gres|ic|license)/[^=]+)=[^=]+", re.IGNORECASE)
"""A trackable resource of Slurm, such as ``gres/gpu:a100=4``."""
_GRES = re.compile(r"(?:gres[/:])?([A-Za-z][\w-]*)(?::[\w.-]+)?:(\d+[KMGkmg]?)(?:\(.*\))?")
"""A generic resource of Slurm, such as ``gpu:a100:4(S:0-1)``: its name, type and count."""
SLURM_MEMORY_COLUMNS = frozenset({"ReqMem", "MIN_MEMORY"})
"""Columns of ``sacct`` and ``squeue`` in which ``16G`` counts in powers of 1024."""
PER_NODE_COLUMNS = frozenset({"MIN_MEMORY", "TRES_PER_NODE"})
"""Columns of ``squeue`` with amounts of each node of a job."""
CELL_HINTS = (
    (TIME_COLUMNS, r"(\d+-)?\d+:\d\d:\d\d(\.\d+)?$", "minutes and seconds of a clock end with 59"),
    ((), r"\d+:\d\d(\.\d+)?$", "write hours, minutes and seconds, such as 0:{}"),
    ((), r"[\d.]+[KMGTP]?[nc?]$", "Slurm's ReqMem is per node or core: read AllocTRES, which has the total"),
    (("gpu",), r"num=|(?:\d+\*\{)?[( ]*\w+\[", "it has alternatives, or is per task: LSF's GPU_NUM has the total"),
    (
        ("arrival", "start", "end"),
        r"[A-Z][a-z]{2} +\d+ \d+:\d\d(:\d\d)?( [ELX])?$",
        "it has no year: LSF prints one with LSB_DISPLAY_YEAR=Y",
    ),
    (
        ("arrival", "start", "end"),
        r".*(\d.*[A-Za-z:/]|[A-Za-z].*\d)",
        "write seconds, Unix times, or dates such as 2026-01-31 12:00:00; dates of one file have one form",
    ),
    (("run",), r"(?!-).*\d\D*[a-zA-Z:-]", "write seconds, or days, hours, minutes and seconds: 1-02:03:04"),
)
"""Columns (none for all), a pattern of cells that are no numbers there, and the hint how to write or read them."""
_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
"""Suffixes of counts and of memory that Slurm writes; memory is in MiB without one."""
_LSF_RUSAGE = re.compile(r"(?:select|rusage|order|span|same|cu|affinity)\[[^\]|]*\].*")
"""Resource requirements of LSF, without alternatives, such as ``select[ngpus>0] rusage[ngpus_physical=2.00]``."""
_LSF_GPUS = re.compile(
    r"(?:\bnum=|\bngpus(?:_physical|_shared|_excl_p|_excl_t)?=)(\d+(?:\.\d+)?)(?:/host)?(?=[:,\]\s]|$)"
)
"""GPUs of each host in requirements of LSF, also of ``bsub -gpu``: ``num=2:mode=shared``."""
_SECONDS = re.compile(r"([\d.]+) ?(?:s|sec|seconds?|second\(s\))")
_ELAPSED = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Columns:
    """How the columns of a file map to the standard columns.

    Attributes:
        names: Columns of the file for each standard column; several are joined with ``-``.
        scales: Factors of the numbers of a standard column.
        header: Columns in order, for a file without a header.
        resources: Columns with amounts of further resources, by resource.
        missing: What cells without a value stand for, by standard column: a keyword, seconds, or an amount.
        unknown: Further cells without a value, by standard column.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    header: Sequence[str] = ()
    resources: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str | float] = field(default_factory=dict)
    unknown: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def valued(self) -> tuple[str, ...]:
        """The standard columns that hold times or numbers."""
        return (*TIME_COLUMNS, *AMOUNT_COLUMNS, *COUNT_COLUMNS, *self.resources)

    def read_rows(self, path: Path, required: Sequence[str]) -> Iterator[CsvRow]:
        """Yield the rows of a file by standard columns, with its other columns; unknown times and numbers are empty.

        Raises:
            UnfoldError: A required column is missing, or the file is no table.
        """
        if summed := [name for name in self.names.get("run", ()) if name.startswith("CPUTime")]:
            hint = "Elapsed is the run time of the job"
            raise user_error(f"{summed[0]} is the time of all CPUs together", file=str(path), key="run", hint=hint)
        sources = {**self.names, **{resource: (column,) for resource, column in self.resources.items()}}
        needed = dict.fromkeys(column for name in (*required, *sources) for column in sources.get(name, (name,)))
        for row in csv_rows(path, tuple(needed), head=self.header):
            renamed = {name: "-".join(row[column] for column in columns) for name, columns in sources.items()}
            cells = {**row.cells, **renamed}
            yield replace(row, cells={**cells, **dict.fromkeys(self._unknown_columns(cells), "")})

    def _unknown_columns(self, cells: Mapping[str, str]) -> list[str]:
        return [name for name in self.valued if name in cells and self._is_unknown(name, cells[name])]

    def _is_unknown(self, name: str, cell: str) -> bool:
        unknown = self.unknown.get(name)
        if not unknown:
            return cell.lower() in UNKNOWN_CELLS
        is_negative = NEGATIVE in unknown and cell.startswith("-")
        return cell.lower() in UNKNOWN_CELLS or is_negative or cell in unknown or format_cell(cell) in unknown

    def read_amounts(self, row: CsvRow, parts: int = 1, max_memory: int = MAX_PLAIN_MEMORY) -> dict[str, int]:
        """Return the amounts of a row by kind, in thousandths, each divided by ``parts``; zeros are left out.

        A missing amount is the configured one, else nothing. Memory above ``max_memory`` MiB needs a unit or a scale.
        """
        kinds = (*AMOUNT_COLUMNS, *self.resources)
        missing = {kind: round(float(self.missing[kind]) * MILLI / parts) for kind in kinds if _has_number(self, kind)}
        amounts = missing | {kind: self._read_amount(row, kind, parts, max_memory) for kind in kinds if row.get(kind)}
        return {kind: amount for kind, amount in amounts.items() if amount}

    def read_seconds(self, row: CsvRow, column: str) -> float:
        """Return a time in seconds: a scaled number, or text such as ``1-02:03:04`` (days, hours, minutes, seconds).

        ``7200 second(s)``, as LSF writes run times, is a number of seconds.
        """
        if match := _SECONDS.fullmatch(row[column]):
            return read_number(replace(row, cells={column: match[1]}), column)
        if match := _ELAPSED.fullmatch(row[column]):
            days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
            return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        number = read_number(row, column, least=0.0)
        # units of times since 1970 are detected
        if number and (column == "run" or number < MIN_UNIX_S):
            self._check_unit(row, column)
        return number * self.scales.get(column, 1.0)

    def read_whole(self, row: CsvRow, kind: str) -> int:
        """Return an amount in its unit where it is a whole number, else 0."""
        quantity = self._read_quantity(row, kind) if row.get(kind) else 0.0
        return round(quantity) if quantity.is_integer() else 0

    def _read_amount(self, row: CsvRow, kind: str, parts: int, max_memory: int) -> int:
        is_lsf = kind == "gpu" and read_lsf_gpus(row[kind]) is not None
        is_per_node = is_lsf or PER_NODE_COLUMNS.intersection(self.names.get(kind, ()))
        quantity = self._read_quantity(row, kind) / (1 if is_per_node else parts)
        is_plain = kind == "memory" and is_number(row[kind]) and kind not in self.scales
        if kind in COLUMN_UNITS and is_number(row[kind]):
            self._check_unit(row, kind)
        if is_plain:
            self._check_plain_memory(row, quantity, max_memory)
        if quantity > MAX_AMOUNT:
            raise row.wrong(f"{quantity:g} is out of range", kind, f"at most {MAX_AMOUNT:g} of its unit: set a scale")
        exact = quantity * MILLI
        if abs(round(exact) - exact) > ROUNDING_TOLERANCE * exact:
            hint = f"scale tasks and nodes alike: scale: {{{kind}: 1000}}"
            raise row.wrong(f"{exact / MILLI:g} is too small: amounts are stored in thousandths", kind, hint)
        return round(exact)

    def _check_plain_memory(self, row: CsvRow, quantity: float, max_memory: int) -> None:
        """Check that a number without a unit or scale is in MiB, by its size."""
        if quantity > max_memory:
            hint = "scale: {memory: 9.5367431640625e-7} reads bytes, 0.0009765625 KiB, 1 MiB"
            raise row.wrong(f"{row['memory']} MiB are more than {max_memory >> 20} TiB: is it in MiB?", "memory", hint)

    def _check_unit(self, row: CsvRow, column: str) -> None:
        """Check that the name of a column states no other unit than the standard one; a scale says what it is.

        Raises:
            UnfoldError: It does.
        """
        for name in self.names.get(column, ()) if column not in self.scales else ():
            if unit := find_unit(column, name):
                expected = EXPECTED_UNITS.get(column, f"{column} is in seconds")
                own = expected.split()[-1]
                hint = f"scale: {{{column}: {COLUMN_UNITS[column][unit]:.14g}}}, or 1 if it is in {own} anyway"
                raise row.wrong(f"{name} seems to be in {unit}, and {expected}", column, hint)

    def _read_quantity(self, row: CsvRow, kind: str) -> float:
        is_slurm = kind == "memory" and SLURM_MEMORY_COLUMNS.intersection(self.names.get(kind, ()))
        binary = read_slurm_amount(f"mem={row[kind]}", kind) if is_slurm else None
        return (_read_quantity(row, kind) if binary is None else binary) * self.scales.get(kind, 1.0)


@functools.lru_cache(maxsize=1024)
def find_unit(column: str, name: str) -> str:
    """Return the unit that the name of a file's column ends in, as in ``mem_gb`` and ``waitHours``; empty for none.

    Args:
        column: The standard column, which has another unit.
        name: The name of the file's column.
    """
    units = "|".join(sorted(COLUMN_UNITS.get(column, ()), key=len, reverse=True))
    match = re.search(rf"(?:^|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))(?i:({units}))[^A-Za-z]*$", name) if units else None
    return SLURM_UNITS.get(name, match[1].lower() if match else "")


def read_number(row: CsvRow, column: str, *, least: float = 0.0) -> float:
    """Return a cell as a finite number of at least ``least``.

    Raises:
        UnfoldError: It is none; the hint is how to read such cells as missing.
    """
    try:
        return row.number(column, least=least)
    except UnfoldError as error:
        (fault,) = error.diagnostics
        raise UnfoldError(replace(fault, hint=_suggest_cell(row[column], column))) from error


def _suggest_cell(cell: str, column: str) -> str:
    """Return how to write a cell that is not a number, or how to read such cells as missing."""
    cell = cell[:MAX_CELL]
    for columns, pattern, hint in CELL_HINTS:
        if (not columns or column in columns) and re.match(pattern, cell):
            return hint.format(cell)
    if match := re.fullmatch(r"([\d.]+) ?([KMGT])i?B?", cell, re.IGNORECASE):
        prefix = match[2].upper()
        decimal = prefix.replace("K", "k")
        return f"write {match[1]}{prefix}i for powers of 1024, or {match[1]}{decimal} for powers of 1000"
    unknown = NEGATIVE if cell.startswith("-") else f"'{cell[:40]}'"
    return f"table: {{unknown: {{{column}: [{unknown}]}}}} treats such cells as missing"


def read_slurm_amount(cell: str, kind: str) -> float | None:
    """Return how much of a kind (memory in MiB) Slurm's lists of resources name; None if a cell is no such list.

    They are TRES such as ``cpu=8,gres/gpu:a100=4,gres/gpu=4,mem=64G``, and GRES such as ``gpu:a100:4(S:0-1)``. In a
    TRES the total of all types counts, else the sum of the types. A GRES without ``gres`` in front must name the kind:
    ``a100:2`` may be of any other scheduler.
    """
    if "=" in cell:
        items = [item.strip() for item in cell.split(",")]
        if not all(map(_TRES.fullmatch, items)):
            return None
        pairs = dict(item.partition("=")[::2] for item in items)
        name = {"memory": "mem", "cpu": "cpu"}.get(kind, f"gres/{kind}")
        texts = [pairs[name]] if name in pairs else [text for key, text in pairs.items() if key.startswith(f"{name}:")]
        return _sum_binary(texts, kind)
    matches = [_GRES.fullmatch(item) for item in _GRES_COMMA.split(cell)]
    counts = [match[2].upper() for match in matches if match and match[1] == kind]
    is_list = all(matches) and (counts or cell.startswith("gres"))
    return _sum_binary(counts, kind) if is_list else None


def read_lsf_gpus(cell: str) -> float | None:
    """Return the GPUs of each host in requirements of LSF; None for other text, and for what says nothing of a host."""
    counts = [float(number) for number in _LSF_GPUS.findall(cell)]
    if cell.startswith("num=") or _LSF_RUSAGE.fullmatch(cell):
        return counts[0] if counts else None if "gpus" in cell.partition("rusage[")[2] or "num=" in cell else 0.0
    return None


def _sum_binary(texts: Sequence[str], kind: str) -> float | None:
    matches = [re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", text) for text in texts]
    if not all(matches):
        return None
    total = sum(float(match[1]) * _BINARY[match[2] or ("M" if kind == "memory" else "")] for match in matches if match)
    return total / _BINARY["M"] if kind == "memory" else total


def format_cell(cell: str | float) -> str:
    """Return a number in one spelling, so that cells such as 0 and 0.0 are equal, and any other text unchanged."""
    try:
        return f"{float(cell):.17g}"
    except ValueError:
        return str(cell)


def _has_number(columns: Columns, kind: str) -> bool:
    return not isinstance(columns.missing.get(kind, SKIP), str)


def _read_quantity(row: CsvRow, kind: str) -> float:
    """Return an amount (memory in MiB): a plain number, one with a Kubernetes suffix, or one of Slurm's resources."""
    if (slurm := read_slurm_amount(row[kind], kind)) is not None:
        return slurm
    if kind == "gpu" and (lsf := read_lsf_gpus(row[kind])) is not None:
        return lsf
    match = _QUANTITY.fullmatch(row[kind])
    if match is None or (match[2] == "m") == (kind == "memory"):
        return read_number(row, kind)
    number = replace(row, cells={kind: match[1]}).number(kind, least=0)
    return number / MILLI if match[2] == "m" else number * MEMORY_UNITS[match[2]] / MEMORY_UNITS["Mi"]
