"""Histories of entity states through kills and power cuts: none is lost or reordered beyond what the level promises."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.serving.client import serving
from unfoldkit.serving.state.store import open_store

WRITER = """
import json, sys
from pathlib import Path
from unfoldkit.serving.state.store import EntityState, State, open_store
store = open_store(Path(sys.argv[1]), made_from="a", durability=sys.argv[2])
names = ("p", "q")
for _ in range(10**9):
    old = store.read(names)
    history = json.loads(old["p"].now.data) if old else []
    history.append(len(history))
    state = State(len(history) - 1, json.dumps(history).encode())
    with store.exclusive():
        for name in names:
            store.write({name: EntityState(state, old[name].now if old else None)})
    print(len(history), flush=True)
"""


@pytest.fixture(scope="module")
def power_cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that keeps what a power cut would leave."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler to build the power cut with")
    library = tmp_path_factory.mktemp("lib") / "power_cut.so"
    source = Path(__file__).with_name("power_cut.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def write_until_killed(folder: Path, durability: str, count: int, library: Path | None = None) -> int:
    """Run the writer for some commits, kill it, and return how many it acknowledged."""
    environment = {**os.environ, "POWER_CUT_FOLDER": str(folder)}
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    words = [sys.executable, "-c", WRITER, str(folder / "s.db"), durability]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(count):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        # what it acknowledged until the signal reached it counts too
        lines = [line for line in process.stdout.read().splitlines() if line.isdigit()]
    return max(acknowledged, *map(int, lines)) if lines else acknowledged


def cut_power(folder: Path) -> None:
    """Leave of each file what was synced, as a machine does that loses its power."""
    for name in ("s.db", "s.db-wal", "s.db-shm"):
        path, kept = folder / name, folder / f"{name}.synced"
        path.unlink(missing_ok=True)
        if kept.exists():
            shutil.copy(kept, path)


def mark_synced(folder: Path) -> None:
    """Count what is there as synced: the machine was shut down after its history was read."""
    for kept in folder.glob("*.synced"):
        kept.unlink()
    for path in folder.glob("s.db*"):
        shutil.copy(path, path.with_name(f"{path.name}.synced"))


def read_history(folder: Path) -> list[int]:
    """Return the history of both entities, which must be the same, complete from its start and in order."""
    store = open_store(folder / "s.db", made_from="a")
    states = store.read(("p", "q"))
    store.close()
    if not states:
        return []
    assert states["p"] == states["q"]
    history: list[int] = json.loads(states["p"].now.data)
    assert history == list(range(len(history)))
    before = states["p"].before
    assert before is None or json.loads(before.data) == history[:-1]
    return history


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_killed_process_loses_nothing(tmp_path: Path, durability: str) -> None:
    """Killed at random and replaced, a writer goes on after its last acknowledged update at either level."""
    draw = random.Random(7)  # noqa: S311 - not for secrets
    for _ in range(6):
        acknowledged = write_until_killed(tmp_path, durability, draw.randint(1, 40))
        assert len(read_history(tmp_path)) in (acknowledged, acknowledged + 1)


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_power_cut_loses_what_the_level_says(tmp_path: Path, power_cut: Path, durability: str) -> None:
    """After power cuts, full has every acknowledged update; normal has lost the last ones, and only those."""
    draw, lost = random.Random(11), 0  # noqa: S311 - as above
    for _ in range(6):
        acknowledged = write_until_killed(tmp_path, durability, draw.randint(1, 40), power_cut)
        cut_power(tmp_path)
        kept = len(read_history(tmp_path))
        mark_synced(tmp_path)
        assert kept <= acknowledged + 1
        if durability == "full":
            assert kept >= acknowledged
        lost += max(acknowledged - kept, 0)
    assert (lost > 0) == (durability == "normal")


def test_a_server_says_how_durable_it_is(tmp_path: Path) -> None:
    """A served entity model keeps its states with full durability too."""
    from tests.faults.test_wire import DIARY, hour

    words = ("diary", f"store={tmp_path / 's.db'}", "durability=full")
    with serving(*words) as server:
        assert [server.ask(DIARY, hour(when)).status for when in range(3)] == [200] * 3
        server.process.kill()
        server.process.wait()
    with serving(*words) as server:
        answer = server.ask(DIARY, hour(3)).json
        assert json.loads(answer["outputs"][0]["data"][0]) == [[when, 1.0] for when in range(4)]
