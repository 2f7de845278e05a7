"""The first screen of help, kept as text beside the code: it needs no import of the command-line library.

`python -m docs.generate` writes it and a test compares it with what the application itself prints.
"""

from __future__ import annotations

from pathlib import Path


def text() -> str:
    """Return the help of ``unfold`` itself."""
    return (Path(__file__).parent / "help.txt").read_text(encoding="utf-8")
