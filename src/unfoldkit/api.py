"""The plugin contract: everything that a plugin may import from the core, loaded at first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfoldkit.descriptors import Check, CheckResult, Kind, Renderer, RunFinished
    from unfoldkit.engines.base import Engine
    from unfoldkit.errors import (
        Diagnostic,
        ExitCode,
        UnfoldError,
        did_you_mean,
        format_value,
        internal_error,
        user_error,
    )
    from unfoldkit.format import (
        divide_costs,
        format_bytes,
        format_count,
        format_duration,
        format_money,
        format_percent,
        format_ratio,
    )
    from unfoldkit.hookspec import hookimpl
    from unfoldkit.io.csv import CsvRow, csv_lines, csv_rows, encoding_of, not_utf8
    from unfoldkit.report import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, time_axis
    from unfoldkit.run_context import Progress, Run
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
    "unfoldkit.run_context": ("Progress", "Run"),
    "unfoldkit.io.csv": ("CsvRow", "csv_lines", "csv_rows", "encoding_of", "not_utf8"),
    "unfoldkit.engines.base": ("Engine",),
    "unfoldkit.errors": (
        "Diagnostic",
        "ExitCode",
        "UnfoldError",
        "did_you_mean",
        "format_value",
        "internal_error",
        "user_error",
    ),
    "unfoldkit.format": (
        "divide_costs",
        "format_bytes",
        "format_count",
        "format_duration",
        "format_money",
        "format_percent",
        "format_ratio",
    ),
    "unfoldkit.hookspec": ("hookimpl",),
    "unfoldkit.descriptors": ("Check", "CheckResult", "Kind", "Renderer", "RunFinished"),
    "unfoldkit.report": ("Cell", "Column", "Figure", "Metric", "Report", "Series", "Table", "Verdict", "time_axis"),
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
    "Bandwidth",
    "Bytes",
    "Cell",
    "Check",
    "CheckResult",
    "Column",
    "CsvRow",
    "Diagnostic",
    "Duration",
    "Engine",
    "ExitCode",
    "Figure",
    "Fraction",
    "Frequency",
    "Kind",
    "Metric",
    "Model",
    "Money",
    "Name",
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
    "Table",
    "UnfoldError",
    "Verdict",
    "csv_lines",
    "csv_rows",
    "did_you_mean",
    "divide_costs",
    "dump",
    "encoding_of",
    "fingerprint",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_money",
    "format_percent",
    "format_ratio",
    "format_value",
    "hookimpl",
    "internal_error",
    "not_utf8",
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
