"""The driver of a tuning run, killed at random moments: same winner, no spend lost, no finished work repeated.

Two witnesses stand beside the ledger: the trials write down every iteration, and an observer of the process table
writes down from when to when each node's process lived.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
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
WINDOW = 2.5


@dataclass(slots=True)
class Witness:
    """From when to when each node's process was seen, by process number and start."""

    seen: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)

    def look(self, driver: int) -> None:
        """Look at the driver's children now."""
        now = time.time()
        for key in _nodes_of(driver):
            first, _ = self.seen.get(key, (now, now))
            self.seen[key] = (first, now)

    @property
    def dollars(self) -> float:
        """What the nodes cost by what was seen."""
        return sum(last - first for first, last in self.seen.values()) * PRICE / 3600


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Kill the driver 20 times (3 if quick), over as many runs as it takes, each carried on to its end.

    Args:
        quick: Fewer kills.
        seed: Seed of the moments and of the trials.
        data: Not used.

    Returns:
        ``metrics``, ``tables`` and ``notes``.
    """
    wanted, rng = 3 if quick else 20, Random(seed)  # noqa: S311
    rows: list[dict[str, Any]] = []
    while sum(row["kills"] for row in rows) < wanted:
        rows.append(killed_run(seed + len(rows), wanted - sum(row["kills"] for row in rows), rng))
    observed, billed = sum(row["observed_usd"] for row in rows), sum(row["ledger_usd"] for row in rows)
    metrics = {
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
    }
    notes = [
        f"kill -9 within {WINDOW} s of an attempt's first iteration or, one time in four, of its start; uniform.",
        f"Checkpoints every {EVERY} iterations: only iterations since the last one may run again.",
        "The ledger is compared with what an observer of the process table saw of the nodes.",
        "A life that a kill cuts off is billed to when it was last seen, at most 0.1 s before.",
    ]
    return {"metrics": metrics, "tables": {"runs": rows}, "notes": notes}


def killed_run(seed: int, most: int, rng: Random) -> dict[str, Any]:
    """Kill a run at most ``most`` times, let it end, and compare it with one that was left alone."""
    with tempfile.TemporaryDirectory() as name:
        folder, kills, training, falls, spent = Path(name), 0, 0, 0, 0.0
        (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
        witness, finished_repeated = Witness(), 0
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
        }


def attempt(folder: Path, seed: int, witness: Witness, rng: Random | None) -> bool | None:
    """Start the driver and kill it, if ``rng`` is given; return whether it trained, ``None`` if it ended by itself."""
    before, began = len(_log(folder)), time.monotonic()
    early = rng is not None and rng.random() < 0.25
    wait = rng.uniform(0.0, WINDOW) if rng is not None else 0.0
    with subprocess.Popen(*_command(folder, seed), **_surroundings(folder, SECONDS)) as driver:
        at = began + wait if early else None
        while driver.poll() is None:
            witness.look(driver.pid)
            trained = len(_log(folder)) > before
            at = time.monotonic() + wait if at is None and trained and rng is not None else at
            if at is not None and time.monotonic() >= at:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                return trained
            time.sleep(PAUSE)
    if driver.returncode:
        raise RuntimeError(f"the run ended with {driver.returncode}")
    return None


def undisturbed(seed: int) -> tuple[Any, ...]:
    """Return the winner of the same run, left alone and without sleep."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
        subprocess.run(*_command(folder, seed), check=True, **_surroundings(folder, 0.0))
        return _winner(folder)


def _command(folder: Path, seed: int) -> tuple[list[str]]:
    words = ["train", str(folder / "spec.yaml"), "--run", str(folder / "run"), "--seed", str(seed), "--allow-code"]
    return ([sys.executable, "-m", "unfoldkit", *words],)


def _surroundings(folder: Path, seconds: float) -> dict[str, Any]:
    told = {"SLEEPER_LOG": str(folder / "log"), "SLEEPER_SECONDS": str(seconds), "PYTHONPATH": str(FOLDER.parent)}
    return {"env": {**os.environ, **told}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


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


def _nodes_of(driver: int) -> Iterator[tuple[int, str]]:
    for number in _words(Path(f"/proc/{driver}/task/{driver}/children")):
        command = "".join(_words(Path(f"/proc/{number}/cmdline")))
        stat = _words(Path(f"/proc/{number}/stat"))
        if "spawn_main" in command and stat:
            yield int(number), stat[-31]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
