"""A service of the command line in a process of its own, on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-m", "unfoldkit")


def unfold(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, to its end."""
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def serving(folder: Path, what: str, *more: str, patience: float = 90) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve on a free port; give the process and the address. After ``patience`` in seconds it is killed."""
    words = [*COMMAND, "serve", what, "--port", "0", *more]
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(patience, process.kill)
    watchdog.start()
    try:
        assert process.stderr
        first = process.stderr.readline()
        found = re.search(r" on (http://\S+) · run ", first)
        assert found, first + process.stderr.read()
        yield process, found[1]
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def rest(process: subprocess.Popen[str]) -> str:
    """Return what the process still tells until its end; ``communicate`` would miss what was read ahead."""
    assert process.stderr
    told = process.stderr.read()
    process.wait(30)
    return told
