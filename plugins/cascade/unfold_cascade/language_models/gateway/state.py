"""What a gateway keeps over restarts: spending by key, the audit, and the identity of each upstream model."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from unfold_cascade.language_models.gateway.audit import AuditProcess, parse_audit
from unfoldkit.api import user_error

REFRESH_S = 1.0
REPORT_S = 60.0
"""A state that cannot be written is reported at most this often."""
_LOG = logging.getLogger("unfold.gateway")
SCHEMA = """
CREATE TABLE IF NOT EXISTS spending (name TEXT PRIMARY KEY, spent REAL NOT NULL, reserved REAL NOT NULL);
CREATE TABLE IF NOT EXISTS reservation (id INTEGER PRIMARY KEY, name TEXT NOT NULL, amount REAL NOT NULL, pid INTEGER);
CREATE TABLE IF NOT EXISTS plan_state (plan TEXT PRIMARY KEY, audit TEXT, void_reason TEXT);
CREATE TABLE IF NOT EXISTS identity (plan TEXT, model TEXT, value TEXT, PRIMARY KEY (plan, model));
CREATE TABLE IF NOT EXISTS audited (request TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS secret (value BLOB);
"""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for a request in flight."""

    id: int
    name: str
    amount_usd: float


class StateUnavailableError(Exception):
    """The state cannot be written now, so nothing may be spent."""


class GatewayState:
    """The state of one gateway, in SQLite; several processes may share it.

    A disk that is full or gone stops no answer: charges wait in memory until they can be stored, audits are left out,
    and only new reservations fail.
    """

    def __init__(self, path: Path, plan_hash: str, audit_limit: float | None) -> None:
        """Open or create the state.

        Args:
            path: The database.
            plan_hash: Of the plan served; the audit and the identities belong to it.
            audit_limit: Mean difference that is promised, ``None`` without an audit.

        Raises:
            UnfoldError: The file is no such database, or cannot be written.
        """
        self.plan_hash = plan_hash
        self.audit_limit = audit_limit
        self._read_at = time.monotonic()
        self._identities: dict[str, str] = {}
        self._charges: dict[int, tuple[Reservation, float]] = {}
        self._reported_at = -REPORT_S
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
            with ExitStack() as on_failure:
                on_failure.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(SCHEMA)
                with self._transaction():
                    self._charge_dead_processes()
                    self._db.execute("INSERT OR IGNORE INTO plan_state VALUES (?, NULL, NULL)", (plan_hash,))
                    if self._db.execute("SELECT value FROM secret").fetchone() is None:
                        self._db.execute("INSERT INTO secret VALUES (?)", (os.urandom(32),))
                self.secret: bytes = self._db.execute("SELECT value FROM secret").fetchone()[0]
                self.is_revoked, self.void_reason = self._read_audit().is_revoked, self._read_void_reason()
                on_failure.pop_all()
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as problem:
            hint = "move the file away to start with empty budgets and a new audit"
            raise user_error(
                f"the state of the gateway cannot be used: {problem}", file=str(path), hint=hint
            ) from problem

    def refresh(self) -> None:
        """Read what other processes have found, at most once a second."""
        if time.monotonic() - self._read_at > REFRESH_S:
            self._read_at = time.monotonic()
            try:
                self.is_revoked, self.void_reason = self._read_audit().is_revoked, self._read_void_reason()
            except sqlite3.Error as problem:
                self._report(problem)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the promise is revoked or void."""
        return self.is_revoked or bool(self.void_reason)

    def close(self) -> None:
        """Store the charges that still wait, and close the database."""
        with suppress(sqlite3.Error):
            self._store_charges()
        self._db.close()

    def reserve(self, name: str, amount_usd: float, budget_usd: float | None) -> Reservation | None:
        """Set money aside for a request, at once for all processes; ``None`` if the budget does not suffice.

        Raises:
            StateUnavailableError: It cannot be written.
        """
        try:
            self._store_charges()
            return self._reserve(name, amount_usd, float("inf") if budget_usd is None else budget_usd)
        except sqlite3.Error as problem:
            self._report(problem)
            raise StateUnavailableError from problem

    def _reserve(self, name: str, amount_usd: float, budget_usd: float) -> Reservation | None:
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO spending VALUES (?, 0, 0)", (name,))
            changed = self._db.execute(
                "UPDATE spending SET reserved = reserved + ? WHERE name = ? AND spent + reserved + ? <= ?",
                (amount_usd, name, amount_usd, budget_usd + 1e-12),
            )
            if changed.rowcount != 1:
                return None
            # SQLite would give the number of a settled reservation to the next one, which a second call then settles
            number = secrets.randbits(62)
            self._db.execute("INSERT INTO reservation VALUES (?, ?, ?, ?)", (number, name, amount_usd, os.getpid()))
            return Reservation(number, name, amount_usd)

    def settle(self, reservation: Reservation, cost_usd: float) -> None:
        """Charge what a request cost, and release what was set aside for it; a second call changes nothing."""
        self._charges.setdefault(reservation.id, (reservation, cost_usd))
        try:
            self._store_charges()
        except sqlite3.Error as problem:
            self._report(problem)

    def _store_charges(self) -> None:
        if not self._charges:
            return
        with self._transaction():
            for reservation, cost_usd in self._charges.values():
                removed = self._db.execute("DELETE FROM reservation WHERE id = ?", (reservation.id,))
                if removed.rowcount == 1:
                    self._charge(reservation.name, reservation.amount_usd, cost_usd)
        self._charges.clear()

    def spent(self, name: str) -> float:
        """Return what a key has spent in dollars."""
        row = self._db.execute("SELECT spent FROM spending WHERE name = ?", (name,)).fetchone()
        return 0.0 if row is None else float(row[0])

    def observe(self, request_id: str, difference: float) -> bool:
        """Add an audited difference, once per request, and return whether the promise is revoked."""
        if self.audit_limit is None:
            return self.is_revoked
        try:
            self._add_difference(request_id, difference)
        except sqlite3.Error as problem:
            self._report(problem)
        return self.is_revoked

    def _add_difference(self, request_id: str, difference: float) -> None:
        with self._transaction():
            added = self._db.execute("INSERT OR IGNORE INTO audited VALUES (?)", (request_id,))
            if added.rowcount == 1:
                audit = self._read_audit()
                self.is_revoked = audit.observe(difference)
                text = json.dumps(audit.to_document())
                self._db.execute("UPDATE plan_state SET audit = ? WHERE plan = ?", (text, self.plan_hash))

    def audit(self) -> AuditProcess:
        """Return the audit as stored."""
        return self._read_audit()

    def check_identity(self, model: str, part: str, value: str) -> bool:
        """Return whether a model still is what it was at its first answer; if not, the promise is void for ever.

        Args:
            model: Name in the plan.
            part: What the upstream reports, ``model`` or ``fingerprint``; each is compared for itself.
            value: What it reports now.
        """
        key = f"{model}/{part}"
        if self._identities.get(key) == value:
            return True
        try:
            # the first identity of a plan never changes, so it is read once
            first = self._identities[key] = self._store_identity(key, value)
        except sqlite3.Error as problem:
            self._report(problem)
            first = self._identities.setdefault(key, value)
        if first == value:
            return True
        # what an upstream calls itself may hold line ends, which would forge lines of the log
        now, before = (shown if shown.isprintable() else repr(shown) for shown in (value, first))
        self.void_reason = f"the {part} of {model} is now {now}, and was {before}"
        try:
            with self._transaction():
                self._db.execute(
                    "UPDATE plan_state SET void_reason = ? WHERE plan = ?", (self.void_reason, self.plan_hash)
                )
        except sqlite3.Error as problem:
            self._report(problem)
        return False

    def _store_identity(self, key: str, value: str) -> str:
        """Store an identity if it is the first one of a model, and return the first one."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO identity VALUES (?, ?, ?)", (self.plan_hash, key, value))
            row = self._db.execute(
                "SELECT value FROM identity WHERE plan = ? AND model = ?", (self.plan_hash, key)
            ).fetchone()
        return str(row[0])

    def _report(self, problem: sqlite3.Error) -> None:
        if time.monotonic() - self._reported_at >= REPORT_S:
            self._reported_at = time.monotonic()
            _LOG.error("the state of the gateway cannot be used: %s; requests of clients with keys get 503", problem)

    def _charge(self, name: str, reserved_usd: float, cost_usd: float) -> None:
        self._db.execute(
            "UPDATE spending SET reserved = MAX(reserved - ?, 0), spent = spent + ? WHERE name = ?",
            (reserved_usd, cost_usd, name),
        )

    def _charge_dead_processes(self) -> None:
        """Charge what processes had set aside that were killed: their upstream calls may have been billed."""
        rows = self._db.execute("SELECT id, name, amount, pid FROM reservation").fetchall()
        for number, name, amount, pid in rows:
            if pid == os.getpid() or not _is_running(pid):
                self._db.execute("DELETE FROM reservation WHERE id = ?", (number,))
                self._charge(name, amount, amount)

    def _read_audit(self) -> AuditProcess:
        row = self._db.execute("SELECT audit FROM plan_state WHERE plan = ?", (self.plan_hash,)).fetchone()
        if row is None or row[0] is None:
            return AuditProcess(self.audit_limit or 0.0)
        return parse_audit(json.loads(row[0]))

    def _read_void_reason(self) -> str:
        row = self._db.execute("SELECT void_reason FROM plan_state WHERE plan = ?", (self.plan_hash,)).fetchone()
        return row[0] or ""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # some faults of the disk end the transaction by themselves
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
