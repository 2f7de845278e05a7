"""The ledger of a run in SQLite: what was spent and what is done.

It survives ``kill -9``, and a resumed run continues from it.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unfold_tuning.job.profile import Machine
from unfoldkit.api import UnfoldError, internal_error, user_error
from unfoldkit.run_directory import write_atomically
from unfoldkit.safe_io.files import parse_json, require_regular

WORST_METRIC = -math.inf
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (id TEXT PRIMARY KEY, price REAL NOT NULL, since REAL NOT NULL,
    seen REAL NOT NULL, until REAL);
CREATE TABLE IF NOT EXISTS trials (id INTEGER PRIMARY KEY, bracket INTEGER NOT NULL, config TEXT NOT NULL,
    iters INTEGER NOT NULL DEFAULT 0, metric REAL);
CREATE TABLE IF NOT EXISTS steps (trial INTEGER NOT NULL, iters INTEGER NOT NULL, metric REAL NOT NULL,
    seconds REAL NOT NULL, gang INTEGER NOT NULL, PRIMARY KEY (trial, iters));
CREATE TABLE IF NOT EXISTS states (trial INTEGER PRIMARY KEY, iters INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS parts (stage INTEGER NOT NULL, trial INTEGER NOT NULL, node TEXT NOT NULL,
    began REAL NOT NULL, ended REAL, gang INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS orders (token TEXT PRIMARY KEY, count INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS capacity (at REAL NOT NULL, offer TEXT NOT NULL, granted INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS stages (stage INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, survivors TEXT);
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration, the iterations that it has run and its last ranking score."""

    id: int
    bracket: int
    config: Mapping[str, Any]
    iters: int
    metric: float | None

    @property
    def has_finite_metric(self) -> bool:
        """Whether its last metric is a finite number."""
        return self.metric is not None and math.isfinite(self.metric)


class InstanceLifetime(NamedTuple):
    """The billed lifetime of an instance in seconds of the wall clock; ``until`` is ``None`` while it runs."""

    id: str
    price: float
    since: float
    seen: float
    until: float | None


class InstanceOrder(NamedTuple):
    """A request for instances, recorded before it was sent."""

    token: str
    instances: int
    at: float


class Checkpoint(NamedTuple):
    """A checkpoint of a trial; ``seconds`` since the one before."""

    trial: int
    iters: int
    metric: float
    seconds: float
    workers: int


class StoredState(NamedTuple):
    """The last state that a trial has stored, with its SHA-256 in hexadecimal digits."""

    trial: int
    iters: int
    sha256: str


class TrialPart(NamedTuple):
    """A trial's time on a node in one stage, in seconds of the wall clock; ``ended`` is ``None`` while it runs."""

    stage: int
    trial: int
    node: str
    began: float
    ended: float | None
    workers: int


