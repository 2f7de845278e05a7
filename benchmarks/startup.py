"""How long a user waits for the first screen of help, and for a spec to be checked.

Each figure is the median of whole processes, run in turn; bytecode is there already, as after any install by pip.
``check_ms`` is that of the slowest kind, each on its first shipped spec.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNFOLD = str(Path(sys.executable).parent / "unfold")
COUNT_MODULES = "import sys; from unfoldkit.cli import main; main(['--help']); sys.stderr.write(str(len(sys.modules)))"
Command = Sequence[str]


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure start-up.

    Args:
        quick: 15 rounds instead of 41.
        seed: Not used: nothing is random.
        data: Not used.

    Returns:
        ``metrics``, ``peers``, ``aims``, ``tables`` and ``notes``; times in milliseconds.
    """
    del seed, data
    return measured(rounds=15 if quick else 41)


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


def environment() -> dict[str, str]:
    """Return the environment without the switch that keeps bytecode from being written."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
