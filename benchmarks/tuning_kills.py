"""The driver of a tuning run, killed at random moments: same winner, no spend lost, no finished work repeated.

Two witnesses stand beside the ledger: the trials write down every iteration, and an observer of the process table
writes down from when to when each node's process lived: a process of the driver's, or a raylet.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.frame import FOLDER

SPEC = """
version: 1
kind: tuning
name: kills
search: {algorithm: successive-halving, trials: 9, min_iters: 4, max_iters: 36, eta: 3}
trainable: {function: "benchmarks.sleeper:logged", space: {ceiling: {uniform: [0, 1]}}}
deadline: 80 min
cloud:
  provider: local
  instances: [{type: node, accelerators: 1, price: $36/h}]
  limit: 2
  checkpoint_iters: 2
  billing: {increment: 0 s, minimum: 0 s}
profile: {iteration: {mean: 60 s}, provision: {mean: 0 s}, startup: {mean: 1 s}, sync: {mean: 0 s}, error: 0%}
samples: 100
"""
PRICE = 36.0
SECONDS = 0.15
EVERY = 2
PAUSE = 0.01
LONGEST = 60.0


@dataclass(frozen=True, slots=True)
class Engine:
    """Where trials run: ``local`` or ``ray``; a kill comes within ``window`` seconds of an attempt's first iteration.

    ``pause`` is that between two looks at the process table; all of it, where nodes are not the driver's children.
    """

    name: str
    window: float
    pause: float

    def nodes(self, driver: int, folder: Path) -> Iterator[tuple[int, str]]:
        """Yield the processes of nodes that live now, by process number and start."""
        return _workers_of(driver) if self.name == "local" else _raylets_of(folder)


@dataclass(slots=True)
class Witness:
    """From when to when each node's process was seen, and how long one outlived its driver at most, in seconds."""

    engine: Engine
    folder: Path
    seen: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)
    outlived: float = 0.0

    def look(self, driver: int) -> bool:
        """Look at the nodes now; return whether there are any."""
        now = time.time()
        there = list(self.engine.nodes(driver, self.folder))
        for key in there:
            first, _ = self.seen.get(key, (now, now))
            self.seen[key] = (first, now)
        return bool(there)

    def alone(self, driver: int) -> None:
        """Look on after the driver's end, until every node is gone.

        Raises:
            RuntimeError: one is still there after a minute.
        """
        began = time.monotonic()
        while self.look(driver):
            time.sleep(self.engine.pause)
            if time.monotonic() - began > LONGEST:
                raise RuntimeError("a node outlives its driver by more than a minute")
            self.outlived = max(self.outlived, time.monotonic() - began)

    @property
    def dollars(self) -> float:
        """What the nodes cost by what was seen."""
        return sum(last - first for first, last in self.seen.values()) * PRICE / 3600


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Kill the driver 20 times on each engine (3 if quick, not on Ray), each run carried on to its end.

    Args:
        quick: Fewer kills.
        seed: Seed of the moments and of the trials.
        data: Not used.

    Returns:
        ``metrics``, ``tables`` and ``notes``.
    """
    there = importlib.util.find_spec("ray") is not None and not quick
    engines = [Engine("local", 2.5, PAUSE), *([Engine("ray", 6.0, 5 * PAUSE)] if there else [])]
    rows = [row for engine in engines for row in killed_runs(engine, 3 if quick else 20, seed)]
    metrics = summed([row for row in rows if row["engine"] == "local"], "")
    metrics |= summed([row for row in rows if row["engine"] == "ray"], "_ray")
    windows = " or ".join(f"{engine.window:g} s ({engine.name})" for engine in engines)
    notes = [
        f"kill -9 within {windows} of an attempt's first iteration or, one time in four, of its start; uniform.",
        "The next attempt begins when the nodes of the killed one are gone.",
        f"Checkpoints every {EVERY} iterations: only iterations since the last one may run again.",
        "The winner is compared with that of an undisturbed run on local processes, on either engine.",
        "The ledger is compared with what an observer of the process table saw of the nodes.",
        "A life that a kill cuts off is billed to when it was last seen, at most 0.1 s before.",
        *([] if there else ["Not measured on Ray: quick, or it is not installed."]),
    ]
    return {"metrics": metrics, "tables": {"runs": rows}, "notes": notes}


def killed_runs(engine: Engine, wanted: int, seed: int) -> list[dict[str, Any]]:
    """Return a row for each of as many runs as it takes to kill the driver so often."""
    rng = Random(seed)  # noqa: S311
    rows: list[dict[str, Any]] = []
    while (left := wanted - sum(row["kills"] for row in rows)) > 0:
        rows.append(killed_run(engine, seed + len(rows), left, rng))
    return rows


def summed(rows: Sequence[dict[str, Any]], suffix: str) -> dict[str, float]:
    """Return what all runs on an engine come to, nothing if there are none."""
    if not rows:
        return {}
    observed, billed = sum(row["observed_usd"] for row in rows), sum(row["ledger_usd"] for row in rows)
    found = {
        "kills": sum(row["kills"] for row in rows),
        "kills_while_training": sum(row["while_training"] for row in rows),
        "runs": len(rows),
        "other_winners": sum(not row["same_winner"] for row in rows),
        "finished_iterations_repeated": sum(row["finished_repeated"] for row in rows),
        "iterations_repeated": sum(row["repeated"] for row in rows),
        "iterations": sum(row["iterations"] for row in rows),
        "spend_fell": sum(row["spend_fell"] for row in rows),
        "nodes_not_in_ledger": sum(row["nodes_observed"] - row["nodes_in_ledger"] for row in rows),
        "ledger_error_percent": (billed / observed - 1) * 100,
        "outlived_s_max": max(row["outlived_s"] for row in rows),
    }
    return {f"{name}{suffix}": value for name, value in found.items()}


def killed_run(engine: Engine, seed: int, most: int, rng: Random) -> dict[str, Any]:
    """Kill a run at most ``most`` times, let it end, and compare it with one that was left alone."""
    with tempfile.TemporaryDirectory() as name:
        folder, kills, training, falls, spent = Path(name), 0, 0, 0, 0.0
        (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
        witness, finished_repeated = Witness(engine, folder), 0
        while True:
            known = Counter(_log(folder))
            checkpoints = dict(_rows(folder, "SELECT config, iters FROM trials"))
            killed = attempt(folder, seed, witness, rng if kills < most else None)
            finished_repeated += _repeated_before(known, _log(folder), checkpoints)
            now = _spent(folder)
            falls, spent = falls + (now < spent - 1e-9), now
            if killed is None:
                break
            kills, training = kills + 1, training + killed
        counts = Counter(_log(folder))
        return {
            "engine": engine.name,
            "seed": seed,
            "kills": kills,
            "while_training": training,
            "same_winner": _winner(folder) == undisturbed(seed),
            "finished_repeated": finished_repeated,
            "repeated": sum(counts.values()) - len(counts),
            "iterations": len(counts),
            "spend_fell": falls,
            "nodes_observed": len(witness.seen),
            "nodes_in_ledger": len(_rows(folder, "SELECT id, price FROM nodes")),
            "observed_usd": witness.dollars,
            "ledger_usd": spent,
            "outlived_s": witness.outlived,
        }


def attempt(folder: Path, seed: int, witness: Witness, rng: Random | None) -> bool | None:
    """Start the driver and kill it, if ``rng`` is given; return whether it trained, ``None`` if it ended by itself."""
    engine, before, began = witness.engine, len(_log(folder)), time.monotonic()
    early = rng is not None and rng.random() < 0.25
    wait = rng.uniform(0.0, engine.window) if rng is not None else 0.0
    with subprocess.Popen(*_command(folder, seed, engine.name), **_surroundings(folder, SECONDS)) as driver:
        at = began + wait if early else None
        while driver.poll() is None:
            witness.look(driver.pid)
            trained = len(_log(folder)) > before
            at = time.monotonic() + wait if at is None and trained and rng is not None else at
            if at is not None and time.monotonic() >= at:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                witness.alone(driver.pid)
                return trained
            time.sleep(engine.pause)
    if driver.returncode:
        raise RuntimeError(f"the run ended with {driver.returncode}")
    return None


def undisturbed(seed: int) -> tuple[Any, ...]:
    """Return the winner of the same run, left alone and without sleep."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
        subprocess.run(*_command(folder, seed, "local"), check=True, **_surroundings(folder, 0.0))
        return _winner(folder)


