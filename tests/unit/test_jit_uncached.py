"""Compiled loops where no machine code can be kept."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


LOOP = """
from unfoldkit.jit import compiled
@compiled
def double(x):
    return 2 * x
print(double(4), sum(double.stats.cache_hits.values()))
"""


@pytest.mark.e2e
def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    """Files that lost their content, as in a power cut, are replaced: the code is compiled, and cached once more."""
    (tmp_path / "loop.py").write_text(LOOP, encoding="utf-8")
    assert _run_loop(tmp_path) == "8 0"
    for pattern in ("*.nbi", "*.nbc"):
        for file in tmp_path.rglob(pattern):
            file.write_bytes(b"")
        assert [_run_loop(tmp_path), _run_loop(tmp_path)] == ["8 0", "8 1"]


@pytest.mark.e2e
def test_code_that_finds_no_room_stays_in_memory(tmp_path: Path) -> None:
    """A full disk behind the cache folder stops no verb."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
    (tmp_path / "loop.py").write_text(full + LOOP, encoding="utf-8")
    assert [_run_loop(tmp_path), _run_loop(tmp_path)] == ["8 0", "8 0"]


def _run_loop(folder: Path) -> str:
    environment = surroundings({"NUMBA_CACHE_DIR": str(folder / "cache")})
    done = subprocess.run(
        [sys.executable, str(folder / "loop.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
