"""What is remembered of each entity: a small state at a logical time, in SQLite.

The file is in WAL mode and every commit is in the hands of the kernel before a request is answered, so a process that
is killed loses nothing that it answered for. A machine that loses power may lose its last moments; a client that sends
those hours again gets them in.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unfoldkit.errors import internal_error, user_error
from unfoldkit.safe_io.files import require_regular

_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entities (
  entity TEXT PRIMARY KEY, time INTEGER NOT NULL, data BLOB NOT NULL, before_time INTEGER, before_data BLOB
) WITHOUT ROWID;
"""
_CHUNK = 500
WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class State:
    """What a model keeps of an entity after the row of logical ``time``; ``data`` is the model's own."""

    time: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """The state of an entity, and the one before it: what its last row started from, ``None`` if it was the first."""

    now: State
    before: State | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """The memories of all entities of one service. Safe to use from any thread, and by several processes at once."""

    file: Path
    connection: sqlite3.Connection
    lock: threading.RLock

    def read(self, entities: Iterable[str]) -> dict[str, Memory]:
        """Return what is known of these entities; unknown ones are left out."""
        wanted, found = list(dict.fromkeys(entities)), dict[str, Memory]()
        with self._guarded():
            for start in range(0, len(wanted), _CHUNK):
                part = wanted[start : start + _CHUNK]
                marks = ",".join("?" * len(part))
                query = f"SELECT * FROM entities WHERE entity IN ({marks})"  # noqa: S608 - marks only
                found.update((row[0], _memory(row)) for row in self.connection.execute(query, part))
        return found

    def write(self, memories: Mapping[str, Memory]) -> None:
        """Store these memories, all of them or (if the process dies) none."""
        rows = [_row(entity, memory) for entity, memory in memories.items()]
        with self._guarded(), self._whole():
            self.connection.executemany("INSERT OR REPLACE INTO entities VALUES (?,?,?,?,?)", rows)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process read or write until the end; what is written inside is kept as a whole or not at all."""
        with self._guarded(), self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield

    def forget(self, entities: Iterable[str]) -> int:
        """Delete what is known of these entities; return how many were known."""
        with self._guarded(), self._whole():
            delete = "DELETE FROM entities WHERE entity = ?"
            return sum(self.connection.execute(delete, (entity,)).rowcount for entity in entities)

    def count(self) -> int:
        """Return how many entities are known."""
        with self._guarded():
            return int(self.connection.execute("SELECT count(*) FROM entities").fetchone()[0])

    def close(self) -> None:
        """Close the file; its log is folded into it."""
        with self._guarded():
            self.connection.close()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A transaction of its own, or a part of the one that ``alone`` began."""
        if self.connection.in_transaction:
            yield
            return
        with self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self.lock:
            try:
                yield
            except sqlite3.Error as error:
                raise internal_error(f"the memory of entities cannot be used: {error}", file=str(self.file)) from error


def open_store(file: Path, *, made_from: str) -> Store:
    """Open (or make) the store that belongs to ``made_from``, the fingerprint of what its states mean.

    Raises:
        UnfoldError: it is no such file, or its states were made by something else (a new plan, another model).
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            require_regular(file)
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=WAIT_S)
        try:
            known = _prepared(connection, made_from)
        except sqlite3.Error:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise user_error(f"not a memory of entities: {error}", file=str(file)) from error
    if known != made_from:
        connection.close()
        hint = "its states mean nothing to this one; delete the file to start afresh"
        raise user_error("what is remembered here was kept by another plan", file=str(file), hint=hint)
    return Store(file, connection, threading.RLock())


def _prepared(connection: sqlite3.Connection, made_from: str) -> str:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.executescript(_TABLES)
    connection.execute("INSERT OR IGNORE INTO about VALUES ('made_from', ?)", (made_from,))
    return str(connection.execute("SELECT value FROM about WHERE key = 'made_from'").fetchone()[0])


def _memory(row: tuple[str, int, bytes, int | None, bytes | None]) -> Memory:
    _entity, time, data, before_time, before_data = row
    before = None if before_time is None else State(before_time, before_data or b"")
    return Memory(State(time, data), before)


def _row(entity: str, memory: Memory) -> tuple[str, int, bytes, int | None, bytes | None]:
    before = memory.before
    old = (None, None) if before is None else (before.time, before.data)
    return (entity, memory.now.time, memory.now.data, *old)
