"""Sessions of clients with the coordinator, and the messages between them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from unfold_placement.live.backend import Record
from unfold_placement.ray.placement_groups import Reservation

CLIENT_TIMEOUT_S = 15.0
"""How long a client may be silent before its tasks are withdrawn."""
FORGET_S = 600.0
"""How long a silent client is remembered: one that was only slow receives the records of its withdrawn tasks."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Message to a client: run this attempt of a task inside this reservation."""

    task: str
    attempt: int
    slot: Reservation


@dataclass(frozen=True, slots=True)
class Ended:
    """Message of a client: an attempt ended; ``died`` if its worker did, rather than its function."""

    task: str
    attempt: int
    outcome: str = ""
    died: bool = False


@dataclass(slots=True)
class ClientSession:
    """A process that submits tasks.

    Attributes:
        last_seen_s: Time of its last message in seconds.
        is_leaving: It has announced its end.
        messages: Offers, and records of tasks that will not run any more, by number. They stay until the client
            acknowledges them, since an answer may be lost on its way.
        last_number: Number of the last message.
        tasks: Its unfinished tasks.
    """

    last_seen_s: float
    is_leaving: bool = False
    messages: deque[tuple[int, Offer | Record]] = field(default_factory=deque)
    last_number: int = 0
    tasks: set[str] = field(default_factory=set)

    @property
    def has_messages(self) -> bool:
        """Whether a waiting client must be answered."""
        return bool(self.messages or self.is_leaving)

    def add_message(self, message: Offer | Record) -> None:
        """Queue a numbered message, which is sent again until the client acknowledges its number."""
        self.last_number += 1
        self.messages.append((self.last_number, message))

    def acknowledge(self, number: int) -> None:
        """Forget the messages up to a number, which the client has received."""
        while self.messages and self.messages[0][0] <= number:
            self.messages.popleft()

    def list_messages(self) -> list[tuple[int, Offer | Record]]:
        """Return the messages that the client has not acknowledged, with their numbers."""
        return list(self.messages)


@dataclass(slots=True)
class Sessions:
    """The sessions of all clients. Callers hold the coordinator's lock.

    Attributes:
        clients: Sessions by client.
        owners: Client of each unfinished task.
    """

    clients: dict[str, ClientSession] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)

    def touch(self, client: str, now: float) -> ClientSession:
        """Return the session of a client, which is new or seen now."""
        # numbers grow from one coordinator to the next, so that a client acknowledges nothing that it has not seen
        session = self.clients.setdefault(client, ClientSession(now, last_number=time.time_ns() // 1_000_000))
        session.last_seen_s = now
        return session

    def add_task(self, client: str, task: str) -> None:
        """Record which client submitted a task."""
        self.owners[task] = client
        self.clients[client].tasks.add(task)

    def session_of(self, task: str) -> ClientSession | None:
        """Return the session of a task's client, if there is one."""
        return self.clients.get(self.owners.get(task, ""))

    def close_task(self, record: Record, *, notify: bool) -> None:
        """Forget a task; with ``notify`` its client receives the record."""
        session = self.clients.get(self.owners.pop(record.task.name, ""))
        if session is not None:
            session.tasks.discard(record.task.name)
            if notify:
                session.add_message(record)

    def list_abandoned(self, now: float) -> list[str]:
        """Return the unfinished tasks of clients that have been silent too long, and forget those that stay away."""
        silence_s = {client: now - session.last_seen_s for client, session in self.clients.items()}
        abandoned = [
            task for client, elapsed_s in silence_s.items() if elapsed_s > CLIENT_TIMEOUT_S
            for task in self.clients[client].tasks
        ]  # fmt: skip
        for client in [client for client, elapsed_s in silence_s.items() if elapsed_s > FORGET_S]:
            del self.clients[client]
        return abandoned
