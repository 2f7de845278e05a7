"""The memory of entities: what is written stays, whatever happens to the process."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from unfoldkit.errors import UnfoldError
from unfoldkit.serving.http.workers import HEARTBEAT_TIMEOUT_S
from unfoldkit.serving.state.store import EntityState, State, open_store

WRITER = """
import sys
from pathlib import Path
from unfoldkit.serving.state.store import EntityState, State, open_store
store = open_store(Path(sys.argv[1]), made_from="a")
for time in range(10**9):
    store.write({name: EntityState(State(time, str(time).encode()), None) for name in ("p", "q")})
    print(time, flush=True)
"""


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    """Memories survive closing and opening, with the state before; unknown entities are left out."""
    first, second = EntityState(State(3, b"\x00x"), State(1, b"")), EntityState(State(-2, b""), None)
    store = open_store(tmp_path / "new" / "s.db", made_from="a")
    store.write({"p1": first, "ä ' ;": second})
    store.close()
    store = open_store(tmp_path / "new" / "s.db", made_from="a")
    assert store.read(["p1", "unknown", "ä ' ;", "p1"]) == {"p1": first, "ä ' ;": second}
    assert store.count() == 2
    store.close()


def test_many_entities_are_read_at_once(tmp_path: Path) -> None:
    """A batch of any size is read, beyond what one query may name."""
    store = open_store(tmp_path / "s.db", made_from="a")
    known = {f"p{n}": EntityState(State(n, b"d"), None) for n in range(1203)}
    store.write(known)
    assert store.read(known) == known
    store.close()


def test_a_killed_process_loses_no_reported_write(tmp_path: Path) -> None:
    """After kill -9 the store opens, and holds at least the last reported write, with both of its rows."""
    for round_ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / f"{round_}.db")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        lines = [writer.stdout.readline() for _ in range(50 * (round_ + 1))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        last = int([line for line in lines if line.endswith("\n")][-1])
        store = open_store(tmp_path / f"{round_}.db", made_from="a")
        found = store.read(["p", "q"])
        assert found["p"] == found["q"]
        assert last <= found["p"].now.time <= last + 1
        store.close()


def test_states_of_another_plan_are_refused(tmp_path: Path) -> None:
    """A store that belongs to something else is refused with the way out, and stays as it was."""
    open_store(tmp_path / "s.db", made_from="a").close()
    with pytest.raises(UnfoldError, match=r"s\.db: .*another plan.*delete the file"):
        open_store(tmp_path / "s.db", made_from="b")
    open_store(tmp_path / "s.db", made_from="a").close()


@pytest.mark.parametrize("content", [b"not a database, but long enough to look like one" * 50, b"SQLite format 3\x00"])
def test_a_damaged_store_is_reported(tmp_path: Path, content: bytes) -> None:
    """A file of another format is named, not overwritten."""
    (tmp_path / "s.db").write_bytes(content)
    with pytest.raises(UnfoldError, match=r"s\.db: not a store of entity states"):
        open_store(tmp_path / "s.db", made_from="a")
    assert (tmp_path / "s.db").read_bytes() == content


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
OTHER_TABLES = {
    "table of another program": ["DROP TABLE about", "DROP TABLE entities", "CREATE TABLE cookies (name)"],
    "other columns": ["DROP TABLE entities", "CREATE TABLE entities (a, b)"],
    "one more column": ["ALTER TABLE entities ADD COLUMN more"],
    "generated column": [
        "DROP TABLE entities",
        "CREATE TABLE entities (entity TEXT PRIMARY KEY, time, data, before_time, before_data AS (zeroblob(9)))",
    ],
    "endless view": ["DROP TABLE entities", f"CREATE VIEW entities AS {ENDLESS}"],
    "endless trigger": [f"CREATE TRIGGER t AFTER INSERT ON about BEGIN {ENDLESS}; END", "DELETE FROM about"],
    "missing table": ["DROP TABLE about"],
}


@pytest.mark.parametrize("changes", OTHER_TABLES.values(), ids=OTHER_TABLES)
def test_a_database_with_other_tables_is_refused_and_kept(tmp_path: Path, changes: list[str]) -> None:
    """Nothing of a foreign schema runs, and nothing is written to it."""
    open_store(tmp_path / "s.db", made_from="a").close()
    with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
        for change in changes:
            other.execute(change)
    content = (tmp_path / "s.db").read_bytes()
    with pytest.raises(
        UnfoldError, match=r"s\.db: not a store of entity states: it has other tables .*delete"
    ) as error:
        open_store(tmp_path / "s.db", made_from="a")
    assert error.value.code == 2
    assert (tmp_path / "s.db").read_bytes() == content


def test_processes_that_start_at_once_share_one_new_store(tmp_path: Path) -> None:
    """Each of several connections to a file that none has written yet finds its tables."""
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: open_store(tmp_path / "s.db", made_from="a"), range(8)))
    for number, store in enumerate(stores):
        store.write({str(number): EntityState(State(0, b""))})
    assert [store.count() for store in stores] == [8] * 8
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("column", "value"), [("time", "abc"), ("time", 1.5), ("data", "abc"), ("before_time", b"x"), ("data", 5)]
)
def test_values_of_other_types_are_reported(tmp_path: Path, column: str, value: object) -> None:
    """A state that another program damaged is named; other entities are read."""
    store, state = open_store(tmp_path / "s.db", made_from="a"), EntityState(State(1, b"x"))
    store.write({"p": state, "q": state})
    store.connection.execute(f"UPDATE entities SET {column} = ? WHERE entity = 'p'", (value,))  # noqa: S608
    assert store.read(["q"]) == {"q": state}
    with pytest.raises(UnfoldError, match=r"s\.db: .*the state of 'p' is damaged .*delete it") as error:
        store.read(["p"])
    assert error.value.code == 2
    store.close()


def test_a_damaged_page_is_the_fault_of_the_file(tmp_path: Path) -> None:
    """A store with a destroyed page of states gives exit code 2 with its name, not an internal error."""
    store = open_store(tmp_path / "s.db", made_from="a")
    store.write({f"p{number}": EntityState(State(0, b"x" * 3000)) for number in range(100)})
    store.close()
    content = (tmp_path / "s.db").read_bytes()
    (tmp_path / "s.db").write_bytes(content[:12288] + b"\xff" * (len(content) - 12288))
    store = open_store(tmp_path / "s.db", made_from="a")
    with pytest.raises(UnfoldError, match=r"s\.db: not a store of entity states: .*malformed") as error:
        store.count()
    assert error.value.code == 2
    store.close()


@pytest.mark.timed
def test_a_locked_store_fails_before_its_process_counts_as_hung(tmp_path: Path) -> None:
    """Another program that keeps the lock makes requests fail, while the supervisor still hears of the process."""
    store = open_store(tmp_path / "s.db", made_from="a")
    with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        start_s = time.monotonic()
        with pytest.raises(UnfoldError, match="database is locked") as error:
            store.write({"p": EntityState(State(0, b""))})
        assert time.monotonic() - start_s < 0.8 * HEARTBEAT_TIMEOUT_S
    assert error.value.code == 3
    store.write({"p": EntityState(State(0, b""))})
    store.close()


def test_a_failing_store_is_reported(tmp_path: Path) -> None:
    """An error of the database in use is reported in words, with the file."""
    store = open_store(tmp_path / "s.db", made_from="a")
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("DROP TABLE entities")
    other.close()
    with pytest.raises(UnfoldError, match=r"s\.db: cannot use the entity states"):
        store.read(["p"])
    store.close()
