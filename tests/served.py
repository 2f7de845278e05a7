"""A service of the command line in a process of its own, on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-m", "unfoldkit")


def unfold(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, to its end."""
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def serving(folder: Path, what: str, *more: str, patience: float = 90) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve on a free port; give the process and the address, which warnings may precede.

    After ``patience`` in seconds the process is killed.
    """
    words = [*COMMAND, "serve", what, "--port", "0", *more]
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(patience, process.kill)
    watchdog.start()
    try:
        assert process.stderr
        yield process, find_address(process.stderr)
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def find_address(lines: Iterable[str]) -> str:
    """Read lines up to the one that names the address; fail with all of them if none does."""
    printed: list[str] = []
    for line in lines:
        if found := re.search(r" on (http://\S+) · run ", line):
            return found[1]
        printed.append(line)
    raise AssertionError("".join(printed))


def rest(process: subprocess.Popen[str]) -> str:
    """Return what the process still prints until its end; ``communicate`` would miss what was read ahead."""
    assert process.stderr
    printed = process.stderr.read()
    process.wait(30)
    return printed
