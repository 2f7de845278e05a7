"""What was spent and what is done, in SQLite: it survives ``kill -9``, and a resumed run goes on from it."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfold_tuning.job.profile import Machine
from unfoldkit.api import UnfoldError, broken, fail
from unfoldkit.safe_io.files import parse_json, require_regular

WORST = -math.inf
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (id TEXT PRIMARY KEY, price REAL NOT NULL, since REAL NOT NULL,
    seen REAL NOT NULL, until REAL);
CREATE TABLE IF NOT EXISTS trials (id INTEGER PRIMARY KEY, bracket INTEGER NOT NULL, config TEXT NOT NULL,
    iters INTEGER NOT NULL DEFAULT 0, metric REAL);
CREATE TABLE IF NOT EXISTS steps (trial INTEGER NOT NULL, iters INTEGER NOT NULL, metric REAL NOT NULL,
    seconds REAL NOT NULL, gang INTEGER NOT NULL, PRIMARY KEY (trial, iters));
CREATE TABLE IF NOT EXISTS parts (stage INTEGER NOT NULL, trial INTEGER NOT NULL, node TEXT NOT NULL,
    began REAL NOT NULL, ended REAL, gang INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS orders (token TEXT PRIMARY KEY, count INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS stages (stage INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, survivors TEXT);
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration and how far it has got."""

    id: int
    bracket: int
    config: Mapping[str, Any]
    iters: int
    metric: float | None

    @property
    def ranks(self) -> bool:
        """Whether its last metric is a number."""
        return self.metric is not None and math.isfinite(self.metric)


