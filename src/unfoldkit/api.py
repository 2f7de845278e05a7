"""The plugin contract: everything that a plugin may import from the core, loaded at first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfoldkit.engines import Engine
    from unfoldkit.errors import (
        Diagnostic,
        ExitCode,
        UnfoldError,
        did_you_mean,
        format_value,
        internal_error,
        require_packages,
        run_checks,
        user_error,
    )
    from unfoldkit.figure_data import (
        AnyFigure,
        Bar,
        Edge,
        Figure,
        Flow,
        Graph,
        Interval,
        IntervalPlot,
        Link,
        Marker,
        Node,
        Panel,
        Series,
        StepArea,
        Stop,
        Timeline,
    )
    from unfoldkit.format import (
        attach_unit,
        divide_costs,
        format_amount,
        format_bytes,
        format_count,
        format_duration,
        format_money,
        format_names,
        format_percent,
    )
    from unfoldkit.hookspec import hookimpl
    from unfoldkit.io.tables import PERSON_COLUMNS, CsvRow, csv_lines, csv_rows, decode_text
    from unfoldkit.plugin_descriptors import Check, CheckResult, Kind, Renderer, RunFinished
    from unfoldkit.report import Cell, Column, Metric, Report, Table, Verdict, label_metrics, time_axis
    from unfoldkit.run_context import Progress, Run, ignore_progress
    from unfoldkit.run_directory import RunDir, fingerprint
    from unfoldkit.serving.service import Service
    from unfoldkit.spec.base import Model, Name, Problem, Spec
    from unfoldkit.spec.resolve import dump
    from unfoldkit.spec.units import (
        Bandwidth,
        Bytes,
        Duration,
        Fraction,
        Frequency,
        Money,
        Percent,
        Price,
        Rate,
    )

_PLACES = {
    "unfoldkit.run_context": ("Progress", "Run", "ignore_progress"),
    "unfoldkit.io.tables": ("PERSON_COLUMNS", "CsvRow", "csv_lines", "csv_rows", "decode_text"),
    "unfoldkit.engines": ("Engine",),
    "unfoldkit.errors": (
        "Diagnostic",
        "ExitCode",
        "UnfoldError",
        "did_you_mean",
        "format_value",
        "internal_error",
        "require_packages",
        "run_checks",
        "user_error",
    ),
    "unfoldkit.format": (
        "attach_unit",
        "divide_costs",
        "format_amount",
        "format_bytes",
        "format_count",
        "format_duration",
        "format_money",
        "format_names",
        "format_percent",
    ),
    "unfoldkit.hookspec": ("hookimpl",),
    "unfoldkit.plugin_descriptors": ("Check", "CheckResult", "Kind", "Renderer", "RunFinished"),
    "unfoldkit.figure_data": (
        "AnyFigure",
        "Bar",
        "Edge",
        "Figure",
        "Flow",
        "Graph",
        "Interval",
        "IntervalPlot",
        "Link",
        "Marker",
        "Node",
        "Panel",
        "Series",
        "StepArea",
        "Stop",
        "Timeline",
    ),
    "unfoldkit.report": ("Cell", "Column", "Metric", "Report", "Table", "Verdict", "label_metrics", "time_axis"),
    "unfoldkit.run_directory": ("RunDir", "fingerprint"),
    "unfoldkit.serving.service": ("Service",),
    "unfoldkit.spec.base": ("Model", "Name", "Problem", "Spec"),
    "unfoldkit.spec.resolve": ("dump",),
    "unfoldkit.spec.units": (
        "Bandwidth",
        "Bytes",
        "Duration",
        "Fraction",
        "Frequency",
        "Money",
        "Percent",
        "Price",
        "Rate",
    ),
}

__all__ = [
    "PERSON_COLUMNS",
    "AnyFigure",
    "Bandwidth",
    "Bar",
    "Bytes",
    "Cell",
    "Check",
    "CheckResult",
    "Column",
    "CsvRow",
    "Diagnostic",
    "Duration",
    "Edge",
    "Engine",
    "ExitCode",
    "Figure",
    "Flow",
    "Fraction",
    "Frequency",
    "Graph",
    "Interval",
    "IntervalPlot",
    "Kind",
    "Link",
    "Marker",
    "Metric",
    "Model",
    "Money",
    "Name",
    "Node",
    "Panel",
    "Percent",
    "Price",
    "Problem",
    "Progress",
    "Rate",
    "Renderer",
    "Report",
    "Run",
    "RunDir",
    "RunFinished",
    "Series",
    "Service",
    "Spec",
    "StepArea",
    "Stop",
    "Table",
    "Timeline",
    "UnfoldError",
    "Verdict",
    "attach_unit",
    "csv_lines",
    "csv_rows",
    "decode_text",
    "did_you_mean",
    "divide_costs",
    "dump",
    "fingerprint",
    "format_amount",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_money",
    "format_names",
    "format_percent",
    "format_value",
    "hookimpl",
    "ignore_progress",
    "internal_error",
    "label_metrics",
    "require_packages",
    "run_checks",
    "time_axis",
    "user_error",
]


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
