"""Under overload, connections are read and refused many at a time, without the event loop's part of the cost.

Who is refused will mostly be refused again, so a connection comes under the sweep with its first refusal. After each
rest of the loop the kernel is asked once which of them have something; a whole plain request that finds no room is
refused on the spot. Whatever else was read goes to its connection, as if the loop had read it.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MOST = 512
"""Connections that one sweep looks at: the loop hears others in between."""

READ_BYTES = 4096


class Swept(Protocol):
    """A connection, as a sweep sees it: ``calm`` if it was found so and nothing happened since; ``seen`` is when last.

    Calm is one on which nothing is under way in either direction, so that what comes next is a request from its start.
    """

    calm: bool
    seen: float

    def is_calm(self) -> bool:
        """Whether it is calm; noted in ``calm``."""

    def data_received(self, data: bytes) -> None:
        """Take bytes that came."""

    def send(self, data: bytes) -> None:
        """Write bytes behind what is still to be written."""


@dataclass(slots=True)
class Verdict:
    """What becomes, for one sweep, of requests with one head: those of ``size`` bytes get ``answer``, and are counted.

    ``refuse`` is told how many they were.
    """

    size: int
    answer: bytes = b""
    refuse: Callable[[int], object] = abs
    count: int = 0


@dataclass(slots=True)
class Sweep:
    """The connections under the sweep of one event loop, by their file descriptors.

    ``judge`` gives the verdict on a head; ``later`` calls a function in the next turn of the loop.
    """

    judge: Callable[[bytes], Verdict]
    later: Callable[[Callable[[], None]], object]
    now: Callable[[], float]
    connections: dict[int, Swept] = field(default_factory=dict)
    poller: select.epoll | None = None
    due: bool = False

    def watch(self, connection: Swept, number: int) -> None:
        """Put a connection under the sweep, which comes as soon as the loop has rested."""
        self._soon()
        if self.connections.get(number) is connection:
            return
        with contextlib.suppress(OSError):
            self._poller().register(number, select.EPOLLIN)
            self.connections[number] = connection

    def forget(self, connection: Swept, number: int) -> None:
        """Let a connection go; nothing happens where another has its number by now."""
        if self.connections.get(number) is not connection:
            return
        del self.connections[number]
        with contextlib.suppress(OSError):
            self._poller().unregister(number)

    def run(self) -> None:
        """Read from connections that have something, and refuse what is to be refused; again while there is some."""
        self.due, now = False, self.now()
        verdicts: dict[bytes, Verdict] = {}
        for number, _ in self._poller().poll(0, MOST):
            connection = self.connections.get(number)
            if connection is not None and (connection.calm or connection.is_calm()):
                connection.seen = now
                self._read(connection, number, verdicts)
        refused = [verdict for verdict in verdicts.values() if verdict.count]
        for verdict in refused:
            verdict.refuse(verdict.count)
        if refused:
            self._soon()

    def _read(self, connection: Swept, number: int, verdicts: dict[bytes, Verdict]) -> None:
        try:
            data = os.read(number, READ_BYTES)
        except OSError:
            # the loop will see it too
            return
        head = data[: data.find(b"\r\n\r\n") + 4]
        verdict = verdicts.get(head)
        if verdict is None:
            verdict = verdicts[head] = self.judge(head)
        if verdict.size == len(data):
            verdict.count += 1
            _write(connection, number, verdict.answer)
        elif data:
            connection.data_received(data)

    def _soon(self) -> None:
        if not self.due:
            self.due = True
            self.later(self.run)

    def _poller(self) -> select.epoll:
        if self.poller is None:
            self.poller = select.epoll()
        return self.poller


def _write(connection: Swept, number: int, answer: bytes) -> None:
    try:
        sent = os.write(number, answer)
    except BlockingIOError:
        sent = 0
    except OSError:
        # the client left: the loop will see it too
        return
    if sent < len(answer):
        connection.send(answer[sent:])
