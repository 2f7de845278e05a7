"""The first screen of help: commands grouped by task, and the exit codes.

Its text is stored in ``help.txt``, so that ``unfold --help`` needs no command-line library. ``python -m docs.generate``
writes the file, and a test compares it with the help of the application. This module imports no more than it must.
"""

from __future__ import annotations

from pathlib import Path

EXIT_CODES = (
    ("0", "it ran, and the answer is yes"),
    ("1", "it ran, and the answer is no: infeasible, target missed, plan drifted"),
    ("2", "spec, flag, file or a missing extra at fault"),
    ("3", "unfold or a plugin at fault"),
    ("129", "the terminal was closed"),
    ("130", "Ctrl-C"),
    ("141", "the reader of stdout closed it"),
    ("143", "SIGTERM; a service exits with 0"),
)
GROUPS = {
    "Answer a question": ("profile", "train", "plan", "validate", "serve", "export"),
    "Write specs": ("init", "check", "schema"),
    "Look around": ("report", "catalog", "plugins", "doctor"),
}


def read_help() -> str:
    """Return the stored help of ``unfold``."""
    return (Path(__file__).parent / "help.txt").read_text(encoding="utf-8")
