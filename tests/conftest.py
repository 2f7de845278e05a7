"""What tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: ``UNFOLD_SHARED``, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("UNFOLD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder
