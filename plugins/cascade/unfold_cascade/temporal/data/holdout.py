"""Hours that no model was fitted on, kept so that a server can prove that it does what was simulated."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.temporal.data.table import Long, rows_of, starts_of
from unfoldkit.api import Run, fingerprint
from unfoldkit.safe_io.arrays import read_npz

FILE = "serving/probe.npz"
ENTITIES = 12


@dataclass(frozen=True, slots=True)
class Probe:
    """A few whole entities: (n,) row numbers in the table, (P+1,) starts, (n,) hours, and (n, C) raw values."""

    rows: IntArray
    starts: IntArray
    hour: FloatArray
    values: Float32


def keep(
    run: Run, digest: str, columns: Sequence[str], unseen: IntArray, starts: IntArray, table: Callable[[], Long]
) -> Probe:
    """Return the probe of a run; the table is read only if the run does not hold it yet.

    Args:
        run: keeps it.
        digest: of the table.
        columns: those that a server takes.
        unseen: entities that no model was fitted on.
        starts: (P+1,) first rows of all entities.
        table: gives the table.
    """
    chosen = np.sort(unseen)[np.unique(np.linspace(0, len(unseen) - 1, ENTITIES).astype(np.int64))]
    made_from = fingerprint(digest, list(columns), chosen.tolist())
    run.directory.once(FILE, made_from, lambda: _made(table(), columns, chosen, starts))
    with run.directory.decoding(FILE, "rows to check with") as data:
        return read(data)


def read(data: bytes) -> Probe:
    """Return the probe that ``keep`` stored."""
    stored = read_npz(data)
    return Probe(stored["rows"], stored["starts"], stored["hour"], stored["values"])


def _made(table: Long, columns: Sequence[str], chosen: IntArray, starts: IntArray) -> bytes:
    rows = rows_of(starts, chosen)
    places = [table.place(column, key="features") for column in columns]
    stream = io.BytesIO()
    arrays = {"rows": rows, "starts": starts_of(np.diff(starts)[chosen]), "hour": table.hour[rows]}
    np.savez(stream, allow_pickle=False, values=table.values[np.ix_(rows, np.array(places))], **arrays)
    return stream.getvalue()
