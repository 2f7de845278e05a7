"""The calls of a collection, one JSON line each, written before and after the call, so that a kill loses no money."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfoldkit.api import internal_error, user_error

CallKey = tuple[int, str]
"""Row and model."""
COSTS = ("cost_usd", "confidence_cost_usd", "judge_cost_usd")


@dataclass(slots=True)
class CallStore:
    """Finished calls by row and model, and what all calls have cost.

    A call that was started and never finished counts with its largest cost: the upstream may have charged it.
    """

    path: Path
    finished: dict[CallKey, dict[str, Any]] = field(default_factory=dict)
    spent_usd: float = 0.0
    unfinished: dict[tuple[int, str, int], float] = field(default_factory=dict)
    starts: int = 0

    def start(self, row: int, model: str, worst_usd: float) -> int:
        """Note that a call begins, and return its number."""
        self.starts += 1
        self.unfinished[row, model, self.starts] = worst_usd
        self._append({"start": self.starts, "row": row, "model": model, "worst_usd": worst_usd})
        return self.starts

    def finish(self, number: int, row: int, model: str, call: Mapping[str, Any]) -> None:
        """Note what a call gave and what it cost."""
        record = {"end": number, "row": row, "model": model, **call}
        self._append(record)
        self._take(record)

    @property
    def committed_usd(self) -> float:
        """What was spent, and what calls in flight may cost."""
        return self.spent_usd + sum(self.unfinished.values())

    def _take(self, record: dict[str, Any]) -> None:
        row, model = int(record["row"]), str(record["model"])
        self.unfinished.pop((row, model, int(record["end"])), None)
        self.spent_usd += sum(float(record.get(name) or 0.0) for name in COSTS)
        if record.get("error") is None:
            self.finished[row, model] = record

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
                os.fsync(file.fileno())
            except OSError as error:
                # calls in flight may still be stored: after a part of a line they would be lost
                file.truncate(size)
                hint = "free some space; the same command continues"
                message = f"cannot store a call: {error.strerror}"
                raise internal_error(message, file=str(self.path), hint=hint) from error


def open_store(path: Path, identity: str) -> CallStore:
    """Open the calls of a collection, or begin one.

    Args:
        path: The file.
        identity: Of prompts, models and settings; calls of another identity are kept apart by an error.

    Raises:
        UnfoldError: The file belongs to other prompts or settings, or is damaged before its last line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    store = CallStore(path)
    data = path.read_bytes() if path.exists() else b""
    complete = data[: data.rfind(b"\n") + 1]
    if complete != data:
        # the line that a kill cut short
        os.truncate(path, len(complete))
    if not complete:
        store._append({"identity": identity})  # noqa: SLF001 - the first line of the file
    lines = complete.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            _read_record(store, record, identity, is_first=number == 1)
        except (ValueError, KeyError, TypeError) as problem:
            hint = "move the file away to start over"
            raise user_error(f"line {number} is damaged: {problem}", file=str(path), hint=hint) from problem
    # calls in flight at the kill may have been charged
    store.spent_usd += sum(store.unfinished.values())
    store.unfinished.clear()
    return store


def _read_record(store: CallStore, record: dict[str, Any], identity: str, *, is_first: bool) -> None:
    if is_first:
        if record["identity"] != identity:
            hint = "use another run (--run DIR), or move the file away to start over"
            raise user_error("the calls were made for other prompts or settings", file=str(store.path), hint=hint)
    elif "start" in record:
        store.starts = max(store.starts, int(record["start"]))
        store.unfinished[int(record["row"]), str(record["model"]), int(record["start"])] = float(record["worst_usd"])
    else:
        store._take(record)  # noqa: SLF001 - the store reads its own file
