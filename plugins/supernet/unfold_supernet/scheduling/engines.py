"""Which engine runs each subnet: ONNX Runtime on a copy of its weights, or views of the shared weights in torch.

The choice follows from latencies measured on this machine. Views need no memory of their own and win ties. Where the
copies do not all fit the memory, those that save most time for each byte get it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Engine = Literal["onnx", "views"]
Request = Literal["auto", "onnx", "views"]
MIN_SPEEDUP = 1.05
"""Below this ratio, a difference of medians is noise."""
MAX_WAITING = 0.1
"""Fraction of the time of a measurement in which its thread did not run; above it, the machine was busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What was measured of a subnet in both engines.

    Attributes:
        views: Latency in seconds by batch size, on views.
        onnx: The same in ONNX Runtime.
        copy_bytes: Memory of its ONNX session.
        waiting: Fraction of the measured time in which the thread did not run.
    """

    views: Mapping[int, float]
    onnx: Mapping[int, float]
    copy_bytes: int
    waiting: float = 0.0

    @property
    def speedup(self) -> float:
        """Latency on views over that in ONNX Runtime: the geometric mean over batch sizes that both have."""
        ratios = [math.log(self.views[batch] / self.onnx[batch]) for batch in self.views if batch in self.onnx]
        return math.exp(sum(ratios) / len(ratios)) if ratios else 1.0

    @property
    def is_busy(self) -> bool:
        """Whether other programs delayed the measurement."""
        return self.waiting > MAX_WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """The engine of each subnet, and why.

    Attributes:
        engines: By subnet, cheapest first.
        speedups: Speedup of ONNX Runtime by subnet, as measured.
        too_large: Subnets that are faster in ONNX Runtime, but have copies that do not fit the memory.
        request: What the spec demands.
        needed_bytes: Memory of the copies, and of the shared weights where a subnet uses views.
        is_busy: Whether other programs delayed a measurement.
    """

    engines: Mapping[str, Engine]
    speedups: Mapping[str, float]
    too_large: tuple[str, ...]
    request: Request
    needed_bytes: int
    is_busy: bool

    def list_subnets(self, engine: Engine) -> list[str]:
        """List the subnets of an engine."""
        return [name for name, chosen in self.engines.items() if chosen == engine]


def plan_engines(
    costs: Mapping[str, EngineCosts], shared_bytes: int, request: Request = "auto", memory_bytes: int | None = None
) -> EnginePlan:
    """Choose the engine of each subnet.

    Args:
        costs: What was measured, by subnet.
        shared_bytes: Memory of the shared weights, which views need once.
        request: An engine for all subnets, or ``auto``.
        memory_bytes: Memory for all of them together; ``None`` for as much as they need.

    Raises:
        ValueError: The memory holds neither the shared weights nor the copies that are demanded.
    """
    speedups = {name: cost.speedup for name, cost in costs.items()}
    wanted = [name for name in costs if request == "onnx" or (request == "auto" and speedups[name] >= MIN_SPEEDUP)]
    copied = _fit_copies(costs, wanted, shared_bytes, memory_bytes) if request == "auto" else wanted
    engines: dict[str, Engine] = {name: "onnx" if name in copied else "views" for name in costs}
    needed = sum(costs[name].copy_bytes for name in copied) + (shared_bytes if len(copied) < len(costs) else 0)
    if memory_bytes is not None and needed > memory_bytes:
        raise ValueError(f"the {'copies' if copied else 'shared weights'} need {needed / 1e6:,.1f} MB of memory")
    return EnginePlan(
        engines=engines,
        speedups=speedups,
        too_large=tuple(name for name in wanted if name not in copied),
        request=request,
        needed_bytes=needed,
        is_busy=any(cost.is_busy for cost in costs.values()),
    )


def _fit_copies(
    costs: Mapping[str, EngineCosts], wanted: list[str], shared_bytes: int, memory_bytes: int | None
) -> list[str]:
    """Fit as many copies as the memory holds, by the time that each saves a byte."""
    total = sum(costs[name].copy_bytes for name in wanted)
    beside = 0 if len(wanted) == len(costs) else shared_bytes
    if memory_bytes is None or total + beside <= memory_bytes:
        return wanted
    free, copied = memory_bytes - shared_bytes, set[str]()
    for name in sorted(wanted, key=lambda name: -_save_per_byte(costs[name])):
        if costs[name].copy_bytes <= free:
            free -= costs[name].copy_bytes
            copied.add(name)
    return [name for name in wanted if name in copied]


def _save_per_byte(cost: EngineCosts) -> float:
    """Compute the time that ONNX Runtime saves a row, in the mean over batch sizes, for each byte of its copy."""
    saved = [(cost.views[batch] - cost.onnx[batch]) / batch for batch in cost.views if batch in cost.onnx]
    return sum(saved) / max(1, len(saved)) / max(1, cost.copy_bytes)
