"""Render a report as annotations of a GitHub workflow."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.errors import Diagnostic
from unfoldkit.render import formatting
from unfoldkit.render.formatting import escape_lines, strip_controls
from unfoldkit.report import Report, Verdict


def render(report: Report) -> str:
    """Render the verdict, and every metric that misses its target, as workflow commands."""
    report = strip_controls(report)
    level = "notice" if report.verdict is Verdict.YES else "error"
    lines = [_command(level, {"title": f"unfold {report.verb} {report.name}"}, f"{report.verdict} · {report.headline}")]
    for name, item in report.metrics.items():
        if item.ok is False:
            text = f"{formatting.format_metric(item)}, target {item.target}"
            lines.append(_command("error", {"title": f"{name} of {report.name}"}, text))
    return "\n".join(lines) + "\n"


def render_diagnostics(diagnostics: Iterable[Diagnostic]) -> str:
    """Render the mistakes of specs as workflow commands that point to file and line."""
    return "".join(_diagnostic(item) + "\n" for item in diagnostics)


def _diagnostic(item: Diagnostic) -> str:
    message = f"{item.message} ({item.hint})" if item.hint else item.message
    return _command("error", _properties(item), f"{item.key}: {message}" if item.key else message)


def _properties(item: Diagnostic) -> dict[str, str]:
    position = {"line": item.line, "col": item.line and item.column}
    numbers = {name: str(number) for name, number in position.items() if number}
    if item.file.startswith(("--", "<")):
        # an option or stdin: an annotation of a file that is not in the repository is not shown
        return {"title": ":".join((item.file, *numbers.values()))}
    return {"file": item.file, **numbers}


def _command(level: str, properties: dict[str, str], message: str) -> str:
    pairs = ",".join(f"{key}={_escape(value, more=':,')}" for key, value in properties.items() if value)
    return f"::{level} {pairs}::{_escape(message)}"


def _escape(text: str, more: str = "") -> str:
    text = escape_lines(text).replace("%", "%25").replace("\n", "%0A")
    for letter in more:
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text