def _command(folder: Path, seed: int, engine: str) -> tuple[list[str]]:
    words = ["train", str(folder / "spec.yaml"), "--run", str(folder / "run"), "--seed", str(seed), "--allow-code"]
    return ([sys.executable, "-m", "unfoldkit", *words, "--engine", engine],)


def _surroundings(folder: Path, seconds: float) -> dict[str, Any]:
    settings = {"SLEEPER_LOG": str(folder / "log"), "SLEEPER_SECONDS": str(seconds), "PYTHONPATH": str(FOLDER.parent)}
    return {"env": {**os.environ, **settings}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _repeated_before(known: Counter[str], now: list[str], checkpoints: dict[str, int]) -> int:
    """Count the iterations of this attempt that a checkpoint of the ledger had already covered."""
    covered = {f"{json.loads(config)['ceiling']:.12f}": iters for config, iters in checkpoints.items()}
    fresh = Counter(now) - known
    return sum(number for line, number in fresh.items() if int(line.split()[1]) < covered.get(line.split()[0], 0))


def _rows(folder: Path, text: str) -> list[tuple[Any, ...]]:
    path = folder / "run/ledger.sqlite"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as base:
        try:
            return base.execute(text).fetchall()
        except sqlite3.OperationalError:  # it was killed before its tables were there
            return []


def _spent(folder: Path) -> float:
    lives = _rows(folder, "SELECT COALESCE(until, seen) - since, price FROM nodes")
    return float(sum(seconds * price / 3600 for seconds, price in lives))


def _winner(folder: Path) -> tuple[Any, ...]:
    text = "SELECT id, config, iters, metric FROM trials ORDER BY iters DESC, metric DESC, id LIMIT 1"
    return _rows(folder, text)[0]


def _workers_of(driver: int) -> Iterator[tuple[int, str]]:
    for number in _words(Path(f"/proc/{driver}/task/{driver}/children")):
        if "spawn_main" in "".join(_words(Path(f"/proc/{number}/cmdline"))):
            yield from _born(number)


def _raylets_of(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the nodes' raylets, which are given the environment of the run; the head has no name of ours."""
    mark = str(folder / "log")
    there = [path for path in Path("/proc").glob("[0-9]*") if _is_raylet(path)]
    names = {path.name for path in there}
    for path in there:
        # a child looks like its raylet until it becomes the program that it was made for
        if mark in "".join(_words(path / "environ")) and not names.intersection(_words(path / "stat")[-49:-48]):
            yield from _born(path.name)


def _is_raylet(path: Path) -> bool:
    return "unfold-node-" in "".join(_words(path / "cmdline")) and "raylet" in "".join(_words(path / "comm"))


def _born(number: str) -> Iterator[tuple[int, str]]:
    stat = _words(Path(f"/proc/{number}/stat"))
    # what is dead and not yet waited for costs nothing
    if stat and stat[-50] != "Z":
        yield int(number), stat[-31]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
