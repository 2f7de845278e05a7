"""Render a report as JUnit test cases: the verdict, and every metric with a target."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from unfoldkit.errors import Diagnostic
from unfoldkit.render import formatting
from unfoldkit.render.formatting import escape_lines, strip_controls
from unfoldkit.report import Report, Verdict


def render(report: Report) -> str:
    """Render the report as JUnit XML."""
    report = strip_controls(report)
    cases: list[tuple[str, str | None]] = [("verdict", None if report.verdict is Verdict.YES else report.headline)]
    for name, item in report.metrics.items():
        if item.target is not None:
            cases.append((name, None if item.ok else f"{formatting.format_metric(item)}, target {item.target}"))
    return _suite(f"unfold {report.verb} {report.name}", f"{report.kind}.{report.name}", cases)


def render_diagnostics(diagnostics: Iterable[Diagnostic]) -> str:
    """Render the mistakes of specs as failed test cases."""
    cases = [(f"{item.place} {item.key}".strip(), str(item)) for item in diagnostics]
    return _suite("unfold check", "spec", cases or [("specs", None)])


def _suite(name: str, owner: str, cases: Iterable[tuple[str, str | None]]) -> str:
    # XML 1.0 cannot represent control characters, surrogates and noncharacters
    listed = list(cases)
    failures = str(sum(reason is not None for _, reason in listed))
    suite = ET.Element("testsuite", name=escape_lines(name), tests=str(len(listed)), failures=failures, errors="0")
    for case_name, reason in listed:
        case = ET.SubElement(suite, "testcase", classname=escape_lines(owner), name=escape_lines(case_name))
        if reason is not None:
            ET.SubElement(case, "failure", message=escape_lines(reason))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
