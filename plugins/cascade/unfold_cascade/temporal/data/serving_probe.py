"""The probe: held-out entities stored in the run, which a server replays to prove that it matches the simulation."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.temporal.data.table import EntityTable, select_rows, starts_from_sizes
from unfoldkit.api import Run, fingerprint
from unfoldkit.safe_io.arrays import read_npz

PROBE_FILE = "serving/probe.npz"
PROBE_ENTITIES = 12


@dataclass(frozen=True, slots=True)
class Probe:
    """A few complete entities: (n,) row numbers in the table, (P+1,) starts, (n,) hours, and (n, C) raw values."""

    rows: IntArray
    starts: IntArray
    hour: FloatArray
    values: Float32


def store_probe(
    run: Run,
    digest: str,
    columns: Sequence[str],
    unseen: IntArray,
    starts: IntArray,
    load_table: Callable[[], EntityTable],
) -> Probe:
    """Store the probe in the run, unless the run holds it already; only then is the table not read.

    Args:
        run: Stores the probe.
        digest: Hash of the table.
        columns: The columns that a server receives.
        unseen: Entities on which no model was fitted.
        starts: (P+1,) first rows of all entities.
        load_table: Reads the table.
    """
    spread = np.unique(np.linspace(0, len(unseen) - 1, PROBE_ENTITIES).astype(np.int64))
    entities = np.sort(unseen)[spread]
    made_from = fingerprint(digest, list(columns), entities.tolist())
    run.directory.once(PROBE_FILE, made_from, lambda: _pack_probe(load_table(), columns, entities, starts))
    return load_probe(run)


def load_probe(run: Run) -> Probe:
    """Load what ``store_probe`` wrote.

    Raises:
        UnfoldError: The file is missing or damaged.
    """
    with run.directory.decoding(PROBE_FILE, "rows to check with") as data:
        arrays = read_npz(data)
        return Probe(arrays["rows"], arrays["starts"], arrays["hour"], arrays["values"])


def _pack_probe(table: EntityTable, columns: Sequence[str], entities: IntArray, starts: IntArray) -> bytes:
    rows = select_rows(starts, entities)
    numbers = [table.column_index(column, key="features") for column in columns]
    stream = io.BytesIO()
    arrays = {"rows": rows, "starts": starts_from_sizes(np.diff(starts)[entities]), "hour": table.hour[rows]}
    np.savez(stream, allow_pickle=False, values=table.values[np.ix_(rows, np.array(numbers))], **arrays)
    return stream.getvalue()
