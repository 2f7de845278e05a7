"""Results of evaluation tools, in a folder or in one file, as a table with a row per request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from unfold_cascade.data.evaluations.harness import read_harness
from unfold_cascade.data.evaluations.helm import HELM_FILE, read_helm
from unfold_cascade.data.evaluations.inspect_log import ARCHIVE_SUFFIX, is_inspect_log, read_inspect_log
from unfold_cascade.data.evaluations.openai_evals import is_openai_log, read_openai_log
from unfold_cascade.data.evaluations.promptfoo import has_promptfoo_results, read_promptfoo
from unfold_cascade.data.evaluations.sample import Sample, SampleTable
from unfoldkit.api import user_error
from unfoldkit.safe_io.files import decoding, read_bytes

HARNESS_FILES = "samples_*.jsonl"
MAX_DEPTH = 2
"""Levels of folders in which samples are searched."""
LAYOUT = (
    "data.path: a folder in which lm-evaluation-harness has left MODEL/samples_TASK_DATE.jsonl of every model "
    f"(--log_samples), HELM TASK:model=MODEL/{HELM_FILE}, Inspect or OpenAI evals a log of every model, or promptfoo "
    "its results"
)
Reader = Callable[[Path, bytes], Iterator[tuple[str, str, Sample]]]


def read_evaluations(source: Path) -> tuple[dict[str, np.ndarray], str]:
    """Read results of evaluations: columns ``task`` and ``prompt``, and ``MODEL|METRIC`` of each model.

    Args:
        source: A file, or a folder with files, at most two levels deep.

    Returns:
        Columns of (n,) values, and a hash of all files.

    Raises:
        UnfoldError: There are no samples, one is damaged, or the models did not answer the same requests.
    """
    table, digest = SampleTable(), hashlib.sha256()
    for file in [source] if source.is_file() else _list_files(source):
        data = read_bytes(file)
        if (read := find_reader(file, data)) is not None:
            digest.update(hashlib.sha256(data).digest())
            with decoding(str(file), "a file of samples"):
                for model, task, sample in read(file, data):
                    table.add(model, task, sample, file)
    if not table.rows:
        raise user_error("a folder without samples of an evaluation, not a table", file=str(source), hint=LAYOUT)
    return table.columns(source), digest.hexdigest()


def _list_files(folder: Path) -> list[Path]:
    """List the files that may hold samples; other JSON beside those of a harness is not read."""
    for names in ((HARNESS_FILES, HELM_FILE), (f"*{ARCHIVE_SUFFIX}", "*.json", "*.jsonl")):
        patterns = ("*/" * depth + name for depth in range(MAX_DEPTH + 1) for name in names)
        files = sorted(file for pattern in patterns for file in folder.glob(pattern))
        if files:
            return files
    return []


def find_reader(file: Path, data: bytes) -> Reader | None:
    """Find the reader of a file; ``None`` for files of other formats."""
    if file.name == HELM_FILE:
        return read_helm
    if file.match(HARNESS_FILES):
        return read_harness
    return read_inspect_log if file.suffix == ARCHIVE_SUFFIX else find_reader_of_json(data)


def find_reader_of_json(data: bytes) -> Reader | None:
    """Find the reader of a file of JSON by its content; ``None`` if it is no result of an evaluation."""
    readers = {is_inspect_log: read_inspect_log, has_promptfoo_results: read_promptfoo, is_openai_log: read_openai_log}
    return next((read for is_format, read in readers.items() if is_format(data)), None)
