"""What a start imports: a budget of modules, steady where milliseconds are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import HELLO, ROOT, surroundings

PROBE = """
import json, sys
from unfoldkit.cli import main
try:
    main({words!r})
except SystemExit as error:
    code = error.code
else:
    code = 0
sys.stderr.write("\\n" + json.dumps([code or 0, sorted(sys.modules)]))
"""
HEAVY = {
    "numpy",
    "scipy",
    "sklearn",
    "xgboost",
    "matplotlib",
    "numba",
    "boto3",
    "botocore",
    "ray",
    "torch",
    "onnx",
    "starlette",
    "uvicorn",
    "skops",
    "pandas",
}
MIDDLE = {
    "typer",
    "click",
    "pydantic",
    "pydantic_core",
    "rich",
    "yaml",
    "pluggy",
    "importlib.metadata",
    "asyncio",
    "logging",
}


def imported(folder: Path, *words: str) -> set[str]:
    """Return the modules that a call has imported beyond those of an empty interpreter."""
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(words=list(words))],
        cwd=folder,
        env=surroundings(),
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules) - set(bare.stdout.split())


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], []])
def test_help_and_version_import_next_to_nothing(tmp_path: Path, words: list[str]) -> None:
    """The first screen and the version need neither the command-line library nor any other."""
    found = imported(tmp_path, *words)
    assert not found & (HEAVY | MIDDLE)
    assert len(found) <= 40, sorted(found)


@pytest.mark.parametrize(
    ("words", "ceiling"),
    [(["check", str(HELLO)], 340), (["plugins"], 340), (["init", "echo"], 300), (["plan", "--help"], 280)],
)
def test_light_verbs_import_nothing_heavy(tmp_path: Path, words: list[str], ceiling: int) -> None:
    """Checking, listing, starting and help import no library of a domain, and few modules in all."""
    found = imported(tmp_path, *words)
    assert not found & HEAVY
    assert len(found) <= ceiling, len(found)


@pytest.mark.parametrize("spec", ["cascade/digits", "pipeline/chat", "placement/gangs", "supernet/ecg", "tuning/small"])
def test_checking_a_spec_imports_no_numerical_library(tmp_path: Path, spec: str) -> None:
    """The schema of a kind needs none of the libraries that its verbs compute with."""
    assert not imported(tmp_path, "check", str(ROOT / "configs" / f"{spec}.yaml")) & HEAVY


def test_a_plan_of_echo_imports_no_plots(tmp_path: Path) -> None:
    """A verb imports what its report needs: text draws no plots."""
    assert not imported(tmp_path, "plan", str(HELLO)) & HEAVY
