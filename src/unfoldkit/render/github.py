"""Annotations of a GitHub workflow: one line a finding."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.errors import Diagnostic
from unfoldkit.render import formatting
from unfoldkit.render.controls import strip_controls
from unfoldkit.report import Report, Verdict


def render(report: Report) -> str:
    """Return the verdict, and every metric that misses its target, as workflow commands."""
    report = strip_controls(report)
    level = "notice" if report.verdict is Verdict.YES else "error"
    lines = [_command(level, {"title": f"unfold {report.verb} {report.name}"}, f"{report.verdict} · {report.headline}")]
    for name, item in report.metrics.items():
        if item.ok is False:
            lines.append(
                _command(
                    "error", {"title": f"{name} of {report.name}"}, f"{formatting.metric(item)}, target {item.target}"
                )
            )
    return "\n".join(lines) + "\n"


def render_diagnostics(diagnostics: Iterable[Diagnostic]) -> str:
    """Return the mistakes of specs as workflow commands that point at file and line."""
    return "".join(_diagnostic(item) + "\n" for item in diagnostics)


def _diagnostic(item: Diagnostic) -> str:
    message = f"{item.message} ({item.hint})" if item.hint else item.message
    return _command("error", _place(item), f"{item.key}: {message}" if item.key else message)


def _place(item: Diagnostic) -> dict[str, str]:
    known = {"line": item.line, "col": item.line and item.column}
    numbers = {name: str(number) for name, number in known.items() if number}
    if item.file.startswith(("--", "<")):
        # an option or stdin: an annotation of a file that is not in the repository is shown nowhere
        return {"title": ":".join((item.file, *numbers.values()))}
    return {"file": item.file, **numbers}


def _command(level: str, properties: dict[str, str], message: str) -> str:
    pairs = ",".join(f"{key}={_escape(value, more=':,')}" for key, value in properties.items() if value)
    return f"::{level} {pairs}::{_escape(message)}"


def _escape(text: str, more: str = "") -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    for letter in more:
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text
