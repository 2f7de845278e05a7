"""Join several reports to one document, in the formats that can hold several."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from unfoldkit.run_directory import encode_text

SEPARATORS = {"text": "\n", "md": "\n", "github": "", "json": ",\n", "junit": ""}
DOCUMENTS = ("json", "junit")


def join_pages(name: str, pages: Sequence[str]) -> str:
    """Join pages: a list in JSON, one file with a suite per report in JUnit, else one page after another."""
    if name == "json":
        return "[" + SEPARATORS[name].join(page.rstrip("\n") for page in pages) + "]\n"
    return _join_suites(pages) if name == "junit" else SEPARATORS[name].join(pages)


def _join_suites(pages: Sequence[str]) -> str:
    root = ET.Element("testsuites")
    for page in pages:
        # our own renderer has just written it
        root.extend(ET.fromstring(encode_text(page)))  # noqa: S314
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
