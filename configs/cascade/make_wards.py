"""Write wards.csv: 160 made-up patients with hourly values, some of whom fall ill. Run it from this folder."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

PATIENTS = 160
HEAD = ("patient", "hour", "Age", "HR", "Temp", "Resp", "WBC", "PaCO2", "Sepsis")


def main() -> None:
    """Write the table beside this file; the same bytes at each run."""
    rng = np.random.default_rng(2019)
    rows = [row for patient in range(PATIENTS) for row in hours(patient, rng)]
    with Path("wards.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([HEAD, *rows])


def hours(patient: int, rng: np.random.Generator) -> list[tuple[object, ...]]:
    """Return the hours of one patient: a third fall ill, and their values drift for twelve hours before it shows."""
    length, age = int(rng.integers(24, 49)), int(rng.integers(30, 90))
    ill = rng.random() < 0.35
    begin = int(rng.integers(10, length - 4)) if ill else length + 24
    slow = np.cumsum(rng.normal(0.0, 0.35, length)) * 0.6
    return [_hour(patient, hour, age, float(slow[hour]), hour - begin, rng) for hour in range(length)]


def _hour(patient: int, hour: int, age: int, slow: float, since: int, rng: np.random.Generator) -> tuple[object, ...]:
    illness = float(np.clip((since + 12) / 12.0, 0.0, 1.5))
    heart = 78 + 5 * slow + 16 * illness + rng.normal(0, 5)
    heat = 36.9 + 0.2 * slow + 0.9 * illness + rng.normal(0, 0.25)
    breath = 16 + 1.2 * slow + 4.5 * illness + rng.normal(0, 1.6)
    cells = f"{9 + slow + 4 * illness + rng.normal(0, 1.0):.1f}" if hour % 12 == 1 else ""
    gas = f"{40 - slow - 5 * illness + rng.normal(0, 2.0):.0f}" if hour % 8 == 2 else ""
    label = int(since >= -6)
    return (f"w{patient:03d}", hour, age, f"{heart:.0f}", f"{heat:.1f}", f"{breath:.0f}", cells, gas, label)


if __name__ == "__main__":
    main()
