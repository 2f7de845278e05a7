"""Several reports as one document, in the formats that can hold several."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from unfoldkit.run_directory import encode_text

BETWEEN = {"text": "\n", "md": "\n", "github": "", "json": ",\n", "junit": ""}
DOCUMENTS = ("json", "junit")


def joined(name: str, pages: Sequence[str]) -> str:
    """Return the pages as one document: a list in JSON, one file with a suite each in JUnit, else one after another."""
    if name == "json":
        return "[" + BETWEEN[name].join(page.rstrip("\n") for page in pages) + "]\n"
    return _suites(pages) if name == "junit" else BETWEEN[name].join(pages)


def _suites(pages: Sequence[str]) -> str:
    root = ET.Element("testsuites")
    for page in pages:
        # written a moment ago by our own renderer
        root.extend(ET.fromstring(encode_text(page)))  # noqa: S314
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
