"""Recognizes logs of schedulers that are no tables, and says how to read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unfoldkit.api import UnfoldError
from unfoldkit.io.tables import UNREADABLE, open_text

SAMPLE = 4096
"""First characters of a file by which it is recognized."""
PAGE = "docs/reference/placement-files.md"
HINTS: Mapping[str, str] = {
    r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d;[A-Z];": f"it is an accounting log of PBS: {PAGE} has a command that converts it",
    r'"[A-Z_]+" "[\d.]+" \d+ ': f"it is a log of LSF: {PAGE} has a command that converts it",
    r"(?:;.*\n)*\s*\d+(?:[ \t]+-?[\d.]+){17}\s": "it is in the Standard Workload Format: trace: swf",
    r"[^|\n]*\n *-+(?: +-+)+ *\n": "sacct -P prints columns that are separated by bars",
    r"\s*[\[{][\s\S]*\"t_submit\"": f"it is output of flux jobs --json: {PAGE} has a command for such objects",
    r"\s*[\[{][\s\S]*\"pbs_version\"": f"it is output of PBS's qstat: {PAGE} has a command for its accounting log",
    r"\s*\{\s*\"(?:jobs|meta)\"": "sacct -P prints a table",
    r"JobId=\d+ ": f"it is output of scontrol show job: sacct -P prints a table, as {PAGE} reads it",
    r"(?:\w+ = .*\n){3}|\s*[\[{][\s\S]*\"ClusterId\"": f"it is output of HTCondor: {PAGE} has how to print a table",
    r"=+\nqname ": f"it is output of qacct: {PAGE} has the head of Grid Engine's accounting file",
    r" *ID +OWNER +SUBMITTED |\s*-- Schedd: ": f"it is output of HTCondor: {PAGE} has how to print a table",
    r"\s*(?:Accounting inf|Summary of time|Job <\d+>)": f"it is output of bhist or bacct: {PAGE} reads lsb.acct",
    r"(?:---\s*)?apiVersion: |(?:[\s\S]*\n)?kind: \w+List\b": "it is output of kubectl: trace: kubectl",
    r"\s*[\[{][\s\S]*\"attempts\"": "it is a log of Philly: trace: philly",
    r"\s*[\[{][\s\S]*\"apiVersion\"": "it is output of kubectl: trace: kubectl",
    r"\s*[\[{][\s\S]*\"task_id\"": "it is output of ray list tasks: trace: ray",
    r"\s*[\[{][\s\S]*\"collection_id\"": f"it has events of Google's trace: {PAGE} has a command",
    r"(?:\w+,)*cpu_milli,": "it is in the form of Alibaba's openb: trace: openb",
    r"(?!\s*[\[{])(?:#.*\n)*(?:[^:\n]*:){40,}": f"it is an accounting log of Grid Engine: {PAGE} has its head",
    r"SQLite format 3": "it is a database: sqlite3 -csv -header FILE 'SELECT * FROM TABLE' prints a table",
}
"""Hints by a pattern of the beginning of a file."""


def add_format_hint(error: UnfoldError, path: Path) -> UnfoldError:
    """Return the error of a file that is no table with the hint how to read it, if its format is known.

    An error of a column, which has its own hint, is returned as it is.

    Args:
        error: The error of reading it as a table.
        path: The file, of which the beginning is read.
    """
    if any(item.key for item in error.diagnostics):
        return error
    try:
        with open_text(path, errors="replace") as stream:
            beginning = stream.read(SAMPLE)
    except UNREADABLE:
        return error
    hint = next((hint for pattern, hint in HINTS.items() if re.match(pattern, beginning)), "")
    return UnfoldError(*(replace(item, hint=hint or _add_mapping(item.hint)) for item in error.diagnostics))


def _add_mapping(hint: str) -> str:
    """Return a hint that lists the columns of a table with how to map them, and any other as it is."""
    return f"{hint}; table: {{columns: ...}} maps others, see {PAGE}" if re.match(r"it has (?!.*JSON)", hint) else hint
