"""Time of an all-reduce between the GPUs of an engine, from a measured table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.step_times.columns import MeasuredTable, read_table
from unfoldkit.api import user_error

MILLISECOND = 1e-3
BYTES_PER_ELEMENT = 2
LATENCY_COLUMNS = ("latency_ms", "latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Measured all-reduces by number of GPUs.

    Attributes:
        bytes_by_gpus: Message sizes in bytes, ascending.
        seconds_by_gpus: Time of each message.
    """

    bytes_by_gpus: Mapping[int, FloatArray]
    seconds_by_gpus: Mapping[int, FloatArray]

    def seconds(self, gpus: int, message_bytes: FloatArray) -> FloatArray:
        """Return the time of messages, log-linear between measured sizes and by bandwidth beyond them.

        Raises:
            KeyError: Nothing was measured with that many GPUs.
        """
        sizes, seconds = self.bytes_by_gpus[gpus], self.seconds_by_gpus[gpus]
        message = np.maximum(message_bytes, 1.0)
        inside = np.exp(np.interp(np.log(message), np.log(sizes), np.log(seconds)))
        result: FloatArray = np.where(message > sizes[-1], seconds[-1] * message / sizes[-1], inside)
        return result


def compute_step_all_reduces(
    all_reduce: AllReduce | None,
    gpus: int,
    tokens: FloatArray,
    *,
    layers: int,
    hidden: int,
    file: str = "",
    key: str = "",
) -> FloatArray | float:
    """Return the seconds of the all-reduces of a step: two a layer and that of the embedding; 0 for one GPU.

    Args:
        all_reduce: The measurements, if there are any.
        gpus: GPUs of the engine.
        tokens: (n,) tokens of the step.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        file: File with the step times, for the error.
        key: Key of the step times in the spec, for the error.

    Raises:
        UnfoldError: No all-reduce between that many GPUs was measured.
    """
    if gpus == 1:
        return 0.0
    if all_reduce is None or gpus not in all_reduce.bytes_by_gpus:
        hint = "all_reduce: a measured table of num_gpus, message_size, latency_ms; or tensor_parallel: 1"
        raise user_error(f"no all-reduce between {gpus} GPUs was measured", file=file, key=key, hint=hint)
    result: FloatArray = (2 * layers + 1) * all_reduce.seconds(gpus, tokens * hidden * BYTES_PER_ELEMENT)
    return result


def read_all_reduce(path: Path, wanted: Mapping[str, str]) -> AllReduce:
    """Read a table with ``num_gpus``, ``message_size`` in 16-bit elements (or ``bytes``) and ``latency_ms``.

    AIConfigurator's ``message_size`` counts elements: as bytes, its largest messages would move at half the bandwidth
    of NVLink.

    Args:
        path: The table.
        wanted: Cells that the rows must have, where the table has such columns.

    Raises:
        UnfoldError: A column is missing, or no row is left.
    """
    table = prefer_graph_mode(read_table(path, ["num_gpus"]).where(wanted))
    latency = find_column(table, LATENCY_COLUMNS)
    size = find_column(table, ("message_size", "bytes"))
    if not len(table):
        raise user_error(f"no row has {_describe(wanted)}", file=str(path))
    gpus = table.numbers("num_gpus", least=2).astype(np.int64)
    message = table.numbers(size, least=1) * (1 if size == "bytes" else BYTES_PER_ELEMENT)
    seconds = table.latencies(latency) * MILLISECOND
    sizes, times = {}, {}
    for count in np.unique(gpus):
        chosen = gpus == count
        sizes[int(count)] = np.unique(message[chosen])
        times[int(count)] = np.array(
            [max(float(np.median(seconds[chosen & (message == value)])), 1e-9) for value in sizes[int(count)]]
        )
    return AllReduce(bytes_by_gpus=sizes, seconds_by_gpus=times)


def prefer_graph_mode(table: MeasuredTable) -> MeasuredTable:
    """Return the rows measured inside CUDA graphs, as engines run them, if the table marks any."""
    for cells in table.columns.values():
        marked = ["graph" in cell.lower() and "eager" not in cell.lower() for cell in cells]
        if any(marked) and not all(marked):
            return table.select(marked)
    return table


def find_column(table: MeasuredTable, names: tuple[str, ...]) -> str:
    """Return the first of some names that a table has.

    Raises:
        UnfoldError: It has none of them.
    """
    column = next((name for name in names if name in table.columns), None)
    if column is None:
        raise user_error(f"no column {' or '.join(names)}", file=str(table.path))
    return column


def _describe(wanted: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in wanted.items()) or "a value"
