"""What a user writes in a spec of kind ``supernet``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Bandwidth, Bytes, Duration, Frequency, Model, Problem, Spec

KIB = 1024
Preset = Literal[
    "zcu104", "alveo-u50", "weight-stationary", "output-stationary", "row-stationary", "dpu-zcu104"
]  # fmt: skip
SIZES = tuple(KIB * size for size in (256, 512, 1024, 1728, 2048, 3072, 4096, 6144, 8192))
BANDWIDTHS = (19.2e9, 4e9, 2e9, 1e9)


class EnergySpec(Model):
    """Picojoules, by default in the manner of Horowitz's table for 45 nm."""

    mac: Annotated[float, Field(ge=0, le=1e6)] = Field(default=0.23, description="of an INT8 multiply-accumulate")
    on_chip: Annotated[float, Field(ge=0, le=1e6)] = Field(default=12.5, description="of a byte from on-chip memory")
    off_chip: Annotated[float, Field(ge=0, le=1e6)] = Field(default=160.0, description="of a byte from off-chip memory")


class AcceleratorSpec(Model):
    """A simulated accelerator: a preset, and what differs from it."""

    preset: Preset = "zcu104"
    persistent_buffer: Bytes | None = Field(default=None, description="on-chip bytes that stay from query to query")
    dynamic_buffer: Bytes | None = Field(default=None, description="on-chip bytes for weights on their way")
    streaming_buffer: Bytes | None = Field(default=None, description="on-chip bytes for an activation map")
    bandwidth: Annotated[Bandwidth, Field(gt=0)] = Field(
        default=4e9, description="of off-chip memory as a layer sees it, which is less than a board's nominal figure"
    )
    clock: Annotated[Frequency, Field(gt=0)] | None = Field(default=None, description="of the array")
    rows: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="of the array")
    columns: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="of the array")
    overlapped: bool = Field(default=False, description="a systolic array's folds follow each other without a gap")
    energy: EnergySpec = EnergySpec()
    sizes: Annotated[tuple[Bytes, ...], Field(max_length=64)] = Field(
        default=SIZES, description="persistent buffers to sweep"
    )
    bandwidths: Annotated[tuple[Annotated[Bandwidth, Field(gt=0)], ...], Field(max_length=16)] = Field(
        default=BANDWIDTHS, description="bandwidths to sweep"
    )


class QueriesSpec(Model):
    """The stream of queries, each with a target, and what the scheduler does."""

    count: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000
    pattern: Literal["random", "bursty"] = Field(
        default="random", description="a new target for each query, or one that is kept for a while"
    )
    hold: Annotated[float, Field(ge=1, le=1e6)] = Field(default=20.0, description="queries of a burst, on average")
    policy: Literal["strict-accuracy", "strict-latency"] = Field(
        default="strict-accuracy", description="what a query's target is"
    )
    keep: Literal["fixed", "avgnet", "least-latency"] = Field(
        default="fixed", description="the core; or chosen anew by the nets of late, by distance or by latency"
    )
    every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=16, description="queries between two choices")
    batch: Annotated[int, Field(ge=2, le=4096)] = Field(default=8, description="queries of one net sent together")
    deadline: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="nets that take longer are left out"
    )


class SupernetSpec(Spec):
    """One set of weights, many models: which one answers, and what switching costs."""

    kind: Literal["supernet"]
    family: Literal["ofa-resnet50", "ofa-mobilenetv3"] | None = Field(
        default=None, description="a family of the papers, by its layers only"
    )
    accelerator: AcceleratorSpec | None = None
    queries: QueriesSpec = QueriesSpec()

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        if self.family is None:
            yield Problem(("family",), "there is no family", hint="write family: ofa-resnet50")
        if self.accelerator is not None:
            yield from _accelerator_problems(self.accelerator)


def _accelerator_problems(given: AcceleratorSpec) -> Iterable[Problem]:
    if given.dynamic_buffer is not None and given.dynamic_buffer < 16 * KIB:
        yield Problem(("accelerator", "dynamic_buffer"), "a tile of weights has 16 KiB", hint='write "576 KiB"')
    if any(size > 1 << 40 for size in (*given.sizes, given.persistent_buffer or 0)):
        yield Problem(("accelerator",), "no chip has a buffer of 1 TiB", hint='write persistent_buffer: "1728 KiB"')
