"""Render a report as JSON in the schema ``unfoldkit.report/1``, with keys in a stable order."""

from __future__ import annotations

import json

from unfoldkit.render.formatting import escape_controls
from unfoldkit.report import Report, to_data


def render(report: Report) -> str:
    """Render the report as JSON."""
    return escape_controls(json.dumps(to_data(report), indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
