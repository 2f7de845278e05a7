"""Compiled loops where no machine code can be kept."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support import ROOT, surroundings

# where numba looks for a folder to write to: none, as in a container with a user that owns nothing
NOWHERE = "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
LAZY = """
from unfold_cascade.temporal.data import windows
from unfold_cascade.temporal.simulation import trajectories
trajectories._compile_kernel(), windows._compile_kernel()
"""


def modules() -> list[str]:
    """Return the modules that compile something at import or at first use."""
    files = [
        path for folder in ("src", "plugins") for path in (ROOT / folder).rglob("*.py") if "tests" not in path.parts
    ]
    found = [path for path in files if re.search(r"\b(?:compiled|njit)\(", path.read_text("utf-8"))]
    return [
        ".".join(path.with_suffix("").parts[len(ROOT.parts) + (1 if "src" in path.parts else 2) :]) for path in found
    ]


@pytest.mark.e2e
def test_loops_are_compiled_where_nothing_can_be_written() -> None:
    """Every module with a compiled loop can be used where its code can be kept nowhere; it is made in memory then."""
    code = NOWHERE + "".join(f"import {name}\n" for name in modules()) + LAZY
    done = subprocess.run([sys.executable, "-c", code], env=surroundings(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unfold_tuning.simulator.kernels" in modules()
