"""Make ``burst.csv``: a steady rate, and bursts on top whose gaps are gamma distributed with CV² 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unfoldkit.arrivals.processes import gamma_arrivals, piecewise_arrivals

BASE = [400.0] * 6
BURST = [0.0, 1200.0, 0.0, 3600.0, 0.0, 600.0]


def main() -> None:
    """Write the trace beside this file."""
    rng = np.random.default_rng(8)
    times = np.sort(np.concatenate([gamma_arrivals(BASE[0], 3.0, rng), piecewise_arrivals(BURST, 0.5, rng, scv=8.0)]))
    lines = ["arrival_s", *(f"{time:.4f}" for time in times)]
    Path(__file__).with_name("burst.csv").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
