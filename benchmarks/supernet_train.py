"""A family of subnets for heartbeats (MIT-BIH) in one set of weights, against the same networks trained alone.

Beats are split at random, so that patients are on both sides: easier than by patient, which is given beside it. Each
seed has a split of its own. At equal steps family and lone nets see the same batches; a cost is accuracy lost.
Progressive shrinking and the plain recipe (sandwich, the largest net's answers only) run in the same process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.frame import FOLDER, need

CONFIG = FOLDER.parent / "configs" / "supernet" / "ecg.yaml"
LONGER = 2
"""How many times the family's epochs a lone net gets to converge."""
Changed = dict[str, dict[str, Any]]
"""What differs from the config, by its sections."""
PLACES = ("min", "mid", "max")
RECIPES = ("recipe", "plain")
STRANGERS = {"noise": 0.1, "shift": 4}
"""What both recipes train with for patients that they have not seen: a little noise, and beats moved by 4 samples."""
AIMS = {
    "seconds": "< 600", "front_points": "≥ 5", "accuracy_max": "≥ 97", "sharing_cost_min_points": "≤ 0.3",
    "sharing_cost_mid_points": "≤ 0.3", "sharing_cost_max_points": "≤ 0.3", "converged_cost_mid_points": "≤ 0.5",
    "compound_time_ratio": "≤ 0.55",
}  # fmt: skip


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Train and compare.

    Args:
        quick: One epoch and one seed: shows that it runs, measures nothing.
        seed: The first of three seeds.
        data: Folder that holds ``mitbih``.

    Returns:
        ``metrics``, ``peers``, ``tables``, ``aims`` and ``notes``.
    """
    need("torch", "torch")
    epochs = 1 if quick else None
    seeds = range(seed, seed + (1 if quick else 3))
    rows = [row for one in seeds for row in _compared(data, one, epochs)]
    places = _places(rows)
    converged = {place: _converged(data, seed, name, epochs) for place, name in places.items()}
    shrunk, shrinking = _shrunk(data, seed, epochs)
    patient = [row for one, recipe in product(seeds, RECIPES) for row in _inter_patient(data, one, epochs, recipe)]
    return summary(rows, converged, shrunk, shrinking, _work(data, seed, epochs), patient)


def summary(
    rows: list[dict[str, Any]],
    converged: dict[str, float],
    shrunk: dict[str, float],
    shrinking: float,
    work: float,
    patient: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what was measured as metrics and tables.

    Args:
        rows: Of every net of every seed, the first seed first.
        converged: Accuracy alone after long training, by place.
        shrunk: Accuracy after progressive shrinking, by net.
        shrinking: Its processor seconds.
        work: Operations of the compound training against those of shrinking.
        patient: Nets between patients, of the recipe and of the plain one, of every seed.
    """
    by_net = {net: [row for row in rows if row["net"] == net] for net in dict.fromkeys(row["net"] for row in rows)}
    places = _places(rows)
    means = [fmean(row["family"] for row in found) for found in by_net.values()]
    first = {name: found[0] for name, found in by_net.items()}
    metrics = {
        "seconds": max(row["processor_seconds"] for row in rows),
        "front_points": min(row["front_points"] for row in rows),
        "accuracy_min": min(means),
        "accuracy_max": max(means),
        **{f"sharing_cost_{at}_points": fmean(row["cost_points"] for row in by_net[net]) for at, net in places.items()},
        **{f"converged_cost_{at}_points": converged[at] - first[net]["family"] for at, net in places.items()},
        "compound_time_ratio": rows[-1]["processor_seconds"] / shrinking,
        "compound_work_ratio": work,
        "shrinking_points": fmean(first[name]["family"] - shrunk[name] for name in first),
        **_between(patient),
    }
    tables = {
        "nets": rows,
        "inter_patient": patient,
        "shrinking": [{"net": name, "shrunk": shrunk[name], "compound": first[name]["family"]} for name in first],
    }
    return {"metrics": metrics, "tables": tables, "aims": AIMS, "notes": _notes()}


