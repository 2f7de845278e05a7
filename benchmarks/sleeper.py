"""A trial for benchmarks that sleeps as long as the model says that an iteration takes, and learns a known curve."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEAN = 2.0
DEVIATION = 0.4
GAIN = {1: 1.0, 2: 1.8}


def train(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Sleep through ``iters`` iterations with log-normal lengths; the metric rises towards the configuration's own."""
    done = json.loads(state)["done"] if state else 0
    sigma = math.sqrt(math.log1p((DEVIATION / MEAN) ** 2))
    for step in range(done, done + iters):
        drawn = random.Random(f"{seed} {config['ceiling']} {step}").gauss(0.0, sigma)  # noqa: S311
        time.sleep(MEAN * math.exp(drawn - sigma * sigma / 2) / GAIN[accelerators])
    done += iters
    return config["ceiling"] * (1 - 0.7**done), json.dumps({"done": done}).encode()


def logged(
    config: Mapping[str, Any],
    state: bytes | None,
    iters: int,
    accelerators: int,
    seed: int,  # noqa: ARG001 - nothing is drawn
) -> tuple[float, bytes]:
    """Write every iteration down, in the file and with the length that the environment says."""
    done = json.loads(state)["done"] if state else 0
    for step in range(done, done + iters):
        with Path(os.environ["SLEEPER_LOG"]).open("a", encoding="utf-8") as log:
            log.write(f"{config['ceiling']:.12f} {step}\n")
        time.sleep(float(os.environ["SLEEPER_SECONDS"]) / accelerators)
    return config["ceiling"] * (1 - 0.7 ** (done + iters)), json.dumps({"done": done + iters}).encode()
