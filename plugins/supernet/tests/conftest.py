"""Fixtures of the plugin's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.supernet.tests.helpers import HANDOFF_SPEC, make_run, parse_spec
from unfold_supernet.verbs.train import train


@pytest.fixture(scope="session")
def handoff_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small supernet once for the session."""
    pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
    path = tmp_path_factory.mktemp("run")
    train(parse_spec(HANDOFF_SPEC), make_run(path))
    return path
