"""Which engine runs each subnet and why, for the reports of training and replays and for the lines of a service."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from unfold_supernet.report import sentences
from unfold_supernet.scheduling.engines import Engine, EngineCosts, EnginePlan
from unfoldkit.api import Cell, Column, Table

BATCHES = (1, 32)
MICRO = 1e6
NAMES: Mapping[Engine, str] = MappingProxyType({"views": "views", "onnx": "ONNX Runtime"})


def describe_engine_plan(plan: EnginePlan) -> tuple[tuple[str, str], ...]:
    """Describe the engines of a plan and their memory, as labelled lines."""
    copied, views = plan.list_subnets("onnx"), plan.list_subnets("views")
    if plan.request != "auto":
        return (("engine", sentences.state_demanded_engine(plan.request, plan.needed_bytes)),)
    return (
        ("engine", sentences.describe_engines(copied, views, plan.speedups)),
        ("engine memory", sentences.state_engine_memory(plan.needed_bytes, plan.too_large)),
    )


def tabulate_engines(costs: Mapping[str, EngineCosts], plan: EnginePlan) -> Table:
    """Tabulate what was measured of each subnet in both engines, and the engine that a plan without a limit takes."""
    columns = (
        Column("subnet"),
        *(Column(f"{name}, batch {batch}", "µs", 0, timed=True) for batch in BATCHES for name in NAMES.values()),
        Column("session", "kB", 0, timed=True),
        Column("engine"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, cost in costs.items():
        times = [seconds[batch] * MICRO for batch in BATCHES for seconds in (cost.views, cost.onnx)]
        rows.append((name, *times, cost.copy_bytes / 1e3, NAMES[plan.engines[name]]))
    return Table("engines", columns, tuple(rows))


def note_busy_measurement(plan: EnginePlan | None) -> tuple[str, ...]:
    """Note latencies that other programs delayed; nothing where no engine was chosen."""
    return (sentences.note_busy_machine(),) if plan is not None and plan.is_busy else ()