class FinishedStage(NamedTuple):
    """A stage that has ended, in seconds of the wall clock, and the trials that survived it."""

    stage: int
    began: float
    ended: float
    survivors: list[int]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The database of one run. Every method is one transaction, on disk when it returns."""

    path: Path
    machine: Machine
    base: sqlite3.Connection

    def read_fact(self, key: str) -> Any:
        """Read a fact of the run, ``None`` if it is unknown."""
        rows = self.base.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchall()
        return self._parse(rows[0][0]) if rows else None

    def record_fact(self, key: str, value: Any) -> Any:
        """Record a fact unless it has a value already, and return its value."""
        self._write("INSERT OR IGNORE INTO facts VALUES (?, ?)", (key, json.dumps(value)))
        return self.read_fact(key)

    # instances and their bill

    def record_node_start(self, node: str, usd_per_hour: float, since: float) -> None:
        """Record that an instance is billed from now on."""
        self._write("INSERT INTO nodes VALUES (?, ?, ?, ?, NULL)", (node, usd_per_hour, since, since))

    def record_nodes_alive(self, now: float) -> None:
        """Record that every open instance is still there; after a crash it is billed up to this time."""
        self._write("UPDATE nodes SET seen = ? WHERE until IS NULL", (now,))

    def record_node_end(self, node: str, until: float) -> None:
        """Record that an instance is no longer billed."""
        self._write("UPDATE nodes SET until = ?, seen = ? WHERE id = ? AND until IS NULL", (until, until, node))

    def record_order(self, token: str, count: int, now: float) -> None:
        """Record a request for instances before it is sent, so that no instance is ever unknown."""
        self._write("INSERT OR IGNORE INTO orders VALUES (?, ?, ?)", (token, count, now))

    def record_capacity(self, offer: str, granted: bool, now: float) -> None:
        """Record whether an offer had capacity: the log from which its availability is modelled."""
        self._write("INSERT INTO capacity VALUES (?, ?, ?)", (now, offer, int(granted)))

    def list_offers(self) -> dict[str, bool]:
        """List the offers that were tried, in order, and whether each was granted at least once."""
        query = "SELECT offer, MAX(granted) FROM capacity GROUP BY offer ORDER BY MIN(rowid)"
        return {offer: bool(granted) for offer, granted in self.base.execute(query)}

    def list_orders(self) -> list[InstanceOrder]:
        """List every request for instances, oldest first."""
        return [InstanceOrder(*row) for row in self.base.execute("SELECT * FROM orders ORDER BY at")]

    def close_open_lifetimes(self) -> None:
        """End the lifetimes that a crash left open when they were last seen: local processes died with the driver."""
        self._write("UPDATE nodes SET until = seen WHERE until IS NULL", ())

    def list_lifetimes(self) -> list[InstanceLifetime]:
        """List every instance that was ever billed, oldest first."""
        return [InstanceLifetime(*row) for row in self.base.execute("SELECT * FROM nodes ORDER BY since, id")]

    def list_running(self) -> list[str]:
        """List the instances that are billed now, oldest first."""
        return [lifetime.id for lifetime in self.list_lifetimes() if lifetime.until is None]

    def count_running(self) -> int:
        """Count the instances that are billed now."""
        return len(self.list_running())

    def compute_spent_usd(self) -> float:
        """Compute the bill so far; open lifetimes count up to when they were last seen.

        The head node is billed from the start of the run, if it is recorded, to the last moment at which an instance
        was seen. A profile that the run uses counts too.
        """
        lifetimes, machine = self.list_lifetimes(), self.machine
        last_seen = max((lifetime.seen for lifetime in lifetimes), default=0.0)
        began = self.read_fact("began")
        head_s = 0.0 if began is None else max(0.0, last_seen - float(began))
        base_usd = len(lifetimes) * machine.ingress_usd + head_s * machine.head_usd_per_hour / 3600.0
        base_usd += float(self.read_fact("profile-usd") or 0.0)
        if machine.billing.per == "function":
            return base_usd + sum(self._list_busy_seconds()) * machine.usd_per_second / machine.accelerators
        bills = (
            float(machine.billing.cost((lifetime.until or lifetime.seen) - lifetime.since, lifetime.price))
            for lifetime in lifetimes
        )
        return base_usd + sum(bills)

    def _list_busy_seconds(self) -> Iterator[float]:
        """Yield the accelerator-seconds of every part."""
        query = (
            "SELECT gang * (COALESCE(parts.ended, nodes.seen) - began) FROM parts JOIN nodes ON nodes.id = parts.node"
        )
        yield from (max(0.0, row[0]) for row in self.base.execute(query))

    # trials and their checkpoints

    def record_trials(self, bracket: int, configs: list[dict[str, Any]]) -> None:
        """Record a bracket's trials, unless they are recorded already."""
        if not self.list_trials(bracket):
            rows = [(bracket, json.dumps(config)) for config in configs]
            with self.base:
                self.base.executemany("INSERT INTO trials (bracket, config) VALUES (?, ?)", rows)

    def list_trials(self, bracket: int | None = None) -> list[Trial]:
        """Read the trials in the order of their ids; without ``bracket`` those of all brackets."""
        rows = self.base.execute("SELECT * FROM trials ORDER BY id").fetchall()
        trials = [Trial(row[0], row[1], self._parse(row[2]), row[3], row[4]) for row in rows]
        return [trial for trial in trials if bracket in (None, trial.bracket)]

    def record_checkpoint(
        self, trial: int, iters: int, metric: float, seconds: float, workers: int, sha256: str = ""
    ) -> None:
        """Record a checkpoint of a trial; a metric that is not finite ranks below all finite ones.

        Args:
            trial: The trial.
            iters: Iterations that it has run.
            metric: Its ranking score.
            seconds: Seconds since the checkpoint before.
            workers: Accelerators that it used.
            sha256: The SHA-256 of its state in hexadecimal digits; empty if it is unknown.
        """
        metric = metric if math.isfinite(metric) else WORST_METRIC
        with self.base:
            self.base.execute(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?)", (trial, iters, metric, seconds, workers)
            )
            self.base.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (trial, iters, sha256))
            self.base.execute("UPDATE trials SET iters = ?, metric = ? WHERE id = ?", (iters, metric, trial))

    def list_states(self) -> list[StoredState]:
        """List the last state of each trial of which the SHA-256 is known."""
        return [StoredState(*row) for row in self.base.execute("SELECT * FROM states WHERE sha256 != ''")]

    def list_checkpoints(self) -> list[Checkpoint]:
        """List every checkpoint, by trial and iterations."""
        return [Checkpoint(*row) for row in self.base.execute("SELECT * FROM steps ORDER BY trial, iters")]

    def list_reported(self) -> list[Checkpoint]:
        """List every checkpoint in the order in which they were recorded."""
        return [Checkpoint(*row) for row in self.base.execute("SELECT * FROM steps ORDER BY rowid")]

    def count_reported(self) -> int:
        """Count the checkpoints."""
        return int(self.base.execute("SELECT COUNT(*) FROM steps").fetchone()[0])

    def list_diverged(self) -> list[int]:
        """List the trials that reported a metric which is not finite."""
        query = "SELECT DISTINCT trial FROM steps WHERE metric = ? ORDER BY trial"
        return [row[0] for row in self.base.execute(query, (WORST_METRIC,))]

    def record_failure(self, trial: int, reason: str) -> None:
        """Record that a trial is dropped for good."""
        self.record_fact(f"failed-{trial}", reason)

    def record_early_stop(self, trial: int, iters: int) -> None:
        """Record that a trial has ended before its last iteration and keeps its score."""
        self.record_fact(f"stopped-{trial}", iters)

    def list_early_stops(self) -> dict[int, int]:
        """List the trials that have ended early, each with its iterations."""
        rows = self.base.execute("SELECT key, value FROM facts WHERE key LIKE 'stopped-%'").fetchall()
        return dict(sorted((int(key.removeprefix("stopped-")), int(self._parse(value))) for key, value in rows))

    def record_straggler(self, trial: int) -> None:
        """Record that a trial has lost because its stage could not wait for it."""
        self.record_fact(f"straggler-{trial}", value=True)

    def list_stragglers(self) -> list[int]:
        """List the trials that have lost because their stage could not wait for them."""
        rows = self.base.execute("SELECT key FROM facts WHERE key LIKE 'straggler-%'").fetchall()
        return sorted(int(row[0].removeprefix("straggler-")) for row in rows)

    def is_failed(self, trial: int) -> bool:
        """Return whether a trial was dropped for good."""
        return self.read_fact(f"failed-{trial}") is not None

    def list_failed(self) -> dict[int, str]:
        """List the dropped trials, each with its last error."""
        rows = self.base.execute("SELECT key, value FROM facts WHERE key LIKE 'failed-%'").fetchall()
        return dict(sorted((int(key.removeprefix("failed-")), str(self._parse(value))) for key, value in rows))

    def retry_if_all_failed(self) -> None:
        """Let trials try again if all were dropped: their function was at fault, and may be fixed by now."""
        if len(self.list_failed()) == len(self.list_trials()):
            self._write("DELETE FROM facts WHERE key LIKE 'failed-%'", ())

    # parts and stages

    def record_part_start(self, stage: int, trial: int, node: str, now: float, workers: int = 1) -> None:
        """Record that a trial runs on ``workers`` accelerators, of a node and perhaps of others."""
        self._write("INSERT INTO parts VALUES (?, ?, ?, ?, NULL, ?)", (stage, trial, node, now, workers))

    def record_part_end(self, trial: int, now: float) -> None:
        """Record that a trial has left its node."""
        self._write("UPDATE parts SET ended = ? WHERE trial = ? AND ended IS NULL", (now, trial))

    def close_open_parts(self) -> None:
        """End the parts that a crash left open when their nodes were last seen."""
        self._write(
            "UPDATE parts SET ended = (SELECT MAX(began, seen) FROM nodes WHERE nodes.id = parts.node) "
            "WHERE ended IS NULL",
            (),
        )

    def list_parts(self) -> list[TrialPart]:
        """List which trial ran where and when, oldest first."""
        query = "SELECT stage, trial, node, began, ended, gang FROM parts ORDER BY began"
        return [TrialPart(*row) for row in self.base.execute(query)]

    def record_stage_start(self, stage: int, now: float) -> None:
        """Record that a stage has begun; a resumed one keeps its first start."""
        self._write("INSERT OR IGNORE INTO stages VALUES (?, ?, NULL, NULL)", (stage, now))

    def record_stage_end(self, stage: int, now: float, survivors: list[int]) -> None:
        """Record that a stage has ended, and which trials survived."""
        self._write("UPDATE stages SET ended = ?, survivors = ? WHERE stage = ?", (now, json.dumps(survivors), stage))

    def list_finished_stages(self) -> list[FinishedStage]:
        """List the stages that have ended, in order."""
        rows = self.base.execute("SELECT * FROM stages WHERE ended IS NOT NULL ORDER BY stage").fetchall()
        return [FinishedStage(stage, began, ended, self._parse(text)) for stage, began, ended, text in rows]

    def _parse(self, text: str) -> Any:
        return parse_json(text, str(self.path))

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with self.base:
            self.base.execute(statement, values)