def _between(patient: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return what nets are worth between patients: means over seeds, and by how much the recipe is better."""
    found: dict[str, float | None] = {}
    for what in ("accuracy", "macro_f1"):
        worth = {key: [row[what] for row in patient if (row["recipe"], row["net"]) == key] for key in _keys(patient)}
        ours = [fmean(values) for (recipe, _), values in worth.items() if recipe == RECIPES[0]]
        seeds = [_gain(patient, what, seed) for seed in dict.fromkeys(row["seed"] for row in patient)]
        error = stdev(seeds) / len(seeds) ** 0.5 if len(seeds) > 1 else None
        gain = {f"inter_patient_{what}_gain": fmean(seeds), f"inter_patient_{what}_gain_error": error}
        found |= {f"inter_patient_{what}_min": min(ours), f"inter_patient_{what}_max": max(ours), **gain}
    return found


def _keys(patient: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["recipe"], row["net"]) for row in patient))


def _gain(patient: list[dict[str, Any]], what: str, seed: int) -> float:
    ours, plain = (
        fmean(row[what] for row in patient if (row["recipe"], row["seed"]) == (recipe, seed)) for recipe in RECIPES
    )
    return ours - plain


def _places(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the nets that were trained alone too, by place."""
    names = list(dict.fromkeys(row["net"] for row in rows if row["alone"] is not None))
    return dict(zip(PLACES, names, strict=True))


def _notes() -> list[str]:
    return [
        "seconds: of the processor, on one thread, the longest of the seeds.",
        f"Cost at convergence: a net alone for {LONGER}x the epochs against the family's, first seed.",
        "compound_time_ratio: processor seconds of the compound list (last seed) against shrinking as published.",
        "compound_work_ratio: the same in operations, which no load of the machine changes.",
        "Shrinking: the largest net as long as ours, then depth and width 150/180 of that each, all nets in the lists.",
        "shrinking_points: accuracy of the compound nets less that of the shrunk ones, in the mean, first seed.",
        "front_points: the least of the seeds; each is surely (95 %, paired) more accurate than the one before it.",
        "inter_patient_*: trained with noise of 0.1 and shifts of up to 4 samples, as random beats need it not.",
        "inter_patient_*_gain: mean over nets and seeds against the plain recipe (sandwich rule, distillation only).",
        "inter_patient_*_gain_error: its standard error over the seeds, which train otherwise on the same patients.",
    ]


def _compared(data: Path, seed: int, epochs: int | None) -> Iterator[dict[str, Any]]:
    """Yield a row for each subnet of one seed; smallest, middle and largest are trained alone too."""
    from unfold_supernet.networks.space import count_macs
    from unfold_supernet.training.accuracy import compare_paired, select_front
    from unfold_supernet.training.evaluation import evaluate_subnets, predict_test_rows, sort_by_macs
    from unfold_supernet.training.family import train_standalone, train_supernet

    with tempfile.TemporaryDirectory() as folder:
        setup = loaded(data, Path(folder), seed, epochs)
        problem, directory, progress = setup.problem, setup.run.directory, setup.run.progress
        began, busy = time.perf_counter(), time.process_time()
        supernet = train_supernet(problem, directory, progress).supernet
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        found = evaluate_subnets(predict_test_rows(supernet, problem.data), len(problem.data.names))
        ordered = sort_by_macs(supernet)
        costs = [count_macs(supernet.space, one) for one in ordered]
        front = select_front(costs, [found[one.name] for one in ordered])
        chosen = {ordered[0].name, ordered[(len(ordered) - 1) // 2].name, ordered[-1].name}
        for one in ordered:
            row = {"seed": seed, "net": one.name, "family": found[one.name].accuracy, "f1": found[one.name].macro_f1}
            row |= {"alone": None, "cost_points": None, "paired_error": None}
            if one.name in chosen:
                alone = train_standalone(problem, one, directory, progress)
                gap = compare_paired(alone.correct, found[one.name].correct)
                row |= {"alone": alone.accuracy, "cost_points": gap.points, "paired_error": gap.error}
            row |= {"seconds": seconds, "processor_seconds": busy, "front_points": len(front)}
            yield show_row(row)


def _converged(data: Path, seed: int, name: str, epochs: int | None) -> float:
    """Return the accuracy of one net alone after its own long training."""
    from unfold_supernet.training.family import train_standalone

    with tempfile.TemporaryDirectory() as folder:
        epochs = loaded(data, Path(folder), seed, epochs).problem.options.epochs
        setup = loaded(data, Path(folder), seed, None, {"training": {"epochs": epochs * LONGER}})
        subnet = next(one for one in setup.problem.space.subnets if one.name == name)
        accuracy = train_standalone(setup.problem, subnet, setup.run.directory, setup.run.progress).accuracy
        return float(show_row({"net": name, "converged": accuracy})["converged"])


def _work(data: Path, seed: int, epochs: int | None) -> float:
    """Return the operations of the compound training against those of shrinking; back is twice forth."""
    from unfold_supernet.networks.space import count_macs
    from unfold_supernet.training import curriculum

    sums, changed = [], Changed()
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            setup = loaded(data, Path(folder), seed, epochs, changed)
        space, options, rows = setup.problem.space, setup.problem.options, len(setup.problem.data.train)
        phases, total = curriculum.build_phases(space.subnets, options), 0
        for epoch in range(curriculum.count_epochs(phases, options)):
            phase = curriculum.find_phase(phases, epoch)
            for batch in range(max(1, rows // options.batch)):
                sample = curriculum.draw_subnets(phase, seed, epoch, batch)
                total += 3 * sum(count_macs(space, subnet) for subnet in sample)
                total += count_macs(space, space.largest) if phase.has_teacher else 0
        sums.append(total)
        changed = _shrinking(setup.spec.space)
    return sums[0] / sums[1]


def _shrinking(space: Any) -> Changed:
    """Return what makes the config one of progressive shrinking, over all nets that its lists can make."""
    every = {key: sorted(set(getattr(space, key))) for key in ("expand", "depth", "resolution")}
    return {"space": {**every, "coupling": "independent"}, "training": {"rule": "progressive", "sort": True}}


def _shrunk(data: Path, seed: int, epochs: int | None) -> tuple[dict[str, float], float]:
    """Return the accuracies of the nets after progressive shrinking, and its seconds of processor time."""
    from unfold_supernet.training.evaluation import evaluate_subnets, predict_test_rows
    from unfold_supernet.training.family import train_supernet

    with tempfile.TemporaryDirectory() as folder:
        setup = loaded(data, Path(folder), seed, epochs)
        names = [subnet.name for subnet in setup.problem.space.subnets]
        setup = loaded(data, Path(folder), seed, epochs, _shrinking(setup.spec.space))
        beats = setup.problem.data
        busy = time.process_time()
        supernet = train_supernet(setup.problem, setup.run.directory, setup.run.progress).supernet
        busy = time.process_time() - busy
        qualities = evaluate_subnets(predict_test_rows(supernet, beats), len(beats.names))
        found = {name: qualities[name].accuracy for name in names}
        show_row({"shrunk": found, "processor_seconds": busy})
        return found, busy


def _inter_patient(data: Path, seed: int, epochs: int | None, recipe: str) -> Iterator[dict[str, Any]]:
    """Yield the family's figures when it is trained on DS1 and tested on the patients of DS2."""
    from unfold_supernet.training.evaluation import evaluate_subnets, predict_test_rows
    from unfold_supernet.training.family import train_supernet

    training = STRANGERS | ({"rule": "sandwich", "distill": 1.0} if recipe == "plain" else {})
    changed: Changed = {"data": {"split": "inter-patient"}, "training": training}
    with tempfile.TemporaryDirectory() as folder:
        setup = loaded(data, Path(folder), seed, epochs, changed)
        beats = setup.problem.data
        supernet = train_supernet(setup.problem, setup.run.directory, setup.run.progress).supernet
        found = evaluate_subnets(predict_test_rows(supernet, beats), len(beats.names))
        for name, one in found.items():
            shares = {f"sensitivity_{c}": s for c, s in zip(beats.names, one.sensitivity, strict=True)}
            row = {"seed": seed, "recipe": recipe, "net": name, "accuracy": one.accuracy, "macro_f1": one.macro_f1}
            yield show_row(row | shares)


def show_row(row: dict[str, Any]) -> dict[str, Any]:
    """Show a row as soon as it is there, as the whole takes long; and return it."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


@dataclass(frozen=True, slots=True)
class Setup:
    """A training of the config: its spec with the changes, the problem with the beats loaded, and a run."""

    spec: Any
    problem: Any
    run: Any


def loaded(data: Path, folder: Path, seed: int, epochs: int | None = None, changed: Changed | None = None) -> Setup:
    """Set up a training of the config with some keys changed, and a run in ``folder``."""
    from unfold_supernet.schema.supernet import SupernetSpec
    from unfold_supernet.verbs.build import build_training_problem
    from unfoldkit.api import Run, RunDir
    from unfoldkit.engines.local import LocalEngine
    from unfoldkit.spec.validate import validate
    from unfoldkit.spec.yaml_reader import parse

    given = {
        "data": {"path": str(data / "mitbih" / "beats.npz")},
        **({"training": {"epochs": epochs}} if epochs else {}),
    }
    document = parse(CONFIG.read_text(encoding="utf-8"), CONFIG.name)
    for part in (given, changed or {}):
        for key, values in part.items():
            document.data[key] |= values
    spec = validate(SupernetSpec, document)
    run_ = Run(directory=RunDir(folder), engine=LocalEngine(1), seed=seed)
    return Setup(spec, build_training_problem(spec, run_), run_)
