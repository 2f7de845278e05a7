"""What each ingredient of the training of a family brings: heartbeats (MIT-BIH), one ingredient left out at a time.

The default recipe is `configs/supernet/ecg.yaml`: every net of a compound list in every step, labels only, norm
statistics of its own for each net. Each line leaves one of these out; split, seed, steps and batches stay the same. A
loss is paired: the same net by the recipe against it without the ingredient, on the same beats.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.frame import need
from benchmarks.supernet_train import PLACES, Changed, loaded, show_row

RECIPE = "recipe"
SHARED = "shared statistics"


@dataclass(frozen=True, slots=True)
class Line:
    """A recipe: qualities of smallest, middle and largest net, the steps that the middle got, processor seconds."""

    found: tuple[Any, Any, Any]
    steps: int
    seconds: float


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Train once for each ingredient that is taken away, and once with all.

    Args:
        quick: One epoch: shows that it runs, measures nothing.
        seed: Of split, weights and batches.
        data: Folder that holds ``mitbih``.

    Returns:
        ``metrics`` of the recipe, ``peers`` without an ingredient, ``tables`` and ``notes``.
    """
    need("torch", "torch")
    epochs = 1 if quick else None
    lines: dict[str, Line] = {}
    for name, changed in ingredients(data, seed).items():
        lines |= _trained(data, seed, epochs, name, changed)
    return summary(lines)


def ingredients(data: Path, seed: int) -> dict[str, Changed]:
    """Return what differs from the config, by what is there instead of the ingredient."""
    with tempfile.TemporaryDirectory() as folder:
        space = loaded(data, Path(folder), seed).spec.space
    every = {key: sorted(set(getattr(space, key))) for key in ("expand", "depth", "resolution")}
    return {
        RECIPE: {},
        "sampled nets": {"training": {"rule": "sandwich", "samples": 1}},
        "distillation only": {"training": {"distill": 1.0}},
        "independent list": {"space": {**every, "coupling": "independent"}},
    }


def summary(lines: dict[str, Line]) -> dict[str, Any]:
    """Return metrics of the recipe, those of its peers, and each loss with its paired error.

    Args:
        lines: By what is there instead of an ingredient; the recipe too.
    """
    figures = {name: _figures(line) for name, line in lines.items()}
    rows = [_row(name, lines[RECIPE], line) for name, line in lines.items() if name != RECIPE]
    lost = {f"{row['instead'].replace(' ', '_')}_points": fmean(row[f"{at}_lost"] for at in PLACES) for row in rows}
    return {
        "metrics": figures[RECIPE] | lost,
        "peers": {name: found for name, found in figures.items() if name != RECIPE},
        "tables": {"lost": rows},
        "notes": _notes(),
    }


def _notes() -> list[str]:
    return [
        "min, mid, max: smallest, middle (third of six) and largest net of the list, in % of the test beats.",
        "sampled nets: largest, smallest and one of the four others in each step (sandwich rule).",
        "distillation only: all nets but the largest learn from its answers alone, without labels.",
        "shared statistics: the recipe's own weights; each net answers under the largest one's norm statistics.",
        "independent list: every combination of the lists' entries (30 nets), all in every step.",
        "*_points: mean loss over the three places without the ingredient; below 0 the recipe was worse.",
        "lost, error: points and their paired standard error; one seed, one split: below 0.3 nothing is shown.",
    ]


def _figures(line: Line) -> dict[str, float]:
    accuracies = {f"accuracy_{at}": one.accuracy for at, one in zip(PLACES, line.found, strict=True)}
    return {**accuracies, "steps_mid": float(line.steps), "processor_seconds": line.seconds}


def _row(name: str, recipe: Line, line: Line) -> dict[str, Any]:
    from unfold_supernet.training.accuracy import compare_paired

    row: dict[str, Any] = {"instead": name}
    for at, whole, without in zip(PLACES, recipe.found, line.found, strict=True):
        gap = compare_paired(whole.correct, without.correct)
        row |= {at: without.accuracy, f"{at}_lost": gap.points, f"{at}_error": gap.error}
    return show_row(row)


def _trained(data: Path, seed: int, epochs: int | None, name: str, changed: Changed) -> dict[str, Line]:
    """Return the line of a recipe; with the default one also that of shared statistics, which needs no training."""
    from unfold_supernet.training.family import train_supernet

    with tempfile.TemporaryDirectory() as folder:
        listed = loaded(data, Path(folder), seed).problem.space
        setup = loaded(data, Path(folder), seed, epochs, changed)
        beats = setup.problem.data
        began = time.process_time()
        trained = train_supernet(setup.problem, setup.run.directory, setup.run.progress)
        seconds = time.process_time() - began
        places = _places(listed)
        steps = trained.steps[places[1].name]
        own = [trained.supernet.bound[one.name] for one in places]
        found = {name: Line(_qualities(own, beats), steps, seconds)}
        if name == RECIPE:
            found[SHARED] = Line(
                _qualities([_borrowed(trained.supernet, one) for one in places], beats), steps, seconds
            )
        return found


def _places(space: Any) -> list[Any]:
    """Return smallest, middle and largest net of the list."""
    from unfold_supernet.networks.space import count_macs

    ordered = sorted(space.subnets, key=lambda one: count_macs(space, one))
    return [ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]]


def _qualities(bound: list[Any], beats: Any) -> tuple[Any, Any, Any]:
    from unfold_supernet.training.accuracy import evaluate_predictions
    from unfold_supernet.training.latency import predict_classes

    y, rows = beats.y[beats.test], beats.test
    low, middle, high = (evaluate_predictions(predict_classes(one, beats, rows), y, len(beats.names)) for one in bound)
    show_row({"accuracies": [low.accuracy, middle.accuracy, high.accuracy]})
    return low, middle, high


def _borrowed(net: Any, subnet: Any) -> Any:
    """Return a net under the first channels of the largest one's norm statistics."""
    from unfold_supernet.networks.supernet import bind_subnet

    largest = net.bound[net.space.largest.name]
    known = {conv.name: pair for conv, pair in zip(largest.convs, largest.statistics, strict=True)}
    convs = net.bound[subnet.name].convs
    borrowed = tuple((known[conv.name][0][: conv.out], known[conv.name][1][: conv.out]) for conv in convs)
    return bind_subnet(net.space, dict(net.weights), subnet, borrowed)
