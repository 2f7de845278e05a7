"""Members as ONNX Runtime sessions: opened when they are needed, and closed when memory is short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array, ShareModel
from unfold_supernet.family.onnx_session import open_session
from unfold_supernet.scheduling.residency import Residency
from unfoldkit.api import user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSource:
    """What is needed to run a member.

    Attributes:
        path: Its ONNX file.
        input_name: Name of the input.
        dtype: Number type of the input.
        output_name: Name of the output (rows, classes).
        has_free_rows: Whether it accepts any number of rows; otherwise one at a time.
        is_probability: Whether the outputs are probabilities; otherwise they are logits.
    """

    path: Path
    input_name: str
    dtype: str
    output_name: str
    has_free_rows: bool
    is_probability: bool


def compute_shares(session: Any, source: MemberSource, x: Float32Array) -> Float32Array:
    """Compute probabilities (n, classes) for inputs (n, *size)."""
    rows = x.astype(source.dtype, copy=False)
    parts = [rows] if source.has_free_rows else [rows[index : index + 1] for index in range(len(rows))]
    outputs = [session.run([source.output_name], {source.input_name: part})[0] for part in parts]
    values = np.asarray(outputs[0] if len(outputs) == 1 else np.concatenate(outputs), np.float32)
    if source.is_probability:
        return values
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    shares: Float32Array = exponents / exponents.sum(axis=1, keepdims=True)
    return shares


@dataclass(slots=True)
class MemberPool:
    """Sessions of the resident members; a member that is not resident is opened by its next batch.

    Attributes:
        sources: The members.
        residency: Which of them are in memory.
        clock: Source of time, in seconds.
        sessions: Open sessions by member.
        load_s: Seconds of opening sessions since :meth:`take_load_s` was last called.
        lock: Held while a member is opened.
    """

    sources: Sequence[MemberSource]
    residency: Residency
    clock: Callable[[], float] = time.perf_counter
    sessions: dict[int, Any] = field(default_factory=dict)
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
            for evicted in self.residency.acquire(index):
                self.sessions.pop(evicted, None)
            if index not in self.sessions:
                start = self.clock()
                try:
                    self.sessions[index] = open_session(self.sources[index].path)
                except ValueError as error:
                    path = str(self.sources[index].path)
                    raise user_error(str(error), file=path, hint="measure it again: unfold profile SPEC") from error
                self.load_s += self.clock() - start
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

    def __call__(self, x: Float32Array, extra: Float32Array) -> Float32Array:
        """Compute probabilities (n, classes) for inputs (n, *size); ``extra`` is empty."""
        del extra
        return compute_shares(self.pool.acquire(self.index), self.pool.sources[self.index], x)
