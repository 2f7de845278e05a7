"""Tasks on Ray that run until they are let go, and say from within where they run: no pause decides what is seen."""

from __future__ import annotations

import functools
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# nothing of the plugin is imported here: each process that holds would take a second for it
LABEL = "unfold-name"
WAIT = 240.0
PAUSE = 0.02


@dataclass(slots=True)
class Holders:
    """The tasks that run: each calls from its own process on its own node, and hangs up as it ends."""

    path: Path
    server: socket.socket
    calls: dict[socket.socket, tuple[str, str]] = field(default_factory=dict)

    def there(self) -> list[tuple[str, str]]:
        """Return the tasks that run, each with the node that it runs on, by their names."""
        self._take()
        for call in [call for call in self.calls if gone(call)]:
            del self.calls[call]
            call.close()
        return sorted(self.calls.values())

    def let_go(self, tasks: Collection[str]) -> None:
        """Let tasks end."""
        for call, (task, _) in self.calls.items():
            if task in tasks:
                call.sendall(b"\n")

    def close(self) -> None:
        """Let every task end, and take no more calls."""
        for each in (self.server, *self.calls):
            each.close()

    def _take(self) -> None:
        while True:
            try:
                call, _ = self.server.accept()
            except BlockingIOError:
                return
            call.settimeout(WAIT)
            with call.makefile("r", encoding="utf-8") as said:
                task, _, node = said.readline().strip().partition(" ")
            call.setblocking(False)
            self.calls[call] = task, node


@contextmanager
def holders() -> Iterator[Holders]:
    """Take calls from the processes of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        made = Holders(Path(folder, "calls"), socket.socket(socket.AF_UNIX))
        made.server.bind(str(made.path))
        made.server.listen(64)
        made.server.setblocking(False)
        try:
            yield made
        finally:
            made.close()


def gone(call: socket.socket) -> bool:
    """Return whether whoever called has hung up."""
    try:
        return not call.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def hold(path: str, task: str) -> None:
    """Report the task and its node, and run until released."""
    import ray

    node = ray.get_runtime_context().get_node_labels()[LABEL]
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(path)
        call.sendall(f"{task} {node}\n".encode())
        call.recv(1)


@functools.cache
def holder() -> Any:
    """Return the remote function of tasks that run until they are let go; its process stays for the next."""
    import ray

    # as for those that sleep: Ray starts a process anew for every task with a GPU otherwise
    return ray.remote(max_calls=0)(hold)


def wait(holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, otherwise()
        time.sleep(PAUSE)
