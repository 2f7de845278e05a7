"""Specs of kind echo in the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ECHO


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Return a small valid spec in the working folder."""
    path = tmp_path / "a.yaml"
    path.write_text(ECHO + "repeat: 2\n", encoding="utf-8")
    return path


@pytest.fixture
def dear(tmp_path: Path) -> Path:
    """Return a valid spec that has no feasible plan."""
    path = tmp_path / "dear.yaml"
    path.write_text(ECHO + "repeat: 3\nbudget: $0.01\n", encoding="utf-8")
    return path
