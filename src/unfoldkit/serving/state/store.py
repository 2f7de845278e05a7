"""A persistent store of entity states in SQLite: a small state at a logical time for each entity.

The file is in WAL mode, and every commit reaches the kernel before a request is answered, so a killed process loses
nothing that it answered for. When a machine loses power, durability ``full`` loses nothing either: each commit is
synced to the disk (``PRAGMA synchronous=FULL``). With ``normal`` the last commits may be lost, all after some moment
and none before it; clients can send those rows again. https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from unfoldkit.errors import UnfoldError, internal_error, user_error
from unfoldkit.safe_io.files import require_regular

_TABLES = {
    "about": "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "entities": """CREATE TABLE entities (
  entity TEXT PRIMARY KEY, time INTEGER NOT NULL, data BLOB NOT NULL, before_time INTEGER, before_data BLOB
) WITHOUT ROWID""",
}
"""What a store holds, word for word: a view, a trigger or a generated column would run inside each query."""
_COLUMN_TYPES = ((str,), (int,), (bytes,), (int, NoneType), (bytes, NoneType))
_ENTITIES_PER_QUERY = 500
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}
Durability = Literal["full", "normal"]
LOCK_TIMEOUT_S = 5.0
"""A process that waits longer for another program may be taken for a hung one and be replaced."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of an entity after the row of logical ``time``; ``data`` is opaque to the store."""

    time: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EntityState:
    """The current state of an entity, and the state that its last row started from (``None`` for the first row)."""

    now: State
    before: State | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """The states of all entities of a service. Threads and several processes may use it at once."""

    file: Path
    connection: sqlite3.Connection
    lock: threading.RLock

    def read(self, entities: Iterable[str]) -> dict[str, EntityState]:
        """Return the states of these entities, without unknown ones."""
        names, states = list(dict.fromkeys(entities)), dict[str, EntityState]()
        with self._guard():
            for start in range(0, len(names), _ENTITIES_PER_QUERY):
                chunk = names[start : start + _ENTITIES_PER_QUERY]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT * FROM entities WHERE entity IN ({marks})"  # noqa: S608 - marks only
                states.update((row[0], _from_row(row)) for row in self.connection.execute(query, chunk))
        return states

    def write(self, states: Mapping[str, EntityState]) -> None:
        """Store these states: all of them, or none if the process dies."""
        rows = [_to_row(entity, state) for entity, state in states.items()]
        with self._guard(), self._transaction():
            self.connection.executemany("INSERT OR REPLACE INTO entities VALUES (?,?,?,?,?)", rows)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from reading and writing; what is written inside is one transaction."""
        with self._guard(), self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield

    def count(self) -> int:
        """Return the number of entities."""
        with self._guard():
            return int(self.connection.execute("SELECT count(*) FROM entities").fetchone()[0])

    def close(self) -> None:
        """Close the file; SQLite merges its log into it."""
        with self._guard():
            self.connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin a transaction, or join the one of ``exclusive``."""
        if self.connection.in_transaction:
            yield
            return
        with self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with self.lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise internal_error(f"cannot use the entity states: {error}", file=str(self.file)) from error
            except sqlite3.Error as error:
                raise _damaged(self.file, error) from error


def open_store(file: Path, *, made_from: str, durability: Durability = "normal") -> Store:
    """Open or create the store of a plan.

    Args:
        file: The SQLite file.
        made_from: Fingerprint of what the states mean.
        durability: What survives a machine that loses power: ``full`` for every commit, ``normal`` for most.

    Raises:
        UnfoldError: The file is not such a store, or another plan wrote its states.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            require_regular(file)
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=LOCK_TIMEOUT_S)
        try:
            _prepare(connection, file, made_from, durability)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.OperationalError, OSError) as error:
        raise user_error(f"cannot open the entity states: {error}", file=str(file)) from error
    except sqlite3.Error as error:
        raise _damaged(file, error) from error
    return Store(file, connection, threading.RLock())


def _prepare(connection: sqlite3.Connection, file: Path, made_from: str, durability: Durability) -> None:
    # nothing is written to a database of another program
    if _read_schema(connection) not in ({}, _TABLES):
        hint = "another program or version wrote it; delete the file to start again"
        raise user_error("not a store of entity states: it has other tables", file=str(file), hint=hint)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        # another process may have created them meanwhile
        for statement in () if _read_schema(connection) else _TABLES.values():
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO about VALUES ('made_from', ?)", (made_from,))
    stored = connection.execute("SELECT value FROM about WHERE key = 'made_from'").fetchone()
    if stored != (made_from,):
        hint = "its states mean nothing to this plan; delete the file to start again"
        raise user_error("another plan wrote these entity states", file=str(file), hint=hint)


def _damaged(file: Path, error: sqlite3.Error) -> UnfoldError:
    hint = "restore the file, or delete it to start again"
    return user_error(f"not a store of entity states: {error}", file=str(file), hint=hint)


def _read_schema(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, sql FROM sqlite_master"))


def _from_row(row: tuple[Any, ...]) -> EntityState:
    """Make the state of a row.

    Raises:
        DatabaseError: Another program wrote values of other types.
    """
    if not all(isinstance(value, types) for value, types in zip(row, _COLUMN_TYPES, strict=True)):
        raise sqlite3.DatabaseError(f"the state of {row[0]!r} is damaged")
    _entity, time, data, before_time, before_data = row
    before = None if before_time is None else State(before_time, before_data or b"")
    return EntityState(State(time, data), before)


def _to_row(entity: str, state: EntityState) -> tuple[str, int, bytes, int | None, bytes | None]:
    before = state.before
    before_columns = (None, None) if before is None else (before.time, before.data)
    return (entity, state.now.time, state.now.data, *before_columns)