@dataclass(frozen=True, slots=True)
class Life:
    """An instance's billed life, in seconds of the wall clock; ``until`` is ``None`` while it runs."""

    id: str
    price: float
    since: float
    seen: float
    until: float | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The database of one run. Every method is one transaction, on disk when it returns."""

    path: Path
    machine: Machine
    base: sqlite3.Connection

    def close(self) -> None:
        """Close the database."""
        self.base.close()

    def fact(self, key: str, value: Any = None) -> Any:
        """Return a fact of the run; the first value that is given stays."""
        if value is not None:
            self._write("INSERT OR IGNORE INTO facts VALUES (?, ?)", (key, json.dumps(value)))
        rows = self.base.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchall()
        return parse_json(rows[0][0], str(self.path)) if rows else None

    def node_runs(self, node: str, price: float, since: float) -> None:
        """Note that an instance is billed from now on."""
        self._write("INSERT INTO nodes VALUES (?, ?, ?, ?, NULL)", (node, price, since, since))

    def node_seen(self, now: float) -> None:
        """Note that every open instance is still there: what a crash leaves open is billed up to here."""
        self._write("UPDATE nodes SET seen = ? WHERE until IS NULL", (now,))

    def node_ends(self, node: str, until: float) -> None:
        """Note that an instance is billed no longer."""
        self._write("UPDATE nodes SET until = ?, seen = ? WHERE id = ? AND until IS NULL", (until, until, node))

    def ordered(self, token: str, count: int, now: float) -> None:
        """Note that instances are about to be asked for: before the request, so that none is ever unknown."""
        self._write("INSERT OR IGNORE INTO orders VALUES (?, ?, ?)", (token, count, now))

    def orders(self) -> list[tuple[str, int, float]]:
        """Return every request for instances: token, count, when."""
        return self.base.execute("SELECT * FROM orders ORDER BY at").fetchall()

    def close_parts(self) -> None:
        """End the parts that a crash left open when their nodes were last seen."""
        self._write(
            "UPDATE parts SET ended = (SELECT MAX(began, seen) FROM nodes WHERE nodes.id = parts.node) "
            "WHERE ended IS NULL",
            (),
        )

    def close_open(self) -> None:
        """End the lives that a crash left open when they were last seen: local processes died with the driver."""
        self._write("UPDATE nodes SET until = seen WHERE until IS NULL", ())

    def lives(self) -> list[Life]:
        """Return every instance that was ever paid."""
        return [Life(*row) for row in self.base.execute("SELECT * FROM nodes ORDER BY since, id")]

    def spent(self) -> float:
        """Return dollars so far by the rules of the bill, open lives up to when they were last seen.

        The head node is paid from the start to the last moment at which an instance was seen.
        """
        lives, machine = self.lives(), self.machine
        head = max((life.seen for life in lives), default=0.0) - float(self.fact("began") or 0.0)
        rest = len(lives) * machine.ingress + max(0.0, head) * machine.head / 3600.0
        if machine.billing.per == "function":
            return rest + sum(self._busy()) * machine.per_second / machine.accelerators
        lengths = ((life.price, (life.until or life.seen) - life.since) for life in lives)
        return rest + sum(float(machine.billing.cost(seconds, price)) for price, seconds in lengths)

    def _busy(self) -> Iterator[float]:
        text = (
            "SELECT gang * (COALESCE(parts.ended, nodes.seen) - began) FROM parts JOIN nodes ON nodes.id = parts.node"
        )
        yield from (max(0.0, row[0]) for row in self.base.execute(text))

    def trial_starts(self, bracket: int, configs: list[dict[str, Any]]) -> None:
        """Note a bracket's trials, unless they are there already."""
        if not self.trials(bracket):
            rows = [(bracket, json.dumps(config)) for config in configs]
            with self.base:
                self.base.executemany("INSERT INTO trials (bracket, config) VALUES (?, ?)", rows)

    def trials(self, bracket: int | None = None) -> list[Trial]:
        """Return the trials of a bracket, or all."""
        rows = self.base.execute("SELECT * FROM trials ORDER BY id").fetchall()
        found = [Trial(row[0], row[1], parse_json(row[2], str(self.path)), row[3], row[4]) for row in rows]
        return [trial for trial in found if bracket in (None, trial.bracket)]

    def step(self, trial: int, iters: int, metric: float, seconds: float, gang: int) -> None:
        """Note a checkpoint of a trial; a metric that is no finite number ranks below all that are."""
        metric = metric if math.isfinite(metric) else WORST
        with self.base:
            self.base.execute(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?)", (trial, iters, metric, seconds, gang)
            )
            self.base.execute("UPDATE trials SET iters = ?, metric = ? WHERE id = ?", (iters, metric, trial))

    def failed(self) -> dict[int, str]:
        """Return the trials that are left out, each with what it said last."""
        rows = self.base.execute("SELECT key, value FROM facts WHERE key LIKE 'failed-%'").fetchall()
        return dict(
            sorted((int(key.removeprefix("failed-")), str(parse_json(value, str(self.path)))) for key, value in rows)
        )

    def once_more(self) -> None:
        """Let trials try again where all were left out: what they train with was at fault, and may be mended by now."""
        if len(self.failed()) == len(self.trials()):
            self._write("DELETE FROM facts WHERE key LIKE 'failed-%'", ())

    def diverged(self) -> list[int]:
        """Return the trials of which a metric was no finite number."""
        rows = self.base.execute("SELECT DISTINCT trial FROM steps WHERE metric = ? ORDER BY trial", (WORST,))
        return [row[0] for row in rows.fetchall()]

    def steps(self) -> list[tuple[int, int, float, float, int]]:
        """Return every checkpoint: trial, iterations, metric, seconds since the one before, accelerators."""
        return self.base.execute("SELECT * FROM steps ORDER BY trial, iters").fetchall()

    def part_begins(self, stage: int, trial: int, node: str, now: float, gang: int = 1) -> None:
        """Note that a trial runs on ``gang`` accelerators, of a node and maybe of others beside it."""
        self._write("INSERT INTO parts VALUES (?, ?, ?, ?, NULL, ?)", (stage, trial, node, now, gang))

    def part_ends(self, trial: int, now: float) -> None:
        """Note that a trial has left its node."""
        self._write("UPDATE parts SET ended = ? WHERE trial = ? AND ended IS NULL", (now, trial))

    def parts(self) -> list[tuple[int, int, str, float, float | None]]:
        """Return who ran where: stage, trial, node, begin, end."""
        return self.base.execute("SELECT stage, trial, node, began, ended FROM parts ORDER BY began").fetchall()

    def sized_parts(self) -> list[tuple[int, int, str, float, float | None, int]]:
        """Return who ran where, and on how many accelerators: stage, trial, node, begin, end, gang."""
        return self.base.execute("SELECT stage, trial, node, began, ended, gang FROM parts ORDER BY began").fetchall()

    def stage_begins(self, stage: int, now: float) -> None:
        """Note that a stage has begun; a resumed one keeps its first begin."""
        self._write("INSERT OR IGNORE INTO stages VALUES (?, ?, NULL, NULL)", (stage, now))

    def stage_ends(self, stage: int, now: float, survivors: list[int]) -> None:
        """Note that a stage has ended, and which trials go on."""
        self._write("UPDATE stages SET ended = ?, survivors = ? WHERE stage = ?", (now, json.dumps(survivors), stage))

    def stages(self) -> list[tuple[int, float, float, list[int]]]:
        """Return the stages that have ended: index, begin, end, survivors."""
        rows = self.base.execute("SELECT * FROM stages WHERE ended IS NOT NULL ORDER BY stage").fetchall()
        return [(stage, began, ended, parse_json(text, str(self.path))) for stage, began, ended, text in rows]

    def _write(self, text: str, values: tuple[Any, ...]) -> None:
        with self.base:
            self.base.execute(text, values)


@contextmanager
def opened(path: Path, machine: Machine, made_from: str) -> Iterator[Ledger]:
    """Open the ledger of a run, new or old.

    Raises:
        UnfoldError: the run was begun with another spec, seed or plan; its spend must not be mixed with this one's.
            Or the file cannot be read or written, at any time until the end, such as on a full disk (exit code 3).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        require_regular(path)
    try:
        with closing(sqlite3.connect(path)) as base:
            yield _prepared(path, machine, base, made_from)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


def _prepared(path: Path, machine: Machine, base: sqlite3.Connection, made_from: str) -> Ledger:
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.executescript(SCHEMA)
    ledger = Ledger(path, machine, base)
    if ledger.fact("made_from", made_from) != made_from:
        hint = "--run DIR starts another; delete this one to forget what it spent"
        raise fail("this run was begun with another spec, seed or plan", file=str(path), hint=hint)
    return ledger


def _unusable(path: Path, error: sqlite3.Error) -> UnfoldError:
    if getattr(error, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR"):
        return fail("this is no ledger", file=str(path), hint="--run DIR starts another run")
    hint = "what it holds is whole; with room again the same command goes on where it was"
    return broken(f"the ledger cannot be used: {error}", file=str(path), hint=hint)
