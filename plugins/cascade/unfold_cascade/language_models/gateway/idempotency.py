"""Replays of requests with an ``Idempotency-Key``: the same request is answered once, and billed once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field

KEPT_S = 24 * 3600.0
MAX_BYTES = 64 << 20
ENTRY_BYTES = 512
"""Counted for every entry, beside the reply: at least what it takes in memory."""
Header = tuple[bytes, bytes]


@dataclass(slots=True)
class StoredReply:
    """A reply in full: status, headers and body."""

    status: int
    headers: list[Header]
    body: bytes


@dataclass(slots=True)
class Entry:
    """A request under a key: the hash of its body, and its reply once it is complete."""

    body_hash: bytes
    stored_at: float
    reply: asyncio.Future[StoredReply | None]
    size: int = 0


@dataclass(slots=True)
class ReplyStore:
    """Replies of the last 24 hours in memory, the oldest dropped first; of a request only its hash is kept."""

    entries: OrderedDict[tuple[str, str], Entry] = field(default_factory=OrderedDict)
    size: int = 0

    def find(self, client: str, key: str) -> Entry | None:
        """Find the entry of a key; one that is too old is forgotten."""
        entry = self.entries.get((client, key))
        if entry is not None and time.monotonic() - entry.stored_at > KEPT_S:
            self.drop(client, key)
            return None
        return entry

    def open(self, client: str, key: str, body: bytes) -> Entry:
        """Open an entry for a request in flight."""
        entry = Entry(hash_body(body), time.monotonic(), asyncio.get_running_loop().create_future())
        self.entries[client, key] = entry
        return entry

    def complete(self, client: str, key: str, reply: StoredReply) -> None:
        """Store the reply of a request, and wake those which wait for it."""
        entry = self.entries.get((client, key))
        if entry is None:
            return
        entry.size = ENTRY_BYTES + len(reply.body) + sum(len(name) + len(value) for name, value in reply.headers)
        self.size += entry.size
        if not entry.reply.done():
            entry.reply.set_result(reply)
        while self.size > MAX_BYTES:
            oldest = next((name for name, each in self.entries.items() if each.reply.done()), None)
            if oldest is None:
                break
            self.drop(*oldest)

    def drop(self, client: str, key: str) -> None:
        """Forget a request, such as one that failed; those which wait for it try themselves."""
        entry = self.entries.pop((client, key), None)
        if entry is not None:
            self.size -= entry.size
            if not entry.reply.done():
                entry.reply.set_result(None)


def hash_body(body: bytes) -> bytes:
    """Hash the body of a request."""
    return hashlib.sha256(body).digest()
