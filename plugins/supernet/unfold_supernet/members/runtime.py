"""Members as ONNX Runtime sessions: opened when they are needed, and closed when memory is short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array, Numbers, ShareModel
from unfold_supernet.family.onnx_session import open_session, release_free_memory
from unfold_supernet.members.files import CheckedFile, is_unchanged, reject
from unfold_supernet.scheduling.residency import Residency
from unfoldkit.api import UnfoldError

RETRY_S = 10.0
"""Seconds for which a member that could not be opened is not tried again."""
PROFILE_HINT = "measure it again: unfold profile SPEC; then start the service again"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSource:
    """What is needed to run a member.

    Attributes:
        file: Its ONNX file, as it was measured.
        output_name: Name of the output (rows, classes).
        is_probability: Whether the outputs sum to 1; otherwise they are logits unless a softmax computes them.
    """

    file: CheckedFile
    output_name: str
    is_probability: bool


def compute_shares(session: Any, source: MemberSource, x: Numbers) -> Float32Array:
    """Compute probabilities (n, classes) for inputs (n, *size)."""
    file, rows = source.file, x.astype(source.file.dtype, copy=False)
    step = file.fixed_rows or len(rows)
    # the last batch of a fixed number of rows is filled with copies of its rows
    parts = [np.resize(part, (step, *file.size)) if len(part) < step else part for part in _split_rows(rows, step)]
    outputs = [session.run([source.output_name], {file.input_name: part})[0] for part in parts]
    values = (outputs[0] if len(outputs) == 1 else np.concatenate(outputs))[: len(rows)]
    # sums of many shares round in 16 bits
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    if source.is_probability or source.output_name in file.softmaxes:
        return np.asarray(values.clip(0, 1), np.float32)
    # a probability of each class against all others, as where scikit-learn fits one classifier for each
    weights = values if source.output_name in file.sigmoids else np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _split_rows(rows: Numbers, step: int) -> list[Numbers]:
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _check_unchanged(file: CheckedFile) -> None:
    """Check that a file holds what was measured: another model would answer under its name and accuracy."""
    if not is_unchanged(file):
        raise reject(file.member, "the file was changed since it was measured", PROFILE_HINT)


def _open(file: CheckedFile) -> Any:
    try:
        return open_session(file.member.path)
    except ValueError as error:
        raise reject(file.member, str(error), PROFILE_HINT) from error


@dataclass(slots=True)
class MemberPool:
    """Sessions of the resident members; a member that is not resident is opened by its next batch.

    Attributes:
        sources: The members.
        residency: Which of them are in memory.
        clock: Source of time, in seconds.
        report: Receives why a member cannot be opened.
        sessions: Open sessions by member.
        failures: By member that could not be opened, when it was tried last, and the reason.
        load_s: Seconds of opening sessions since :meth:`take_load_s` was last called.
        lock: Held while a member is opened.
    """

    sources: Sequence[MemberSource]
    residency: Residency
    clock: Callable[[], float] = time.perf_counter
    report: Callable[[str], object] = lambda _message: None
    sessions: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, tuple[float, UnfoldError]] = field(default_factory=dict)
    load_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bind(self) -> tuple[ShareModel, ...]:
        """Bind every member as a model that opens its session when it has none."""
        return tuple(_PooledMember(self, index) for index in range(len(self.sources)))

    def open_initial(self) -> None:
        """Open the members that are resident from the start.

        Raises:
            UnfoldError: A file was changed since it was measured.
        """
        for index in sorted(self.residency.resident):
            self.acquire(index)

    def acquire(self, index: int) -> Any:
        """Return the session of a member; close others first where memory is short.

        Raises:
            UnfoldError: The file was changed since it was measured.
        """
        with self.lock:
            failed_at, error = self.failures.get(index, (0.0, None))
            if error is not None and self.clock() < failed_at + RETRY_S:
                raise error
            try:
                return self._find_session(index)
            except UnfoldError as reason:
                self.failures[index] = self.clock(), reason
                self.report(str(reason))
                raise

    def _find_session(self, index: int) -> Any:
        file = self.sources[index].file
        start = self.clock()
        if index not in self.sessions:
            # others are not closed for a member that cannot be opened
            _check_unchanged(file)
        for evicted in self.residency.acquire(index):
            self.sessions.pop(evicted, None)
        if index not in self.sessions:
            try:
                self.sessions[index] = _open(file)
            except UnfoldError:
                self.residency.resident -= {index}
                raise
            # of closed sessions, and what reading the file needed
            release_free_memory()
            self.load_s += self.clock() - start
        self.failures.pop(index, None)
        return self.sessions[index]

    def take_load_s(self) -> float:
        """Return the seconds of opening sessions since the last call."""
        with self.lock:
            seconds, self.load_s = self.load_s, 0.0
        return seconds


@dataclass(frozen=True, slots=True)
class _PooledMember:
    """A member of a pool as a model."""

    pool: MemberPool
    index: int

    def __call__(self, x: Numbers, extra: Numbers) -> Float32Array:
        """Compute probabilities (n, classes) for inputs (n, *size); ``extra`` is empty."""
        del extra
        return compute_shares(self.pool.acquire(self.index), self.pool.sources[self.index], x)
