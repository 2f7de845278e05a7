"""Tables and lines that reports share: units of columns, qualities, and which engine runs each subnet.

A supernet of a few thousand weights has no megabytes, so columns choose their unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from unfold_supernet.report import sentences
from unfold_supernet.scheduling.engines import Engine, EngineCosts, EnginePlan
from unfold_supernet.training.accuracy import SubnetQuality
from unfold_supernet.training.confidence_calibration import CalibrationError
from unfold_supernet.training.problem import StandaloneComparison
from unfoldkit.api import Cell, Column, Table

MIB = 2**20
PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("µ", 1e-6), ("n", 1e-9))
MAX_CLASSES = 12
ENGINE_BATCHES = (1, 32)
MICRO = 1e6
ENGINE_NAMES: Mapping[Engine, str] = MappingProxyType({"views": "views", "onnx": "ONNX Runtime"})


def scale_column(name: str, max_unit: str, values: Sequence[float], digits: int = 2) -> tuple[Column, list[float]]:
    """Build a report column in the largest SI unit that still shows its values.

    Args:
        name: Name of the column.
        max_unit: Largest unit to use, such as ``MB`` or ``GMAC``.
        values: Cells in the plain unit (bytes, MAC, seconds, joules).
        digits: Digits after the decimal point.

    Returns:
        The column, and the values in its unit.
    """
    has_prefix = max_unit[0] in "GMkmµn" and len(max_unit) > 1
    prefix, base_unit = (max_unit[0], max_unit[1:]) if has_prefix else ("", max_unit)
    allowed = PREFIXES[[sign for sign, _ in PREFIXES].index(prefix) :]
    largest = max(map(abs, values), default=0.0)
    # without decimals, require two digits: 3 kMAC and 2.6 kMAC must not print alike
    min_shown = 10.0 if digits == 0 else 1.0
    fallback = allowed[0 if largest == 0 else -1]
    sign, factor = next((pair for pair in allowed if largest >= min_shown * pair[1]), fallback)
    digits = min(digits, 1) if sign != prefix and largest >= 100 * factor else digits
    return Column(name, sign + base_unit, digits), [value / factor for value in values]


def choose_buffer_unit(sizes: Sequence[int]) -> tuple[str, int]:
    """Choose the unit (its name and its bytes) that shows every buffer size, including the smallest."""
    smallest = min((size for size in sizes if size > 0), default=MIB)
    return ("MiB", MIB) if max(sizes) >= MIB and smallest >= MIB / 10 else ("KiB", 1024)


def tabulate_gaps(comparisons: Mapping[str, StandaloneComparison]) -> Table:
    """Tabulate the weight-sharing gap of the members that were compared."""
    columns = (
        Column("subnet"),
        Column("shared weights", "%", 2),
        Column("standalone", "%", 2),
        Column("gap", "points", 2),
        Column("paired error", "points", 2),
        Column("shared weights are"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, comparison in comparisons.items():
        gap = comparison.gap
        rating = sentences.rate_gap(is_significant=gap.is_significant, points=gap.points)
        rows.append((name, comparison.shared.score, comparison.standalone.score, gap.points, gap.error, rating))
    return Table("weight-sharing gap", columns, tuple(rows))


def tabulate_classes(names: Sequence[str], qualities: Mapping[str, SubnetQuality]) -> Table:
    """Tabulate the sensitivity by class; of many classes, those that the largest member recognizes worst."""
    largest = list(qualities.values())[-1].sensitivity
    by_sensitivity = sorted(range(len(largest)), key=lambda index: (math.isnan(largest[index]), largest[index]))
    shown = sorted(by_sensitivity[:MAX_CLASSES])
    columns = (Column("subnet"), *(Column(f"class {names[index]}", "%", 1) for index in shown))
    rows: list[tuple[Cell, ...]] = []
    for name, quality in qualities.items():
        values = [quality.sensitivity[index] for index in shown]
        rows.append((name, *(None if math.isnan(value) else value * 100 for value in values)))
    return Table(sentences.title_classes(len(shown), len(largest)), columns, tuple(rows))


def tabulate_calibration(calibration: Mapping[str, CalibrationError]) -> Table:
    """Tabulate the calibration error before and after the temperature, and what confidences exceed accuracies by."""
    columns = (
        Column("subnet"),
        Column("uncalibrated", "points", 2),
        Column("calibrated", "points", 2),
        Column("confidence less accuracy", "points", 2),
        Column("±", "points", 2),
    )
    rows = tuple(
        (name, error.before, error.after, error.excess, None if math.isnan(error.half_width) else error.half_width)
        for name, error in calibration.items()
    )
    return Table("expected calibration error", columns, rows)


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
        *(
            Column(f"{name}, batch {batch}", "µs", 0, timed=True)
            for batch in ENGINE_BATCHES
            for name in ENGINE_NAMES.values()
        ),
        Column("session", "kB", 0, timed=True),
        Column("engine"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, cost in costs.items():
        times = [seconds[batch] * MICRO for batch in ENGINE_BATCHES for seconds in (cost.views, cost.onnx)]
        rows.append((name, *times, cost.copy_bytes / 1e3, ENGINE_NAMES[plan.engines[name]]))
    return Table("engines", columns, tuple(rows))


def note_busy_measurement(plan: EnginePlan | None) -> tuple[str, ...]:
    """Note latencies that other programs delayed; nothing where no engine was chosen."""
    return (sentences.note_busy_machine(),) if plan is not None and plan.is_busy else ()


def note_delayed_members(names: Sequence[str]) -> tuple[str, ...]:
    """Note members of a list that were measured beside other programs."""
    return (sentences.note_delayed_members(names),) if names else ()
