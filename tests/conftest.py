"""Fixtures for every test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support import Outcome, Process, Unfold, call, command, surroundings


@pytest.fixture
def unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unfold:
    """Return the command line as a function: ``unfold("check", "a.yaml")``, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNFOLD_TOKEN", "UNFOLD_DISABLE_PLUGINS", "UNFOLD_TRACEBACK", "NO_COLOR", "FORCE_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str | Path, stdin: bytes | str = b"") -> Outcome:
        return call(words, stdin.encode() if isinstance(stdin, str) else stdin)

    return run


@pytest.fixture
def unfold_process(tmp_path: Path) -> Process:
    """Return the command line as a function that starts a process in an empty working folder."""

    def run(
        *words: str | Path, env: Mapping[str, str] | None = None, path: Sequence[Path] = (), stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        more = {"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}
        return subprocess.run(
            command(words),
            cwd=tmp_path,
            env=surroundings({**more, **(env or {})}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
