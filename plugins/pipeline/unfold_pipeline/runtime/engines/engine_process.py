"""A process that serves an engine: it prints its address when it is ready, and runs until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

ADDRESS = re.compile(r"^http://127\.0\.0\.1:\d{1,5}$")
MAX_ADDRESS_BYTES = 1 << 12
STOP_S = 5.0
LAST_LINES = 3


class StartError(Exception):
    """An engine that did not start, with the last lines that it printed."""


@dataclass(slots=True)
class EngineProcess:
    """A process that serves an engine.

    Attributes:
        process: The process.
        errors: What it prints.
        url: Where it serves; empty until it does.
        start_s: Seconds from its launch until it served.
        is_stopping: Whether its end was ordered.
    """

    process: asyncio.subprocess.Process
    errors: IO[bytes]
    url: str = ""
    start_s: float = 0.0
    is_stopping: bool = False
    watch: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.returncode is None

    def watch_end(self, on_end: Callable[[], None]) -> None:
        """Call a function once the process ends."""

        async def wait() -> None:
            await self.process.wait()
            on_end()

        self.watch = asyncio.create_task(wait())

    async def stop(self) -> None:
        """End the process, by force where it does not follow."""
        self.is_stopping = True
        if self.watch is not None:
            self.watch.cancel()
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), STOP_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
                await self.process.wait()
        self.errors.close()

    def describe_end(self) -> str:
        """Return how the process ended, and the last lines that it printed."""
        code = self.process.returncode or 0
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self.errors.seek(0)
        lines = self.errors.read()[-MAX_ADDRESS_BYTES:].decode("utf-8", "replace").strip().splitlines()[-LAST_LINES:]
        return " | ".join([f"its process ended {cause}", *lines])


async def launch_engine(arguments: Sequence[str], timeout_s: float) -> EngineProcess:
    """Start a process and wait until it prints its address.

    Args:
        arguments: The command line.
        timeout_s: How long it may take.

    Raises:
        StartError: The process ended or printed no address in time.
    """
    begin_s = time.perf_counter()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process stops
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        limit=MAX_ADDRESS_BYTES,
        # Ctrl-C in a terminal reaches the service alone, which drains its engines
        start_new_session=True,
    )
    engine = EngineProcess(process, errors)
    try:
        async with asyncio.timeout(timeout_s):
            engine.url = await _read_address(process)
    except TimeoutError as error:
        await engine.stop()
        raise StartError(f"it did not serve within {timeout_s:g} s") from error
    except BaseException:
        await engine.stop()
        raise
    if not engine.url:
        await process.wait()
        text = engine.describe_end()
        await engine.stop()
        raise StartError(text)
    engine.start_s = time.perf_counter() - begin_s
    return engine


async def _read_address(process: asyncio.subprocess.Process) -> str:
    """Return the address that a process prints; empty once its output ends. Other lines are skipped."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:  # a line longer than the limit
            continue
        text = line.decode("utf-8", "replace").strip()
        if not line or ADDRESS.match(text):
            return text if line else ""
