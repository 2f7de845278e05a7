"""The memory of entities: what is written stays, whatever happens to the process."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from unfoldkit.errors import UnfoldError
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


def test_a_failing_store_is_reported(tmp_path: Path) -> None:
    """An error of the database in use is reported in words, with the file."""
    store = open_store(tmp_path / "s.db", made_from="a")
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("DROP TABLE entities")
    other.close()
    with pytest.raises(UnfoldError, match=r"s\.db: cannot use the entity states"):
        store.read(["p"])
    store.close()
