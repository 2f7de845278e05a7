"""``python -m benchmarks [NAME | --all] [--quick] [--seed N] [--write]``: stdout ends with one JSON object."""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.frame import FOLDER, NeedsDataError, NeedsExtraError, measure, names, summary

OUT_OF_TIME = -1000
NO_EXTRA = 4
OUTCOMES = {
    0: "measured",
    2: "NOT RUN: the shared data is not here",
    NO_EXTRA: "NOT RUN: an extra is not installed",
    OUT_OF_TIME: "NOT RUN: out of time",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, 1 if a benchmark failed, 2 if one was not found or lacks its data, 4 without its extra."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="which; without it, the list is printed")
    parser.add_argument("--all", action="store_true", help="run every one and write benchmarks/results/*.json")
    parser.add_argument("--quick", action="store_true", help="under a minute each; not for the docs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="with --all: in a random order, by its seed")
    parser.add_argument("--seconds", type=float, default=math.inf, help="with --all: start none after that time")
    parser.add_argument("--write", action="store_true", help="with NAME: write benchmarks/results/NAME.json too")
    given = parser.parse_args(arguments)
    if given.all:
        order = names()
        if given.shuffle is not None:
            random.Random(given.shuffle).shuffle(order)  # noqa: S311 - of benchmarks
        return run_all(order, quick=given.quick, seed=given.seed, seconds=given.seconds)
    if given.name is None:
        print("".join(f"{name:<20} {summary(name)}\n" for name in names()), end="")
        return 0
    if given.name not in names():
        parser.error(f"no such benchmark: {given.name} (one of: {', '.join(names())})")
    return run_one(given.name, quick=given.quick, seed=given.seed, write=given.write)


def run_one(name: str, *, quick: bool, seed: int, write: bool = False) -> int:
    """Measure one, print it, and keep it if asked to."""
    try:
        found = measure(name, quick=quick, seed=seed)
    except NeedsDataError as error:
        print(error, file=sys.stderr)
        return 2
    except NeedsExtraError as error:
        print(error, file=sys.stderr)
        return NO_EXTRA
    line = json.dumps(found, ensure_ascii=False, allow_nan=False)
    print(line)
    if write:
        _write(name, line)
    return 0


def run_all(order: Sequence[str], *, quick: bool, seed: int, seconds: float = math.inf) -> int:
    """Measure each in a process of its own; a quick run prints, a full one also writes the results."""
    began = time.monotonic()
    codes = {}
    for name in order:
        if time.monotonic() - began > seconds:
            codes[name] = OUT_OF_TIME
            continue
        words = [sys.executable, "-m", "benchmarks", name, "--seed", str(seed), *(["--quick"] if quick else [])]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, cwd=FOLDER.parent)
        codes[name] = done.returncode
        if done.returncode == 0:
            _keep(name, done.stdout.splitlines()[-1], quick=quick)
    for name, code in codes.items():
        print(f"{name:<20} {OUTCOMES.get(code, f'FAILED: exit {code}')}")
    return 1 if any(code not in OUTCOMES for code in codes.values()) else 0


def _keep(name: str, line: str, *, quick: bool) -> None:
    print(line)
    if not quick:
        _write(name, line)


def _write(name: str, line: str) -> None:
    (FOLDER / "results").mkdir(exist_ok=True)
    text = json.dumps(json.loads(line), indent=1, ensure_ascii=False) + "\n"
    (FOLDER / "results" / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
