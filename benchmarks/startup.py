"""How long the first screen of help and the check of a spec take, and how large an installation is.

Each figure is the median of whole processes, run in turn; bytecode is there already, as after any install by pip.
``check_ms`` is that of the slowest kind, each on its first shipped spec. ``installed_mb`` is what
``pip install`` of the wheel without extras adds to a new virtual environment.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNFOLD = str(Path(sys.executable).parent / "unfold")
COUNT_MODULES = "import sys; from unfoldkit.cli import main; main(['--help']); sys.stderr.write(str(len(sys.modules)))"
INSTALL_S = 300
Command = Sequence[str]


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure start-up.

    Args:
        quick: 15 rounds instead of 41, and nothing is installed.
        seed: Not used: nothing is random.
        data: Not used.

    Returns:
        ``metrics``, ``peers``, ``aims``, ``tables`` and ``notes``; times in milliseconds.
    """
    del seed, data
    found = measured(rounds=15 if quick else 41)
    found["aims"]["installed_mb"] = "≤ 200"
    if quick:
        found["metrics"]["installed_mb"] = None
        found["notes"].append("quick: installed_mb was not measured")
        return found
    try:
        found["metrics"]["installed_mb"] = installed_mb()
        found["notes"].append(
            "installed_mb: files that pip adds, bytecode among them, without extras; 1 MB is 10^6 bytes"
        )
    except (subprocess.SubprocessError, OSError) as error:
        found["metrics"]["installed_mb"] = None
        found["notes"].append(f"installed_mb could not be measured: pip cannot install the wheel ({error})"[:300])
    return found


def measured(*, rounds: int) -> dict[str, Any]:
    """Return the figures of that many rounds."""
    specs = {path.parent.name: path for path in sorted((ROOT / "configs").glob("*/*.yaml"), reverse=True)}
    checks = {f"check {kind}": [UNFOLD, "check", str(path)] for kind, path in sorted(specs.items())}
    found = medians({**_fixed(), **checks}, rounds=rounds)
    slowest = max(checks, key=lambda name: found[name])
    metrics = {"help_ms": found["help"], "check_ms": found[slowest], "modules_at_help": modules_at_help()}
    peers = {name: {"help_ms": found[name]} for name in ("bare interpreter", "import typer", "Typer's own help")}
    table = [{"kind": name.removeprefix("check "), "check_ms": found[name]} for name in checks]
    notes = [f"check_ms is that of {slowest.removeprefix('check ')}, the slowest kind"]
    aims = {"help_ms": "< 100", "check_ms": "< 500"}
    return {"metrics": metrics, "peers": peers, "aims": aims, "tables": {"check": table}, "notes": notes}


def _fixed() -> dict[str, Command]:
    own = "from unfoldkit.cli.app import run; run(['--help'])"
    return {
        "help": [UNFOLD, "--help"],
        "bare interpreter": [sys.executable, "-c", "pass"],
        "import typer": [sys.executable, "-c", "import typer"],
        "Typer's own help": [sys.executable, "-c", own],
    }


def medians(commands: Mapping[str, Command], *, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each command, run in turn so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for done in range(rounds + 1):
        for name, command in commands.items():
            times[name].append(milliseconds(command))
        print(f"startup: round {done} of {rounds}", file=sys.stderr)
    # the first round writes bytecode
    return {name: round(statistics.median(values[1:]), 1) for name, values in times.items()}


def milliseconds(command: Command) -> float:
    """Return the wall time of one process.

    Raises:
        subprocess.CalledProcessError: it failed; a time of a failure means nothing.
    """
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment(), capture_output=True, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1e3


def modules_at_help() -> int:
    """Return how many modules are loaded when the first screen of help has been printed."""
    words = [sys.executable, "-c", COUNT_MODULES]
    return int(subprocess.run(words, check=True, env=environment(), capture_output=True, text=True).stderr)


def installed_mb() -> float:
    """Return how many megabytes the wheel of this checkout and all it needs take in a new virtual environment.

    Raises:
        subprocess.SubprocessError: pip cannot build or install it, for instance without an index.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "venv" / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        _install_step([sys.executable, "-m", "venv", str(folder / "venv")])
        empty = _count_bytes(folder / "venv")
        _install_step([*pip, "wheel", "--no-deps", "-w", str(folder / "wheel"), str(ROOT)])
        (wheel,) = (folder / "wheel").glob("*.whl")
        _install_step([*pip, "install", str(wheel)])
        return round((_count_bytes(folder / "venv") - empty) / 1e6, 1)


def _install_step(command: Command) -> None:
    # of this checkout nothing may be found but through the wheel
    own = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    subprocess.run(command, check=True, env=own, stdout=sys.stderr, stdin=subprocess.DEVNULL, timeout=INSTALL_S)


def _count_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def environment() -> dict[str, str]:
    """Return the environment without the switch that keeps bytecode from being written."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
