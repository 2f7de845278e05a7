"""Knative's autoscaler from its own code: the port that replays use decides alike.

Its file ``autoscaler.go`` is compiled as published, from the Go module proxy; only its imports are redirected, to stubs
of loggers, metrics and clients, none of which takes part in a decision.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_pipeline.tuner.autoscalers import KnativeScaler, KnativeSettings

pytestmark = pytest.mark.targets
MODULE = "knative.dev/serving@v0.51.0"
HARNESS = Path(__file__).with_name("knative_harness")
STUBBED = ("attribute", "metric", "zap", "zapcore", "autoscaling", "am", "resources", "apierrors", "types")
CASES, WINDOWS = 60, 40


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knative's autoscaler, which reads cases and prints its decisions."""
    environment = {**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false"}
    command = ["go", "mod", "download", "-json", MODULE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{MODULE} cannot be downloaded: {error}")
    source, folder = Path(json.loads(done.stdout)["Dir"]) / "pkg/autoscaler", tmp_path_factory.mktemp("kpa")
    for name in ("scaling", "max", "stubs"):
        (folder / name).mkdir()
    (folder / "go.mod").write_text("module kpa\n\ngo 1.22\n")
    (folder / "main.go").write_text('package main\n\nimport "kpa/scaling"\n\nfunc main() { scaling.Run() }\n')
    (folder / "scaling/autoscaler.go").write_text(redirect_imports((source / "scaling/autoscaler.go").read_text()))
    for name in ("timewindow.go", "window.go"):
        text = (source / "aggregation/max" / name).read_text()
        (folder / "max" / name).write_text(re.sub(r'"github\.com/\S+/spew"', 'spew "kpa/stubs"', text))
    for name in ("scaling_types.go", "harness.go"):
        shutil.copyfile(HARNESS / name, folder / "scaling" / name)
    shutil.copyfile(HARNESS / "stubs/stubs.go", folder / "stubs/stubs.go")
    built = subprocess.run(
        ["go", "build", "-o", "kpa", "."],  # noqa: S607 - as above, the Go of the path
        cwd=folder, capture_output=True, text=True, timeout=280, check=False, env=environment,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder / "kpa"


def redirect_imports(text: str) -> str:
    """Return a Go file that imports the stubs in place of all modules but the standard library."""
    block = re.search(r"import \((.*?)\n\)", text, re.DOTALL)
    assert block is not None
    standard = [line for line in block[1].splitlines() if line.strip() and "." not in line]
    stubs = [f'\t{name} "kpa/stubs"' for name in STUBBED]
    imports = "\n".join(["import (", *standard, *stubs, '\t"kpa/max"', ")"])
    return text[: block.start()] + imports + text[block.end() :]


def draw_case(rng: np.random.Generator) -> dict[str, Any]:
    """Return windows of a revision: calm, surges and lulls, at irregular times, with replicas that lag behind."""
    seconds = np.cumsum(rng.choice([2.0, 2.0, 2.0, 4.0, 30.0, 60.0, 62.0], WINDOWS))
    level = np.exp(np.cumsum(rng.normal(0, 0.5, WINDOWS)) + rng.normal(2, 1))
    level[rng.random(WINDOWS) < 0.15] *= rng.choice([0.0, 5.0, 40.0])
    panic = level * np.exp(rng.normal(0, 0.6, WINDOWS))
    ready = rng.integers(0, 60, WINDOWS)
    ready[0] = 1
    return {
        "Target": float(rng.choice([0.7, 1.0, 2.8, 7.0, 70.0])),
        "Windows": [
            {"Second": float(at), "Stable": float(stable), "Panic": float(peak), "Ready": int(count)}
            for at, stable, peak, count in zip(seconds, level, panic, ready, strict=True)
        ],
    }


def test_port_decides_as_knative(program: Path) -> None:
    """In 2,400 windows with and without panic, both demand the same replicas."""
    rng = np.random.default_rng(11)
    cases = [draw_case(rng) for _ in range(CASES)]
    text = "".join(f"{json.dumps(case)}\n" for case in cases)
    done = subprocess.run([str(program)], input=text, capture_output=True, text=True, timeout=60, check=True)
    published = [json.loads(line) for line in done.stdout.splitlines()]
    panics = 0
    for case, expected in zip(cases, published, strict=True):
        scaler = KnativeScaler(target_concurrency=case["Target"], settings=KnativeSettings())
        decided = []
        for item in case["Windows"]:
            decided.append(scaler.scale(item["Second"], item["Stable"], item["Panic"], item["Ready"]))
            panics += scaler.panic_s is not None
        assert decided == expected
    # both modes occur
    assert 0.2 < panics / (CASES * WINDOWS) < 0.9
