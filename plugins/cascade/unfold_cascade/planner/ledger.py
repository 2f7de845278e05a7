"""The ledger of certificates: how many were tried on the same data, and with what confidence they hold together.

Each certificate fails with probability 1 - confidence at most. Trying several goals or models until one is certified
gives as many chances of a false certificate, refusals included (Bonferroni). The bound holds for someone who goes by
the verdicts and stops at the first yes. Each table has a ledger, named by its hash, in the run and in the folder of
the user's state, as attempts in other runs count as well. A plan made again without a change is no new attempt.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unfoldkit.api import Run, fingerprint
from unfoldkit.safe_io.files import read_bytes

FOLDER = "certificates"
MAX_ENTRIES = 100_000
_KEY = re.compile(r"[0-9a-f]{16,128}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One certificate: its fingerprint, its confidence, the name of the plan, and whether it was issued or refused."""

    key: str
    confidence: float
    name: str
    is_issued: bool


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """Which attempt on these data a certificate is, and the confidence that all up to it hold together."""

    number: int
    joint_confidence: float
    allowed: int = 1


def split_confidence(confidence: float, attempts: int) -> float:
    """Compute the confidence of each certificate with which ``attempts`` of them hold together with ``confidence``."""
    return 1.0 - (1.0 - confidence) / attempts


def count_attempt(entries: Iterable[Attempt], attempt: Attempt, allowed: int) -> AttemptCount:
    """Count the attempts up to ``attempt``, which may be among the entries already."""
    distinct = {entry.key: entry for entry in entries}
    keys = list(distinct)
    position = keys.index(attempt.key) if attempt.key in distinct else len(keys)
    before = [distinct[key] for key in keys[:position]]
    failure = sum(1.0 - entry.confidence for entry in [*before, attempt])
    return AttemptCount(position + 1, max(0.0, 1.0 - failure), allowed)


def record_attempt(attempt: Attempt, data_digest: str, allowed: int, run: Run) -> AttemptCount:
    """Add an attempt to the ledgers of the run and of the user, and count it."""
    name = f"{FOLDER}/{data_digest if _KEY.fullmatch(data_digest) else fingerprint(data_digest)}.jsonl"
    own = _parse(run.directory.read(name)) if run.directory.has(name) else []
    if attempt.key not in {entry.key for entry in own}:
        own.append(attempt)
        run.directory.write(name, b"".join(map(_write, own)))
    folder = run.options.get("state")
    others = _record_for_user(Path(folder) / name, attempt, run) if folder else []
    return count_attempt([*others, *own], attempt, allowed)


def identify_attempt(*parts: object) -> str:
    """Fingerprint what distinguishes one attempt from another: spec, seed, data and selected cascade."""
    return fingerprint(*parts)


def _record_for_user(path: Path, attempt: Attempt, run: Run) -> list[Attempt]:
    """Append an attempt to a ledger, unless it is there, and return the earlier ones; an unwritable one is logged."""
    entries: list[Attempt] = []
    line = _write(attempt)
    try:
        data = read_bytes(path) if path.is_file() else b""
        entries = _parse(data)
        if data and not data.endswith(b"\n"):
            # a full disk has cut the last line, which would spoil this one
            line = b"\n" + line
        if attempt.key not in {entry.key for entry in entries}:
            path.parent.mkdir(parents=True, exist_ok=True)
            # one short write at the end of the file: runs at the same time do not lose each other's lines
            with path.open("ab", buffering=0) as stream:
                if stream.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
    except OSError as error:
        run.log.warning("the ledger of certificates was not written: %s", error.strerror or error)
    return entries


def _write(attempt: Attempt) -> bytes:
    document = {
        "key": attempt.key,
        "confidence": attempt.confidence,
        "name": attempt.name,
        "issued": attempt.is_issued,
    }
    return (json.dumps(document) + "\n").encode()


def _parse(data: bytes) -> list[Attempt]:
    """Parse a ledger; a damaged line, such as one cut by a full disk, is skipped."""
    entries = []
    for line in data.decode("utf-8", "replace").splitlines()[:MAX_ENTRIES]:
        with suppress(ValueError, KeyError, TypeError):
            document = json.loads(line)
            confidence = float(document["confidence"])
            if 0.0 < confidence < 1.0:
                entries.append(
                    Attempt(str(document["key"]), confidence, str(document["name"]), bool(document["issued"]))
                )
    return entries
