"""The benchmark of gates on logs reads any log in its layout."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cascade_gates import read_log, run, sets

WORDS = ("cat", "dog", "fish")


def _shared(folder: Path) -> Path:
    """Write two sets: one with three services and labels of words, one with two; prices stand in another order."""
    generator = np.random.default_rng(0)
    (folder / "model-apis").mkdir()
    prices = ["set,service,price_per_10k"]
    for name, services in (("PETS", {"nova": 9.0, "titan": 0.5, "cohere": 3.0}), ("TWO", {"a": 1.0, "b": 8.0})):
        prices += [f"{name},{service},{price}" for service, price in reversed(services.items())]
        lines = ["label," + ",".join(f"{service}_pred,{service}_conf" for service in services)]
        for _ in range(300):
            truth, sure = int(generator.integers(3)), generator.uniform(0.4, 1, len(services))
            said = np.where(generator.random(len(services)) < sure, truth, (truth + 1) % 3)
            cells = (f"{WORDS[answer]},{q:.3f}" for answer, q in zip(said, sure, strict=True))
            lines.append(f"{WORDS[truth]},{','.join(cells)}")
        (folder / "model-apis" / f"{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "model-apis" / "prices.csv").write_text("\n".join(prices) + "\n")
    return folder


def test_services_are_found_by_name(tmp_path: Path) -> None:
    """A price belongs to the columns of its service, wherever both stand."""
    folder = _shared(tmp_path) / "model-apis"
    assert sets(folder) == ["PETS", "TWO"]
    log = read_log(folder, "PETS")
    assert log.price.tolist() == [3.0, 0.5, 9.0]
    with gzip.open(folder / "PETS.csv.gz", "rt") as lines:
        cells = [line.strip().split(",") for line in lines][1:]
    assert log.confidence[:, 0].tolist() == [float(row[6]) for row in cells]
    assert log.loss[:, 2].tolist() == [float(row[1] != row[0]) for row in cells]


def test_other_sets_with_other_services_are_measured(tmp_path: Path) -> None:
    """Names, numbers of services and labels are those of the folder, not those of the set that is shipped with it."""
    found = run(quick=True, seed=0, data=_shared(tmp_path))
    assert found["metrics"]["rows"] == 300
    assert found["metrics"]["saving_percent_PETS"] == pytest.approx(
        next(row["saving_percent"] for row in found["tables"]["savings"] if row["policy"] == "conditional sorted")
    )
    assert "all_saving_percent_TWO" in found["metrics"]
