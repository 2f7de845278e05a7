"""A family of nets for heart beats (MIT-BIH) in one set of weights, against the same nets trained alone.

Beats are split at random, so that patients are on both sides: easier than by patient, which is given beside it. Each
seed has a split of its own. At equal steps family and lone nets see the same batches; a cost is accuracy lost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.frame import FOLDER, need

CONFIG = FOLDER.parent / "configs" / "supernet" / "ecg.yaml"
CONVERGED_EPOCHS = 40


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Train and compare.

    Args:
        quick: Two epochs and one seed: shows that it runs, measures nothing.
        seed: The first of three seeds.
        data: Folder that holds ``mitbih``.

    Returns:
        ``metrics``, ``peers``, ``tables``, ``aims`` and ``notes``.
    """
    need("torch", "torch")
    epochs = 2 if quick else 20
    rows = [row for one in range(seed, seed + (1 if quick else 3)) for row in _compared(data, one, epochs)]
    by_net = {net: [row for row in rows if row["net"] == net] for net in dict.fromkeys(row["net"] for row in rows)}
    family = [row for row in rows if row["alone"] is not None]
    names = list(dict.fromkeys(row["net"] for row in family))
    costs = {name: fmean(row["cost_points"] for row in by_net[name]) for name in names}
    places = dict(zip(("min", "mid", "max"), names, strict=True))
    means = [fmean(row["family"] for row in found) for found in by_net.values()]
    converged = _converged(data, seed, places["mid"], 3 if quick else CONVERGED_EPOCHS)
    patient = list(_inter_patient(data, seed, epochs))
    metrics = {
        "seconds": max(row["seconds"] for row in rows),
        "front_points": min(row["front_points"] for row in rows),
        "accuracy_min": min(means),
        "accuracy_max": max(means),
        **{f"sharing_cost_{place}_points": costs[name] for place, name in places.items()},
        "converged_cost_mid_points": converged - by_net[places["mid"]][0]["family"],
        "inter_patient_accuracy_min": min(row["accuracy"] for row in patient),
        "inter_patient_accuracy_max": max(row["accuracy"] for row in patient),
        "compound_time_ratio": None,
    }
    aims = {
        "seconds": "< 600", "front_points": "≥ 5", "accuracy_max": "≥ 97", "sharing_cost_min_points": "≤ 0.3",
        "sharing_cost_mid_points": "≤ 0.3", "sharing_cost_max_points": "≤ 0.3", "converged_cost_mid_points": "≤ 0.5",
        "compound_time_ratio": "≤ 0.55",
    }  # fmt: skip
    notes = [
        f"Cost at convergence: the middle net alone for {CONVERGED_EPOCHS} epochs against the family's 20, first seed.",
        "compound_time_ratio was not measured: there is no progressive shrinking to compare with.",
        "front_points: the least of the seeds; each is surely (95 %, paired) more accurate than the one before it.",
    ]
    return {"metrics": metrics, "tables": {"nets": rows, "inter_patient": patient}, "aims": aims, "notes": notes}


def _compared(data: Path, seed: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each subnet of one seed; smallest, middle and largest are trained alone too."""
    from unfold_supernet.nets import family
    from unfold_supernet.nets.front import difference, separable
    from unfold_supernet.nets.space import macs

    with tempfile.TemporaryDirectory() as folder:
        spec, beats, run_ = loaded(data, Path(folder), seed, epochs)
        began = time.perf_counter()
        trained = family.train_family(spec, beats, run_)
        seconds = time.perf_counter() - began
        found = family.qualities(trained.net, beats)
        ordered = sorted(trained.net.space.subnets, key=lambda one: macs(trained.net.space, one))
        front = separable([macs(trained.net.space, one) for one in ordered], [found[one.name] for one in ordered])
        chosen = {ordered[0].name, ordered[(len(ordered) - 1) // 2].name, ordered[-1].name}
        for one in ordered:
            row = {"seed": seed, "net": one.name, "family": found[one.name].accuracy, "f1": found[one.name].macro_f1}
            row |= {"alone": None, "cost_points": None, "paired_error": None}
            if one.name in chosen:
                alone = family.trained_alone(spec, beats, run_, one)
                gap = difference(alone.right, found[one.name].right)
                row |= {"alone": alone.accuracy, "cost_points": gap.points, "paired_error": gap.error}
            yield row | {"seconds": seconds, "front_points": len(front)}


def _converged(data: Path, seed: int, name: str, epochs: int) -> float:
    """Return the accuracy of one net alone after its own long training."""
    from unfold_supernet.nets import family

    with tempfile.TemporaryDirectory() as folder:
        spec, beats, run_ = loaded(data, Path(folder), seed, epochs)
        subnet = next(one for one in family.space(spec, beats).subnets if one.name == name)
        return family.trained_alone(spec, beats, run_, subnet).accuracy


def _inter_patient(data: Path, seed: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Yield the family's figures when it is trained on DS1 and tested on the patients of DS2."""
    from unfold_supernet.nets import family

    with tempfile.TemporaryDirectory() as folder:
        spec, beats, run_ = loaded(data, Path(folder), seed, epochs, "inter-patient")
        found = family.qualities(family.train_family(spec, beats, run_).net, beats)
        for name, one in found.items():
            shares = {f"sensitivity_{c}": s for c, s in zip(beats.names, one.sensitivity, strict=True)}
            yield {"net": name, "accuracy": one.accuracy, "macro_f1": one.macro_f1, **shares}


def loaded(data: Path, folder: Path, seed: int, epochs: int, split: str = "random") -> Any:
    """Return the spec of the config with its paths and epochs, the beats, and a run in ``folder``."""
    from unfold_supernet.nets.data import load
    from unfold_supernet.spec import SupernetSpec
    from unfoldkit.api import Run, RunDir
    from unfoldkit.engines.local import LocalEngine
    from unfoldkit.spec.loader import parse
    from unfoldkit.spec.validate import validate

    spec = validate(SupernetSpec, parse(CONFIG.read_text(encoding="utf-8"), CONFIG.name))
    beats = {"path": str(data / "mitbih" / "beats.npz"), "split": split}
    spec = spec.model_copy(
        update={
            "data": spec.data.model_copy(update=beats) if spec.data else None,
            "training": spec.training.model_copy(update={"epochs": epochs}),
        }
    )
    run_ = Run(directory=RunDir(folder), engine=LocalEngine(1), seed=seed)
    assert spec.data is not None  # noqa: S101 - the config has data
    return spec, load(spec.data, run_), run_
