"""Sections ``accelerator`` and ``queries``: the simulated accelerator and the query stream of ``unfold plan``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Bandwidth, Bytes, Duration, Frequency, Model, Problem

KIB = 1024
TILE_BYTES = 16 * KIB
MAX_BUFFER_BYTES = 1 << 40
DEFAULT_SIZES = tuple(KIB * size for size in (256, 512, 1024, 1728, 2048, 3072, 4096, 6144, 8192))
DEFAULT_BANDWIDTHS = (19.2e9, 4e9, 2e9, 1e9)
Preset = Literal[
    "zcu104", "alveo-u50", "weight-stationary", "output-stationary", "row-stationary", "dpu-zcu104"
]  # fmt: skip
Bits = Literal[8, 16, 32]


class EnergySpec(Model):
    """Picojoules, by default after Horowitz's table for 45 nm (ISSCC 2014), and static power in watts."""

    mac: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.23, description="energy of a multiply-accumulate; the default is that of INT8"
    )
    on_chip: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=12.5, description="energy of a byte from on-chip memory"
    )
    off_chip: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=160.0, description="energy of a byte from off-chip memory"
    )

    static: Annotated[float, Field(ge=0, le=1e4)] = Field(
        default=0.5, description="watts drawn while a query runs, whatever it computes; the default is an assumption"
    )


class PrecisionSpec(Model):
    """Bits of the numbers that are stored and moved; the array's operations per cycle do not depend on them."""

    weights: Bits | None = Field(
        default=None, description="bits of a weight; by default the preset's (16 for row-stationary, otherwise 8)"
    )
    maps: Bits | None = Field(
        default=None, description="bits of a value of input, activation maps and result; same default"
    )


class AcceleratorSpec(Model):
    """A simulated accelerator: a preset, and the values that differ from it."""

    preset: Preset = Field(
        default="zcu104",
        description="zcu104 and alveo-u50: SUSHI's dot-product engines on these boards; weight- and output-stationary: "
        "systolic arrays; row-stationary: after Eyeriss; dpu-zcu104: a core of AMD's DPUCZDX8G B4096",
    )
    persistent_buffer: Bytes | None = Field(
        default=None, description="on-chip bytes for weights cached from query to query"
    )
    dynamic_buffer: Bytes | None = Field(default=None, description="on-chip bytes for weights in transfer")
    streaming_buffer: Bytes | None = Field(default=None, description="on-chip bytes for an activation map")
    bandwidth: Annotated[Bandwidth, Field(gt=0)] = Field(
        default=4e9, description="effective off-chip bandwidth of a layer, which is below a board's nominal figure"
    )
    clock: Annotated[Frequency, Field(gt=0)] | None = Field(default=None, description="clock of the array")
    rows: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="rows of the array")
    columns: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="columns of the array")
    precision: PrecisionSpec = PrecisionSpec()
    overlapped: bool = Field(default=False, description="a systolic array's folds follow each other without a gap")
    energy: EnergySpec = EnergySpec()
    sizes: Annotated[tuple[Bytes, ...], Field(max_length=64)] = Field(
        default=DEFAULT_SIZES, description="persistent buffers to sweep"
    )
    bandwidths: Annotated[tuple[Annotated[Bandwidth, Field(gt=0)], ...], Field(max_length=16)] = Field(
        default=DEFAULT_BANDWIDTHS, description="bandwidths to sweep"
    )


class QueriesSpec(Model):
    """The query stream, each query with a target accuracy and a target latency, and how the scheduler serves it."""

    path: str | None = Field(
        default=None, description="a CSV with the targets of each query, accuracy in % and latency_ms; default: drawn"
    )
    count: Annotated[int, Field(ge=1, le=100_000_000)] = Field(default=10_000, description="queries to draw")
    pattern: Literal["random", "bursty"] = Field(
        default="random", description="draw new targets for each query, or repeat them for a burst"
    )
    hold: Annotated[float, Field(ge=1, le=1e6)] = Field(default=20.0, description="mean length of a burst, in queries")
    policy: Literal["strict-accuracy", "strict-latency"] = Field(
        default="strict-accuracy", description="the target that the scheduler enforces"
    )
    keep: Literal["fixed", "avgnet", "least-latency"] = Field(
        default="fixed",
        description="cache one subgraph throughout, or choose it from recent subnets by distance or by latency",
    )
    every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=16, description="queries between two choices of the cached subgraph"
    )
    batch: Annotated[int, Field(ge=2, le=4096)] = Field(
        default=8, description="queries of one subnet in the batching baseline"
    )
    deadline: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="subnets that take longer are left out"
    )


def find_query_problems(queries: QueriesSpec) -> Iterable[Problem]:
    """Yield keys that contradict a file of queries."""
    for key in ("count", "pattern", "hold"):
        if queries.path is not None and getattr(queries, key) != QueriesSpec.model_fields[key].default:
            yield Problem(("queries", key), "applies to drawn queries only", hint=f"remove {key} or path")


def find_accelerator_problems(accelerator: AcceleratorSpec) -> Iterable[Problem]:
    """Yield buffers that are too small for a tile or beyond any chip."""
    if accelerator.dynamic_buffer is not None and accelerator.dynamic_buffer < TILE_BYTES:
        hint = 'write "576 KiB"'
        yield Problem(("accelerator", "dynamic_buffer"), "must hold a tile of weights, 16 KiB", hint=hint)
    if any(size > MAX_BUFFER_BYTES for size in (*accelerator.sizes, accelerator.persistent_buffer or 0)):
        hint = 'write persistent_buffer: "1728 KiB"'
        yield Problem(("accelerator",), "a buffer may not exceed 1 TiB", hint=hint)