@contextmanager
def open_ledger(path: Path, machine: Machine, fingerprint: str) -> Iterator[Ledger]:
    """Open the ledger of a run, creating it if necessary.

    Raises:
        UnfoldError: The run was begun with another spec, seed or plan; its spend must not be mixed with this one's.
            Or the file cannot be read or written, at any time until the end, such as on a full disk (exit code 3).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        require_regular(path)
    else:
        _create_ledger(path, fingerprint)
    try:
        with closing(sqlite3.connect(path)) as base:
            yield _prepare_ledger(path, machine, base, fingerprint)
    except sqlite3.Error as error:
        raise _describe_error(path, error) from error


def _create_ledger(path: Path, fingerprint: str) -> None:
    """Create a ledger in one step, so that one which is empty was damaged, and not killed as it began."""
    # what a deleted ledger has left would be replayed into this one
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
    with closing(sqlite3.connect(":memory:")) as base:
        base.executescript(SCHEMA)
        with base:
            base.execute("INSERT INTO facts VALUES ('made_from', ?)", (json.dumps(fingerprint),))
        write_atomically(path, base.serialize())


def _prepare_ledger(path: Path, machine: Machine, base: sqlite3.Connection, fingerprint: str) -> Ledger:
    ledger = Ledger(path, machine, base)
    # before anything is written: an empty file has no facts
    made_from = ledger.read_fact("made_from")
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.executescript(SCHEMA)
    if made_from is None:
        raise _describe_damage(path)
    if made_from != fingerprint:
        hint = "--run DIR starts another; delete this one to forget what it spent"
        raise user_error("this run was begun with another spec, seed or plan", file=str(path), hint=hint)
    return ledger


def _describe_error(path: Path, error: sqlite3.Error) -> UnfoldError:
    if getattr(error, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR"):
        return _describe_damage(path)
    hint = "its content is intact; free some space and run the same command to continue"
    return internal_error(f"the ledger cannot be used: {error}", file=str(path), hint=hint)


def _describe_damage(path: Path) -> UnfoldError:
    hint = "restore a copy of it, or --run DIR starts another run"
    return user_error("this is not a ledger, or it is damaged", file=str(path), hint=hint)
